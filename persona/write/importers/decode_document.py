"""Decode a document to paragraphs of text: Word, EPUB, HTML, PDF; SMS to rows.

Runs in decode_table.py's process, with its limits.
A chat that Telegram exported as HTML comes out as its chat log: `Name, [date]`, then the message.
"""

import html
import json
import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from persona.write.importers.budget import Budget

WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
OPF = "{http://www.idpf.org/2007/opf}"
CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}"
MAX_MEMBERS = 5_000  # files in an EPUB
PAGE_NUMBER = re.compile(
    r"(?:[-–—] ?)?\d{1,4}(?: ?[-–—]|(?: ?/ ?| of )\d{1,4})?|(?:Page|Seite|第) ?\d{1,4}(?: ?页| of \d{1,4})?"
)
TAG = re.compile(r"(<[^<>]{1,4000}>)")
TAG_NAME = re.compile(r"<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9:-]{0,30})(?=[\s/>])")
ATTRIBUTE = re.compile(r"""\s([\w-]{1,40})\s{0,9}=\s{0,9}["']([^"'<>]{0,2000})["']""")
BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "br", "dd", "div", "dl", "dt", "figcaption", "figure"),
        *("footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre"),
        *("section", "table", "td", "th", "tr", "ul"),
    )
)
LEFT_OUT = ("date", "initials", "service", "reply_to")  # classes of Telegram
HIDDEN = frozenset(("script", "style", "head", "title", "template", "noscript", "svg"))


def decode_docx(path: Path, budget: Budget) -> Iterator[str]:
    """The paragraphs of a Word file, in their order; deleted text is none."""
    with zipfile.ZipFile(path) as archive:
        Budget(budget.limit).spend(archive.getinfo("word/document.xml").file_size)
        with archive.open("word/document.xml") as file:
            text: list[str] = []
            for _, element in ElementTree.iterparse(file):
                if element.tag == f"{WORD}t":
                    text.append(element.text or "")
                elif element.tag in (f"{WORD}br", f"{WORD}cr"):
                    text.append("\n")
                elif element.tag == f"{WORD}tab":
                    text.append("\t")
                elif element.tag == f"{WORD}p":
                    yield _spend("".join(text), budget)
                    text = []
                    element.clear()


def decode_epub(path: Path, budget: Budget) -> Iterator[str]:
    """The paragraphs of the book's chapters, in the order in which they are read."""
    with zipfile.ZipFile(path) as archive:
        Budget(budget.limit).spend(sum(member.file_size for member in archive.infolist()))
        root = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        package = next(e.attrib["full-path"] for e in root.iter(f"{CONTAINER}rootfile"))
        book = ElementTree.fromstring(archive.read(package))
        files = {e.attrib["id"]: e.attrib["href"] for e in book.iter(f"{OPF}item")}
        for item in list(book.iter(f"{OPF}itemref"))[:MAX_MEMBERS]:
            name = posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(files[item.attrib["idref"]])))
            yield from _html_paragraphs(archive.read(name).decode("utf-8", "backslashreplace"), budget)
            yield ""


class NoTextError(Exception):
    """A PDF file without text to read. reason: "scanned" or "encrypted"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_pdf(path: Path, budget: Budget) -> Iterator[str]:
    """The lines of the pages, without page numbers. Raises NoTextError."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise NoTextError("encrypted")
        empty = True
        for page in reader.pages:
            lines = [line.rstrip() for line in page.extract_text().split("\n")]
            while lines and (not lines[-1] or PAGE_NUMBER.fullmatch(lines[-1].strip())):
                lines.pop()
            if lines and PAGE_NUMBER.fullmatch(lines[0].strip()):
                del lines[0]
            for line in lines:
                empty = empty and not line.strip()
                yield _spend(line, budget)
    except (DependencyError, FileNotDecryptedError):
        raise NoTextError("encrypted") from None
    if empty:
        raise NoTextError("scanned")


