"""Word, EPUB, HTML and PDF files as text files: their paragraphs, which decode_document.py reads with limits."""

import re
import tempfile
from pathlib import Path

from persona.write.importers.text_source import SourceFile

MEMBERS = {"word/document.xml": "docx", "META-INF/container.xml": "epub"}  # a member of the zip → what it is
HTML = re.compile(
    r"[\s\ufeff]{0,200}(?:<\?xml[^<>]{0,200}\?>\s{0,200})?(?:<!doctype html|<html\b|<head\b|<body\b)", re.I
)


def document_kind(source: SourceFile) -> str:
    """docx, epub, html or pdf; "" for a file that is read as it is."""
    if source.bytes(1024).lstrip().startswith(b"%PDF-"):
        return "pdf"
    if HTML.match(source.head(2_000)):
        return "html"
    names = source.zip_members() or ()
    return next((kind for member, kind in MEMBERS.items() if member in names), "")


def open_document(source: SourceFile, kind: str) -> SourceFile:
    """The document's text as a source, in a temporary file that lasts as long as that. Raises InputError."""
    from persona.write.importers.packed_table import decode_file

    folder = tempfile.TemporaryDirectory(prefix="persona-")
    path = Path(folder.name) / "text.txt"
    with path.open("w", encoding="utf-8") as out:
        for paragraph in decode_file(source, f"html:{source.encoding}" if kind == "html" else kind):
            out.write(f"{paragraph}\n")
    return SourceFile(path, source.name, "utf-8", folder)
