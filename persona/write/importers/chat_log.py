"""Chat logs as programs export them: senders and messages. A helper of `screenplay`, which pairs them."""

import re
from collections.abc import Iterable, Iterator

from persona.errors import Message
from persona.store.pairs import MAX_CHARACTERS
from persona.write.importers import ImportNote, SkippedRow, chat_marks
from persona.write.importers.chat_layouts import ACTION, DAY_SEPARATOR, MAX_PREFIX, ChatLayout
from persona.write.importers.chat_marks import ChatMarks, CleanedMessage, load_marks
from persona.write.importers.speaker_turns import Speech, SpeechEvent, SpeechGap

# WhatsApp puts them in; its left-to-right mark stays, for it tells what it wrote itself
INVISIBLE_MARKS = dict.fromkeys(map(ord, "\u200f\u202a\u202b\u202c\u202d\u202e\u2068\u2069\ufeff"))
SPACES = str.maketrans("\u202f\u00a0\u2007", "   ")
STICKER = "[sticker]"  # stands for one that somebody else sends, since the persona may reply to it
QUOTED = re.compile(r'"(?:[^"]|"")*"\s*')
PROGRAM_TEXT = Message("written by the chat program")
FORWARDED = Message("forwarded message kept as context, not learned: somebody else wrote it")
NO_TEXT = Message("no text: a picture, a sticker or the like")


def clean_line(line: str) -> str:
    return line.translate(INVISIBLE_MARKS).translate(SPACES).strip(" \n\u200e")


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


def read_chat_events(lines: Iterable[tuple[int, str]], layout: ChatLayout) -> Iterator[SpeechEvent]:
    """Every message that begins in this layout, without the marks of the program that wrote it."""
    marks = load_marks(*layout.programs)
    unquote = _unquote if "line" in layout.programs else str
    start, who, said, size = 0, "", [""], 0
    for number, line, following in with_next_line(lines):
        message = layout.parse_start(line, following)
        separator = message is None and _separator(number, line, layout)
        if message is None and not separator:
            if who and size <= MAX_CHARACTERS:  # what is longer is refused as a pair anyway
                said.append(line)
                size += len(line) + 1
            elif not who and line:
                yield SkippedRow(number, Message("nobody is named as its sender"), line)
            continue
        if who:
            yield from clean_message(start, who, unquote("\n".join(said)), marks)
        start, who, said, size = (number, message[0], [message[1] or ""], 0) if message else (0, "", [""], 0)
        if separator:
            yield separator
    if who:
        yield from clean_message(start, who, unquote("\n".join(said)), marks)


def _unquote(text: str) -> str:
    """A message of several lines, which LINE writes in quotes."""
    return text.strip()[1:-1].replace('""', '"') if "\n" in text.strip() and QUOTED.fullmatch(text) else text


def _separator(number: int, line: str, layout: ChatLayout) -> SpeechEvent | None:
    if line and DAY_SEPARATOR.match(line[:MAX_PREFIX]):
        return SpeechGap(number, Message("no line before it on that day"), scene=True)
    if "irc" in layout.programs and ACTION.match(line):  # elsewhere a list may begin with a star
        return SpeechGap(number, Message("something is done between it and the line before"))
    if layout.notice and layout.notice.match(line[:MAX_PREFIX]):
        return SkippedRow(number, Message("a notice of the chat program"), line)
    return None


def clean_message(
    line: int, who: str, text: str, marks: ChatMarks | None, answers: Speech | None = None
) -> Iterator[SpeechEvent]:
    """The message as a speech; what the program wrote in it is listed, and is no speech of anybody's.

    marks: None where the program writes none.
    """
    cleaned = marks.clean(text) if marks else CleanedMessage(text.strip())
    if cleaned.text and cleaned.removed and chat_marks.FORWARDED.match(text.lstrip()):
        yield ImportNote(line, FORWARDED)
        yield Speech(line, who, "", stands_for=cleaned.text, answers=answers)
        return
    if not cleaned.text and cleaned.kind:
        why = PROGRAM_TEXT if cleaned.kind == "notice" else NO_TEXT
        yield SkippedRow(line, why, f"{who}: {cleaned.removed[0]}")
    elif not cleaned.text:
        yield SkippedRow(line, NO_TEXT, who)
    elif cleaned.removed:
        yield ImportNote(line, Message("what the chat program wrote into a message left out"))
    # it separates the messages around it also where it has no text
    yield Speech(line, who, cleaned.text, stands_for=STICKER if cleaned.kind == "sticker" else "", answers=answers)
