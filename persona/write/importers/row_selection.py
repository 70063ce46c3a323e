"""Which rows of a file are imported: a slice, those that a filter keeps, so many of them at random or from the start.

Slices are written as in the datasets library, train[:1000], and rounded as there. The rows that a seed picks are those
of its shuffle(seed).select(range(rows)); they keep the file's order, since training shuffles anyway.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona.errors import InputError

_SPLIT = re.compile(r"(?P<name>[\w.-]*)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_CONDITION = re.compile(
    r"(?:len\((?P<measured>[^()]+)\)|(?P<column>.+?))\s*(?P<sign>>=|<=|!=|==?|>|<)\s*(?P<value>.*)", re.S
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt, ">=": operator.ge,
    "<=": operator.le,
}  # fmt: skip
TRAIN = "train"  # the only split of a file that is not on the Hub


@dataclass(frozen=True)
class RowCondition:
    """One condition on a row: `column sign value`, or on the length of the column's text, len(column)."""

    column: str
    sign: str
    value: str
    of_length: bool = False

    def holds(self, row: Mapping[str, Any]) -> bool:
        """False where the row lacks the column, or where a number is compared with what is none."""
        if (found := row.get(self.column)) is None:
            return False
        if self.of_length:
            return isinstance(found, str | list) and _COMPARE[self.sign](len(found), float(self.value))
        if self.sign in ("=", "==", "!="):
            return _COMPARE[self.sign](str(found), self.value)
        try:
            return _COMPARE[self.sign](float(found), float(self.value))
        except (TypeError, ValueError):
            return False


@dataclass(frozen=True)
class RowSelection:
    """The rows to import: of the slice [start:stop] those that meet all conditions, and of these `rows`.

    start, stop: numbers from 0, negative ones from the end, or percents ("10%"); "" for the file's own.
    rows: at most so many; None: all. seed: picks them at random; None: the first ones.
    """

    split: str = ""
    start: str = ""
    stop: str = ""
    conditions: tuple[RowCondition, ...] = ()
    rows: int | None = None
    seed: int | None = None

    @property
    def needs_total(self) -> bool:
        """Whether the slice depends on how many rows there are."""
        return any(bound.startswith("-") or bound.endswith("%") for bound in (self.start, self.stop))

    def bounds(self, total: int) -> tuple[int, int | None]:
        """The slice as row numbers. total: of the file's rows; 0 unless needs_total."""
        stop = _absolute(self.stop, total) if self.stop else None
        return _absolute(self.start, total) if self.start else 0, stop

    def __str__(self) -> str:
        bounds = f"[{self.start}:{self.stop}]" if self.start or self.stop else ""
        filters = [f"{'len(' * c.of_length}{c.column}{')' * c.of_length}{c.sign}{c.value}" for c in self.conditions]
        return ", ".join(filter(None, [self.split + bounds, *filters]))


ALL_ROWS = RowSelection()


def _absolute(bound: str, total: int) -> int:
    percent = bound.endswith("%")
    number = round(int(bound[:-1]) * total / 100) if percent else int(bound)
    return max(total + number, 0) if bound.startswith("-") else number


def parse_selection(
    split: str = "", conditions: Sequence[str] = (), rows: int | None = None, seed: int | None = None
) -> RowSelection:
    """A selection as users write it: 'train[:1000]', conditions such as 'mood=sad' and 'len(output)>50'.

    Raises InputError.
    """
    found = _SPLIT.fullmatch("".join(split.split()))
    if not found:
        raise InputError(
            "{split!r}: no split of a data set. Write it as in train[:1000] or train[10%:20%].", split=split
        )
    start, stop = found["start"] or "", found["stop"] or ""
    if any(bound.endswith("%") and abs(int(bound[:-1])) > 100 for bound in (start, stop)):
        raise InputError("{split!r}: percents are from -100 to 100.", split=split)
    if rows is not None and rows < 1:
        raise InputError("rows={rows}: at least 1.", rows=rows)
    if seed is not None and rows is None:
        raise InputError("A seed picks rows at random: say how many (--rows, or the field Rows).")
    if seed is not None and seed < 0:
        raise InputError("seed={seed}: at least 0.", seed=seed)
    return RowSelection(found["name"], start, stop, tuple(map(_parse_condition, conditions)), rows, seed)


def _parse_condition(text: str) -> RowCondition:
    found = _CONDITION.fullmatch(text.strip())
    if not found:
        raise InputError(
            "{text!r}: no condition on a column. Write it as mood=sad, score>3 or len(output)>50.", text=text
        )
    column, value = (found["measured"] or found["column"]).strip(), found["value"].strip().strip("'\"")
    of_length = found["measured"] is not None
    if of_length or found["sign"] in (">", "<", ">=", "<="):
        try:
            float(value)
        except ValueError:
            raise InputError("{text!r}: {value!r} is no number.", text=text, value=value) from None
    return RowCondition(column, found["sign"], value, of_length)


def split_source_slice(source: str) -> tuple[str, str]:
    """'FILE[:1000]' → the name and its slice, "" where there is none."""
    found = re.fullmatch(r"(.+?)(\[[^\[\]]*\])", source.strip(), re.S)
    return (found[1], found[2]) if found else (source, "")


def require_file_split(name: str, selection: RowSelection) -> None:
    """Raises InputError where a file, which has no splits, is asked for another split than train.

    name: of the file; one that is called after the split is that split.
    """
    if selection.split not in ("", TRAIN) and selection.split not in re.split(r"[^\w]|_", name):
        raise InputError(
            "{name}: a file has no split {split!r}. Name the file of that split, and leave the name out: [:1000].",
            name=name,
            split=selection.split,
        )