def decode_sms(path: Path, budget: Budget) -> Iterator[str]:
    """The messages of SMS Backup & Restore, as JSON rows of who, text, time and thread, thread by thread.

    synctech.com.au/sms-backup-restore/fields-in-xml-backup-files: type and msg_box are 1 for received, 2 for sent; the
    address of type 137 is a sender's.
    """
    threads: dict[str, list[tuple[str, str]]] = {}
    for _, element in ElementTree.iterparse(path):
        if element.tag not in ("sms", "mms"):
            continue
        box, thread = element.get("type" if element.tag == "sms" else "msg_box"), element.get("address", "")
        text = element.get("body", "")
        who = element.get("contact_name", "")
        if element.tag == "mms":
            text = "\n".join(part.get("text", "") for part in element.iter("part") if part.get("ct") == "text/plain")
            if "~" in thread:  # of several people
                who = next((a.get("address", "") for a in element.iter("addr") if a.get("type") == "137"), who)
        if box in ("1", "2") and text.strip() and text != "null":
            who = "me" if box == "2" else who if who not in ("", "null", "(Unknown)") else thread
            row = {"name": who, "text": text, "date": element.get("date", ""), "thread_id": thread}
            said = json.dumps(row, ensure_ascii=False)
            threads.setdefault(thread, []).append((row["date"].zfill(20), _spend(said, budget)))
        element.clear()
    for found in threads.values():
        yield from (said for _, said in sorted(found, key=lambda pair: pair[0]))


def decode_html(path: Path, budget: Budget, encoding: str = "utf-8") -> Iterator[str]:
    yield from _html_paragraphs(path.read_text(encoding, "backslashreplace"), budget)


def _html_paragraphs(text: str, budget: Budget) -> Iterator[str]:
    parser = _Paragraphs()
    for piece in TAG.split(_without_comments(text)):
        parser.feed(piece)
        for paragraph in parser.take():
            yield _spend(paragraph, budget)
    parser.end_paragraph()
    for paragraph in parser.take():
        yield _spend(paragraph, budget)


def _without_comments(text: str) -> str:
    kept, at = [], 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start)) >= 0:
        kept.append(text[at:start])
        at = end + 3
    return "".join([*kept, text[at:]])


def _spend(text: str, budget: Budget) -> str:
    budget.spend(len(text) + 1)
    return text


class _Paragraphs:
    """Collects the text between tags that begin a block; of Telegram's chats only names, dates and texts.

    The standard library's parser takes time by the square of the length on tags that are never closed.
    """

    def __init__(self) -> None:
        self._done: list[str] = []
        self._text: list[str] = []
        self._hidden = ""  # the open tag whose text is not shown
        self._open: list[str] = []  # Telegram's class of each open div
        self._left_out = 0  # open divs of which nothing is said
        self._who = self._when = ""

    def feed(self, piece: str) -> None:
        """A tag, or the text between two tags."""
        tag = TAG_NAME.match(piece)
        name = tag["name"].lower() if tag else ""
        if self._hidden:
            if tag and tag["close"] and name == self._hidden:
                self._hidden = ""
        elif not tag:
            if not piece.startswith(("<!", "<?")) and not self._left_out:
                self._text.append(html.unescape(piece))
        elif tag["close"]:
            self._end(name)
        elif name in HIDDEN:
            self._hidden = "" if piece.endswith("/>") else name
        else:
            self._start(name, piece)

    def take(self) -> list[str]:
        done, self._done = self._done, []
        return done

    def end_paragraph(self) -> None:
        lines = (" ".join(line.split()) for line in "".join(self._text).split("\0"))
        paragraph = "\n".join(line for line in lines if line)
        if paragraph:
            self._done.append(paragraph)
        self._text = []

    def _start(self, name: str, tag: str) -> None:
        if name == "br":
            self._text.append("\0")
        elif name in BLOCKS:
            self.end_paragraph()
            if name == "div" and not tag.endswith("/>"):
                self._open_div({key.lower(): html.unescape(value) for key, value in ATTRIBUTE.findall(tag)})

    def _open_div(self, attributes: dict[str, str]) -> None:
        classes = attributes.get("class", "").split()
        kind = next((c for c in ("from_name", "text", *LEFT_OUT) if c in classes), "")
        if kind == "date" and re.match(r"\d", attributes.get("title", "")):
            self._when = " ".join(attributes["title"].split()[:2])
        self._open.append(kind if self._when or kind == "service" else "")
        self._left_out += self._open[-1] in LEFT_OUT

    def _end(self, name: str) -> None:
        if name not in BLOCKS or name == "br":
            return
        kind = self._open.pop() if name == "div" and self._open else ""
        if kind == "from_name":
            self._who, self._text = " ".join("".join(self._text).split()), []
        elif kind == "text" and self._who:
            self._done.append(f"{self._who}, [{self._when}]")
        self._left_out -= kind in LEFT_OUT
        self.end_paragraph()
