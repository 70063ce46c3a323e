"""The sections of the GPU benchmark: what each measures, in which order, with which share of the time."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import ESTIMATE_CELLS, TINY_CELLS, Cell, Scale, training_cells, unsloth_cells

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a section's process was asked: where to work, how much, and until when (time.time())."""

    folder: Path
    scale: Scale
    until: float


def measure_cells(cells: list[Cell], job: Job) -> Iterator[Record]:
    """One record a cell; a cell that fails, or for which no time is left, says so."""
    from benchmarks.gpu.bases import build_base
    from benchmarks.gpu.training import measure_cell, reset_memory

    longest = 0.0
    for cell in cells:
        start = time.time()
        if start + longest > job.until:
            yield asdict(cell) | {"skipped": "out of time"}
            continue
        try:
            build_base(cell.base, job.folder, job.scale.tiny)
            start = time.time()  # a base is built once
            yield measure_cell(cell, job.folder, job.scale)
        except Exception as e:  # the other cells go on
            yield asdict(cell) | {"skipped": f"{type(e).__name__}: {e}"[:300]}
            reset_memory()
        longest = max(longest, time.time() - start)


def measure_card(job: Job) -> Iterator[Record]:
    """Name, memory, rates of multiplying and of copying."""
    from benchmarks.gpu import card

    yield card.measure_card(job.scale.tiny)


def measure_training(base: str, job: Job) -> Iterator[Record]:
    """The cells of one base."""
    yield from measure_cells(TINY_CELLS if job.scale.tiny else training_cells(base), job)


def measure_chats(base: str, job: Job) -> Iterator[Record]:
    """2 and 4 columns on a base with an adapter of a few steps."""
    from benchmarks.gpu import bases, card, chat
    from benchmarks.gpu.training import measure_cell

    made = measure_cell(Cell("ours", base, lora="r16 all"), job.folder, Scale(1, 2, job.scale.tiny))
    base_folder = bases.build_base(base, job.folder, job.scale.tiny)
    bandwidth = card.measure_card(job.scale.tiny)["bandwidth"]
    for columns in (2, 4):
        if time.time() > job.until:
            yield {"base": base, "columns": columns, "skipped": "out of time"}
            continue
        tokens = 8 if job.scale.tiny else 48
        yield {"base": base} | chat.measure_chat(Path(made["adapter"]), base_folder, columns, tokens, bandwidth)


def measure_estimates(job: Job) -> Iterator[Record]:
    """Planned and measured peak memory; each in few steps, since the first has the peak already."""
    cells = ESTIMATE_CELLS[:2] if job.scale.tiny else ESTIMATE_CELLS
    yield from measure_cells(cells, Job(job.folder, Scale(1, 2, job.scale.tiny), job.until))


# name → (its share of the time, what it measures); in the order in which they run
SECTIONS: dict[str, tuple[float, Callable[[Job], Iterator[Record]]]] = {
    "card": (0.08, measure_card),
    "training gemma-3-4b": (0.22, lambda job: measure_training("gemma-3-4b", job)),
    "chat": (0.13, lambda job: measure_chats("gemma-3-4b", job)),
    "unsloth": (0.15, lambda job: measure_cells(unsloth_cells()[: 2 if job.scale.tiny else None], job)),
    "training qwen3-4b": (0.22, lambda job: measure_training("qwen3-4b", job)),
    "estimates": (0.20, measure_estimates),
}
