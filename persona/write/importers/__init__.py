"""Text from outside → pairs, one outside format a file.

An importer is a module with

    TITLE                     what a user calls the format
    sniff(source)             how sure it is that the file is its own, 0 … 1; reads the beginning only
    survey(source)            what can be chosen before anything is written: columns, speakers, a persona's card
    read(source, options)     Pair | Skipped | Note, one after the other: memory does not grow with the file
    SUFFIX, dump(pairs)       where the format can be written too: its file name's ending, and the file's text in pieces

Nothing is dropped silently: what does not become a pair is a Skipped with its line, what is left out of a pair a Note.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard


@dataclass(frozen=True)
class SkippedRow:
    """Something in the file that did not become a pair: its line (from 1; a row in a sheet), why, and its text."""

    line: int
    why: str
    text: str = ""


@dataclass(frozen=True)
class ImportNote:
    """Something left out of a pair that was made: its line, and what. The same `what` is counted together."""

    line: int
    what: str


MAX_LISTED = 10_000  # skipped rows that are listed one by one; a file of garbage must not fill the memory

ImportItem = Pair | SkippedRow | ImportNote


@dataclass(frozen=True)
class ImportOptions:
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
class SourceSurvey:
    """What an importer found out about a file before reading it all.

    columns: names in the file, in its order; mapping: the guess, for Options.columns.
    speakers: name → number of speeches, most frequent first. card: a persona that the file describes.
    """

    columns: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    speakers: Mapping[str, int] = field(default_factory=dict)
    card: PersonaCard | None = None


@dataclass(frozen=True)
class ImportPreview:
    """The first pairs of a file as they would be imported."""

    pairs: list[Pair]
    skipped: list[SkippedRow]
    more: bool


@dataclass(frozen=True)
class ImportReport:
    """What an import did: rows read = pairs added + pairs known already + rows left out.

    skipped: the rows left out, at most LISTED of them. notes: what was left out of pairs, and how often.
    """

    read: int
    added: int
    known: int
    left_out: int
    skipped: list[SkippedRow]
    notes: dict[str, int]
