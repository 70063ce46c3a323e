"""Chats as data: messages with a sender and a text, in JSON, JSONL or a table, whoever wrote them.

SillyTavern, Telegram, Discord, Messenger, Instagram, Slack, WeChat tools, KakaoTalk, and rows of named speakers. The
names that each gives its fields are in `chat_shapes.py`.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from persona.errors import InputError, Message
from persona.write.importers import ImportItem, ImportOptions, SkippedRow, SourceSurvey, messages, sharegpt, spreadsheet
from persona.write.importers.chat_log import clean_message
from persona.write.importers.chat_marks import load_marks
from persona.write.importers.chat_shapes import ChatKeys, ChatMessage, find_keys, find_message_lists, read_message
from persona.write.importers.columns import guess_columns
from persona.write.importers.conversation_rows import MAX_HISTORY
from persona.write.importers.json_reader import read_object_parts
from persona.write.importers.rows import SourceRow, truncate_text
from persona.write.importers.speaker_turns import (
    NO_LINE_IN_SCENE,
    SpeakerNames,
    Speech,
    SpeechEvent,
    SpeechGap,
    merge_consecutive,
    normalize_name,
    pair_speeches,
    select_speaker,
)
from persona.write.importers.text_source import SourceFile
from persona.write.importers.turns import PERSONA, ROLES, USER

NAME = "chat"
TITLE = "Chat as data: SillyTavern, Telegram, Discord, Messenger, WeChat … (JSON, JSONL, CSV)"
OPTIONS = frozenset({"speakers", "turns"})

ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")  # in the order of its characters
HEAD_MESSAGES = 40  # that sniffing looks at
HEAD_ROWS = 60
MAX_REVERSED_BYTES = 200_000_000  # of a file that is newest first, whose messages are held in memory
REMEMBERED = 2_000  # messages that a later one may name as what it replies to
NO_MESSAGE = Message("no message: an event of the chat, or something about it")

Found = tuple[int, ChatMessage, ChatKeys] | SkippedRow | SpeechGap


def sniff(source: SourceFile) -> float:
    try:
        first = [x for x in islice(_read_messages(source), HEAD_ROWS) if isinstance(x, tuple)][:HEAD_MESSAGES]
    except InputError:
        return 0.0
    names = Counter(message.who for _, message, _ in first)
    sure = _is_table(source) or _find_persona_roles(names)
    if len(names) < 2 or (max(names.values()) < 2 and not sure):
        return 0.0
    return 0.96 if _is_table(source) else 0.9


def survey(source: SourceFile) -> SourceSurvey:
    speakers = _count_speakers(source)
    return SourceSurvey(speakers={} if _find_persona_roles(speakers) else dict(speakers.most_common()))


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    """Raises InputError listing the most frequent senders when the persona is not among them, or is not chosen."""
    speakers = _count_speakers(source)
    if not options.speakers and (roles := _find_persona_roles(speakers)):
        turns = MAX_HISTORY if options.turns is None else options.turns
        options = replace(options, speakers=roles, turns=turns)
    persona = select_speaker(source, options, speakers)
    yield from pair_speeches(merge_consecutive(_events(source)), persona, source, options, brackets=False)


def _find_persona_roles(speakers: Counter[str]) -> tuple[str, ...]:
    """The names of the persona's role, where all speakers are roles: user and assistant."""
    sides = {name: ROLES.get(name.strip().lower(), "") for name in speakers}
    if "" in sides.values() or not {USER, PERSONA} <= set(sides.values()):
        return ()
    return tuple(name for name, side in sides.items() if side == PERSONA)


def _count_speakers(source: SourceFile) -> Counter[str]:
    names = SpeakerNames()
    for event in _events(source):
        if isinstance(event, Speech) and event.text:
            names.add(event.who)
    return names.counts


