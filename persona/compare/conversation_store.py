"""Conversations on disk, kept with the persona and private to who had them; only ever added to.

    talks/<visitor>/<id>.jsonl   one conversation: a line for each thing said, each set of answers, each title

`<visitor>` is a hash of a key that only the visitor's browser has: who reads the disk learns no key, and who brings
another key finds nothing. All functions have written to disk when they return.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona.compare.conversation import (
    MAX_VISITORS,
    Conversation,
    ConversationAnswer,
    build_conversation,
    check_message_text,
    next_message_id,
    shorten_title,
    turn_index,
    visitor_id,
)
from persona.errors import InputError
from persona.store import files, jsonl, quotas

MAX_CONVERSATIONS = 200  # of one visitor with one persona; a new one then takes the place of the oldest, and says so
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


def start_conversation(shelf: ConversationStore, said: str) -> Conversation:
    """Begin a conversation with what is said first.

    When the shelf is full the oldest conversations are removed; the new one names them, here and whenever it is read.
    """
    check_message_text(said)
    if not _ids(shelf) and len({f.parent for f in shelf.path.parent.glob("*/*.jsonl")}) >= MAX_VISITORS:
        raise InputError(
            "{limit} visitors have conversations with this persona already, so this one is not kept. "
            "The owner of this page can make room in {folder}/ of the persona's folder.",
            limit=MAX_VISITORS,
            folder=shelf.path.parent.name,
        )
    quotas.require_disk_quota()
    now = time.time()
    talk_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}"
    with files.lock_folder(shelf.path):
        full = _oldest_over_limit(shelf)
        removed = [_read(shelf, file.stem).title for file in full]
        header = {"talk": 1, "time": now, **({"removed": removed} if removed else {})}
        jsonl.append_rows(_file(shelf, talk_id), header, {"id": 1, "parent": 0, "said": said, "time": now})
        for file in full:  # after the line that names them: a kill between the two loses nothing in silence
            _unlink(file)
        return _read(shelf, talk_id)


def add_turn(shelf: ConversationStore, talk: Conversation, said: str) -> Conversation:
    """Add a turn after the last one that `talk` shows an answer to; on disk before any answer is made."""
    answered = [t.answered for t in talk.turns if t.answered]
    return _append_turn(shelf, talk, answered[-1] if answered else 0, said)


def edit_turn(shelf: ConversationStore, talk: Conversation, turn: int, said: str) -> Conversation:
    """Say the turn with this id otherwise: what followed it leaves the view, and stays on disk as its sibling."""
    at = turn_index(talk, turn)
    return _append_turn(shelf, talk, talk.turns[at - 1].answered if at else 0, said)


def add_answers(
    shelf: ConversationStore,
    talk: Conversation,
    turn: int,
    answers: Sequence[ConversationAnswer],
    sampling: Mapping[str, float],
) -> Conversation:
    """Add the answers to a turn. Given again, they are shown instead of the earlier ones, which are kept."""
    turn_index(talk, turn)
    for a in answers:
        check_message_text(a.text, empty=True)
    row = {"parent": turn, "answers": [asdict(a) for a in answers], "sampling": dict(sampling)}
    return _append_row(shelf, talk.id, lambda number: {"id": number, **row})


def show_branch(shelf: ConversationStore, talk: Conversation, message: int) -> Conversation:
    """Show another wording of a turn or another take of its answers (one of `wordings`, `takes`), and what followed."""
    if not any(message in (*t.wordings, *t.regenerations) for t in talk.turns):
        raise InputError(
            "{message}: not a message of this conversation. Reload it and choose again.", message=f"{message!r:.40}"
        )
    return _append_row(shelf, talk.id, lambda _: {"show": message})


def rename_conversation(shelf: ConversationStore, talk: Conversation, title: str) -> Conversation:
    if not title.strip():
        raise InputError("The title is empty. Write one.")
    return _append_row(shelf, talk.id, lambda _: {"title": shorten_title(title)})


def delete_conversation(shelf: ConversationStore, talk_id: str) -> None:
    """Remove a conversation for good, all its branches too: it is private, so no copy stays. The page asks first."""
    with _locked_file(shelf, talk_id) as file:
        _unlink(file)


def read_conversation(shelf: ConversationStore, talk_id: str) -> Conversation:
    """Raises InputError when this visitor has no such conversation, whoever else may have."""
    with _locked_file(shelf, talk_id):
        return _read(shelf, talk_id)


def list_conversations(shelf: ConversationStore) -> list[Conversation]:
    """All of this visitor's conversations, the one that changed last first."""
    if not shelf.path.is_dir():
        return []
    with files.lock_folder(shelf.path):
        return sorted((_read(shelf, i) for i in _ids(shelf)), key=lambda t: (t.changed, t.id), reverse=True)


def _append_turn(shelf: ConversationStore, talk: Conversation, parent: int, said: str) -> Conversation:
    check_message_text(said)
    return _append_row(shelf, talk.id, lambda number: {"id": number, "parent": parent, "said": said})


def _append_row(shelf: ConversationStore, talk_id: str, make: Callable[[int], dict[str, Any]]) -> Conversation:
    with _locked_file(shelf, talk_id) as file:
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
def _locked_file(shelf: ConversationStore, talk_id: str) -> Iterator[Path]:
    """The file of a conversation that is there, locked. The id may come from a browser."""
    file = _file(shelf, talk_id)
    if file.is_file():  # asked before the lock too, so that a stranger's question makes no folder
        with files.lock_folder(shelf.path):
            if file.is_file():
                yield file
                return
    raise InputError("There is no such conversation of yours: it was deleted, or belongs to another browser.")


def _file(shelf: ConversationStore, talk_id: str) -> Path:
    if not isinstance(talk_id, str) or not _ID.fullmatch(talk_id):
        raise InputError(
            "{conversation}: not the name of a conversation. Choose one from the list.", conversation=f"{talk_id!r:.60}"
        )
    return shelf.path / f"{talk_id}.jsonl"


def _ids(shelf: ConversationStore) -> list[str]:
    return [f.stem for f in shelf.path.glob("*.jsonl") if _ID.fullmatch(f.stem)]


def _oldest_over_limit(shelf: ConversationStore) -> list[Path]:
    """The conversations, those untouched for longest first, that must go before one more has room."""
    found = sorted((_file(shelf, i) for i in _ids(shelf)), key=lambda f: (f.stat().st_mtime_ns, f.name))
    sizes = [f.stat().st_size for f in found]
    gone = 0
    while gone < len(found) and (
        len(found) - gone >= MAX_CONVERSATIONS or sum(sizes[gone:]) > MAX_STORE_BYTES - MAX_CONVERSATION_BYTES
    ):
        gone += 1
    return found[:gone]


def _unlink(file: Path) -> None:
    try:
        file.unlink()
    except OSError as e:
        raise InputError(
            "{file}: could not be deleted ({reason}). Check the rights of its folder.",
            file=file.name,
            reason=e.strerror,
        ) from e


def _read(shelf: ConversationStore, talk_id: str) -> Conversation:
    return build_conversation(talk_id, *jsonl.read_rows(_file(shelf, talk_id)))
