"""Screenplays with the name above the speech, as Fountain has them and as they are printed. A helper of `screenplay`.

Every paragraph without a name in capitals over it is action: it separates speeches, and is no text of anybody.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from persona.errors import Message
from persona.importers import Skipped
from persona.importers.speech import Event, Gap, Speech, flow, key
from persona.pairs import MAX_CHARACTERS

HEADING = re.compile(r"(?:int|ext|est|int\.?/ext|ext\.?/int|i/e)[. ]\s{0,3}\S.{0,200}$", re.IGNORECASE)
TRANSITION = re.compile(
    r"(?:[A-Z' ]{0,40} TO:|FADE (?:IN|OUT|TO BLACK)[.:]?|(?:SMASH|JUMP|MATCH)? ?CUT TO.{0,20}|THE END\.?)$"
)
TITLE_PAGE = re.compile(
    r"(?:title|credit|authors?|source|draft date|date|contact|copyright|notes|revision|format)\s?:", re.I
)
NO_TEXT = re.compile(r"(?:\d{1,4}\.?|\(?CONTINUED\)?:?|\(MORE\))$")
CUE = re.compile(r"[^\W\d_a-z][^!?\"“”:;{}<>|=*_]{0,39}$")
NOT_A_NAME = re.compile(r"(?:[.,…—–-]|\.{2,})$")
ABBREVIATION = re.compile(r"\b(?:MR|MRS|MS|DR|ST|JR|SR|[A-Z])\.$")


def cue(line: str, following: str) -> str:
    """The name in a line that stands above a speech, else ""."""
    if not following.strip():
        return ""
    text = line.strip().removesuffix("^").rstrip()
    forced = text.startswith("@")
    text = re.sub(r"\s*\([^()]{0,60}\)", "", text.removeprefix("@")).strip()
    text = text.removesuffix(":").rstrip()
    if forced:
        return text if any(c.isalnum() for c in text) else ""
    if not CUE.match(text) or text != text.upper() or text == text.lower() or len(text.split()) > 5:
        return ""
    if HEADING.match(text) or TRANSITION.match(line.strip()) or NO_TEXT.match(text):
        return ""
    return "" if NOT_A_NAME.search(text) and not ABBREVIATION.search(text) else text


def events(lines: Iterable[tuple[int, str]], known: Collection[str]) -> Iterator[Event]:
    """known: keys of the names; only such a name may stand directly below another line."""
    at, who, dual, said = 0, "", False, ""
    blank = True
    for number, raw, following in _window(_uncommented(lines)):
        if isinstance(raw, Skipped):
            yield raw
            continue
        line = raw.strip()
        name = cue(line, following) if not who or said or blank else ""
        name = name if blank or key(name) in known or line.startswith("@") else ""
        apart = None if name else _apart(number, line, bool(who))
        if who and not name and not apart and (line or raw == "  "):  # two spaces: an empty line within a speech
            if len(said) <= MAX_CHARACTERS and not NO_TEXT.match(line):
                said = flow(said, line.removeprefix("~"))
            blank = False
            continue
        if who:
            yield Speech(at, who, said, dual=dual)
        at, who, dual, said = number, name, bool(name) and line.endswith("^"), ""
        if apart:
            yield apart
        blank = not line
    if who:
        yield Speech(at, who, said, dual=dual)


def _apart(number: int, line: str, within: bool) -> Gap | None:
    """What stands between speeches. within: under a name, where only headings and transitions can end the speech."""
    forced = line.startswith(".") and not line.startswith("..")
    if HEADING.match(line) or TRANSITION.match(line) or (not within and (forced or line.startswith(("#", "===")))):
        return Gap(number, Message("no line before it in this scene"), scene=True)
    if re.fullmatch(r"[*\-—_ ]{3,80}", line):
        return Gap(number, Message("no line before it in this scene"), scene=True)
    if within or not line or NO_TEXT.match(line) or line.startswith("="):
        return None
    return Gap(number, Message("action stands between it and the line before"))


def _window(lines: Iterator[tuple[int, str | Skipped]]) -> Iterator[tuple[int, str | Skipped, str]]:
    """(number, line, the line below)."""
    held: tuple[int, str | Skipped] | None = None
    for number, line in chain(lines, [(0, "")]):
        if held:
            yield *held, line if isinstance(line, str) else ""
        held = number, line


def _uncommented(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str | Skipped]]:
    """Without the title page, /* boneyard */ and [[notes]]. A line that only held such a thing is gone, not empty."""
    end, opened, title = "", 0, None
    for number, raw in lines:
        if title is None and raw.strip():
            title = bool(TITLE_PAGE.match(raw.strip("\ufeff ")))
        if title:
            title = bool(raw.strip())
            continue
        if end == "]]" and not raw.strip():  # a note does not go on over an empty line
            yield opened, Skipped(opened, Message("a note [[ that is not closed"))
            end = ""
        was = end
        line, end = _outside(raw, end)
        opened = number if end and (not was or line.strip()) else opened
        if line.strip() or line == raw:
            yield number, line
    if end:
        yield (
            opened,
            Skipped(
                opened,
                Message("a comment /* that is not closed; the rest is in it")
                if end == "*/"
                else Message("a comment [[ that is not closed; the rest is in it"),
            ),
        )


def _outside(line: str, end: str) -> tuple[str, str]:
    """The part of the line outside comments, and what would close the comment that is open at its end."""
    out: list[str] = []
    at = 0
    while True:
        if end:
            closed = line.find(end, at)
            if closed < 0:
                return "".join(out), end
            at, end = closed + 2, ""
        begun = re.compile(r"/\*|\[\[").search(line, at)
        if not begun:
            return "".join(out) + line[at:], ""
        out.append(line[at : begun.start()])
        at, end = begun.end(), "*/" if begun[0] == "/*" else "]]"
