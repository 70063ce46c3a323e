"""Which pairs an evaluation measures on: the run's own held-out ones, or a file's."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from persona import importers
from persona.errors import InputError, Message
from persona.importers import text
from persona.pairs import Pair, unfinished
from persona.runs import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """held: pairs that were not learned from; trained: those that were, where they are known; notes: what is absent."""

    source: str = ""
    held: list[Pair] = field(default_factory=list)
    trained: list[Pair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_rows(run: Run | None, data: Path | None) -> Rows:
    """Raises InputError when `data` holds no pair that can be measured on."""
    found = run.rows() if run else []
    trained = [r.pair for r in found if not r.held_out]
    if data is not None:
        held, notes = _read(data, trained)
        return Rows(data.name, held, trained, notes)
    held = [r.pair for r in found if r.held_out]
    if held:
        return Rows("the run's held-out pairs", held, trained)
    why = Message("The run held out no pairs (eval_fraction 0)") if run else (
        Message("The adapter lies in no run folder, so nobody knows which pairs it was trained on")
    )  # fmt: skip
    return Rows(
        "",
        [],
        trained,
        [Message("{reason}. Name a file of other pairs with --data to measure what was learned.", reason=why)],
    )


def _read(data: Path, trained: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """The file's pairs, those left out that were trained on: they would measure memory."""
    source = text.open_source(data)
    items = list(importers.read(source, importers.detect(source), importers.Options()))
    read = [p for p in items if isinstance(p, Pair) and not unfinished([p])]
    skipped = sum(isinstance(i, importers.Skipped) for i in items)
    if not read:
        raise InputError(
            '{data}: no pairs in it. Each line is to be {{"instruction": …, "output": …}}, or any form '
            "that `persona import` reads.",
            data=data,
        )
    known = {(p.instruction.strip(), p.output.strip()) for p in trained}
    fresh = [p for p in read if (p.instruction.strip(), p.output.strip()) not in known]
    if not fresh:
        raise InputError(
            "{data}: all of its {count:,} pairs were trained on, so they would measure memory. Name a file "
            "with other pairs.",
            data=data,
            count=len(read),
        )
    notes: list[str] = []
    if skipped:
        notes.append(
            Message("{data}: {skipped:,} entries are no pairs and were left out.", data=data.name, skipped=skipped)
        )
    if len(fresh) < len(read):
        notes.append(
            Message(
                "{data}: {count:,} pairs were trained on and left out.", data=data.name, count=len(read) - len(fresh)
            )
        )
    return fresh, notes


def some(items: Sequence[T], most: int, seed: int = 0) -> list[T]:
    """At most so many, drawn evenly, in their order; the same ones every time."""
    if len(items) <= most:
        return list(items)
    return [items[n] for n in sorted(random.Random(seed).sample(range(len(items)), most))]
