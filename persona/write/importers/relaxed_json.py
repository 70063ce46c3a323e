"""JSON as people and programs write it by hand: comments, commas before a closing bracket, NaN and Infinity."""

import re
from collections.abc import Iterable, Iterator

_TOKEN = re.compile(
    r'(?P<text>"(?:[^"\\]|\\.)*+(?:"|\\?$))|(?P<comment>//.*|/\*.*?\*/)|(?P<open>/\*.*)'
    r"|(?P<number>-?(?:NaN|Infinity)\b)|(?P<comma>,)(?=\s*[}\]])"
)
_REST_OF_TEXT = re.compile(r'(?:[^"\\]|\\.)*+(?:"|\\?$)')
_COMMENTS = re.compile(r"(?:\s|//[^\n]*(?:\n|$)|/\*.*?\*/)*", re.S)


def skip_comments(head: str) -> str:
    """The beginning of a file without the comments above its first bracket."""
    return head[end:] if (end := _end(_COMMENTS, head)) and head.lstrip("\ufeff \n\t\r")[:1] == "/" else head


def _end(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.match(text)
    return found.end() if found else 0


def relax_line(text: str) -> str:
    """One line as JSON; a comment goes, and what is no number becomes null."""
    return relax_commas(_replace(text)) if "/" in text else _replace(text)


def relax_commas(text: str) -> str:
    return _TOKEN.sub(lambda found: "" if found["comma"] else found[0], text)


def _replace(text: str) -> str:
    return _TOKEN.sub(lambda x: x["text"] or ("null" if x["number"] else ""), text)


def relax_lines(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(number, text) of each line, or of each piece of a long one, as JSON. No string goes on over a line break."""
    last, in_text, in_comment = 0, "", False
    held: list[tuple[int, str]] = []  # a line that ends with a comma, which may be one too many
    for number, raw in lines:
        text = raw
        if number != last:
            in_text = ""
        last, start = number, ""
        if in_comment:
            _, closed, text = text.partition("*/")
            in_comment = not closed
        elif in_text:  # the piece before it ended within a string
            end = _end(_REST_OF_TEXT, in_text[1:] + text) - len(in_text[1:])
            start, text = text[:end], text[end:]
            in_text = in_text if not text and not start.endswith('"') else ""
        for token in _TOKEN.finditer(text):
            in_comment = bool(token["open"])
            if token["text"] and token.end() == len(text) and (len(token[0]) == 1 or not _is_closed(token[0])):
                in_text = '"\\' if _ends_in_escape(token[0]) else '"'
        text = start + (relax_line(text) if text else "")
        if held and not text.strip():
            continue
        if held:
            if text.lstrip()[:1] in ("]", "}"):
                held[0] = held[0][0], held[0][1].rstrip()[:-1]
            yield held.pop()
        if not in_text and text.rstrip().endswith(","):
            held.append((number, text))
        else:
            yield number, text
    yield from held


def _ends_in_escape(text: str) -> bool:
    return bool((len(text) - len(text.rstrip("\\"))) % 2)


def _is_closed(text: str) -> bool:
    return text.endswith('"') and not _ends_in_escape(text[:-1])
