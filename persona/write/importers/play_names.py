"""Plays as they are printed: `NAME. Text`, and a name centred above its speech. A helper of `screenplay`.

The lines come out as screenplays have them, `NAME: text` and a name directly above the text, with their numbers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

MIN_LINES = 2  # that each of two names must begin
_NAME = r"(?P<name>[^\W\d_][^\W\d_.]*(?:[ '’-]{1,2}[^\W\d_.]+){0,3})"
_DOTTED = re.compile(rf"{_NAME}\.(?=\s)[ \t]*(?P<text>.*)$")
_CENTRED = re.compile(rf"[ \t]{{8,}}{_NAME}[.:]?\s*$")
_HEADING = re.compile(r"(?:ACT|SCENE|SCÈNE|ACTE|AKT|SZENE|CHAPTER|PART|BOOK|PROLOGUE|EPILOGUE|INT|EXT|THE END|FADE)\b")
_COLON = re.compile(r"^[^\s:：][^:：\n]{0,39}[:：]", re.M)
_MAX_LINE = 400  # characters of a line that is looked at


def rewrite_names(lines: Iterable[tuple[int, str]], head: str) -> Iterable[tuple[int, str]]:
    """The lines with their names as a screenplay has them, where the beginning shows such a play; else as they are."""
    first = head.split("\n")
    dotted = [match["name"] for line in first if (match := _match(_DOTTED, line + "\n"))]
    if _are_names(dotted) and len(dotted) > len(_COLON.findall(head)):
        return _rewrite_dotted(lines)
    centred = pairwise(first)
    if _are_names(m["name"] for line, below in centred if (m := _match(_CENTRED, line)) and not below.strip()):
        return _join_centred(lines)
    return lines


def _match(pattern: re.Pattern[str], line: str) -> re.Match[str] | None:
    """The line with a name in capitals, which is no heading."""
    found = pattern.match(line[:_MAX_LINE].lstrip("\ufeff"))
    return found if found and found["name"].isupper() and not _HEADING.match(found["name"]) else None


def _are_names(names: Iterable[str]) -> bool:
    return sum(times >= MIN_LINES for times in Counter(names).values()) >= 2


def _rewrite_dotted(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        found = _match(_DOTTED, line + "\n")
        yield number, f"{found['name']}: {line[found.start('text') :]}" if found else line


def _join_centred(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Without the empty lines between a centred name and its speech."""
    below_name = False
    for number, line in lines:
        if below_name and not line.strip():
            continue
        found = _match(_CENTRED, line)
        below_name = bool(found)
        yield number, found["name"] if found else line
