"""A .zip or .gz around a file to import: the one file in it, or the one that is named, unpacked within limits."""

import gzip
import re
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from persona.errors import InputError
from persona.store.zip_limits import MAX_RATIO, ShortReads, is_plain_file, is_safe_name
from persona.write.importers import documents
from persona.write.importers.file_kinds import is_plain_zip
from persona.write.importers.text_source import SourceFile

GZIP = b"\x1f\x8b"
MAX_BYTES = 500_000_000  # of the file, unpacked
MAX_SMALL = 1_000_000  # bytes; a file that unpacks to no more may have been packed to any size
MAX_NAMED = 20  # files that are listed
DATA_SUFFIXES = frozenset({
    ".json", ".jsonl", ".ndjson", ".txt", ".log", ".csv", ".tsv", ".xlsx", ".parquet", ".md", ".html", ".htm", ".docx",
    ".epub", ".pdf", ".srt", ".vtt", ".ass", ".fountain", ".yml", ".yaml", ".charx",
})  # fmt: skip
_PIECE = 1 << 20
_JUNK = re.compile(r"(?:^|/)(?:__MACOSX/|\.)")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError)


def list_members(source: SourceFile) -> list[str]:
    """The files with data in a zip, by name."""
    names = sorted(source.zip_members() or ())
    return [n for n in names if PurePosixPath(n).suffix.lower() in DATA_SUFFIXES and not _JUNK.search(n)]


def is_packed(source: SourceFile) -> bool:
    if source.suffix == ".charx":  # a card's archive without its card: character.py says so
        return False
    return source.bytes(2) == GZIP or (is_plain_zip(source) and not documents.document_kind(source))


def open_packed(source: SourceFile, member: str = "") -> SourceFile | None:
    """The one file in it (of several, `member`), in a temporary file that lasts as long as that; None without any.

    Raises InputError where it holds several, not the named one, more than the limits allow, or is damaged.
    """
    name = source.name
    if source.bytes(2) == GZIP:
        inner = re.sub(r"\.gz(?:ip)?$", "", name, flags=re.I)
        if inner.lower().endswith((".tar", ".tgz")):
            return None
        limit = min(MAX_BYTES, max(MAX_SMALL, MAX_RATIO * source.path.stat().st_size))
    else:
        found = list_members(source)
        if member and member not in found:
            raise InputError("{source}: holds no {member!r}. It holds {names}.", source=name, member=member,
                             names=_listed(found))  # fmt: skip
        if len(found) > 1 and not member:
            raise InputError(
                "{source}: holds several files: {names}. Open the one you want: --member NAME, or unpack it first.",
                source=name,
                names=_listed(found),
            )
        if not found:
            return None
        inner, limit = member or found[0], MAX_BYTES
    folder = tempfile.TemporaryDirectory(prefix="persona-")
    path = Path(folder.name) / "unpacked"
    try:
        with ShortReads(source.path) as raw:
            if source.bytes(2) == GZIP:
                with gzip.open(raw) as packed:
                    _copy(packed, path, limit, name)
            else:
                with zipfile.ZipFile(raw) as archive:
                    info = archive.getinfo(inner)
                    if not is_safe_name(inner) or not is_plain_file(info):
                        raise InputError(
                            "{source}: {file!r} leads out of the zip, is a link, encrypted or packed in an unusual way."
                            " It was not opened.", source=name, file=inner[:80],
                        )  # fmt: skip
                    limit = min(limit, max(MAX_SMALL, MAX_RATIO * info.compress_size))
                    with archive.open(info) as packed:
                        _copy(packed, path, limit, name)
    except InputError:
        raise
    except _DAMAGED as e:
        raise InputError("{source}: damaged ({reason}). Download or export it again.", source=name,
                         reason=f"{e!s:.200}") from e  # fmt: skip
    unpacked = SourceFile(path, PurePosixPath(inner).name or "file", "utf-8", folder)
    if is_packed(unpacked):  # it could go on without end
        raise InputError("{source}: holds a packed file again. Unpack it, then import a file of it.", source=name)
    return unpacked


def _copy(packed: IO[bytes] | gzip.GzipFile, path: Path, limit: int, name: str) -> None:
    left = limit
    with path.open("wb") as out:
        while piece := packed.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise InputError(
                    "{source}: more than {limit:,.0f} MB come out of it, which is the limit for a file of its size. "
                    "Unpack it, then import a file of it.",
                    source=name,
                    limit=limit / 1e6,
                )
            out.write(piece)


def _listed(names: list[str]) -> str:
    more = ["…"] * (len(names) > MAX_NAMED)
    return ", ".join([*(f"{n:.100}" for n in names[:MAX_NAMED]), *more])
