"""A file from outside as lines of text: its encoding is detected, and no byte is lost.

Encoding: by a byte order mark; else UTF-8 if the whole file is valid UTF-8; else charset-normalizer's guess from
the beginning. A byte that does not fit that encoding shows as \\xNN.
"""

import codecs
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from persona.errors import InputError
from persona.store.files import require_regular_file
from persona.store.pairs import MAX_CHARACTERS

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins with the same two bytes
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GUESSED_ENCODINGS = (
    "gb18030",
    "big5",
    "utf_16_le",
    "utf_16_be",
    "shift_jis",
    "euc_kr",
    "cp1251",
    "cp1252",
    "mac_roman",
)
ZIP = b"PK\x03\x04"
BINARY = (ZIP, b"PAR1", b"\x89PNG")  # files that are read by their own decoders
HEAD_BYTES = 65_536  # bytes that sniffing and guessing look at
SHORT_BYTES = 1_000  # bytes; on fewer, charset-normalizer is wrong about Chinese more often than right
MIN_HANGUL = 8  # characters; about half of the frequent Chinese ones are Hangul in EUC-KR
MAX_SOURCE_BYTES = 2_000_000_000  # of a file to import; 100,000 pairs have some 50 million
MAX_LINE = 4 * MAX_CHARACTERS  # characters; a longer line is read in pieces, so that memory stays flat


