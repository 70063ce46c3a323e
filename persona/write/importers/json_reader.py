"""JSON and JSONL as a stream of rows, each with its line; a row that cannot be used is a SkippedRow.

Three forms: a list, also inside an object as in {"data": […]}; JSONL, one value a line; objects one after the other.
Comments, commas before a closing bracket, NaN and Infinity (null) are read too.
After a line of JSONL that is not JSON, reading goes on with the next one. A list has no such lines: what is not JSON
ends it, and the SkippedRow says where, and that nothing after it was read.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, groupby, islice
from typing import Any, NoReturn

import ijson

from persona.errors import InputError, Message
from persona.write.importers import SkippedRow
from persona.write.importers.relaxed_json import relax_line, relax_lines, skip_comments
from persona.write.importers.rows import MAX_ROW, SourceRow, truncate_text
from persona.write.importers.text_source import MAX_LINE, SourceFile

JSONL_SUFFIXES = (".jsonl", ".ndjson")
_KEY = r'"(?:[^"\\]|\\.)*"'
_WRAPPERS = (
    "data|dataset|train|validation|test|rows|items|examples|samples|instances|records|pairs|results?|payload|response"
)
_WRAPPER = rf'\s*\{{\s*(?:{_KEY}\s*:\s*(?:{_KEY}|[\w.+-]+)\s*,\s*)*"(?:{_WRAPPERS})"\s*:\s*'
_WRAPPED = [re.compile(rf"(?:{_WRAPPER}){{{depth}}}\[") for depth in (1, 2, 3)]
_MARK = re.compile(r'["{\[]|\\.')
_CUT_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\$")  # at the end of a piece of a line
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_rows(source: SourceFile) -> Iterator[SourceRow | SkippedRow]:
    """Raises InputError when the file holds no JSON at all."""
    head = skip_comments(source.head())
    depth = next((n for n, pattern in enumerate(_WRAPPED, 1) if pattern.match(head)), 0)
    if depth and source.suffix not in JSONL_SUFFIXES:
        yield from _read_elements(source, depth)
    elif _is_jsonl(source.suffix, head):
        yield from _read_jsonl(source)
    elif head.lstrip()[:1] in ("[", "{"):
        yield from _read_elements(source)
    else:
        raise InputError(
            "{source}: no JSON; it begins with {head!r}, not with [ or {{. Choose another format.",
            source=source.name,
            head=head.lstrip()[:20],
        )


def read_object_parts(source: SourceFile) -> Iterator[SourceRow | SkippedRow]:
    """read_json_rows(); of a file that is one object, the objects and the elements of the lists in it."""
    head = source.head()
    if head.lstrip()[:1] == "{" and not _is_jsonl(source.suffix, head):
        return _read_elements(source, 1)
    return read_json_rows(source)


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


def find_first_problem(source: SourceFile) -> SkippedRow | None:
    """What keeps a JSON file from being read from its first row on."""
    try:
        row = next(read_json_rows(source), None)
    except InputError:
        return None
    return row if isinstance(row, SkippedRow) else None


def score_first_rows(source: SourceFile, fits: Callable[[dict[str, Any]], bool]) -> float:
    """What sniff() answers: certain when half of the first rows fit, or more."""
    found = read_first_rows(source)
    return 0.95 if found and 2 * sum(map(fits, found)) >= len(found) else 0.0


# --- one value ---------------------------------------------------------------------------------------------------


class _RejectedJson(InputError):
    """JSON that Python would read, and that is not meant."""


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(items)
    if len(made) != len(items):
        twice = next(k for k, times in Counter(k for k, _ in items).items() if times > 1)
        raise _RejectedJson("key {key} stands there twice", key=f"{twice!r:.40}")
    return made


def _reject_constant(name: str) -> NoReturn:
    raise _RejectedJson("not JSON ({name} is no number)", name=name)


TOO_DEEP = Message("nested too deep")
TOO_MANY_DIGITS = Message("a number of thousands of digits")
NOT_READ = Message("Nothing after it was read: correct the file there and import it again")
LONE_SURROGATE = Message("holds half a character (a lone surrogate). Retype it")
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_reject_constant)


def _decode(text: str) -> tuple[Any, int]:
    """The value at the beginning of `text`, and its end. Raises JSONDecodeError or _RejectedJson."""
    try:
        value, end = _DECODER.raw_decode(text)
    except RecursionError:
        raise _RejectedJson(TOO_DEEP) from None
    except (json.JSONDecodeError, _RejectedJson):
        raise
    except ValueError:  # an integer of thousands of digits, which json leaves to int()
        raise _RejectedJson(TOO_MANY_DIGITS) from None
    if _SURROGATE_ESCAPE.search(text, 0, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _RejectedJson(LONE_SURROGATE) from None
    return value, end


def _decode_row(line: int, text: str) -> tuple[SourceRow | SkippedRow, str]:
    """The row at the beginning of `text`, and what stands after it."""
    problem: str
    try:
        value, end = _decode(text)
    except json.JSONDecodeError as e:
        problem, end = _not_json(e), len(text)
    except _RejectedJson as e:
        problem, end = e.message, len(text)
    else:
        if end <= MAX_ROW:
            return SourceRow(line, value, text[:end]), text[end:]
        problem = Message("longer than {limit:,} characters", limit=MAX_ROW)
    return SkippedRow(line, problem, truncate_text(text[:end])), text[end:]


def _not_json(e: json.JSONDecodeError) -> str:
    if e.pos >= len(e.doc.rstrip()) or e.msg.startswith("Unterminated"):
        return Message("cut short, or a quote or bracket is missing ({reason})", reason=e.msg)
    return Message("not JSON ({reason}, at {doc!r})", reason=e.msg, doc=e.doc[e.pos : e.pos + 20])


# --- JSONL -------------------------------------------------------------------------------------------------------


def _is_jsonl(suffix: str, head: str) -> bool:
    lines = [line for x in head.split("\n")[:200] if (line := x.strip())] or [""]
    if suffix in JSONL_SUFFIXES and lines[0] != "{":  # unless a list, or objects of several lines, have this name
        listed = re.match(r"\[\s*(\{|$)", lines[0]) and (len(lines) == 1 or lines[0][-1] in "[{,]")
        return not listed
    return 2 * sum(line[0] == "{" and line[-1] == "}" for line in lines if line) > len(lines)


def _read_jsonl(source: SourceFile) -> Iterator[SourceRow | SkippedRow]:
    for number, pieces in groupby(source.lines(), key=lambda x: x[0]):
        text = "".join(piece for _, piece in islice(pieces, MAX_ROW // MAX_LINE + 1)).strip().strip("\ufeff")
        if not text:
            continue
        if len(text) > MAX_ROW:
            yield SkippedRow(number, Message("longer than {limit:,} characters", limit=MAX_ROW), truncate_text(text))
            continue
        row, rest = _decode_row(number, text)
        if isinstance(row, SkippedRow) and (relaxed := relax_line(text)) != text:
            if not relaxed.strip():
                continue  # a comment
            again, after = _decode_row(number, relaxed)
            row, rest = (again, after) if isinstance(again, SourceRow) else (row, rest)
        while isinstance(row, SourceRow) and (rest := rest.strip(" \t,\ufeff"))[:1] == "{":  # one after the other
            yield row
            row, rest = _decode_row(number, rest)
        if rest.strip() not in ("", ","):
            problem = Message("not JSON (more after its end, at {text!r})", text=rest[:20])
            row = SkippedRow(number, problem, truncate_text(text))
        yield row


# --- lists and objects -------------------------------------------------------------------------------------------

_LEFT_OVER = " \t\r\n,]}"  # a comma or a bracket too many at the end of the file loses nothing


def _read_elements(source: SourceFile, wrapped: int = 0) -> Iterator[SourceRow | SkippedRow]:
    """The rows of a list, of the lists in so many objects around it (wrapped), or objects one after the other.

    ijson says where a row begins and ends; the row's text is then decoded as a line of JSONL is.
    """
    events = ijson.sendable_list()
    # use_float: without it, ijson 3.6.0 crashes the process on an integer of thousands of digits
    parser = ijson.basic_parse_coro(events, multiple_values=True, use_float=True)
    wrappers = (*["start_map"] * wrapped, "start_array")
    around = within = size = 0  # open brackets around the rows, and of the row; characters since the last row
    list_closed = False
    line, row, rest = 1, list[str](), ""  # of the row: its first line, its pieces, what follows it in the last of them
    pieces = _split_at_brackets(source)
    for number, piece in pieces:
        if not within:
            line, row = number, []
        row.append(piece)
        rest, size = piece, size + len(piece)
        error = _feed(parser, piece)
        for event, value in events:
            if event.startswith("start"):
                if within or around == len(wrappers) or event != wrappers[around]:
                    within += 1
                else:
                    around += 1
            elif event.startswith("end"):
                if within == 1:
                    found, rest = _decode_row(line, "".join(row))
                    size = 0
                    yield found
                around, within = (around, within - 1) if within else (around - 1, 0)
                list_closed = list_closed or not within
            elif event != "map_key" and not within and not (wrapped and around < len(wrappers)):
                size = 0
                yield SourceRow(number, value, str(value))
        events.clear()
        if error is None and size <= 2 * MAX_ROW:
            continue
        text = "".join(row) if within else rest
        if error and not within and not any(x.strip(_LEFT_OVER) for x in chain([text], (p for _, p in pieces))):
            return
        problem = _explain_stop(error, text, bool(within), list_closed and not around)
        yield SkippedRow(
            line if within else number,
            Message("{problem}. {stop}", problem=problem, stop=NOT_READ),
            truncate_text(text),
        )
        return
    if within:
        yield _decode_row(line, "".join(row))[0]
    elif around:
        yield SkippedRow(line, Message("the file ends before its list is closed: it was cut short"))
    elif _feed(parser, "\n") or events:  # an unclosed string, or a number, which only the next character ends
        yield SkippedRow(number, Message("text after the end of the list"), truncate_text(rest))


def _feed(parser: Any, piece: str) -> Exception | None:
    """Push a piece into ijson; what is wrong with it. Events come as far as it is right."""
    try:
        parser.send(piece.encode())
    except (ijson.JSONError, UnicodeDecodeError) as e:  # the latter for half a character
        return e
    return None


def _explain_stop(error: Exception | None, text: str, in_row: bool, after_list: bool) -> str:
    """Why reading stops at `text`; an error in a row in the words of the json module, if that sees it too."""
    if error is None:
        return Message("longer than {limit:,} characters, or a quote or bracket is missing", limit=MAX_ROW)
    if in_row and isinstance(error, UnicodeDecodeError):
        return LONE_SURROGATE
    if in_row:
        row, _ = _decode_row(0, text)
        return row.why if isinstance(row, SkippedRow) else Message.of(str(error).partition("\n")[0])
    if after_list:
        return Message("text after the end of the list")
    return Message("not JSON ({reason}, at {doc!r})", reason="Expecting value or ','", doc=text.strip()[:20])


def _split_at_brackets(source: SourceFile) -> Iterator[tuple[int, str]]:
    """(line, piece) so that a row, and whatever is open in it, begins with its piece.

    Not at brackets in a text: yajl, below ijson, begins a text that is not complete anew with each piece.
    """
    last, in_text, escaped = 1, False, False
    for number, line in relax_lines(source.lines()):
        text = line if number == last else "\n" + line  # the same line goes on
        last, start = number, 0
        for mark in _MARK.finditer(text, int(escaped)):
            if mark[0] == '"':
                in_text = not in_text
            elif mark[0] in "{[" and not in_text:
                if mark.start() > start:
                    yield number, text[start : mark.start()]
                start = mark.start()
        escaped = bool(_CUT_ESCAPE.search(text))
        if start < len(text):
            yield number, text[start:]
