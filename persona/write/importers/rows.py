"""Rows of a file, whatever its format, and how each becomes a pair."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from persona.errors import InputError, Message
from persona.store.pairs import Pair, find_unfinished, parse_pair
from persona.write.importers import ImportItem, ImportNote, SkippedRow
from persona.write.importers.row_selection import RowSelection
from persona.write.importers.text_source import SourceFile

MAX_ROW = 2_000_000  # characters of one row; longer is a damaged file, and would have to be held in memory
MAX_SHOWN = 2_000  # characters of a skipped row that are kept to be shown


class SourceRow(NamedTuple):
    """A value of the file, its line (from 1; a row in a sheet), and its text there."""

    line: int
    value: Any
    text: str


T = TypeVar("T")
RowPairs = tuple[Sequence[Pair | InputError], list[str]]  # a row's pairs, or why one is none, and notes


def select_rows(read: Callable[[], Iterable[T]], selection: RowSelection, place: str) -> Iterator[T]:
    """The selected ones of what `read` gives: rows of data, or pairs. Notes stay; a skipped row meets every condition.

    read: called again for each pass; rows are counted first where the selection depends on their number, so memory does
    not grow with the file. place: the file's name. Raises InputError where no row is left.
    """
    if selection == RowSelection(selection.split):
        yield from read()
        return
    total = sum(not isinstance(item, ImportNote) for item in read()) if selection.needs_total else 0
    start, stop = selection.bounds(total)
    columns, seen = dict[str, None](), 0

    def candidates() -> Iterator[T]:
        nonlocal seen
        seen = 0
        for item in read():
            if isinstance(item, ImportNote):
                yield item
                continue
            if stop is not None and seen >= stop:
                return
            seen += 1
            row = item.to_dict() if isinstance(item, Pair) else getattr(item, "value", None)
            if isinstance(row, dict):
                columns.update(dict.fromkeys(row))
            met = not isinstance(row, dict) or all(condition.holds(row) for condition in selection.conditions)
            if seen > start and met:
                yield item

    picked = None
    if selection.seed is not None:
        import numpy as np

        count = sum(not isinstance(item, ImportNote) for item in candidates())
        picked = np.zeros(count, bool)
        picked[np.random.default_rng(selection.seed).permutation(count)[: selection.rows]] = True
    number = left = 0
    for item in candidates():
        if isinstance(item, ImportNote):
            yield item
        elif picked is None or picked[number]:
            left += 1
            yield item
            if left == selection.rows:
                return
        number += not isinstance(item, ImportNote)
    if not left and seen:
        _refuse_empty_selection(selection, place, list(columns))


def _refuse_empty_selection(selection: RowSelection, place: str, columns: list[Any]) -> NoReturn:
    """Raises InputError: no row is left."""
    names = ", ".join(map(str, columns[:50]))
    if wrong := [c.column for c in selection.conditions if c.column not in columns]:
        raise InputError("{place}: no column {column!r}. It has: {names}.", place=place, column=wrong[0], names=names)
    raise InputError("{place}: {selection} leaves none of its rows.", place=place, selection=str(selection))


def convert_rows(
    rows: Iterable[SourceRow | SkippedRow | ImportNote],
    source: SourceFile,
    to_pairs: Callable[[Any, str], RowPairs],
) -> Iterator[ImportItem]:
    """Each row as pairs with notes, or as a SkippedRow. to_pairs takes a value and its place in the file."""
    for row in rows:
        if not isinstance(row, SourceRow):
            yield row
            continue
        try:
            pairs, notes = to_pairs(row.value, source.location(row.line))
        except InputError as e:
            yield SkippedRow(row.line, e.message, truncate_text(row.text))
        else:
            for pair in pairs:
                yield pair if isinstance(pair, Pair) else SkippedRow(row.line, pair.message, truncate_text(row.text))
            yield from (ImportNote(row.line, what) for what in notes)


def parse_complete_pair(row: Any) -> Pair:
    """parse_pair() for text from outside, where a pair with an empty side is of no use. Raises InputError."""
    pair = parse_pair(row)
    if missing := find_unfinished([pair]):
        raise InputError(missing[0][1])
    return pair


def note_unused_keys(row: dict[str, Any], used: Iterable[str], what: str = Message("key")) -> list[str]:
    """Notes on what `row` holds besides the keys that are used."""
    used = set(used)
    return [
        Message("{what} {k} left out", what=what, k=f"{k!r:.60}")
        for k, v in row.items()
        if k not in used and v not in ("", None, [], {})
    ]


def truncate_text(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
