"""A .tar file, also within .gz: its files, listed and opened within limits. A helper of `packed_file`."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from persona.errors import Message
from persona.store.zip_limits import MAX_READ
from persona.write.importers.file_kinds import TAR_MARK
from persona.write.importers.text_source import SourceFile

GZIP = b"\x1f\x8b"
MAX_MEMBERS = 20_000


class LimitedReads:
    """A file for tarfile, which reads a long name at once, and skips over a member of whatever size it says."""

    def __init__(self, raw: Any, limit: int) -> None:
        self._raw, self._limit = raw, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise tarfile.ReadError(Message("its list of files is longer than {limit:,} bytes", limit=MAX_READ))
        self._require(self._raw.tell() + size)
        return self._raw.read(size)

    def seek(self, position: int) -> int:
        self._require(position)
        return self._raw.seek(position)

    def tell(self) -> int:
        return self._raw.tell()

    def _require(self, position: int) -> None:
        if position > self._limit + MAX_READ:  # tarfile reads a block more than there is
            raise tarfile.ReadError(
                Message("more than {limit:,.0f} MB come out of it, which is the limit", limit=self._limit / 1e6)
            )


def is_gzip(source: SourceFile) -> bool:
    return source.bytes(len(GZIP)) == GZIP


def is_tar(source: SourceFile) -> bool:
    start = source.bytes(512)
    if is_gzip(source):
        try:
            with gzip.open(source.path) as packed:
                start = packed.read(512)
        except (OSError, EOFError, zlib.error):
            return False
    return start[TAR_MARK] == b"ustar"


@contextmanager
def open_tar(raw: IO[bytes], packed: bool, limit: int) -> Iterator[tuple[tarfile.TarFile, list[tarfile.TarInfo]]]:
    """The archive and its members. limit: bytes that may come out of it. Raises tarfile.TarError."""
    reads = LimitedReads(gzip.GzipFile(fileobj=raw) if packed else raw, limit)
    with tarfile.TarFile(fileobj=reads) as archive:  # type: ignore[arg-type]  # all that it uses of a file
        members = []
        for info in archive:
            members.append(info)
            if len(members) > MAX_MEMBERS:
                raise tarfile.ReadError(Message("more than {limit:,} files are in it", limit=MAX_MEMBERS))
        yield archive, members


def is_plain(info: tarfile.TarInfo) -> bool:
    """A file, no link and without holes."""
    return info.isreg() and info.sparse is None
