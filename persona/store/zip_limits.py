"""What keeps a zip from anyone within limits before anything of it is unpacked."""

import io
import re
import stat
import zipfile
from pathlib import PurePosixPath

from persona.errors import Message

MAX_READ = 4_000_000  # bytes; longer than the list of members of any adapter or card, and than a piece of a member
MAX_RATIO = 100  # what a member may grow to; weights hardly compress, prose fourfold, a bomb a thousandfold


class ShortReads(io.FileIO):
    """A file for zipfile, which reads a zip's list of members at once, and makes a thousand bytes of each sixty."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_READ:
            raise zipfile.BadZipFile(Message("its list of files is longer than {limit:,} bytes", limit=MAX_READ))
        return super().read(size)


def is_safe_name(name: str) -> bool:
    """Whether a member's name stays within the zip."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or re.search(r"\\|^[A-Za-z]:|[\x00-\x1f]", name))


def is_plain_file(info: zipfile.ZipInfo) -> bool:
    """No link, not encrypted, and packed so that unpacking takes no more memory than a piece."""
    plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return plain and not stat.S_ISLNK(info.external_attr >> 16) and not info.flag_bits & 0x1
