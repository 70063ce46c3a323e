"""A conversation as values: voices, answers, turns; a tree of messages and the path through it that is shown.

An edited turn is a sibling of the turn it was, a regenerated answer a sibling of the answer before it, and the path
shown leads from the root to the message that was added or chosen last. So nothing is overwritten. No disk in here.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from persona.errors import InputError
from persona.store.pairs import MAX_CHARACTERS

VOICE_KINDS = ("base", "prompt", "adapter")  # the base alone, the base with the persona's prompt, a trained adapter
MAX_VISITORS = 500  # of one persona; one more is refused, because making room would take from another
_KEY = re.compile(r"[A-Za-z0-9_-]{22,200}")  # 22 characters of base64 are 128 bits


@dataclass(frozen=True)
class VoiceRecord:
    """Who answers in a column. adapter: its id (run/SLUG/RUN, opened/NAME); system: the prompt it was given."""

    kind: str
    label: str
    adapter: str = ""
    strength: float = 1.0
    system: str = ""

    def __post_init__(self) -> None:
        if self.kind not in VOICE_KINDS:
            raise InputError("kind={kind!r}: a voice is one of {kinds}.", kind=self.kind, kinds=", ".join(VOICE_KINDS))

    @property
    def column(self) -> str:
        """Which column of a conversation this voice answers in, whatever its strength and prompt are by then."""
        adapter = re.sub(r"^run/[^/]*/", "run/", self.adapter)  # a run's name is unique, its persona can be renamed
        main = f" {self.label}" if adapter.startswith("blend/") else ""  # a blend's id does not name its main adapter
        return f"{self.kind}:{adapter}{main}"


@dataclass(frozen=True)
class ConversationAnswer:
    """One column's answer. ended: by its own stop token, not by the limit or by Stop. thinking: what stood before it,
    which no later turn reads.
    """

    voice: VoiceRecord
    text: str
    tokens: int = 0
    ended: bool = True
    thinking: str = ""


@dataclass(frozen=True)
class Turn:
    """A user's message, and the answers that are shown for it (none where the program ended before them).

    id, answered: numbers of the messages; wordings, regenerations: those that could be shown instead, themselves
    included. time: seconds since 1970.
    """

    id: int
    said: str
    time: float
    wordings: tuple[int, ...]
    answered: int = 0
    answers: tuple[ConversationAnswer, ...] = ()
    regenerations: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """A conversation as it is shown. removed: titles of older ones deleted to make room. damaged: unreadable lines.

    greeting: what the persona said before the first turn; "" for none.
    """

    id: str
    title: str
    created: float
    changed: float
    turns: tuple[Turn, ...]
    removed: tuple[str, ...] = ()
    damaged: int = 0
    greeting: str = ""


@dataclass(frozen=True)
class _Node:
    id: int
    parent: int
    time: float
    said: str | None  # None: these are answers
    answers: tuple[ConversationAnswer, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)


def new_browser_key() -> str:
    """A key for a new visitor: 256 random bits, which the browser keeps and this machine never writes."""
    return secrets.token_urlsafe(32)


def visitor_id(key: str) -> str:
    """A visitor's folder name, a hash of the key. Raises InputError, without the key in it, for one easy to guess."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InputError("This browser's key is damaged or too short to be private. Reload the page to get a new one.")
    return hashlib.sha256(b"persona visitor\0" + key.encode()).hexdigest()[:40]


def check_message_text(text: str, empty: bool = False) -> None:
    """Raises InputError for a text that is too long to keep, or empty unless `empty` allows it."""
    if not (empty or text.strip()):
        raise InputError("There is nothing to say yet. Write something.")
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            "This text has {count:,} characters, more than {limit:,}. Shorten it.",
            count=len(text),
            limit=MAX_CHARACTERS,
        )


def column_history(talk: Conversation, turn: int, column: str) -> tuple[tuple[str, str], ...]:
    """(message, answer) of a column (VoiceRecord.column) before this turn, without the turns it did not answer."""
    earlier = [(t.said, answer_text(t, column)) for t in talk.turns[: turn_index(talk, turn)]]
    return tuple((said, text) for said, text in earlier if text.strip())


def prompt_history(talk: Conversation, turn: int, column: str) -> tuple[tuple[str, str], ...]:
    """The same as the model reads it: a greeting is its reply to an empty message."""
    greeting = (("", talk.greeting),) if talk.greeting else ()
    return greeting + column_history(talk, turn, column)


def answer_text(turn: Turn, column: str) -> str:
    """The answer of a column (VoiceRecord.column); "" when it gave none."""
    return next((a.text for a in turn.answers if a.voice.column == column), "")


