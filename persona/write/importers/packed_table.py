"""Excel and Parquet: the rows that decode_table.py reads in a process of its own; documents: their paragraphs."""

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from persona.errors import InputError, Message
from persona.store.limited_process import LimitedProcessError, read_process_lines
from persona.write.importers import ImportNote, SkippedRow
from persona.write.importers.budget import Budget, over_budget
from persona.write.importers.decode_table import MAX_COLUMNS, MAX_LINE_BYTES
from persona.write.importers.rows import MAX_ROW, SourceRow
from persona.write.importers.text_source import SourceFile

SIGNATURES = {b"PAR1": "parquet", b"PK\x03\x04": "xlsx"}  # the first bytes of a file → its kind
SECONDS, SECONDS_PER_MB = 30, 30  # of CPU time


def read_sheet(source: SourceFile) -> Iterator[SourceRow | SkippedRow]:
    """The rows of an Excel file, each a list of cells. Raises InputError."""
    for row in decode_file(source, "xlsx"):
        if isinstance(row, dict):
            yield SkippedRow(
                1, Message("sheet {name} is not read: only the first one is", name=f"{row['unread']!r:.60}")
            )
        else:
            yield _source_row(row[0], row[1])


def read_parquet(source: SourceFile) -> tuple[list[str], Iterator[SourceRow | SkippedRow | ImportNote]]:
    """Column names, and the rows as objects of them. Raises InputError."""
    decoded = decode_file(source, "parquet")
    header: dict[str, list[str]] = next(decoded, {})
    names = header.get("columns", [])

    def found() -> Iterator[SourceRow | SkippedRow | ImportNote]:
        with closing(decoded):
            for name in header.get("unfit", []):
                yield ImportNote(1, Message("column {field!r} left out: it holds no text", field=name))
            for number, cells in decoded:
                row = _source_row(number, cells)
                if isinstance(row, SourceRow):
                    row = row._replace(value=dict(zip(names, cells, strict=True)))
                yield row

    return names, found()


def too_many_columns(source: SourceFile, count: int) -> InputError:
    return InputError(
        "{source}: {count:,} columns, where {limit:,} is the limit. Delete those that hold no questions and answers.",
        source=source.name,
        count=count,
        limit=MAX_COLUMNS,
    )


def cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a sheet knows no whole numbers
    return value if isinstance(value, str) else str(value)


def _source_row(number: int, cells: list[Any] | None) -> SourceRow | SkippedRow:
    if cells is None:
        return SkippedRow(number, Message("longer than {limit:,} characters", limit=MAX_ROW))
    return SourceRow(number, cells, " | ".join(map(cell_text, cells)))


def decode_file(source: SourceFile, kind: str) -> Generator[Any, None, None]:
    """What decode_table.py says, line by line. Raises InputError where it could not read all."""
    limit = Budget.for_file(source.path).limit
    seconds = SECONDS + SECONDS_PER_MB * source.path.stat().st_size // 1_000_000
    program = "persona.write.importers.decode_table"
    arguments = kind, str(source.path.absolute()), str(limit), str(seconds)
    try:
        with closing(read_process_lines(program, *arguments, longest=MAX_LINE_BYTES)) as lines:
            for line in lines:
                found = json.loads(line)
                if isinstance(found, dict) and "stop" in found:
                    raise _explain_stop(source, kind, limit, found)
                yield found
    except LimitedProcessError as e:
        raise InputError(
            "{source}: reading it takes too much memory or time for a file of its size. Split it, or save what you "
            "need of it as CSV.",
            source=source.name,
        ) from e


def _explain_stop(source: SourceFile, kind: str, limit: int, found: dict[str, Any]) -> InputError:
    if found["stop"] == "columns":
        return too_many_columns(source, found["count"])
    if found["stop"] == "budget":
        return over_budget(source.name, limit)
    if found["stop"] == "scanned":
        return InputError(
            "{source}: its pages are pictures, without text. Run a text recognition (OCR) over it, then import the "
            "result.",
            source=source.name,
        )
    if found["stop"] == "encrypted":
        return InputError(
            "{source}: it is protected with a password. Save a copy without one, then import that.", source=source.name
        )
    if kind not in ("xlsx", "parquet"):
        return InputError(
            "{source}: no {kind} file that can be read ({reason}). Save its text as .txt.",
            source=source.name,
            kind=kind.partition(":")[0],
            reason=found["reason"],
        )
    if kind == "xlsx":
        return InputError(
            "{source}: no Excel file that can be read ({reason}). Save it as CSV.",
            source=source.name,
            reason=found["reason"],
        )
    return InputError(
        "{source}: no Parquet file that can be read ({reason}). Download it again.",
        source=source.name,
        reason=found["reason"],
    )
