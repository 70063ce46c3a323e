"""Word, EPUB, HTML, PDF and SMS files as text files: what decode_document.py reads of them with limits, a line each."""

import re
import tempfile
from pathlib import Path

from persona.errors import InputError, Message
from persona.write.importers.text_source import SourceFile

MEMBERS = {"word/document.xml": "docx", "META-INF/container.xml": "epub"}  # a member of the zip → what it is
HTML = re.compile(
    r"[\s\ufeff]{0,200}(?:<\?xml[^<>]{0,200}\?>\s{0,200})?(?:<!doctype html|<html\b|<head\b|<body\b)", re.I
)


SMS = re.compile(r"[\s\ufeff]{0,200}<\?xml[^<>]{0,200}\?>(?:\s{0,200}<(?:!--|\?)[^<>]{0,400}>){0,5}\s{0,200}<smses\b")


def document_kind(source: SourceFile) -> str:
    """docx, epub, html, pdf or sms; "" for a file that is read as it is."""
    if source.bytes(1024).lstrip().startswith(b"%PDF-"):
        return "pdf"
    if HTML.match(source.head(2_000)):
        return "html"
    if SMS.match(source.head(4_000)):
        return "sms"
    names = source.zip_members() or ()
    return next((kind for member, kind in MEMBERS.items() if member in names), "")


def open_document(source: SourceFile, kind: str) -> SourceFile:
    """The document's text as a source, in a temporary file that lasts as long as that. Raises InputError."""
    from persona.write.importers.packed_table import decode_file

    if kind == "html" and all(f'class="{name}"' in source.head() for name in ("timestamp", "sender", "bubble")):
        raise InputError(
            "{source}: it seems to be {kind}, which is not read. {way}", source=source.name,
            kind="imessage-exporter HTML", way=Message("Export the chat as text: --format txt."),
        )  # fmt: skip
    folder = tempfile.TemporaryDirectory(prefix="persona-")
    path = Path(folder.name) / "text.txt"
    with path.open("w", encoding="utf-8") as out:
        for paragraph in decode_file(source, f"html:{source.encoding}" if kind == "html" else kind):
            out.write(f"{paragraph}\n")
    return SourceFile(path, source.name, "utf-8", folder)
