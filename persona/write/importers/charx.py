"""A .charx file: a zip with card.json and the card's assets. It may come from anyone."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persona.errors import InputError
from persona.store.zip_limits import MAX_RATIO, ShortReads, is_plain_file, is_safe_name

CARD = "card.json"
MAX_BYTES = 50_000_000  # of all its files together, unpacked
MAX_SMALL = 1_000_000  # bytes; a file that unpacks to no more may have been packed to any size
MAX_FILES = 2_000
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, struct.error, OSError)


@contextmanager
def open_charx(path: Path, name: str) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """The zip and its members, all of them checked: none is unpacked to a path. Raises InputError, also for damage."""
    try:
        with ShortReads(path) as raw, zipfile.ZipFile(raw) as archive:
            members = [info for info in archive.infolist() if not info.filename.endswith("/")]
            _check(members, name)
            yield archive, members
    except InputError:
        raise
    except _DAMAGED as e:
        raise InputError("{source}: damaged, or no zip ({reason}). Export the card again.", source=name,
                         reason=f"{e!s:.200}") from e  # fmt: skip


def _check(members: list[zipfile.ZipInfo], name: str) -> None:
    names = [info.filename for info in members]
    if len(members) > MAX_FILES or len(set(names)) < len(names):
        raise InputError("{source}: holds {count:,} files, or one twice. It was not opened.", source=name,
                         count=len(members))  # fmt: skip
    for info in members:
        bomb = info.file_size > MAX_SMALL and info.file_size > MAX_RATIO * info.compress_size
        if not is_safe_name(info.filename) or not is_plain_file(info) or bomb:
            raise InputError(
                "{source}: {file!r} leads out of the zip, is a link, encrypted or packed in an unusual way. It was not "
                "opened.", source=name, file=info.filename[:80],
            )  # fmt: skip
    if sum(info.file_size for info in members) > MAX_BYTES:
        raise InputError("{source}: its files have more than {limit:,.0f} MB, which is no character card.", source=name,
                         limit=MAX_BYTES / 1e6)  # fmt: skip


def read_card_json(path: Path, name: str) -> str:
    """The text of card.json. Raises InputError."""
    with open_charx(path, name) as (archive, members):
        card = next((info for info in members if info.filename == CARD), None)
        if card is None:
            raise InputError("{source}: a zip without card.json in it, so no character card.", source=name)
        return archive.read(card).decode("utf-8-sig")  # no more than the size that was checked
