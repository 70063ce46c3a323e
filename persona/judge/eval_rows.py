"""Which pairs an evaluation measures on: the run's own held-out ones, or a file's."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from persona.errors import InputError, Message
from persona.store.pairs import Pair, find_unfinished
from persona.train.run_folder import Run
from persona.write import importers
from persona.write.importers import registry, text_source

T = TypeVar("T")


@dataclass(frozen=True)
class EvalRows:
    """The pairs of an evaluation, and where they come from.

    held: not trained on; trained: those that were, where they are known; from_run: the held ones are those that the run
    itself held out; notes: what is missing or left out.
    """

    source: str = ""
    held: list[Pair] = field(default_factory=list)
    trained: list[Pair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    from_run: bool = False


def read_eval_rows(run: Run | None, data: Path | None) -> EvalRows:
    """Raises InputError when `data` holds no pair that can be measured on."""
    run_rows = run.rows() if run else []
    trained = [r.pair for r in run_rows if not r.held_out]
    if data is not None:
        held, notes = _read_file(data, trained)
        return EvalRows(data.name, held, trained, notes)
    held = [r.pair for r in run_rows if r.held_out]
    if held:
        return EvalRows("the run's held-out pairs", held, trained, from_run=True)
    reason = Message("The run held out no pairs (eval_fraction 0)") if run else (
        Message("The adapter lies in no run folder, so nobody knows which pairs it was trained on")
    )  # fmt: skip
    return EvalRows(
        "",
        [],
        trained,
        [
            Message(
                "{reason}. On the command line, persona eval --data names a file of other pairs to measure on.",
                reason=reason,
            )
        ],
    )


def _read_file(data: Path, trained: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """(pairs, notes) of a file, without the pairs that were trained on: they would measure memory."""
    source = text_source.open_source(data)
    items = list(registry.read_source(source, registry.detect_format(source), importers.ImportOptions()))
    read = [p for p in items if isinstance(p, Pair) and not find_unfinished([p])]
    skipped = sum(isinstance(i, importers.SkippedRow) for i in items)
    if not read:
        raise InputError(
            '{data}: no pairs in it. Each line is to be {{"instruction": …, "output": …}}, or any form '
            "that `persona import` reads.",
            data=data,
        )
    trained_texts = {(p.instruction.strip(), p.output.strip()) for p in trained}
    fresh = [p for p in read if (p.instruction.strip(), p.output.strip()) not in trained_texts]
    if not fresh:
        raise InputError(
            "{data}: all of its {count:,} pair(s) (was|were) trained on, so they would measure memory. Name a file "
            "with other pairs.",
            data=data,
            count=len(read),
        )
    notes: list[str] = []
    if skipped:
        notes.append(
            Message(
                "{data}: {skipped:,} (entry|entries) (is|are) no pair and (was|were) left out.",
                data=data.name,
                skipped=skipped,
            )
        )
    if len(fresh) < len(read):
        notes.append(
            Message(
                "{data}: {count:,} pair(s) (was|were) trained on and left out.",
                data=data.name,
                count=len(read) - len(fresh),
            )
        )
    return fresh, notes


def sample_evenly(items: Sequence[T], limit: int, seed: int = 0) -> list[T]:
    """At most `limit` items, drawn evenly, in their order; the same ones every time."""
    if len(items) <= limit:
        return list(items)
    return [items[n] for n in sorted(random.Random(seed).sample(range(len(items)), limit))]
