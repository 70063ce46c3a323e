"""Chat logs as programs export them: senders and messages. A helper of `screenplay`, which pairs them.

    [12/3/24, 10:15:02] Ann: hi      12/03/2024, 10:15 - Ann: hi      10:15 <Ann> hi      <Ann> hi

or a line with the name and the time above the message:

    2024-03-12 10:15:02 Ann(12345)      Ann — Today at 10:15 AM      Ann, [12.03.24 10:15]      [12/03/2024 10:15] Ann
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from persona.errors import Message
from persona.store.pairs import MAX_CHARACTERS
from persona.write.importers import SkippedRow
from persona.write.importers.speaker_turns import Speech, SpeechEvent, SpeechGap

# WhatsApp puts them in
INVISIBLE_MARKS = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2068\u2069\ufeff"))
SPACES = str.maketrans("\u202f\u00a0\u2007\t", "    ")
MAX_PREFIX = 200  # characters of a line in which name and time stand

_DATE = r"(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\.?|\d{4} ?年 ?\d{1,2} ?月 ?\d{1,2} ?日)"
_DAY = r"(?:[Tt]oday|[Yy]esterday|今天|昨天|前天|(?:星期|周)[一二三四五六日天])"
_CLOCK = r"(?:[上下中]午|凌晨|晚上|早上)? ?\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,6})?)?(?: ?[AaPp]\.? ?[Mm]\.?)?Z?"
_STAMP = rf"(?:(?:{_DATE}|{_DAY})(?:,|T|,? ?at)? ?)?{_CLOCK}"
_NAME = r"(?P<name>[^\s:：<>\[\]][^:：<>\[\]\n]{0,59}?)"
_ID = r"(?: ?[(（<][^\s()（）<>]{1,60}[)）>])?"
MESSAGES = [
    re.compile(rf"(?:\[?{_STAMP}\]? {{0,3}}(?:- )?)?<[@+%~& ]?{_NAME}> ?"),
    re.compile(rf"\[{_STAMP}\] {{0,3}}{_NAME}{_ID} ?[:：] ?"),
    re.compile(rf"{_STAMP} {{1,4}}(?:[-–—|] )?{_NAME}{_ID} ?[:：] ?"),
]
ACTION = re.compile(rf"(?:\[?{_STAMP}\]? {{1,3}})?\*{{1,3}} [^\s*]")
STAMPED = re.compile(rf"\[{_STAMP}\] {{0,3}}|{_STAMP} {{1,4}}[-–—] ")
HEADERS = [
    re.compile(rf"\[?{_STAMP}\]? {{1,4}}{_NAME}{_ID}(?:#\d{{4}})?$"),
    re.compile(rf"{_NAME}(?:#\d{{4}})?{_ID}(?: {{1,4}}|,)(?:[-–—] )?\[?{_STAMP}\]?$"),
    re.compile(rf"{_NAME}, \[{_STAMP}\]$"),
]
DAY_SEPARATOR = re.compile(
    rf"[-—–=─ ]{{0,20}}(?:Day changed.{{0,60}}|(?:{_DATE}|{_DAY})[^:：]{{0,20}}?)[-—–=─ ]{{0,20}}$"
)
MEDIA = re.compile(
    r"<(?:Media omitted|[^<>]{1,40}(?:omitted|weggelassen|omitido|omis))>"
    r"|(?:image|video|audio|sticker|GIF|document) omitted"
    r"|\[(?:图片|表情|动画表情|语音|视频|文件|链接|红包|位置|Photo|Sticker|Video|Voice message)\]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class MessageStart:
    """The beginning of a message: its sender, and its text on the same line (None: the text is on the lines below)."""

    who: str
    text: str | None


def clean_line(line: str) -> str:
    return line.translate(INVISIBLE_MARKS).translate(SPACES).strip()


def parse_message_start(line: str, following: str) -> MessageStart | None:
    """The message that begins in `line`, None where none does. following: the next line; both cleaned."""
    probe = line[:MAX_PREFIX]
    for pattern in MESSAGES:
        if found := pattern.match(probe):
            who = found["name"].strip()
            return MessageStart(who, line[found.end() :].strip()) if _is_sender(who) else None
    if not following or len(line) > MAX_PREFIX or any(p.match(following[:MAX_PREFIX]) for p in (*MESSAGES, STAMPED)):
        return None
    for pattern in HEADERS:
        if (found := pattern.match(line)) and _is_sender(found["name"]):
            return MessageStart(found["name"].strip(" ,"), None)
    return None


def _is_sender(name: str) -> bool:
    return any(c.isalnum() for c in name) and not re.fullmatch(rf"{_DATE}|{_DAY}|[AaPp][Mm]", name.strip())


def with_next_line(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """(number, line, next line), cleaned."""
    held: tuple[int, str] | None = None
    for number, raw in lines:
        line = clean_line(raw)
        if held:
            yield *held, line
        held = number, line
    if held:
        yield *held, ""


def read_chat_events(lines: Iterable[tuple[int, str]]) -> Iterator[SpeechEvent]:
    start, who, said, size = 0, "", [""], 0
    for number, line, following in with_next_line(lines):
        message = parse_message_start(line, following)
        separator = message is None and _separator(number, line)
        if MEDIA.fullmatch(message.text if message and message.text else line):
            yield SkippedRow(number, Message("no text: a picture, a sticker or the like"), line)
            if message is None:
                continue
        if message is None and separator is None:
            if who and size <= MAX_CHARACTERS:  # what is longer is refused as a pair anyway
                said.append(line)
                size += len(line) + 1
            elif not who and line:
                yield SkippedRow(number, Message("nobody is named as its sender"), line)
            continue
        if who:
            yield _message(start, who, said)
        start, who, said, size = (number, message.who, [message.text or ""], 0) if message else (0, "", [""], 0)
        if separator:
            yield separator
    if who:
        yield _message(start, who, said)


def _separator(number: int, line: str) -> SpeechEvent | None:
    if line and DAY_SEPARATOR.match(line[:MAX_PREFIX]):
        return SpeechGap(number, Message("no line before it on that day"), scene=True)
    if ACTION.match(line):
        return SpeechGap(number, Message("something is done between it and the line before"))
    if STAMPED.match(line[:MAX_PREFIX]):
        return SkippedRow(number, Message("a notice of the chat program"), line)
    return None


def _message(line: int, who: str, said: list[str]) -> Speech:
    return Speech(line, who, "\n".join(x for x in said if not MEDIA.fullmatch(x)).strip())
