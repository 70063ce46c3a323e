"""Training tokens/s and peak memory of one cell of the table: a side, a base, its number format, a LoRA, rows, a batch.

Every side trains the same rendered rows with the same labels for a few steps, the first of which warm up. ours is a run
as the page starts it, by train_run(); the others are built in benchmarks/train.py and unsloth.py.
"""

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import TrainerCallback

from benchmarks import train as stock
from benchmarks.gpu import bases
from benchmarks.gpu.card import matmul_rate
from benchmarks.gpu.cells import LORAS, Cell, Scale
from persona.models import hardware, memory, open_renderer, quantization
from persona.models.base import Base
from persona.store.persona_folder import Persona
from persona.template.render import TrainingExample, render_examples
from persona.train import duration, launcher, row_tokens
from persona.train import plan as train_plan
from persona.train.config import RunConfig, make_config
from persona.train.run import train_run

BLOCKS = 3  # the measured steps are cut into so many; the median of their rates counts


def render_rows(base_folder: Path, persona: Persona) -> tuple[Base, Any, list[TrainingExample]]:
    """The base, its tokenizer, and the persona's rows as every side trains them."""
    found, renderer = open_renderer.open_renderer(persona.card(), str(base_folder), bases.TEMPLATE)
    return found, renderer.tokenizer, render_examples(renderer, persona.pairs())


def measure_cell(cell: Cell, folder: Path, scale: Scale) -> dict[str, Any]:
    """The cell's fields, tokens/s, peak memory, share of the matmul rate; and for ours what was planned."""
    base_folder = bases.build_base(cell.base, folder, scale.tiny)
    persona = (bases.short_persona if cell.rows == "short" else bases.long_persona)(folder)
    found, tokenizer, rows = render_rows(base_folder, persona)
    reset_memory()
    begun = time.time()
    if cell.side.startswith("ours"):
        figures = train_ours(cell, persona, found, rows, scale)
    else:
        plain = [{"input_ids": r.input_ids, "labels": r.labels} for r in rows]
        figures = train_stock(cell, found, tokenizer, plain, scale)
    figures |= peak_memory() | {"cell_seconds": round(time.time() - begun, 1)}
    if tokens_per_s := figures["tokens_per_s"]:
        learned = sum(r.learned for r in rows) / sum(len(r.input_ids) for r in rows)
        shape = train_plan.read_base_shape(found)
        checkpointing = cell.checkpointing or cell.side in ("recipe", "unsloth")
        flops = memory.step_flops(shape, tokens_per_s, tokens_per_s * learned, checkpointing)
        figures["matmul_share"] = round(flops / matmul_rate(), 4)
    return asdict(cell) | figures


def train_ours(cell: Cell, persona: Persona, found: Base, rows: Sequence[TrainingExample], scale: Scale) -> dict:
    """A run of our own trainer, and what was planned for it: peak memory and seconds of the counted steps."""
    steps = scale.warm + scale.steps
    config = make_config(
        "quick", base=str(found.path), template=bases.TEMPLATE, max_steps=steps, save_steps=steps,
        batch_size=cell.batch, quantization=cell.quantization, gradient_checkpointing=cell.checkpointing,
        eval_fraction=0, diary_probes=0, **LORAS[cell.lora],
    )  # fmt: skip
    run = launcher.create_run(persona, config)
    with variant(cell.side):
        train_run(run)
    events = [e for e in run.events() if e["event"] == "step"]
    losses = [round(e["loss"], 4) for e in events]
    events = events[scale.warm - 1 :]
    points = [(e["seconds"], e["tokens"]) for e in events]
    seen = run.progress().plan
    planned, seconds = plan_run(config, found, rows, seen["dtype"], points[-1][1] - points[0][1], len(points) - 1)
    return {
        "tokens_per_s": block_rate(points),
        "dtype": seen["dtype"],
        "planned_bytes": planned.total,
        "planned": asdict(planned),
        "planned_seconds": seconds,
        "seconds": round(points[-1][0] - points[0][0], 2),
        "losses": losses,
        "adapter": str(run.adapter),
    }


@contextlib.contextmanager
def variant(side: str) -> Iterator[None]:
    """Other ways for ours: with transformers' and PEFT's own modules; or torch.compile of each decoder layer."""
    from persona.train import fused_kernels
    from persona.train import run as train_module

    real, undo = train_module.build_trainer, contextlib.ExitStack()
    if "plain" in side or "compiled" in side:
        undo.enter_context(mock.patch.object(fused_kernels, "fused_kernels", lambda _: contextlib.nullcontext()))

    def build(*args: Any, **kwargs: Any) -> Any:
        trainer = real(*args, **kwargs)
        if "compiled" in side:
            for layer in trainer.model.get_base_model().model.layers:
                layer.compile(dynamic=True)
        return trainer

    train_module.build_trainer = build
    try:
        yield
    finally:
        train_module.build_trainer = real
        undo.close()


