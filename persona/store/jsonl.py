"""Append-only JSON lines: appended rows are on disk, and a line cut short by a kill costs no other line."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from persona.errors import InputError
from persona.store.files import explain_disk_error


def dump_rows(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """JSON lines, as `datasets.load_dataset("json", …)` reads them."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def encode_row(row: dict[str, Any]) -> bytes:
    """One line. Raises InputError for a lone surrogate, which UTF-8 cannot encode."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as e:
        raise InputError(
            "The text holds half a character (a lone surrogate, {character}). Retype it; it was not kept.",
            character=f"{e.object[e.start]!a}",
        ) from e


def append_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Append lines; they are on disk when this returns. The caller holds the folder's lock.

    Raises InputError when the disk is full or may not be written: what was there before is untouched.
    """
    data = b"".join(map(encode_row, rows))
    try:
        with path.open("a+b") as f:
            end = f.seek(0, os.SEEK_END)
            if end:
                f.seek(end - 1)
                if f.read(1) != b"\n":  # a kill cut the last line short: this one must not be glued to it
                    data = b"\n" + data
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise InputError(explain_disk_error(path, e)) from e


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many lines are damaged. A file that does not exist has no rows."""
    try:
        raw_lines = path.read_bytes().split(b"\n")  # not splitlines(): pasted text holds U+2028 and U+0085
    except FileNotFoundError:
        return [], 0
    except OSError as e:
        raise InputError("{path}: cannot be read ({reason}). Check its rights.", path=path, reason=e.strerror) from e
    rows, bad = [], 0
    for line in filter(bytes.strip, raw_lines):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    return rows, bad