def _events(source: SourceFile) -> Iterator[SpeechEvent]:
    remembered: OrderedDict[str, Speech] = OrderedDict()
    last = thread = ""  # id of the message before, and of its conversation
    for found in _in_order(source):
        if not isinstance(found, tuple):
            yield found
            continue
        line, message, keys = found
        if message.thread != thread:
            yield SpeechGap(line, NO_LINE_IN_SCENE, scene=True)
            thread, last = message.thread, ""
        answers = remembered.get(message.reply) if message.reply not in ("", last) else None
        if answers and normalize_name(answers.who) == normalize_name(message.who):
            answers = None
        marks = load_marks(*keys.programs) if keys.programs else None
        for event in clean_message(line, message.who, message.text, marks, answers):
            yield event
            if isinstance(event, Speech) and message.id and event.text:
                remembered[message.id] = event
                last = message.id
        if len(remembered) > REMEMBERED:
            remembered.popitem(last=False)


def _in_order(source: SourceFile) -> Iterator[Found]:
    """The messages, oldest first: Meta's and Skype's files begin with the newest."""
    if _is_table(source):
        yield from _read_table(source)
        return
    first = [x[1].time for x in islice(_read_messages(source), HEAD_ROWS) if isinstance(x, tuple)]
    times: list[int] | list[str] = [int(time) for time in first if time.isdecimal()]
    times = times or [time for time in first if ISO_TIME.match(time)]
    if len(times) < 2 or times != sorted(times, reverse=True) or times[0] == times[-1]:
        yield from _read_messages(source)
        return
    if source.path.stat().st_size > MAX_REVERSED_BYTES:
        raise InputError(
            "{source}: its newest message stands first, and it is larger than {limit:,.0f} MB. Split it.",
            source=source.name,
            limit=MAX_REVERSED_BYTES / 1e6,
        )
    yield from reversed(list(_read_messages(source)))


def _read_messages(source: SourceFile) -> Iterator[Found]:
    yield from _read_table(source) if _is_table(source) else _read_json(source)


def _is_table(source: SourceFile) -> bool:
    return source.head().lstrip("\ufeff \n")[:1] not in ("{", "[")


def _read_table(source: SourceFile) -> Iterator[Found]:
    names, rows = spreadsheet.open_table(source)
    if {"instruction", "output"} <= guess_columns(names).keys():
        return
    keys = find_keys(dict.fromkeys(names)) or _keys_by_values(names, source)
    for row in rows if keys else ():
        if isinstance(row, SourceRow):
            yield _read_row(row.line, row.value, keys)
        elif isinstance(row, SkippedRow):
            yield row


def _keys_by_values(names: list[str], source: SourceFile) -> ChatKeys | None:
    """The one column in which a few names come again and again, and the one other column of text."""
    if source.suffix not in spreadsheet.SUFFIXES:  # prose has commas too
        return None
    _, rows = spreadsheet.open_table(source)
    head = [row.value for row in islice(rows, spreadsheet.HEAD_ROWS) if isinstance(row, SourceRow)]
    texts = spreadsheet.find_text_columns(names, head)
    who = [name for name in texts if spreadsheet.holds_names(name, head)]
    said = [name for name in texts if name not in who]
    return ChatKeys(who[0], said[0]) if len(who) == len(said) == 1 else None


def _read_json(source: SourceFile) -> Iterator[Found]:
    for row in read_object_parts(source):
        if not isinstance(row, SourceRow):
            yield row
        elif isinstance(row.value, dict) and (keys := find_keys(row.value)):
            yield _read_row(row.line, row.value, keys)
        elif _says_its_roles(row.value) or not (found := list(find_message_lists(row.value))):
            yield SkippedRow(row.line, NO_MESSAGE, truncate_text(row.text))
        else:
            for conversation in found:
                yield SpeechGap(row.line, NO_LINE_IN_SCENE, scene=True)
                for value in conversation:
                    yield _read_row(row.line, value, find_keys(value))


def _says_its_roles(row: Any) -> bool:
    """Whether the row is a conversation of another format, which needs no choice of a speaker."""
    return messages.is_messages_row(row) or sharegpt.is_sharegpt_row(row)


def _read_row(line: int, value: dict[str, Any], keys: ChatKeys | None) -> Found:
    message = read_message(value, keys) if keys else None
    if message and keys:
        return line, message, keys
    return SkippedRow(line, NO_MESSAGE, truncate_text(str(value)))
