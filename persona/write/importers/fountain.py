"""Screenplays with the name above the speech, as Fountain has them and as they are printed. A helper of `screenplay`.

Every paragraph without a name in capitals above it is action: it separates speeches and belongs to no speaker.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from persona.errors import Message
from persona.write.importers import SkippedRow
from persona.write.importers.speaker_turns import (
    NO_LINE_IN_SCENE,
    GrowingSpeech,
    Speech,
    SpeechEvent,
    SpeechGap,
    normalize_name,
)

SCENE_HEADING = re.compile(r"(?:int|ext|est|int\.?/ext|ext\.?/int|i/e)[. ]\s{0,3}\S.{0,200}$", re.IGNORECASE)
TRANSITION = re.compile(
    r"(?:[A-Z' ]{0,40} TO:|FADE (?:IN|OUT|TO BLACK)[.:]?|(?:SMASH|JUMP|MATCH)? ?CUT TO.{0,20}|THE END\.?)$"
)
TITLE_PAGE = re.compile(
    r"(?:title|credit|authors?|source|draft date|date|contact|copyright|notes|revision|format)\s?:", re.I
)
NO_TEXT = re.compile(r"(?:\d{1,4}\.?|\(?CONTINUED\)?:?|\(MORE\))$")
CHARACTER_CUE = re.compile(r"[^\W\d_a-z][^!?\"“”:;{}<>|=*_]{0,39}$")
MAX_CUE = 200  # characters of a name with its remarks in brackets
NOT_A_NAME = re.compile(r"(?:[.,…—–-]|\.{2,})$")
ABBREVIATION = re.compile(r"\b(?:MR|MRS|MS|DR|ST|JR|SR|[A-Z])\.$")


def parse_cue(line: str, following: str) -> str:
    """The character name in a line above a speech, else ""."""
    if len(line) > MAX_CUE or not following.strip():
        return ""
    text = line.strip().removesuffix("^").rstrip()
    forced = text.startswith("@")
    text = re.sub(r"\s*\([^()]{0,60}\)", "", text.removeprefix("@")).strip()
    text = text.removesuffix(":").rstrip()
    if forced:
        return text if any(c.isalnum() for c in text) else ""
    if not CHARACTER_CUE.match(text) or text != text.upper() or text == text.lower() or len(text.split()) > 5:
        return ""
    if SCENE_HEADING.match(text) or TRANSITION.match(line.strip()) or NO_TEXT.match(text):
        return ""
    return "" if NOT_A_NAME.search(text) and not ABBREVIATION.search(text) else text


def read_fountain_events(lines: Iterable[tuple[int, str]], known: Collection[str]) -> Iterator[SpeechEvent]:
    """known: normalized names; only such a name may stand directly below another line."""
    held: GrowingSpeech | None = None
    blank, said = True, False  # said: something stands under the name already
    for number, raw, following in _with_next_line(_without_comments(lines)):
        if isinstance(raw, SkippedRow):
            yield raw
            continue
        line = raw.strip()
        name = parse_cue(line, following) if not held or said or blank else ""
        name = name if blank or normalize_name(name) in known or line.startswith("@") else ""
        separator = None if name else _separator(number, line, bool(held))
        if held and not name and not separator and (line or raw == "  "):  # two spaces: an empty line within a speech
            if not NO_TEXT.match(line):
                held.add(line.removeprefix("~"))
                said = said or bool(line.removeprefix("~"))
            blank = False
            continue
        if held:
            yield held.finish()
        held, said = GrowingSpeech(Speech(number, name, "", dual=line.endswith("^"))) if name else None, False
        if separator:
            yield separator
        blank = not line
    if held:
        yield held.finish()


def _separator(number: int, line: str, within: bool) -> SpeechGap | None:
    """What separates speeches. within: under a name, where only headings and transitions end the speech."""
    forced = line.startswith(".") and not line.startswith("..")
    if (
        SCENE_HEADING.match(line)
        or TRANSITION.match(line)
        or (not within and (forced or line.startswith(("#", "==="))))
    ):
        return SpeechGap(number, NO_LINE_IN_SCENE, scene=True)
    if re.fullmatch(r"[*\-—_ ]{3,80}", line):
        return SpeechGap(number, NO_LINE_IN_SCENE, scene=True)
    if within or not line or NO_TEXT.match(line) or line.startswith("="):
        return None
    return SpeechGap(number, Message("action stands between it and the line before"))


def _with_next_line(lines: Iterator[tuple[int, str | SkippedRow]]) -> Iterator[tuple[int, str | SkippedRow, str]]:
    """(number, line, the line below)."""
    held: tuple[int, str | SkippedRow] | None = None
    for number, line in chain(lines, [(0, "")]):
        if held:
            yield *held, line if isinstance(line, str) else ""
        held = number, line


def _without_comments(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str | SkippedRow]]:
    """Without the title page, /* boneyard */ and [[notes]]. A line that held nothing else is dropped."""
    end, opened, title = "", 0, None
    for number, raw in lines:
        if title is None and raw.strip():
            title = bool(TITLE_PAGE.match(raw.strip("\ufeff ")))
        if title:
            title = bool(raw.strip())
            continue
        if end == "]]" and not raw.strip():  # a note does not go on over an empty line
            yield opened, SkippedRow(opened, Message("a note [[ that is not closed"))
            end = ""
        was = end
        line, end = _outside_comment(raw, end)
        opened = number if end and (not was or line.strip()) else opened
        if line.strip() or line == raw:
            yield number, line
    if end:
        yield (
            opened,
            SkippedRow(
                opened,
                Message("a comment /* that is not closed; the rest is in it")
                if end == "*/"
                else Message("a comment [[ that is not closed; the rest is in it"),
            ),
        )


def _outside_comment(line: str, end: str) -> tuple[str, str]:
    """The part of the line outside comments, and what would close the comment that is open at its end."""
    out: list[str] = []
    at = 0
    while True:
        if end:
            closing = line.find(end, at)
            if closing < 0:
                return "".join(out), end
            at, end = closing + 2, ""
        opening = re.compile(r"/\*|\[\[").search(line, at)
        if not opening:
            return "".join(out) + line[at:], ""
        out.append(line[at : opening.start()])
        at, end = opening.end(), "*/" if opening[0] == "/*" else "]]"
