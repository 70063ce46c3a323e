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

from persona import limits, lines
from persona.errors import InputError
from persona.talks import MAX_VISITORS, Answer, Talk, assemble, check_text, next_number, place, shorten, visitor

MAX_TALKS = 200  # of one visitor with one persona; a new one then takes the place of the oldest, and says so
MAX_TALK_BYTES = 5_000_000  # some 1,000 turns of two columns; a longer one is refused, not cut
MAX_SHELF_BYTES = 50_000_000  # of one visitor, counted when a conversation begins
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Shelf:
    """The conversations of one visitor with one persona."""

    path: Path


def open_shelf(folder: Path, key: str) -> Shelf:
    """A visitor's conversations in `folder`, a persona's or an opened adapter's. Nothing is created yet."""
    return Shelf(folder / "talks" / visitor(key))


def start(shelf: Shelf, said: str) -> Talk:
    """Begin a conversation with what is said first.

    When the shelf is full the oldest conversations are removed; the new one names them, here and whenever it is read.
    """
    check_text(said)
    if not _ids(shelf) and len({f.parent for f in shelf.path.parent.glob("*/*.jsonl")}) >= MAX_VISITORS:
        raise InputError(
            "{limit} visitors have conversations with this persona already, so this one is not kept. "
            "The owner of this page can make room in {folder}/ of the persona's folder.",
            limit=MAX_VISITORS,
            folder=shelf.path.parent.name,
        )
    limits.require_room()
    now = time.time()
    talk_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}"
    with lines.lock(shelf.path):
        full = _too_many(shelf)
        removed = [_read(shelf, file.stem).title for file in full]
        header = {"talk": 1, "time": now, **({"removed": removed} if removed else {})}
        lines.append(_file(shelf, talk_id), header, {"id": 1, "parent": 0, "said": said, "time": now})
        for file in full:  # after the line that names them: a kill between the two loses nothing in silence
            _unlink(file)
        return _read(shelf, talk_id)


def say(shelf: Shelf, talk: Talk, said: str) -> Talk:
    """Add a turn after the last one that `talk` shows an answer to; on disk before any answer is made."""
    answered = [t.answered for t in talk.turns if t.answered]
    return _say(shelf, talk, answered[-1] if answered else 0, said)


def edit(shelf: Shelf, talk: Talk, turn: int, said: str) -> Talk:
    """Say the turn with this id otherwise: what followed it leaves the view, and stays on disk as its sibling."""
    at = place(talk, turn)
    return _say(shelf, talk, talk.turns[at - 1].answered if at else 0, said)


def answer(shelf: Shelf, talk: Talk, turn: int, answers: Sequence[Answer], sampling: Mapping[str, float]) -> Talk:
    """Add the answers to a turn. Given again, they are shown instead of the earlier ones, which are kept."""
    place(talk, turn)
    for a in answers:
        check_text(a.text, empty=True)
    row = {"parent": turn, "answers": [asdict(a) for a in answers], "sampling": dict(sampling)}
    return _add(shelf, talk.id, lambda number: {"id": number, **row})


def show(shelf: Shelf, talk: Talk, message: int) -> Talk:
    """Show another wording of a turn or another take of its answers (one of `wordings`, `takes`), and what followed."""
    if not any(message in (*t.wordings, *t.takes) for t in talk.turns):
        raise InputError(
            "{message}: not a message of this conversation. Reload it and choose again.", message=f"{message!r:.40}"
        )
    return _add(shelf, talk.id, lambda _: {"show": message})


def rename(shelf: Shelf, talk: Talk, title: str) -> Talk:
    if not title.strip():
        raise InputError("The title is empty. Write one.")
    return _add(shelf, talk.id, lambda _: {"title": shorten(title)})


def delete(shelf: Shelf, talk_id: str) -> None:
    """Remove a conversation for good, all its branches too: it is private, so no copy stays. The page asks first."""
    with _found(shelf, talk_id) as file:
        _unlink(file)


def read(shelf: Shelf, talk_id: str) -> Talk:
    """Raises InputError when this visitor has no such conversation, whoever else may have."""
    with _found(shelf, talk_id):
        return _read(shelf, talk_id)


def listing(shelf: Shelf) -> list[Talk]:
    """All of this visitor's conversations, the one that changed last first."""
    if not shelf.path.is_dir():
        return []
    with lines.lock(shelf.path):
        return sorted((_read(shelf, i) for i in _ids(shelf)), key=lambda t: (t.changed, t.id), reverse=True)


def _say(shelf: Shelf, talk: Talk, parent: int, said: str) -> Talk:
    check_text(said)
    return _add(shelf, talk.id, lambda number: {"id": number, "parent": parent, "said": said})


def _add(shelf: Shelf, talk_id: str, make: Callable[[int], dict[str, Any]]) -> Talk:
    with _found(shelf, talk_id) as file:
        rows, damaged = lines.read(file)
        row = {**make(next_number(rows)), "time": time.time()}
        if file.stat().st_size + len(lines.encode(row)) > MAX_TALK_BYTES:
            limit = f"{MAX_TALK_BYTES / 1e6:.0f} MB"
            raise InputError(
                "This conversation has reached {limit} on disk. Start a new one; this one stays as it is.", limit=limit
            )
        lines.append(file, row)
        return assemble(talk_id, [*rows, row], damaged)


@contextmanager
def _found(shelf: Shelf, talk_id: str) -> Iterator[Path]:
    """The file of a conversation that is there, locked. The id may come from a browser."""
    file = _file(shelf, talk_id)
    if file.is_file():  # asked before the lock too, so that a stranger's question makes no folder
        with lines.lock(shelf.path):
            if file.is_file():
                yield file
                return
    raise InputError("There is no such conversation of yours: it was deleted, or belongs to another browser.")


def _file(shelf: Shelf, talk_id: str) -> Path:
    if not isinstance(talk_id, str) or not _ID.fullmatch(talk_id):
        raise InputError(
            "{conversation}: not the name of a conversation. Choose one from the list.", conversation=f"{talk_id!r:.60}"
        )
    return shelf.path / f"{talk_id}.jsonl"


def _ids(shelf: Shelf) -> list[str]:
    return [f.stem for f in shelf.path.glob("*.jsonl") if _ID.fullmatch(f.stem)]


def _too_many(shelf: Shelf) -> list[Path]:
    """The conversations, those untouched for longest first, that must go before one more has room."""
    found = sorted((_file(shelf, i) for i in _ids(shelf)), key=lambda f: (f.stat().st_mtime_ns, f.name))
    sizes = [f.stat().st_size for f in found]
    gone = 0
    while gone < len(found) and (
        len(found) - gone >= MAX_TALKS or sum(sizes[gone:]) > MAX_SHELF_BYTES - MAX_TALK_BYTES
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


def _read(shelf: Shelf, talk_id: str) -> Talk:
    return assemble(talk_id, *lines.read(_file(shelf, talk_id)))
