"""Conversations on disk: append-only, with the persona, private to their visitor.

    talks/<visitor>/<id>.jsonl   one conversation: a line for each message, each set of answers, each title

`<visitor>` is a hash of a key that only the visitor's browser has: the disk holds no key, and another key finds
nothing. All functions have written to disk when they return.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona.compare.conversation import (
    MAX_VISITORS,
    Conversation,
    ConversationAnswer,
    answer_from_row,
    build_conversation,
    check_message_text,
    next_message_id,
    shorten_title,
    turn_index,
    visitor_id,
)
from persona.errors import InputError
from persona.store import files, jsonl, quotas

MAX_CONVERSATIONS = 200  # of one visitor with one persona; a new one then replaces the oldest, and says so
MAX_CONVERSATION_BYTES = 5_000_000  # some 1,000 turns of two columns; a longer one is refused, not cut
MAX_STORE_BYTES = 50_000_000  # of one visitor, counted when a conversation begins
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


@dataclass(frozen=True)
class ConversationStore:
    """The conversations of one visitor with one persona."""

    path: Path


def open_store(folder: Path, key: str) -> ConversationStore:
    """A visitor's conversations in `folder`, a persona's or an opened adapter's. Nothing is created yet."""
    return ConversationStore(folder / "talks" / visitor_id(key))


def start_conversation(store: ConversationStore, said: str, greeting: str = "") -> Conversation:
    """Begin a conversation with its first message. greeting: what the persona said before it.

    When the store is full the oldest conversations are deleted; `removed` of the new one names them.
    """
    check_message_text(said)
    check_message_text(greeting, empty=True)
    if not _ids(store) and len({f.parent for f in store.path.parent.glob("*/*.jsonl")}) >= MAX_VISITORS:
        raise InputError(
            "{limit} visitors have conversations with this persona already, so this one is not kept. "
            "The owner of this page can make room in {folder}/ of the persona's folder.",
            limit=MAX_VISITORS,
            folder=store.path.parent.name,
        )
    quotas.require_disk_quota()
    now = time.time()
    talk_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}"
    with files.lock_folder(store.path):
        oldest = _oldest_over_limit(store)
        removed = [_read(store, file.stem).title for file in oldest]
        header = {"talk": 1, "time": now, **({"removed": removed} if removed else {})}
        header |= {"greeting": greeting} if greeting else {}
        jsonl.append_rows(_file(store, talk_id), header, {"id": 1, "parent": 0, "said": said, "time": now})
        for file in oldest:  # after the line that names them, so that a kill between the two loses nothing silently
            _unlink(file)
        return _read(store, talk_id)


def add_turn(store: ConversationStore, talk: Conversation, said: str) -> Conversation:
    """Add a message after the last answered turn of `talk`; on disk before any answer is generated."""
    answered = [t.answered for t in talk.turns if t.answered]
    return _append_turn(store, talk, answered[-1] if answered else 0, said)


def edit_turn(store: ConversationStore, talk: Conversation, turn: int, said: str) -> Conversation:
    """Reword the turn with this id: what followed it is not shown any more, and stays on disk as its sibling."""
    index = turn_index(talk, turn)
    return _append_turn(store, talk, talk.turns[index - 1].answered if index else 0, said)


def add_answers(
    store: ConversationStore,
    talk: Conversation,
    turn: int,
    answers: Sequence[ConversationAnswer],
    sampling: Mapping[str, float],
) -> Conversation:
    """Add answers to a turn. Later ones are shown instead of the earlier ones, which stay on disk."""
    turn_index(talk, turn)
    for a in answers:
        for text in (a.text, a.thinking):
            check_message_text(text, empty=True)
    row = {"parent": turn, "answers": [asdict(a) for a in answers], "sampling": dict(sampling)}
    return _append_row(store, talk.id, lambda number: {"id": number, **row})


def show_branch(store: ConversationStore, talk: Conversation, message: int) -> Conversation:
    """Show another of a turn's `wordings` or `regenerations`, and what followed it."""
    if not any(message in (*t.wordings, *t.regenerations) for t in talk.turns):
        raise InputError(
            "{message}: not a message of this conversation. Reload it and choose again.", message=f"{message!r:.40}"
        )
    return _append_row(store, talk.id, lambda _: {"show": message})


