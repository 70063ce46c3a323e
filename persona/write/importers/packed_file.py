"""A .zip, .gz or .tar around a file to import: the one file in it, or the one named, unpacked within limits."""

import gzip
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from persona.errors import InputError, Message
from persona.store.zip_limits import MAX_RATIO, ShortReads, is_plain_file, is_safe_name
from persona.write.importers import documents
from persona.write.importers.file_kinds import is_plain_zip
from persona.write.importers.tar_file import is_gzip, is_plain, is_tar, open_tar
from persona.write.importers.text_source import SourceFile

MAX_BYTES = 500_000_000  # of the file, unpacked
MAX_SMALL = 1_000_000  # bytes; a file that unpacks to no more may have been packed to any size
MAX_NAMED = 20  # files that are listed
DATA_SUFFIXES = frozenset({
    ".json", ".jsonl", ".ndjson", ".txt", ".log", ".csv", ".tsv", ".xlsx", ".parquet", ".md", ".html", ".htm", ".docx",
    ".epub", ".pdf", ".srt", ".vtt", ".ass", ".fountain", ".yml", ".yaml", ".charx",
})  # fmt: skip
_PIECE = 1 << 20
_JUNK = re.compile(r"(?:^|/)(?:__MACOSX/|\.)")
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError, OSError)


class _Member(NamedTuple):
    """A file in an archive. plain: it is no link, not encrypted. limit: bytes that it may be, unpacked."""

    plain: bool
    limit: int
    open: Callable[[], Any]


def list_members(path: Path) -> list[str]:
    """The files with data among which one is to be chosen; none where there is no choice. Raises InputError."""
    source = SourceFile(path, path.name, "utf-8")
    if not is_packed(source):
        return []
    with _open_members(source) as members:
        return list(members) if len(members) > 1 else []


def is_packed(source: SourceFile) -> bool:
    if source.suffix == ".charx":  # a card's archive without its card: character.py says so
        return False
    if is_gzip(source) or is_tar(source):
        return True
    return is_plain_zip(source) and not documents.document_kind(source)


def open_packed(source: SourceFile, member: str = "") -> SourceFile | None:
    """The one file in it (of several, `member`), in a temporary file that lasts as long as that; None without any.

    Raises InputError where it holds several, not the named one, more than the limits allow, or is damaged.
    """
    name = source.name
    with _open_members(source) as members:
        if member and member not in members:
            raise InputError("{source}: holds no {member!r}. It holds {names}.", source=name, member=member,
                             names=_listed(list(members)))  # fmt: skip
        if len(members) > 1 and not member:
            raise InputError(
                "{source}: holds several files: {names}. Choose one (tab Import, or --member NAME).",
                source=name,
                names=_listed(list(members)),
            )
        if not members:
            return None
        inner = member or next(iter(members))
        chosen = members[inner]
        if not is_safe_name(inner) or not chosen.plain:
            raise InputError(
                "{source}: {file!r} leads out of the archive, is a link, encrypted or packed in an unusual way. It was "
                "not opened.", source=name, file=inner[:80],
            )  # fmt: skip
        folder = tempfile.TemporaryDirectory(prefix="persona-")
        path = Path(folder.name) / "unpacked"
        with chosen.open() as packed:
            _copy(packed, path, chosen.limit, name)
    unpacked = SourceFile(path, PurePosixPath(inner).name or "file", "utf-8", folder)
    if is_packed(unpacked):  # it could go on without end
        raise InputError("{source}: holds a packed file again. Unpack it, then import a file of it.", source=name)
    return unpacked


@contextmanager
def _open_members(source: SourceFile) -> Iterator[dict[str, _Member]]:
    """The files with data in an archive, by name. Raises InputError where it is damaged, in the block too."""
    try:
        with ShortReads(source.path) as raw:
            size, gzipped = source.path.stat().st_size, is_gzip(source)
            limit = min(MAX_BYTES, max(MAX_SMALL, MAX_RATIO * size))
            if is_tar(source):
                with open_tar(raw, gzipped, limit if gzipped else size) as (archive, infos):
                    tarred = {i.name: _Member(is_plain(i), limit, partial(archive.extractfile, i))
                              for i in infos if not i.isdir()}  # fmt: skip
                    yield _with_data(tarred)
            elif gzipped:
                inner = re.sub(r"\.gz(?:ip)?$", "", source.name, flags=re.I)
                yield {inner: _Member(True, limit, partial(gzip.open, raw))}
            else:
                with zipfile.ZipFile(raw) as zipped:
                    yield _with_data({i.filename: _Member(is_plain_file(i), _zip_limit(i), partial(zipped.open, i))
                                      for i in zipped.infolist()})  # fmt: skip
    except InputError:
        raise
    except _DAMAGED as e:
        said = next((arg for arg in e.args if isinstance(arg, Message)), f"{e!s:.200}")
        raise InputError(
            "{source}: damaged ({reason}). Download or export it again.", source=source.name, reason=said
        ) from e


def _zip_limit(info: zipfile.ZipInfo) -> int:
    return min(MAX_BYTES, max(MAX_SMALL, MAX_RATIO * info.compress_size))


def _with_data(members: dict[str, _Member]) -> dict[str, _Member]:
    names = [n for n in members if PurePosixPath(n).suffix.lower() in DATA_SUFFIXES and not _JUNK.search(n)]
    return {name: members[name] for name in sorted(names)}


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