@dataclass(frozen=True)
class SourceFile:
    """A file to import. name: its name for the user, part of each pair's `source`.

    holds: a temporary folder that `path` is in, which lasts as long as this.
    """

    path: Path
    name: str
    encoding: str
    holds: Any = None

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()

    def location(self, line: int) -> str:
        """The `source` of a pair: file and line."""
        return f"{self.name}:{line}"

    def bytes(self, count: int = HEAD_BYTES) -> bytes:
        with self.path.open("rb") as f:
            return f.read(count)

    def zip_members(self) -> set[str] | None:
        """The names in a zip file; None where it is none, or is damaged."""
        if not self.bytes(4).startswith(ZIP):
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                return set(archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return None

    def head(self, count: int = HEAD_BYTES) -> str:
        """The beginning as text, without a character that is cut at its end."""
        decoder = codecs.getincrementaldecoder(self.encoding)("backslashreplace")
        return decoder.decode(self.bytes(count)).replace("\r\n", "\n").replace("\r", "\n")

    def count_undecoded(self) -> int:
        """Places in the file that are no text in its encoding, and show as \\xNN. Reads all of it."""
        if self.bytes(8).startswith(BINARY):
            return 0
        decoder, count = codecs.getincrementaldecoder(self.encoding)("replace"), 0
        with self.path.open("rb") as f:
            while line := f.readline(1 << 20):  # by lines, so that none of those that are really there is cut
                own = line.count("\ufffd".encode()) if self.encoding.startswith("utf-8") else 0
                count += decoder.decode(line).count("\ufffd") - own
        return max(0, count)

    def lines(self) -> Iterator[tuple[int, str]]:
        """(number from 1, text without its line break). Raises InputError when the file cannot be read."""
        with self.open_text() as f:  # \r\n and \r end lines too
            number = 1
            while line := f.readline(MAX_LINE):
                yield number, line.removesuffix("\n")
                number += line.endswith("\n")

    @contextmanager
    def open_text(self, newline: str | None = None) -> Iterator[TextIO]:
        """The file as text, until the block ends. Raises InputError where it cannot be read, in the block too."""
        try:
            with self.path.open(encoding=self.encoding, errors="backslashreplace", newline=newline) as f:
                yield f
        except OSError as e:
            raise InputError("{name}: cannot be read ({reason}).", name=self.name, reason=e.strerror) from e
        except UnicodeError as e:  # UTF-16 with half a character at its end
            raise InputError(
                "{name}: not {encoding} text after all ({reason}). Save it as UTF-8.",
                name=self.name,
                encoding=self.encoding,
                reason=e,
            ) from e


def open_source(path: Path, name: str = "", member: str = "") -> SourceFile:
    """The file with its encoding detected: a document as its text, of a .zip, .gz or .tar the one file in it.

    member: which file in an archive of several.

    Raises InputError when there is no readable file, or it is empty.
    """
    from persona.write.importers import chat_saves, documents, packed_file, row_shapes, yaml_file

    name = re.sub(r"[\x00-\x1f]", "", Path(name or path.name).name) or "file"
    require_regular_file(path, MAX_SOURCE_BYTES)
    try:
        with path.open("rb") as f:
            start = f.read(HEAD_BYTES)
            if not start:
                raise InputError("{name}: the file is empty.", name=name)
            f.seek(0)
            encoding = _encoding_by_bom(start) or _encoding_if_utf8(f) or _guess_encoding(start)
    except OSError as e:
        raise InputError("{name}: cannot be read ({reason}).", name=name, reason=e.strerror or e) from e
    source = SourceFile(path, name, encoding)
    packed = packed_file.is_packed(source)
    if member and not packed:
        raise InputError("{name}: no .zip or .tar, so it holds no {member!r}. Leave --member out.", name=name,
                         member=member)  # fmt: skip
    if kind := documents.document_kind(source):
        return documents.open_document(source, kind)
    if packed and (unpacked := packed_file.open_packed(source, member)):
        found = open_source(unpacked.path, unpacked.name)
        return replace(found, holds=(unpacked.holds, found.holds))
    if yaml_file.is_yaml(source):
        return yaml_file.open_yaml(source)
    return chat_saves.open_saved(source) or row_shapes.open_reshaped(source) or source


def _encoding_by_bom(start: bytes) -> str:
    return next((encoding for mark, encoding in BOMS if start.startswith(mark)), "")


def _encoding_if_utf8(f) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := f.read(1 << 20):
            if b"\0" in chunk:  # UTF-16 without a mark, or no text at all
                return ""
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return ""
    return "utf-8"


def _guess_encoding(start: bytes) -> str:
    from charset_normalizer import from_bytes

    text = start.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    if b"\0" not in start and 0 < 2 * bad <= sum(c > "\x7f" for c in text) - bad:
        return "utf-8"  # with some bytes of another encoding, as of joined files: counted, and shown as \\xNN
    if len(start) < SHORT_BYTES:
        if _is_hangul(start):
            return "euc_kr"
        for encoding, first, last in (("gb18030", 0xB0, 0xD7), ("big5", 0xA4, 0xC6)):
            if _is_common_chinese(start, encoding, first, last):
                return encoding
    best = from_bytes(start, cp_isolation=list(GUESSED_ENCODINGS)).best()
    return best.encoding if best else "utf-8"  # binary: no importer will accept it


def _is_hangul(start: bytes) -> bool:
    """Whether the text is Korean: as GB 18030 its bytes would be frequent Chinese characters too."""
    other = [c for c in start.decode("euc_kr", "replace") if not c.isascii()]
    return len(other) >= MIN_HANGUL and sum("가" <= c <= "힣" for c in other) >= 0.95 * len(other)


def _is_common_chinese(start: bytes, encoding: str, first: int, last: int) -> bool:
    """Whether nine tenths of the text are frequent characters, those of the first block of GB 2312 or Big5."""
    try:
        text = start.decode(encoding)
    except UnicodeDecodeError:
        return False
    other = [c for c in text if not c.isascii()]
    frequent = sum(
        c >= "\u4e00" and first <= c.encode(encoding)[0] <= last and len(c.encode(encoding)) == 2 for c in other
    )
    marks = sum(c in "，。？！：；、“”‘’（）《》「」『』—…·" for c in other)
    return bool(frequent) and frequent + marks >= 0.9 * len(other) and frequent >= marks


@contextmanager
def save_pasted(data: str | bytes, name: str = "pasted.txt") -> Iterator[Path]:
    """A temporary file with the pasted text."""
    with tempfile.TemporaryDirectory(prefix="persona-") as folder:
        path = Path(folder) / name
        path.write_bytes(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
        yield path