def list_regenerations(
    store: ConversationStore, talk: Conversation, turn: int
) -> list[tuple[int, tuple[ConversationAnswer, ...]]]:
    """(number, answers) of every time that the turn with this id was answered, oldest first."""
    turn_index(talk, turn)
    with _locked_file(store, talk.id) as file:
        rows = jsonl.read_rows(file)[0]
    found = []
    for row in rows:
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # changed by hand
            if row.get("parent") == turn and "answers" in row:
                found.append((int(row["id"]), tuple(map(answer_from_row, row["answers"]))))
    return found


def rename_conversation(store: ConversationStore, talk: Conversation, title: str) -> Conversation:
    if not title.strip():
        raise InputError("The title is empty. Write one.")
    return _append_row(store, talk.id, lambda _: {"title": shorten_title(title)})


def delete_conversation(store: ConversationStore, talk_id: str) -> None:
    """Delete a conversation with all its branches: it is private, so no copy stays. The page asks first."""
    with _locked_file(store, talk_id) as file:
        _unlink(file)


def read_conversation(store: ConversationStore, talk_id: str) -> Conversation:
    """Raises InputError when this visitor has no such conversation."""
    with _locked_file(store, talk_id):
        return _read(store, talk_id)


def list_conversations(store: ConversationStore) -> list[Conversation]:
    """All of this visitor's conversations, the last changed first."""
    if not store.path.is_dir():
        return []
    with files.lock_folder(store.path):
        return sorted((_read(store, i) for i in _ids(store)), key=lambda t: (t.changed, t.id), reverse=True)


def _append_turn(store: ConversationStore, talk: Conversation, parent: int, said: str) -> Conversation:
    check_message_text(said)
    quotas.require_disk_quota()
    return _append_row(store, talk.id, lambda number: {"id": number, "parent": parent, "said": said})


def _append_row(store: ConversationStore, talk_id: str, make: Callable[[int], dict[str, Any]]) -> Conversation:
    with _locked_file(store, talk_id) as file:
        rows, damaged = jsonl.read_rows(file)
        row = {**make(next_message_id(rows)), "time": time.time()}
        if file.stat().st_size + len(jsonl.encode_row(row)) > MAX_CONVERSATION_BYTES:
            limit = f"{MAX_CONVERSATION_BYTES / 1e6:.0f} MB"
            raise InputError(
                "This conversation has reached {limit} on disk. Start a new one; this one stays as it is.", limit=limit
            )
        jsonl.append_rows(file, row)
        return build_conversation(talk_id, [*rows, row], damaged)


@contextmanager
def _locked_file(store: ConversationStore, talk_id: str) -> Iterator[Path]:
    """The file of an existing conversation, locked. The id may come from a browser."""
    file = _file(store, talk_id)
    if file.is_file():  # also before the lock, which would create a folder for a stranger
        with files.lock_folder(store.path):
            if file.is_file():
                yield file
                return
    raise InputError("There is no such conversation of yours: it was deleted, or belongs to another browser.")


def _file(store: ConversationStore, talk_id: str) -> Path:
    if not isinstance(talk_id, str) or not _ID.fullmatch(talk_id):
        raise InputError(
            "{conversation}: not the name of a conversation. Choose one from the list.", conversation=f"{talk_id!r:.60}"
        )
    return store.path / f"{talk_id}.jsonl"


def _ids(store: ConversationStore) -> list[str]:
    return [f.stem for f in store.path.glob("*.jsonl") if _ID.fullmatch(f.stem)]


def _oldest_over_limit(store: ConversationStore) -> list[Path]:
    """The conversations to delete before there is room for one more, the least recently changed first."""
    oldest_first = sorted((_file(store, i) for i in _ids(store)), key=lambda f: (f.stat().st_mtime_ns, f.name))
    sizes = [f.stat().st_size for f in oldest_first]
    count = 0
    while count < len(oldest_first) and (
        len(oldest_first) - count >= MAX_CONVERSATIONS or sum(sizes[count:]) > MAX_STORE_BYTES - MAX_CONVERSATION_BYTES
    ):
        count += 1
    return oldest_first[:count]


def _unlink(file: Path) -> None:
    try:
        file.unlink()
    except OSError as e:
        raise InputError(
            "{file}: could not be deleted ({reason}). Check the rights of its folder.",
            file=file.name,
            reason=e.strerror,
        ) from e


def _read(store: ConversationStore, talk_id: str) -> Conversation:
    return build_conversation(talk_id, *jsonl.read_rows(_file(store, talk_id)))
