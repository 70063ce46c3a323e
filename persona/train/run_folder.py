"""One training run is one folder: its settings, its rows, its events. Start it, watch it, stop it, find it again.

Training is a child process (`python -m persona.train RUN`) that reads and writes this folder and nothing else. So a
reloaded tab, a closed terminal or a crash loses nothing, and page and command line see the same thing.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from persona.errors import Message, RunError, with_templates
from persona.store.files import read_json, require_regular_file, to_json, write_atomic
from persona.store.pairs import Pair, parse_pair
from persona.store.persona_folder import Persona, PersonaCard, parse_card
from persona.train.config import RunConfig
from persona.train.progress import ACTIVE_STATUSES, EventReplay, RunProgress


@dataclass(frozen=True)
class RunRow:
    pair: Pair
    held_out: bool


STARTING_SECONDS = 3.0  # between the first event and the note of the process that writes the next


@dataclass(frozen=True)
class Run:
    """A run folder. helper: in a process that only helps another one to train, and writes nothing."""

    path: Path
    helper: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def manifest(self) -> dict[str, Any]:
        return read_json(self.path / "run.json", Message("a training run"))

    def config(self) -> RunConfig:
        try:
            return RunConfig.model_validate(self.manifest()["config"])
        except (KeyError, ValidationError) as e:
            raise RunError(
                "{path}: its 'config' is damaged ({reason}). Start a new run.", path=self.path / "run.json", reason=e
            ) from e

    def card(self) -> PersonaCard:
        return parse_card(self.manifest().get("persona", {}), str(self.path / "run.json"))

    def rows(self) -> list[RunRow]:
        file = self.path / "pairs.jsonl"
        require_regular_file(file)
        try:
            # not splitlines(): U+2028 and U+0085 are line ends to it, and pasted text holds them
            values = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
            held_out = [bool(v.pop("held_out", False)) for v in values]
            return [RunRow(parse_pair(v), held) for v, held in zip(values, held_out, strict=True)]
        except (ValueError, AttributeError, TypeError, RecursionError) as e:
            raise RunError("{file}: damaged ({reason}). Start a new run.", file=file, reason=f"{e!s:.200}") from e

    def update_manifest(self, **facts: Any) -> None:
        if self.helper:
            return
        write_atomic(self.path / "run.json", to_json({**self.manifest(), **facts}))

    def log(self, event: str, **facts: Any) -> None:
        """Append one event. A single write call: a reader never sees half of a line that is not the last."""
        if self.helper:
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **with_templates(facts)}, ensure_ascii=False)
        with (self.path / "events.jsonl").open("a+b") as f:
            if f.tell():
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":  # a full disk cut the last line short: this one must not be glued to it
                    line = "\n" + line
            f.write((line + "\n").encode())

    def events(self) -> Iterator[dict[str, Any]]:
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.split("\n"):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):  # a line that a crash cut short, or that nobody of ours wrote
                continue
            if isinstance(event, dict):
                yield event

    def progress(self) -> RunProgress:
        """Replay the events; an active run whose process is gone was interrupted."""
        seen = EventReplay()
        for event in self.events():
            seen.take(event)
        fresh = time.time() - seen.time < STARTING_SECONDS and not (self.path / "worker.json").exists()
        if seen.status in ACTIVE_STATUSES and not fresh and not self.alive():
            seen.message = (
                Message(
                    "The process that waited for its turn is gone (killed, or the machine was restarted). Resume "
                    "lets the run wait on, and so does opening the page; its place in line is kept."
                )
                if seen.status == "queued"
                else explain_exit(self.path)
            )
            seen.status = "interrupted"
        return seen.progress()

    def process(self) -> psutil.Process | None:
        """This run's own process, if it lives: same pid and the same start time, so a reused pid is not it."""
        try:
            worker = json.loads((self.path / "worker.json").read_text())
            process = psutil.Process(worker["pid"])
            lives = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - worker["started"]) < 2
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, psutil.Error):
            return None
        return process if lives else None

    def alive(self) -> bool:
        """Whether this run's own process lives; it waits for its turn, or trains."""
        return self.process() is not None

    def stop(self) -> None:
        """Ask the run to stop at its next step; it saves a checkpoint and its best adapter first."""
        (self.path / "stop").touch()


DISK_FULL_MESSAGE = Message("The disk is full. Free some space, then resume: the last whole checkpoint is kept.")
DISK_FULL_BYTES = 2**20  # bytes


def unwritable(path: Path | str) -> Message:
    return Message(
        "{path}: cannot be written. Change its rights, then resume: the last whole checkpoint is kept.", path=path
    )


def explain_exit(path: Path) -> str:
    """What a process that could write no last word about it ended of, as far as its folder tells."""
    if not os.access(path, os.W_OK):
        return unwritable(path)
    if shutil.disk_usage(path).free < DISK_FULL_BYTES:
        return DISK_FULL_MESSAGE
    return Message("The training process exited unexpectedly (killed, or out of memory). It can be resumed.")


def explain_write_error(path: Path, e: BaseException) -> str:
    """The sentence for a write that failed in a run's folder, "" for any other error."""
    number, said = getattr(e, "errno", None), str(e)  # safetensors and torch write past Python, in words of their own
    if number in (errno.ENOSPC, errno.EDQUOT) or any(f"os error {n})" in said for n in (errno.ENOSPC, errno.EDQUOT)):
        return DISK_FULL_MESSAGE
    denied = (errno.EACCES, errno.EPERM, errno.EROFS)
    if number in denied or any(f"os error {n})" in said for n in denied):
        return unwritable(getattr(e, "filename", None) or path)
    return DISK_FULL_MESSAGE if "PytorchStreamWriter failed writing" in said else ""


def record_worker(run: Run, pid: int) -> None:
    """Remember which process does the run."""
    if run.helper:
        return
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:  # gone already: it failed at once and says so in its log
        started = time.time()
    write_atomic(run.path / "worker.json", to_json({"pid": pid, "started": started}))


def list_runs(persona: Persona) -> list[Run]:
    """Newest first."""
    if not persona.runs_dir.is_dir():
        return []
    found = [Run(p) for p in persona.runs_dir.iterdir() if (p / "run.json").is_file()]
    return sorted(found, key=lambda r: r.name, reverse=True)


def open_run(path: Path) -> Run:
    run = Run(path.expanduser().resolve())
    if not (run.path / "run.json").is_file():
        raise RunError("{path}: not a training run (no run.json).", path=path)
    return run
