"""JSON and JSONL as a stream of rows, each with its line; what cannot be read is a Skipped, and reading goes on.

Three forms: a list, also inside an object as in {"data": […]}; JSONL, one value a line; objects one after the other.
A broken element of a list ends where the next object begins with a key that the rows have; JSONL has its lines for it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Any, NamedTuple, NoReturn

from persona.errors import InputError, Message
from persona.store.pairs import Pair, find_unfinished, parse_pair
from persona.write.importers import ImportItem, ImportNote, SkippedRow
from persona.write.importers.text_source import MAX_LINE, SourceFile

MAX_ROW = 2_000_000  # characters of one row; longer is a damaged file, and would have to be held in memory
MAX_SHOWN = 2_000  # characters of a skipped row that are kept to be shown
CHUNK = 65_536  # characters read at a time
OVERLAP = 1_000  # characters looked at again after reading on, so that a border between two chunks hides no row

JSONL_SUFFIXES = (".jsonl", ".ndjson")
_KEY = r'"(?:[^"\\]|\\.)*"'
_WRAPPERS = "data|dataset|train|validation|test|rows|items|examples|samples|instances|records|pairs"
_WRAPPED = re.compile(rf'\s*\{{\s*(?:{_KEY}\s*:\s*(?:{_KEY}|[\w.+-]+)\s*,\s*)*"(?:{_WRAPPERS})"\s*:\s*\[')
_GOES_ON = re.compile(rf"[\s,]*(?:(?:{_KEY}\s*:\s*)?\[|(?=\{{))")  # another list, or a ] too many
_BETWEEN = re.compile(r"[\s,]*")
_ROW_KEYS = ("instruction", "input", "output", "question", "answer", "prompt", "conversations", "messages", "id")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class SourceRow(NamedTuple):
    """A value of the file, its line (from 1; a row in a sheet), and its text there."""

    line: int
    value: Any
    text: str


def read_json_rows(source: SourceFile) -> Iterator[SourceRow | SkippedRow]:
    """Raises InputError when the file holds no JSON at all."""
    head = source.head()
    wrapped = None if source.suffix in JSONL_SUFFIXES else _WRAPPED.match(head)
    if wrapped:
        yield from _read_elements(source, wrapped.end(), listed=True)
    elif _is_jsonl(source.suffix, head):
        yield from _read_jsonl(source)
    elif head.lstrip()[:1] == "[":
        yield from _read_elements(source, head.index("[") + 1, listed=True)
    elif head.lstrip()[:1] == "{":
        yield from _read_elements(source, 0, listed=False)
    else:
        raise InputError(
            "{source}: no JSON; it begins with {head!r}, not with [ or {{. Choose another format.",
            source=source.name,
            head=head.lstrip()[:20],
        )


def read_first_rows(source: SourceFile, limit: int = 5) -> list[dict[str, Any]]:
    """The objects among the first rows, to tell formats apart; none when the file is no JSON."""
    try:
        read = (
            r.value
            for r in islice(read_json_rows(source), 4 * limit)
            if isinstance(r, SourceRow) and isinstance(r.value, dict)
        )
        return list(islice(read, limit))
    except InputError:
        return []


def score_first_rows(source: SourceFile, fits: Callable[[dict[str, Any]], bool]) -> float:
    """What sniff() answers: certain when half of the first rows fit, or more."""
    found = read_first_rows(source)
    return 0.95 if found and 2 * sum(map(fits, found)) >= len(found) else 0.0


def convert_rows(
    found: Iterable[SourceRow | SkippedRow | ImportNote],
    source: SourceFile,
    to_pair: Callable[[Any, str], tuple[Pair, list[str]]],
) -> Iterator[ImportItem]:
    """Each row as a pair with its notes, or as a Skipped. to_pair takes a value and its place in the file."""
    for row in found:
        if not isinstance(row, SourceRow):
            yield row
            continue
        try:
            pair, notes = to_pair(row.value, source.place(row.line))
        except InputError as e:
            yield SkippedRow(row.line, e.message, truncate_text(row.text))
        else:
            yield pair
            yield from (ImportNote(row.line, what) for what in notes)


def parse_complete_pair(row: Any) -> Pair:
    """parse_pair() for text from outside, where a pair with an empty side is of no use. Raises InputError."""
    pair = parse_pair(row)
    if missing := find_unfinished([pair]):
        raise InputError(missing[0][1])
    return pair


def note_unused_keys(row: dict[str, Any], used: Iterable[str], what: str = Message("key")) -> list[str]:
    """Notes on what `row` holds besides the keys that are used."""
    used = set(used)
    return [
        Message("{what} {k} left out", what=what, k=f"{k!r:.60}")
        for k, v in row.items()
        if k not in used and v not in ("", None, [], {})
    ]


def truncate_text(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


# --- one value ---------------------------------------------------------------------------------------------------


class _RejectedJson(InputError):
    """JSON that Python would read, and that is not meant."""


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(items)
    if len(made) != len(items):
        keys = [k for k, _ in items]
        twice = next(k for k in keys if keys.count(k) > 1)
        raise _RejectedJson("key {key} stands there twice", key=f"{twice!r:.40}")
    return made


def _reject_constant(name: str) -> NoReturn:
    raise _RejectedJson("not JSON ({name} is no number)", name=name)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_reject_constant)


def _decode(text: str, at: int) -> tuple[Any, int]:
    """The value at `at`, and its end. Raises JSONDecodeError, and _Wrong for what is no question of reading on."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError:
        raise _RejectedJson("nested too deep") from None
    except (json.JSONDecodeError, _RejectedJson):
        raise
    except ValueError:  # an integer of thousands of digits, which json leaves to int()
        raise _RejectedJson("a number of thousands of digits") from None
    if _SURROGATE_ESCAPE.search(text, at, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _RejectedJson("holds half a character (a lone surrogate). Retype it") from None
    return value, end


def _not_json(e: json.JSONDecodeError) -> str:
    if e.pos >= len(e.doc.rstrip()) or e.msg.startswith("Unterminated"):
        return Message("cut short, or a quote or bracket is missing ({reason})", reason=e.msg)
    return Message("not JSON ({reason}, at {doc!r})", reason=e.msg, doc=e.doc[e.pos : e.pos + 20])


# --- JSONL -------------------------------------------------------------------------------------------------------


def _is_jsonl(suffix: str, head: str) -> bool:
    lines = [line for x in head.split("\n")[:200] if (line := x.strip())] or [""]
    if suffix in JSONL_SUFFIXES:  # unless a list was saved under this name
        listed = re.match(r"\[\s*(\{|$)", lines[0]) and (len(lines) == 1 or lines[0][-1] in "[{,]")
        return not listed
    return 2 * sum(line[0] == "{" and line[-1] == "}" for line in lines if line) > len(lines)


def _read_jsonl(source: SourceFile) -> Iterator[SourceRow | SkippedRow]:
    for number, pieces in groupby(source.lines(), key=lambda x: x[0]):
        text = "".join(piece for _, piece in islice(pieces, MAX_ROW // MAX_LINE + 1)).strip()
        if not text:
            continue
        if len(text) > MAX_ROW:
            yield SkippedRow(number, Message("longer than {limit:,} characters", limit=MAX_ROW), truncate_text(text))
            continue
        try:
            value, end = _decode(text, 0)
        except json.JSONDecodeError as e:
            yield SkippedRow(number, _not_json(e), truncate_text(text))
        except _RejectedJson as e:
            yield SkippedRow(number, e.message, truncate_text(text))
        else:
            if text[end:].strip() in ("", ","):
                yield SourceRow(number, value, text)
            else:
                yield SkippedRow(
                    number,
                    Message("not JSON (more after its end, at {text!r})", text=text[end : end + 20]),
                    truncate_text(text),
                )


# --- lists and objects -------------------------------------------------------------------------------------------


class _TextWindow:
    """A part of the file that moves on: `text` is unread from `at`, which is in line `line`."""

    def __init__(self, source: SourceFile) -> None:
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self._lines, self._number = source.lines(), 1
        self.more(CHUNK)

    def more(self, count: int) -> None:
        """Read on until `count` characters are unread, or the file ends."""
        parts, size = [self.text[self.at :]], len(self.text) - self.at
        while size < count and not self.ended:
            number, text = next(self._lines, (0, ""))
            self.ended = number == 0
            parts.append("\n" + text if number > self._number else text)
            self._number = number
            size += len(parts[-1])
        self.text, self.at = "".join(parts), 0

    def go(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def between(self) -> str:
        """Go over what separates two elements; the character that follows, "" at the end of the file."""
        while True:
            if match := _BETWEEN.match(self.text, self.at):
                self.go(match.end())
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more(CHUNK)


def _read_elements(source: SourceFile, start: int, listed: bool) -> Iterator[SourceRow | SkippedRow]:
    """The elements from character `start` on. listed: a list is open there, and has to be closed."""
    window, keys = _TextWindow(source), set[str]()
    window.go(start)
    whole = True
    while char := window.between():
        if char == "]" and listed:
            window.go(window.at + 1)
            window.more(CHUNK)
            if more := _GOES_ON.match(window.text, window.at):
                window.go(more.end())
                whole = more[0].endswith("[")
                continue
            rest = window.text[window.at :].strip().removeprefix("}").strip()
            if rest:
                yield SkippedRow(window.line, Message("text after the end of the list"), truncate_text(rest))
            return
        line, read = window.line, _read_element(window)
        whole = isinstance(read, tuple)
        if isinstance(read, tuple):
            value, end = read
            if isinstance(value, dict) and len(keys) < 50:
                keys.update(value)
            text = window.text[window.at : end]
            window.go(end)
            yield SourceRow(line, value, text)
        else:
            yield SkippedRow(line, read, truncate_text(_skip_broken(window, keys)))
    if listed and whole:
        yield SkippedRow(window.line, Message("the file ends before its list is closed: it was cut short"))


def _read_element(window: _TextWindow) -> tuple[Any, int] | str:
    """The value at the window's place with its end, or why there is none."""
    while True:
        try:
            value, end = _decode(window.text, window.at)
            if window.ended or end < len(window.text) or window.text[end - 1] in '}]"':
                return (
                    (value, end)
                    if end - window.at <= MAX_ROW
                    else Message("longer than {limit:,} characters", limit=MAX_ROW)
                )
        except json.JSONDecodeError as e:
            cut = e.pos >= len(window.text) - 10 or e.msg.startswith("Unterminated")
            if window.ended or not cut:
                return _not_json(e)
        except _RejectedJson as e:
            return e.message
        size = len(window.text) - window.at
        if size > MAX_ROW:
            return Message("longer than {limit:,} characters, or a quote or bracket is missing", limit=MAX_ROW)
        window.more(2 * size + CHUNK)


def _skip_broken(window: _TextWindow, keys: set[str]) -> str:
    """Go to the next object that begins as the rows do; the text on the way, its beginning at least."""
    known = [re.escape(json.dumps(k, ensure_ascii=False)) for k in keys or _ROW_KEYS]
    if own := re.compile(rf"\{{\s*({_KEY})\s*:").match(window.text, window.at):
        known.append(re.escape(own[1]))
    # after ":" or "[" it would be inside the broken one
    following = re.compile(rf"[^:\[\s]\s*(?=\{{\s*(?:{'|'.join(known)})\s*:)")
    passed = ""
    while True:
        found = following.search(window.text, window.at)
        end = found.start() + (found[0][0] != ",") if found else len(window.text)
        if not found and not window.ended:
            end = max(window.at, end - OVERLAP)
        if len(passed) <= MAX_SHOWN:
            passed += window.text[window.at : end][: MAX_SHOWN + 1]
        window.go(end)
        if found or window.ended:
            return passed
        window.more(CHUNK)
