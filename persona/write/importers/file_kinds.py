"""What a file that is not imported seems to be, by its first bytes, and the way on."""

import re

from persona.errors import InputError, Message
from persona.write.importers.charx import CARD
from persona.write.importers.text_source import SourceFile

COPY_TEXT = Message("Save its text as .txt, then import that.")
UNPACK = Message("Unpack it, then import a file of it.")
SAVE_ROWS = Message("Save it as JSON, CSV or Parquet, then import that.")
MEDIA = Message("Only text can be imported.")
SIGNATURES: tuple[tuple[bytes, str, Message], ...] = (
    (rb"{\rtf", "RTF", COPY_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "DOC, XLS", Message("Save it as .txt, or a sheet as .xlsx or .csv.")),
    (b"SQLite format 3\0", "SQLite", Message("Export the chat from its program instead: as text, JSON or CSV.")),
    (b"ARROW1", "Arrow", SAVE_ROWS),
    (b"\xff\xff\xff\xff", "Arrow", SAVE_ROWS),
    (b"<?xml", "XML", SAVE_ROWS),
    (b"\x1f\x8b", "GZIP", UNPACK),
    (b"BZh", "BZIP2", UNPACK),
    (b"\xfd7zXZ\0", "XZ", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "7z", UNPACK),
    (b"Rar!\x1a\x07", "RAR", UNPACK),
    (b"\xff\xd8\xff", "JPEG", MEDIA),
    (b"GIF8", "GIF", MEDIA),
    (b"RIFF", "WebP, WAV", MEDIA),
    (b"ID3", "MP3", MEDIA),
    (b"OggS", "Ogg", MEDIA),
)  # fmt: skip
_LINE_ON_PC = re.compile(r"^\ufeff?\d{4}\.\d{2}\.\d{2} [^\s:]{2,12}\n\d{2}:\d{2} \S[^\n\t]*\n", re.M)
TAR_MARK = slice(257, 262)  # where its first header says "ustar"
ZIP_KINDS: tuple[tuple[str, str, Message], ...] = (
    ("content.xml", "OpenDocument", Message("Save it as .txt, or a sheet as .xlsx or .csv.")),
    ("ppt/presentation.xml", "PowerPoint", COPY_TEXT),
)


def refuse_unreadable(source: SourceFile) -> None:
    """Raises InputError for a file of a kind that no format reads, naming the kind and the way on."""
    start = source.bytes(400)
    found = next(((kind, way) for sign, kind, way in SIGNATURES if start.startswith(sign)), None)
    if start[TAR_MARK] == b"ustar":
        found = ("TAR", UNPACK)
    if (names := source.zip_members()) is not None:  # of a damaged one, the reader of sheets says what is wrong
        found = _zip_kind(source, names)
    if found:
        raise InputError(
            "{source}: it seems to be {kind}, which is not read. {way}", source=source.name, kind=found[0], way=found[1]
        )


def explain_unfit_text(source: SourceFile) -> InputError | None:
    """Why a text that fits no format is none, where it is known what wrote it."""
    if not _LINE_ON_PC.search(source.head()):
        return None
    return InputError(
        "{source}: it seems to be a chat of LINE on a PC, which writes names and texts with a space between. Export it "
        "on a phone, or put a tab after each name.",
        source=source.name,
    )


def is_plain_zip(source: SourceFile) -> bool:
    """Whether it is a zip of any files, not a sheet, a card or another document."""
    names = source.zip_members()
    return names is not None and _zip_kind(source, names) == ("ZIP", UNPACK)


def _zip_kind(source: SourceFile, names: set[str]) -> tuple[str, Message] | None:
    if CARD in names or any(name.startswith("xl/") for name in names) or source.suffix == ".xlsx":
        return None
    return next(((kind, way) for member, kind, way in ZIP_KINDS if member in names), ("ZIP", UNPACK))
