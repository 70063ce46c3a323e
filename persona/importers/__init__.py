"""Text from outside → pairs, one outside format a file.

An importer is a module with

    TITLE                     what a user calls the format
    sniff(source)             how sure it is that the file is its own, 0 … 1; reads the beginning only
    survey(source)            what can be chosen before anything is written: columns, speakers, a persona's card
    read(source, options)     Pair | Skipped | Note, one after the other: memory does not grow with the file
    SUFFIX, dump(pairs)       where the format can be written too: its file name's ending, and the file's text in pieces

Nothing is dropped silently: what does not become a pair is a Skipped with its line, what is left out of a pair a Note.
"""

import pkgutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Literal

from persona import journal
from persona.errors import InputError, Message
from persona.files import write_atomic
from persona.folder import Card, Persona
from persona.importers.text import Source
from persona.pairs import Pair


@dataclass(frozen=True)
class Skipped:
    """Something in the file that did not become a pair: its line (from 1; a row in a sheet), why, and its text."""

    line: int
    why: str
    text: str = ""


@dataclass(frozen=True)
class Note:
    """Something left out of a pair that was made: its line, and what. The same `what` is counted together."""

    line: int
    what: str


LISTED = 10_000  # skipped rows that are listed one by one; a file of garbage must not fill the memory

Item = Pair | Skipped | Note


@dataclass(frozen=True)
class Options:
    """What the user chose or corrected. Each format reads the fields that concern it.

    columns: field of a pair ("instruction", "input", "output", "history", "source") → column or key of the file.
    speakers: the persona's name in the file, and her other names.
    actions: stage directions inside a reply are dropped, or kept as *action* text.
    turns: how many earlier exchanges of the scene go with each pair as history.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    speakers: tuple[str, ...] = ()
    actions: Literal["drop", "keep"] = "drop"
    turns: int = 0


@dataclass(frozen=True)
class Survey:
    """What an importer found out about a file before reading it all.

    columns: names in the file, in its order; mapping: the guess, for Options.columns.
    speakers: name → number of speeches, most frequent first. card: a persona that the file describes.
    """

    columns: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    speakers: Mapping[str, int] = field(default_factory=dict)
    card: Card | None = None


@dataclass(frozen=True)
class Preview:
    """The first pairs of a file as they would be imported."""

    pairs: list[Pair]
    skipped: list[Skipped]
    more: bool


@dataclass(frozen=True)
class Report:
    """What an import did: rows read = pairs added + pairs known already + rows left out.

    skipped: the rows left out, at most LISTED of them. notes: what was left out of pairs, and how often.
    """

    read: int
    added: int
    known: int
    left_out: int
    skipped: list[Skipped]
    notes: dict[str, int]


@cache
def formats() -> dict[str, ModuleType]:
    """Every importer by name: the modules of this folder that have a TITLE."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    modules = {name: import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "TITLE")}


def importer(name: str) -> ModuleType:
    """Raises InputError naming the formats there are."""
    known = formats()
    if name not in known:
        raise InputError("{name!r}: no such format. Choose one of {known}.", name=name, known=", ".join(known))
    return known[name]


def detect(source: Source) -> str:
    """The format that is surest of the file. Raises InputError when none is."""
    sure = {name: module.sniff(source) for name, module in formats().items()}
    best = max(sure, key=lambda name: sure[name])
    if sure[best] <= 0:
        raise InputError(
            "{source}: none of the formats fits ({formats}). Choose one by hand, or look into the file: it "
            "needs questions and answers, a conversation, or named speakers.",
            source=source.name,
            formats=", ".join(sure),
        )
    return best


def preview(source: Source, format: str, options: Options, limit: int = 20) -> Preview:
    """The first `limit` pairs, and what was skipped on the way to them."""
    items = read(source, format, options)
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    for item in islice(items, 100 * limit):
        if len(pairs) == limit:
            return Preview(pairs, skipped, True)
        if isinstance(item, Pair):
            pairs.append(item)
        elif isinstance(item, Skipped):
            skipped.append(item)
    return Preview(pairs, skipped, next(items, None) is not None)


def read(source: Source, format: str, options: Options) -> Iterator[Item]:
    """Every item of the file, streamed. Raises InputError when the file as a whole cannot be read."""
    yield from importer(format).read(source, options)


def bring_in(persona: Persona, source: Source, format: str, options: Options) -> Report:
    """Add the file's pairs to the persona, streamed; undo takes them back in one step.

    Raises InputError, with nothing changed, when the file as a whole cannot be read.
    """
    skipped: list[Skipped] = []
    notes: Counter[str] = Counter()
    left_out = 0

    def pairs() -> Iterator[Pair]:
        nonlocal left_out
        for item in read(source, format, options):
            if isinstance(item, Pair):
                yield item
            elif isinstance(item, Note):
                notes[item.what] += 1
            else:
                left_out += 1
                if len(skipped) < LISTED:
                    skipped.append(item)

    done = journal.append(persona, pairs(), Message("import of {file}", file=source.name))
    return Report(done.added + done.known + left_out, done.added, done.known, left_out, skipped, dict(notes))


def write(pairs: Iterable[Pair], format: str, out: Path) -> Path:
    """The pairs as a file of that format; `read` gives them back. Raises InputError when it can only be read."""
    if not hasattr(importer(format), "dump"):
        known = ", ".join(name for name, module in formats().items() if hasattr(module, "dump"))
        raise InputError(
            "{format!r}: pairs cannot be written in this format. Choose one of {known}.", format=format, known=known
        )
    write_atomic(out, importer(format).dump(pairs))
    return out
