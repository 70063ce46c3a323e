"""The checkpoints of a run: which are whole, which is the last, what is kept.

    checkpoints/checkpoint-30/   weights, optimizer, schedule, random numbers, trainer_state.json
      session.json               the clock, and how long nothing got better
      whole                      written last: size and sha256 of every other file

A lost power cable can leave a file of the right name with the wrong bytes, so a checkpoint is believed only when every
file is what `whole` says.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from persona.errors import Message
from persona.store.files import fsync_folder, read_json, to_json, write_atomic

COMPLETE_MARKER = "whole"
SESSION_FILE = "session.json"


def checkpoint_dir(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"checkpoint-{step}"


def mark_complete(folder: Path, session: dict[str, Any]) -> None:
    """Say that this checkpoint is whole, once everything in it has reached the disk."""
    write_atomic(folder / SESSION_FILE, to_json(session))
    fsync_folder(folder)
    write_atomic(
        folder / COMPLETE_MARKER,
        to_json({f.name: _size_and_hash(f) for f in sorted(folder.iterdir()) if f.name != COMPLETE_MARKER}),
    )
    fsync_folder(folder.parent, files=False)


def _size_and_hash(file: Path) -> list[Any]:
    with file.open("rb") as f:
        return [file.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest()]


def is_complete(folder: Path) -> bool:
    """Whether every file is what it was when the checkpoint was written."""
    try:
        wanted = json.loads((folder / COMPLETE_MARKER).read_bytes())
        sizes = all((folder / name).stat().st_size == size for name, (size, _) in wanted.items())
        return sizes and all(_size_and_hash(folder / name) == mark for name, mark in wanted.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def list_checkpoint_steps(checkpoints: Path) -> list[int]:
    """Of all checkpoints, whole or not, the newest first."""
    numbers = [p.name.rpartition("-")[2] for p in checkpoints.glob("checkpoint-*")]
    return sorted((int(n) for n in numbers if n.isdecimal()), reverse=True)


def find_last_checkpoint(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint: a run goes on from it."""
    return next(
        (f for s in list_checkpoint_steps(checkpoints) if is_complete(f := checkpoint_dir(checkpoints, s))), None
    )


def read_session(folder: Path) -> dict[str, Any]:
    return read_json(folder / SESSION_FILE, Message("a checkpoint"))


def prune_checkpoints(checkpoints: Path, newest: int) -> None:
    """Keep two: the newest, and the one before, should the newest be damaged."""
    earlier = [s for s in list_checkpoint_steps(checkpoints) if s < newest]
    for step in list_checkpoint_steps(checkpoints):
        if step not in (newest, *earlier[:1]):
            (checkpoint_dir(checkpoints, step) / COMPLETE_MARKER).unlink(missing_ok=True)
            shutil.rmtree(checkpoint_dir(checkpoints, step), ignore_errors=True)
