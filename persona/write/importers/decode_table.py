"""Decode an Excel sheet, a Parquet file or a document to lines of JSON. packed_table.py runs it with limits:

    python -m persona.write.importers.decode_table KIND FILE LIMIT SECONDS

Excel and Parquet files are packed several times over (zip, dictionaries, run lengths, pages), and what their headers
say of it may be a lie: so the process has a limit of memory, and all that comes out is counted against LIMIT, a Budget.

    {"columns": [name, …], "unfit": [name, …]}   Parquet only, first; unfit: pictures and sounds, left out
    {"unread": name}                             Excel only, last: a further sheet
    [row, [cell, …]]                             row: its number from 1
    [row, null]                                  of more than MAX_ROW characters
    text                                         a paragraph of a document
    {"stop": reason, …}                          last, where not all was read: columns, budget, damaged, and
                                                 of a PDF file scanned, encrypted
"""

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from persona.store.limited_process import MAX_MEMORY, limit_process
from persona.write.importers.budget import CELL_BYTES, ROW_BYTES, Budget, OverBudgetError
from persona.write.importers.decode_document import (
    NoTextError,
    decode_docx,
    decode_epub,
    decode_html,
    decode_pdf,
    decode_sms,
)
from persona.write.importers.rows import MAX_ROW

MAX_COLUMNS = 1_000
MAX_ROW_BYTES = 4 * MAX_ROW  # of a row of a Parquet file; a character has up to four
MAX_LINE_BYTES = 16 * MAX_ROW  # of a line of JSON, in which a character beyond the BMP takes twelve
BATCH_ROWS = 16  # rows of a Parquet file in memory at a time: a value of its dictionary is there once for each


def decode_sheet(path: Path, budget: Budget) -> Iterator[Any]:
    """The rows of the first sheet that has any; of a formula, the value that was saved with it."""
    from openpyxl import load_workbook

    with zipfile.ZipFile(path) as archive:  # it gives no more of a member than the size in its header
        Budget(budget.limit).spend(sum(member.file_size for member in archive.infolist()))
    with path.open("rb") as file:
        book = load_workbook(file, read_only=True, data_only=True)
        sheets = iter(book.worksheets)
        for sheet in sheets:
            sheet.reset_dimensions()  # some programs write wrong ones
            empty = True
            for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
                # many cells may share one text
                size = sum(len(cell) for cell in cells if isinstance(cell, str))
                budget.spend(ROW_BYTES + CELL_BYTES * len(cells) + size)
                if any(cell not in (None, "") for cell in cells):
                    empty = False
                    values = [c.replace("_x000D_", "\r") if isinstance(c, str) else c for c in cells]
                    yield [number, values if size <= MAX_ROW else None]
            if not empty:
                break
        for other in sheets:
            other.reset_dimensions()
            if any(cell not in (None, "") for row in other.iter_rows(max_row=20, values_only=True) for cell in row):
                yield {"unread": other.title}


def decode_parquet(path: Path, budget: Budget) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    def is_unfit(kind: Any) -> bool:  # pictures and sounds
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)

    pa.set_cpu_count(1)
    file = ParquetFile(path)
    told = file.metadata
    if told.num_columns > MAX_COLUMNS:
        yield {"stop": "columns", "count": told.num_columns}
        return
    Budget(budget.limit).spend(told.num_rows * (ROW_BYTES + CELL_BYTES * told.num_columns))
    Budget(budget.limit).spend(sum(told.row_group(n).total_byte_size for n in range(told.num_row_groups)))
    names = [field.name for field in file.schema_arrow if not is_unfit(field.type)]
    yield {"columns": names, "unfit": [field.name for field in file.schema_arrow if is_unfit(field.type)]}
    number, rows = 0, list[list[Any] | None]()
    for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
        columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        size = sum(c.nbytes for c in columns)
        budget.spend(batch.num_rows * (ROW_BYTES + CELL_BYTES * len(columns)) + size)
        if size <= MAX_ROW_BYTES:
            rows = list(map(list, zip(*(c.to_pylist() for c in columns), strict=True)))
        else:
            rows = [_row_if_it_fits(columns, at) for at in range(batch.num_rows)]
        yield from ([number + at, row] for at, row in enumerate(rows, 1))
        number += batch.num_rows


def _row_if_it_fits(columns: list[Any], at: int) -> list[Any] | None:
    fits = sum(column.slice(at, 1).nbytes for column in columns) <= MAX_ROW_BYTES
    return [column[at].as_py() for column in columns] if fits else None


def main(kind: str, file: str, limit: str, seconds: str) -> None:
    limit_process(MAX_MEMORY, int(seconds))
    kind, _, encoding = kind.partition(":")
    decode: dict[str, Callable[[Path, Budget], Iterator[Any]]] = {
        "xlsx": decode_sheet,
        "parquet": decode_parquet,
        "docx": decode_docx,
        "epub": decode_epub,
        "html": partial(decode_html, encoding=encoding),
        "pdf": decode_pdf,
        "sms": decode_sms,
    }
    try:
        for found in decode[kind](Path(file), Budget(int(limit))):
            line = json.dumps(found, default=str)
            print(line if len(line) < MAX_LINE_BYTES else json.dumps([found[0], None]), flush=isinstance(found, dict))
    except OverBudgetError:
        print(json.dumps({"stop": "budget"}))
    except NoTextError as e:
        print(json.dumps({"stop": e.reason}))
    except MemoryError:
        raise
    except Exception as e:  # damaged in any of a hundred ways, each with an exception of its own
        print(json.dumps({"stop": "damaged", "reason": f"{e!r:.200}"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
