"""Edits of pairs.jsonl with undo and redo, which survive a reload and a crash.

    undo/000007.jsonl   one edit: {"label", "time", "merge"}, then a line for each row that it touched
    undo/position       the number of the last edit in force; edits after it can be redone

The pairs are written first and the undo file second: a crash between the two costs that one undo, never a pair.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message, with_templates
from persona.store import quotas
from persona.store.edits import PairChange, apply_changes, invert_changes
from persona.store.files import write_atomic
from persona.store.pairs import Pair, count_characters, dump_pair, iter_pairs, parse_pair
from persona.store.persona_folder import Persona

MAX_UNDO = 200  # edits that can be undone
TYPING_SECONDS = 30.0  # edits of one cell within this time count as one edit


@dataclass(frozen=True)
class AppendResult:
    """How many pairs were added, and how many were already there."""

    added: int
    duplicates: int


def commit(persona: Persona, label: str, changes: Sequence[PairChange], merge: str = "") -> list[Pair]:
    """Write an edit to disk with its undo record; returns the pairs after it.

    merge: edits that follow each other quickly under the same name are undone together.
    Raises InputError, with nothing written, when a new pair is invalid or the rows have changed since.
    """
    for change in changes:
        if change.new is not None:
            _check_change(change)
    quotas.require_disk_quota()
    with persona.lock():
        pairs, bad = persona.scan()
        after = apply_changes(pairs, changes)
        if len(after) > len(pairs):
            quotas.require_pair_quota(len(after))
        if _count_growth(changes) > 0:
            quotas.require_characters_quota(count_characters(after))
        # of a process that was killed while saving
        for temporary in persona.path.glob(f".{persona.pairs_file.name}.*.tmp"):
            temporary.unlink(missing_ok=True)
        persona.save_pairs(after, bad)
        if changes:
            _record_edit(persona, label, changes, merge)
    return after


def _count_growth(changes: Sequence[PairChange]) -> int:
    """The characters that the changes add; below 0 when they take more away."""
    return count_characters(c.new for c in changes if c.new) - count_characters(c.old for c in changes if c.old)


def _check_change(change: PairChange) -> None:
    assert change.new is not None
    if change.new.characters > (change.old.characters if change.old else 0):
        quotas.require_pair_length_quota(change.at + 1, change.new.characters)
    try:
        parse_pair(change.new.to_dict())
    except InputError as e:
        raise InputError("Pair {row}: {reason}. It is not saved yet.", row=change.at + 1, reason=e) from e


def append(persona: Persona, pairs: Iterable[Pair], label: str) -> AppendResult:
    """Append pairs as they come: neither the file nor `pairs` need fit into memory.

    A pair that the persona already has (same texts and weights, whatever its source) is not added again; two equal
    pairs in `pairs` stay two. If `pairs` raises, nothing is changed.
    """
    quotas.require_disk_quota()
    with persona.lock():
        present: Counter[bytes] = Counter()
        bad, characters = [], 0
        for item in iter_pairs(persona.pairs_file):
            if isinstance(item, Pair):
                present[_fingerprint(item)] += 1
                characters += item.characters
            else:
                bad.append(item)
        persona.save_rejected_lines(bad)
        count, added, duplicates = present.total(), 0, 0
        number = _position(persona) + 1
        undo = _edit_file(persona, number).with_suffix(".part")
        undo.parent.mkdir(exist_ok=True)

        def rows() -> Iterator[str]:
            nonlocal added, characters, duplicates
            yield from (dump_pair(p) for p in iter_pairs(persona.pairs_file) if isinstance(p, Pair))
            undo_log.write(_encode_header(label, ""))
            for pair in pairs:
                fingerprint = _fingerprint(pair)
                if present[fingerprint] > 0:
                    present[fingerprint] -= 1
                    duplicates += 1
                    continue
                undo_log.write(_encode_change(PairChange(count, None, pair)))
                added += 1
                characters += pair.characters
                quotas.require_pair_quota(count + added)
                quotas.require_characters_quota(characters)
                quotas.require_pair_length_quota(added, pair.characters)
                yield dump_pair(pair)

        try:
            with undo.open("w", encoding="utf-8") as undo_log:
                write_atomic(persona.pairs_file, rows())
            if added:
                _delete_redo(persona, number - 1)
                undo.replace(_edit_file(persona, number))
                _set_position(persona, number)
        finally:
            undo.unlink(missing_ok=True)
    return AppendResult(added, duplicates)


def undo(persona: Persona) -> str:
    """Undo the last edit; returns its label. Raises InputError when there is none."""
    with persona.lock():
        number = _position(persona)
        if not _edit_file(persona, number).is_file():
            raise InputError("There is nothing to undo.")
        label, changes = _read_edit(_edit_file(persona, number))
        pairs, bad = persona.scan()
        persona.save_pairs(apply_changes(pairs, invert_changes(changes)), bad)
        _set_position(persona, number - 1)
    return label


def redo(persona: Persona) -> str:
    """Redo the edit that was undone last; returns its label. Raises InputError when there is none."""
    with persona.lock():
        number = _position(persona) + 1
        if not _edit_file(persona, number).is_file():
            raise InputError("There is nothing to redo.")
        label, changes = _read_edit(_edit_file(persona, number))
        pairs, bad = persona.scan()
        persona.save_pairs(apply_changes(pairs, changes), bad)
        _set_position(persona, number)
    return label


def undo_redo_labels(persona: Persona) -> tuple[str, str]:
    """The labels of the next undo and the next redo; "" where there is none."""
    position = _position(persona)
    files = (_edit_file(persona, position), _edit_file(persona, position + 1))
    back, forth = (_label(_read_header(f)) if f.is_file() else "" for f in files)
    return back, forth


def _fingerprint(pair: Pair) -> bytes:
    texts = json.dumps([pair.instruction, pair.output, pair.history, pair.system, pair.weights], ensure_ascii=False)
    return hashlib.blake2b(texts.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _edit_file(persona: Persona, number: int) -> Path:
    return persona.path / "undo" / f"{number:06}.jsonl"


def _position(persona: Persona) -> int:
    try:
        return int((persona.path / "undo" / "position").read_text())
    except (OSError, ValueError):
        return 0


def _set_position(persona: Persona, number: int) -> None:
    write_atomic(persona.path / "undo" / "position", str(number))
    _edit_file(persona, number - MAX_UNDO).unlink(missing_ok=True)


def _delete_redo(persona: Persona, number: int) -> None:
    while _edit_file(persona, number + 1).is_file():
        number += 1
        _edit_file(persona, number).unlink()


def _record_edit(persona: Persona, label: str, changes: Sequence[PairChange], merge: str) -> None:
    number = _position(persona)
    _delete_redo(persona, number)
    earlier = _mergeable_changes(_edit_file(persona, number), merge)
    if [c.new for c in earlier] == [c.old for c in changes]:
        changes = [replace(c, old=e.old) for e, c in zip(earlier, changes, strict=True)]
    else:
        number += 1
    write_atomic(_edit_file(persona, number), [_encode_header(label, merge), *map(_encode_change, changes)])
    _set_position(persona, number)


def _mergeable_changes(file: Path, merge: str) -> list[PairChange]:
    """The edit before this one, if it is the beginning of the same typing."""
    if not merge or not file.is_file():
        return []
    header = _read_header(file)
    return _read_edit(file)[1] if header["merge"] == merge and time.time() - header["time"] < TYPING_SECONDS else []


def _encode_header(label: str, merge: str) -> str:
    return json.dumps(with_templates({"label": label, "time": time.time(), "merge": merge}), ensure_ascii=False) + "\n"


def _encode_change(change: PairChange) -> str:
    row: dict[str, Any] = {"at": change.at}
    row |= {name: pair.to_dict() for name, pair in (("old", change.old), ("new", change.new)) if pair is not None}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read_header(file: Path) -> dict[str, Any]:
    with file.open(encoding="utf-8") as f:
        return json.loads(f.readline())


def _label(header: dict[str, Any]) -> str:
    return Message.from_json(header["label"], header.get("label_template"))


def _read_edit(file: Path) -> tuple[str, list[PairChange]]:
    with file.open(encoding="utf-8") as f:
        label = _label(json.loads(f.readline()))
        rows = [json.loads(line) for line in f]
    pair = [tuple(parse_pair(r[name]) if name in r else None for name in ("old", "new")) for r in rows]
    return label, [PairChange(r["at"], old, new) for r, (old, new) in zip(rows, pair, strict=True)]
