"""Importers: text from outside → pairs, one module for each format.

An importer is a module with

    NAME, TITLE               the format on the command line, and for the page
    OPTIONS                   the fields of ImportOptions that it reads; any other that is given is noted
    sniff(source)             how likely the file is of this format, 0 … 1; reads the beginning only
    survey(source)            what the user can choose before the import: columns, speakers, a persona's card
    read(source, options)     Pair | SkippedRow | ImportNote, streamed: memory does not grow with the file
    SUFFIX, dump(pairs)       only for formats that can be written: file suffix, and the file's text in pieces

Nothing is dropped silently: a row that is no pair is a SkippedRow with its line, what a pair lacks an ImportNote.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.write.importers.row_selection import ALL_ROWS, RowSelection


@dataclass(frozen=True)
class SkippedRow:
    """A part of the file that did not become a pair: its line (from 1; a row of a sheet), why, and its text."""

    line: int
    why: str
    text: str = ""


@dataclass(frozen=True)
class ImportNote:
    """Something left out of a pair: the line, and what. Notes with the same `what` are counted together."""

    line: int
    what: str


# skipped rows, and kinds of notes, kept for the report, so that a file of garbage does not fill the memory
MAX_LISTED = 10_000

ImportItem = Pair | SkippedRow | ImportNote


@dataclass(frozen=True)
class ImportOptions:
    """What the user chose or corrected. Each format reads the fields that concern it.

    columns: field of a pair ("instruction", "input", "output", "history", "source") → column or key of the file.
    speakers: the persona's names in the file.
    actions: stage directions inside a reply are dropped, or kept as *action* text.
    turns: how many earlier exchanges go with each pair as history. None: all those of a conversation in a row of
    data, none of a scene or a chat log.
    join_input: how an input is joined to its instruction, a key of columns.INPUT_JOINS.
    thinking: of a reply, dropped, or kept as a <think> block before it.
    selection: the rows that are read; of a format without rows (a scene, a chat), the pairs.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    speakers: tuple[str, ...] = ()
    actions: Literal["drop", "keep"] = "drop"
    turns: int | None = None
    join_input: str = "line"
    selection: RowSelection = ALL_ROWS
    thinking: Literal["drop", "keep"] = "drop"


@dataclass(frozen=True)
class SourceSurvey:
    """What an importer offers for choice before the file is read as a whole.

    columns: names in the file, in its order; mapping: the guess, for ImportOptions.columns.
    speakers: name → number of speeches, most frequent first. card: a persona that the file describes; original: the
    file's own card, to be kept (store/kept_card.py), and container: the file with its picture or assets, None for none.
    """

    columns: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    speakers: Mapping[str, int] = field(default_factory=dict)
    card: PersonaCard | None = None
    original: Mapping[str, Any] = field(default_factory=dict)
    container: Path | None = None


@dataclass(frozen=True)
class ImportPreview:
    """The first pairs of a file as they would be imported."""

    pairs: list[Pair]
    skipped: list[SkippedRow]
    more: bool


@dataclass(frozen=True)
class ImportReport:
    """What an import did: rows read = pairs added + pairs already there (known) + rows left out.

    conversations: of pairs, added and known together: those whose history holds the pair before them are of one.
    skipped: the rows left out, at most MAX_LISTED of them. notes: what was left out of pairs, and how often.
    """

    read: int
    added: int
    known: int
    left_out: int
    skipped: list[SkippedRow]
    notes: dict[str, int]
    conversations: int = 0

    @property
    def replies(self) -> int:
        """Pairs that the file gave: each is one reply of the persona."""
        return self.added + self.known


@dataclass(frozen=True)
class ImportCount:
    """What a file gives. more: counting ended before the file did."""

    replies: int
    conversations: int
    more: bool