def plan_run(
    config: RunConfig, found: Base, rows: Sequence[TrainingExample], dtype: str, tokens: int, steps: int
) -> tuple[memory.MemoryEstimate, float | None]:
    """What the page says before Start of these rows' heaviest step, and of the time for `tokens` without start-up."""
    machine, shape = hardware.this_machine(), train_plan.read_base_shape(found)
    lengths = [(len(r.input_ids), r.learned) for r in rows]
    step = row_tokens.find_heaviest_step(config, lengths)
    plan = train_plan.plan_training(machine, shape, step, 1, dtype)
    learned = tokens * sum(n for _, n in lengths) / sum(n for n, _ in lengths)
    work = duration.TrainingWork(tokens, learned, evaluations=0, held_out=0, samples=0, steps=steps)
    seconds = duration.estimate_seconds(machine, shape, plan, work)
    return plan.memory, None if seconds is None else round(seconds - duration.STARTUP_SECONDS, 2)


def train_stock(cell: Cell, found: Base, tokenizer: Any, rows: list[dict], scale: Scale) -> dict:
    """A few steps of one of the other sides. side: recipe, trl or unsloth."""
    from transformers.trainer_callback import PrinterCallback

    lora = make_stock_lora(cell.lora)
    loop = {"max_steps": scale.warm + scale.steps}
    if cell.side == "unsloth":
        from benchmarks.gpu import unsloth

        trainer = unsloth.make_trainer(found.path, cell.quantization, tokenizer, rows, lora, loop)
    else:
        model = load_stock_model(found, cell.quantization, prepare=cell.side == "recipe")
        if cell.side == "recipe":
            trainer = stock.recipe_trainer(model, tokenizer, rows, lora, **loop)
        else:
            loop["per_device_train_batch_size"] = cell.batch
            trainer = stock.trl_trainer(model, tokenizer, rows, lora, **loop)
    counter = trainer.data_collator = CountingCollator(trainer.data_collator)
    clock = StepClock(counter)
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"tokens_per_s": block_rate(clock.points[scale.warm - 1 :])}


def make_stock_lora(name: str) -> dict[str, Any]:
    """LORAS in PEFT's own names."""
    ours = LORAS[name]
    modules = ours["target_modules"]
    return {"r": ours["lora_r"], "lora_alpha": ours["lora_alpha"],
            "target_modules": modules if modules == "all-linear" else str(modules).split(",")}  # fmt: skip


def load_stock_model(found: Base, kind: str, prepare: bool) -> Any:
    """The base as tutorials load it, in bfloat16 or in 4 bits. prepare: PEFT's preparation of quantized bases."""
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = quantization.make_quantization_kwargs(kind, "bfloat16", device)
    model = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.bfloat16, **options)
    if kind == "none":
        return model.to(device)
    quantization.keep_training_arithmetic(model)
    return prepare_model_for_kbit_training(model) if prepare else model


class CountingCollator:
    """A collator that counts the tokens of its rows, unpadded."""

    def __init__(self, collate: Callable[[list[dict]], Any]):
        self.collate, self.tokens = collate, 0

    def __call__(self, rows: list[dict], *args: Any, **options: Any) -> Any:
        self.tokens += sum(len(r["input_ids"]) for r in rows)
        return self.collate(rows, *args, **options)


class StepClock(TrainerCallback):
    """(seconds, tokens) at the end of each optimizer step."""

    def __init__(self, counter: CountingCollator):
        self.counter = counter
        self.points: list[tuple[float, int]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.points.append((time.perf_counter(), self.counter.tokens))


def block_rate(points: Sequence[tuple[float, int]]) -> float:
    """Tokens/s from (seconds, tokens) after each step: the median over blocks of steps."""
    cuts = sorted({round(n * (len(points) - 1) / BLOCKS) for n in range(BLOCKS + 1)})
    blocks = [(points[a], points[b]) for a, b in itertools.pairwise(cuts)]
    rates = [(end[1] - start[1]) / (end[0] - start[0]) for start, end in blocks]
    return round(statistics.median(rates), 1)


def reset_memory() -> None:
    """Free what the last cell left, and begin to count the peak anew."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # another side may want another number format
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Bytes at the peak: of torch's tensors, of what it took from the GPU, and of the whole process.

    On a CPU only the last, and that of all cells of this process so far.
    """
    if not torch.cuda.is_available():
        return {"peak_bytes": hardware.peak_resident_memory()}
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    reserved = torch.cuda.max_memory_reserved()
    return {
        "peak_bytes": reserved + context,
        "allocated_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": reserved,
        "context_bytes": context,
    }
