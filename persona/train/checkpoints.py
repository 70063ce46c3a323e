"""The checkpoints that a run resumes from: write one, find the last complete one, load it.

    checkpoints/checkpoint-30/   adapter, optimizer, scheduler, random state, trainer_state.json
      session.json               the clock, and evaluations in a row without gain
      whole                      the marker of a complete one, written last: size and sha256 of every other file

A power failure can leave a file of the right name with the wrong bytes, so a checkpoint is used only when every file is
what its marker says. The next batches follow from seed and global step (sampler.py), so that a resumed run takes the
very steps of one that was never stopped; `start_or_resume` in run.py does it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from persona.errors import Message
from persona.models.adapter import WEIGHTS_FILE
from persona.store.files import fsync_folder, hash_file, read_json, to_json, write_atomic

COMPLETE_MARKER = "whole"
SESSION_FILE = "session.json"


def checkpoint_dir(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"checkpoint-{step}"


def mark_complete(folder: Path, session: dict[str, Any]) -> None:
    """Finish the checkpoint that the trainer has written: add the session, flush to disk, write the marker."""
    write_atomic(folder / SESSION_FILE, to_json(session))
    fsync_folder(folder)
    write_atomic(
        folder / COMPLETE_MARKER,
        to_json({f.name: _size_and_hash(f) for f in sorted(folder.iterdir()) if f.name != COMPLETE_MARKER}),
    )
    fsync_folder(folder.parent, files=False)


def _size_and_hash(file: Path) -> list[Any]:
    return [file.stat().st_size, hash_file(file)]


def is_complete(folder: Path) -> bool:
    """Whether every file has the size and hash that the marker says."""
    try:
        expected = json.loads((folder / COMPLETE_MARKER).read_bytes())
        same_sizes = all((folder / name).stat().st_size == size for name, (size, _) in expected.items())
        return same_sizes and all(_size_and_hash(folder / name) == entry for name, entry in expected.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def list_checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps of all checkpoints, complete or not, the newest first."""
    numbers = [p.name.rpartition("-")[2] for p in checkpoints.glob("checkpoint-*")]
    return sorted((int(n) for n in numbers if n.isdecimal()), reverse=True)


def find_last_checkpoint(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint: the one to resume from."""
    return next(
        (f for s in list_checkpoint_steps(checkpoints) if is_complete(f := checkpoint_dir(checkpoints, s))), None
    )


def checkpoint_step(checkpoint: Path) -> int:
    """The step that a checkpoint folder's name ends with."""
    return int(checkpoint.name.rpartition("-")[2])


def read_session(folder: Path) -> dict[str, Any]:
    return read_json(folder / SESSION_FILE, Message("a checkpoint"))


def prune_checkpoints(checkpoints: Path, newest: int, keep: int = 2) -> None:
    """Keep the newest, and those before it, `keep` in all, in case the newest gets damaged."""
    steps = list_checkpoint_steps(checkpoints)
    earlier = [s for s in steps if s < newest]
    for step in steps:
        if step not in (newest, *earlier[: keep - 1]):
            (checkpoint_dir(checkpoints, step) / COMPLETE_MARKER).unlink(missing_ok=True)
            shutil.rmtree(checkpoint_dir(checkpoints, step), ignore_errors=True)


def load_weights(model: Any, checkpoint: Path) -> None:
    """Give a PeftModel the adapter weights of a checkpoint."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint / WEIGHTS_FILE))
