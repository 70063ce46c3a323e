"""Subtitles that name who speaks: SRT, WebVTT and ASS. A helper of `screenplay`.

A name is WebVTT's voice (<v Ann>), ASS's field Name, or stands before a colon. A cue without one goes on with the
sentence before it, else nobody says it.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from persona.errors import Message
from persona.write.importers import SkippedRow
from persona.write.importers.speaker_turns import (
    GrowingSpeech,
    Speech,
    SpeechEvent,
    SpeechGap,
    join_lines,
    normalize_name,
)

MAX_CUE_LINE = 4_000  # characters
_TIME = r"(?:\d{1,3}:)?\d{1,2}:\d{2}[.,]\d{1,3}"
_TIMING = re.compile(
    rf"\s{{0,3}}{_TIME}\s{{0,3}}-->\s{{0,3}}{_TIME}(?: {{1,4}}[A-Za-z]\w{{0,20}}:\S{{1,40}}){{0,8}}\s{{0,3}}$"
)
_ASS = re.compile(r"\[Script Info\]|Dialogue:\s?\d")
_ASS_LINE = re.compile(r"(Format|Dialogue):\s*(.*)")
_VOICE = re.compile(r"<v(?:\.[\w.]{1,40})? +([^<>\n]{1,80})>")
_TAG = re.compile(r"</?[A-Za-z0-9][^<>\n]{0,80}>|\{\\[^{}\n]{0,200}\}")
_SENTENCE_END = re.compile(r"[.!?…。！？]['\"”’」』）)]{0,3}$")
NOBODY_NAMED = Message("nobody is named as its speaker")

SplitName = Callable[[str], tuple[str, str] | None]  # "Ann: hi" → ("Ann", "hi"); None where no name stands before it


def is_subtitles(head: str) -> bool:
    lines = head.lstrip("\ufeff \n").split("\n", 400)[:400]
    return lines[0].startswith("WEBVTT") or bool(_ASS.match(lines[0])) or any(_TIMING.match(x) for x in lines[:4])


def read_subtitle_events(lines: Iterable[tuple[int, str]], split_name: SplitName) -> Iterator[SpeechEvent]:
    """Speeches, those of one speaker in consecutive cues as one."""
    held: GrowingSpeech | None = None
    for number, who, text in _read_cues(lines, split_name):
        if held and (normalize_name(who) == normalize_name(held.speech.who) or (not who and not held_ends(held))):
            held.add(text)
            continue
        if held:
            yield held.finish()
        held = GrowingSpeech(Speech(number, who, text)) if who else None
        if not who:
            yield SkippedRow(number, NOBODY_NAMED, text)
            yield SpeechGap(number, Message("nobody is named as the speaker of the line before it"))
    if held:
        yield held.finish()


def held_ends(held: GrowingSpeech) -> bool:
    return bool(_SENTENCE_END.search(held.ending()))


def _read_cues(lines: Iterable[tuple[int, str]], split_name: SplitName) -> Iterator[tuple[int, str, str]]:
    """(line, name or "", text) of each cue, or of each of its parts that begins with a name."""
    fields: list[str] = ["Name", "Text"]
    started, cue = 0, list[str]()  # started: line of the cue's times, 0 outside a cue
    for number, raw in chain(lines, [(0, "")]):
        line = raw[:MAX_CUE_LINE].strip(" \ufeff\t")
        if (event := _ASS_LINE.match(line)) and not started:
            if event[1] == "Format":
                fields = [name.strip() for name in event[2].split(",")]
            else:
                yield from _ass_cue(number, fields, event[2], split_name)
        elif _TIMING.match(line):
            started, cue = number, []
        elif line and started:
            cue.append(line)
        elif started:
            yield from _split_cue(started, cue, split_name)
            started = 0


def _ass_cue(number: int, fields: list[str], values: str, split_name: SplitName) -> Iterator[tuple[int, str, str]]:
    found = dict(zip(fields, values.split(",", max(0, len(fields) - 1)), strict=False))
    text = found.get("Text", "")
    if re.search(r"\{[^{}]{0,200}\\p[1-9]", text):
        return  # a drawing
    cue = [part.strip() for part in re.split(r"\\[Nn]", text.replace(r"\h", " "))]
    who = (found.get("Name") or found.get("Actor") or "").strip()
    yield from _split_cue(number, [f"<v {who}>{cue[0]}", *cue[1:]] if who else cue, split_name)


def _split_cue(number: int, cue: list[str], split_name: SplitName) -> Iterator[tuple[int, str, str]]:
    who, text = "", ""
    for line in cue:
        voice = _VOICE.search(line)
        line = html.unescape(_TAG.sub("", line)).strip()
        named = (voice[1].strip(), line) if voice else split_name(line)
        if named:
            if text:
                yield number, who, text
            who, text = named
        else:
            text = join_lines(text, line)
    if text:
        yield number, who, text