def export_messages(talk: Conversation) -> Iterator[str]:
    """JSON lines for download: the conversation as OpenAI messages, a line for each column."""
    voices = {a.voice.column: a.voice for t in talk.turns for a in t.answers}
    for column, voice in voices.items():
        messages = [{"role": "system", "content": voice.system}] if voice.system else []
        messages += [{"role": "assistant", "content": talk.greeting}] if talk.greeting else []
        for turn in talk.turns:
            if (text := answer_text(turn, column)).strip():
                messages += [{"role": "user", "content": turn.said}, {"role": "assistant", "content": text}]
        about = {"column": voice.label, "kind": voice.kind, "adapter": voice.adapter, "strength": voice.strength}
        yield json.dumps({"messages": messages, **about}, ensure_ascii=False) + "\n"


def turn_index(talk: Conversation, turn: int) -> int:
    """The position of the turn with this id among those shown. Raises InputError."""
    for n, t in enumerate(talk.turns):
        if t.id == turn:
            return n
    raise InputError(
        "{turn}: not a turn of this conversation as it is shown. Reload it and try again.", turn=f"{turn!r:.40}"
    )


def voice_from_row(row: Mapping[str, Any]) -> VoiceRecord:
    """A voice as asdict() wrote it."""
    return VoiceRecord(
        str(row["kind"]), str(row["label"]), str(row["adapter"]), float(row["strength"]), str(row["system"])
    )


def answer_from_row(row: Mapping[str, Any]) -> ConversationAnswer:
    """An answer as asdict() wrote it."""
    return ConversationAnswer(
        voice_from_row(row["voice"]), str(row["text"]), int(row["tokens"]), bool(row["ended"]),
        str(row.get("thinking", "")),
    )  # fmt: skip


def build_conversation(talk_id: str, rows: Sequence[dict[str, Any]], damaged: int = 0) -> Conversation:
    """The conversation in the rows of its file; `damaged` lines of it could not be read at all."""
    nodes, head, title, bad = _parse(rows)
    turns = tuple(_visible_turns(nodes, head))
    first = next((n.said for n in nodes.values() if n.said), "")
    times = [r["time"] for r in rows if isinstance(r.get("time"), int | float)] or [0.0]
    removed = tuple(map(str, rows[0].get("removed", []))) if rows else ()
    greeting = str(rows[0].get("greeting", ""))[:MAX_CHARACTERS] if rows else ""
    title = title or shorten_title(first)
    return Conversation(talk_id, title, times[0], times[-1], turns, removed, damaged + bad, greeting)


def _parse(rows: Sequence[dict[str, Any]]) -> tuple[dict[int, _Node], int, str, int]:
    """(messages, the last one shown, title, number of rows that could not be read)."""
    nodes: dict[int, _Node] = {}
    newest: dict[int, int] = {}  # the child that was added last
    head, title, bad = 0, "", 0
    for row in rows:
        try:
            if "id" in row:
                node = _node(row)
                if node.id in nodes or node.parent >= node.id:  # so that every path to the root ends
                    raise ValueError
                nodes[node.id] = node
                newest[node.parent] = head = node.id
            elif "show" in row:
                shown = nodes[row["show"]].id
                while shown in newest:  # and what followed it
                    shown = newest[shown]
                head = shown
            elif "title" in row:
                title = str(row["title"])
            elif "talk" not in row:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            bad += 1
    return nodes, head, title, bad


def _node(row: dict[str, Any]) -> _Node:
    number, parent, when = row["id"], row["parent"], float(row["time"])
    if not (isinstance(number, int) and isinstance(parent, int)):
        raise TypeError
    if "said" in row:
        return _Node(number, parent, when, str(row["said"]))
    return _Node(number, parent, when, None, tuple(map(answer_from_row, row["answers"])), dict(row["sampling"]))


def next_message_id(rows: Sequence[dict[str, Any]]) -> int:
    """The number of the next message."""
    return max((r["id"] for r in rows if isinstance(r.get("id"), int)), default=0) + 1


def _visible_turns(nodes: dict[int, _Node], head: int) -> list[Turn]:
    """The turns from the root to `head`."""
    siblings: dict[int, list[int]] = {}
    for node in nodes.values():
        siblings.setdefault(node.parent, []).append(node.id)
    turns: list[Turn] = []
    answers: _Node | None = None
    while head in nodes:
        node = nodes[head]
        if node.said is None:
            answers = node
        else:
            turn = Turn(node.id, node.said, node.time, tuple(siblings[node.parent]))
            if answers:
                turn = replace(
                    turn, answered=answers.id, answers=answers.answers,
                    regenerations=tuple(siblings[answers.parent]), sampling=answers.sampling,
                )  # fmt: skip
            turns.append(turn)
            answers = None
        head = node.parent
    return turns[::-1]


def shorten_title(text: str) -> str:
    """The first line, at most 60 characters of it."""
    line = " ".join(next(iter(text.strip().splitlines()), "").split())
    return line if len(line) <= 60 else line[:59].rstrip() + "…"
