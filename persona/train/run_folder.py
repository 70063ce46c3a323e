"""A run folder holds one training run, complete in itself: its settings, its rows, its events, its adapter.

    run.json           config (RunConfig), persona, data_sha256, created, base, dtype, template, library versions
    pairs.jsonl        the pairs of the run; "held_out": true on those it is measured on, "new": true on those that are
                       new since the adapter that it goes on from; "rejected": the worse answer, in a run on preferences
    rehearsal.jsonl    general prompts with the base's answers that it learns too (rehearsal.py), where it does
    reference.json     likelihoods that a run on preferences compares with (preference.py)
    events.jsonl       what happened, an event a line (progress.py reads them)
    worker.json        {"pid", "started"} of the run's process, which waits for its turn or trains
    stop               an empty file: the run is to stop at its next step
    log.txt            what the process printed
    checkpoints/       checkpoint-<step>/ to resume from (checkpoints.py)
    moments/           step-000077/, the adapter at each evaluation (snapshots.py)
    parent/            the adapter that it goes on from (parent.py)
    adapter/           the run's adapter (models/adapter.py)
    tensorboard/       the log of that tracker, where report_to asks for it
    report.json        what an evaluation measured (judge/evaluate.py)
    report.html        the page of that report
    note.json          the author's name, note and star for it (run_notes.py)
    ledger.json        its figures in the table of runs (judge/ledger.py): worked out again where it is missing

The process that trains reads and writes this folder and nothing else. So a reloaded tab, a closed terminal or a crash
loses nothing, and page and command line see the same run. docs/formats.md describes each file.
"""

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from persona.errors import Message, PersonaError, RunError, with_templates
from persona.store import jsonl
from persona.store.files import (
    DISK_FULL_ERRNOS,
    NO_PERMISSION_ERRNOS,
    read_json,
    require_regular_file,
    to_json,
    write_atomic,
)
from persona.store.pairs import Pair, parse_pair
from persona.store.persona_folder import Persona, PersonaCard, parse_card
from persona.train import distributed
from persona.train.config import RunConfig
from persona.train.progress import ACTIVE_STATUSES, EventReplay, RunProgress, is_number
from persona.write.lint.finding import normalize_text


@dataclass(frozen=True)
class RunRow:
    """A pair of a run. is_new: its parent's run did not have it (parent.py).

    rejected: of a run on preferences, the worse answer; the pair has the better one.
    """

    pair: Pair
    held_out: bool
    is_new: bool = False
    rejected: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Its line of pairs.jsonl."""
        marks = {"held_out": self.held_out, "new": self.is_new}
        rejected = {"rejected": self.rejected} if self.rejected else {}
        return self.pair.to_dict() | rejected | {name: True for name, is_set in marks.items() if is_set}


def trained_questions(rows: Iterable[RunRow]) -> frozenset[str]:
    """Every question that a run trains on, as normalize_text() has it."""
    pairs = [row.pair for row in rows if not row.held_out]
    return frozenset(normalize_text(q) for p in pairs for q in (p.instruction, *(user for user, _ in p.history)))


EXPECTED_FIGURES = ("seconds", "memory", "tokens_per_s")  # in run.json with expected_ before the name
STARTING_SECONDS = 3.0  # at most, between a run's first event and its worker.json


@dataclass(frozen=True)
class Run:
    """A run folder. Of several processes that train it together, only the main one writes (distributed.py)."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def persona_slug(self) -> str:
        """The name of the persona's folder, which the run lies in: PERSONA/runs/RUN."""
        return self.path.parent.parent.name

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
            marks = [(bool(v.pop("held_out", False)), bool(v.pop("new", False)), v.pop("rejected", "")) for v in values]
            return [RunRow(parse_pair(v), *marked) for v, marked in zip(values, marks, strict=True)]
        except (ValueError, AttributeError, TypeError, RecursionError) as e:
            raise RunError("{file}: damaged ({reason}). Start a new run.", file=file, reason=f"{e!s:.200}") from e

    def update_manifest(self, **facts: Any) -> None:
        if distributed.is_main_process():
            write_atomic(self.path / "run.json", to_json({**self.manifest(), **facts}))

    def log(self, event: str, **facts: Any) -> None:
        """Append one event, in a single write call: only the last line can ever be read half-written."""
        if not distributed.is_main_process():
            return
        line = json.dumps({"time": round(time.time(), 3), "event": event, **with_templates(facts)}, ensure_ascii=False)
        with (self.path / "events.jsonl").open("a+b") as f:
            if f.tell():
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":  # a full disk cut the last line short: this one must not be glued to it
                    line = "\n" + line
            f.write((line + "\n").encode())

    def events(self) -> list[dict[str, Any]]:
        """All events so far; lines that a crash cut short are left out."""
        return jsonl.read_rows(self.path / "events.jsonl")[0]

    def progress(self) -> RunProgress:
        """The progress that the events tell; an active run whose process is gone was interrupted."""
        replay = EventReplay(self.expected())
        for event in self.events():
            replay.add(event)
        just_started = time.time() - replay.time < STARTING_SECONDS and not (self.path / "worker.json").exists()
        if replay.status in ACTIVE_STATUSES and not just_started and not self.alive():
            replay.message = (
                Message(
                    "The process that waited for its turn is gone (killed, or the machine was restarted). Resume "
                    "puts it back in the queue, and so does opening the page; its place is kept."
                )
                if replay.status == "queued"
                else explain_exit(self.path)
            )
            replay.status = "interrupted"
        return replay.progress()

    def expected(self) -> dict[str, float]:
        """What create_run was told to expect, as far as known: `seconds`, `memory` in bytes, `tokens_per_s`."""
        try:
            manifest = self.manifest()
        except PersonaError:  # a damaged folder: its own process reports it when its turn comes
            return {}
        values = {name: manifest.get(f"expected_{name}", -1) for name in EXPECTED_FIGURES}
        return {name: value for name, value in values.items() if is_number(value) and value >= 0}

    def process(self) -> psutil.Process | None:
        """This run's own process, if it is alive: pid and start time are those recorded, so a reused pid is not it."""
        try:
            worker = json.loads((self.path / "worker.json").read_text())
            process = psutil.Process(worker["pid"])
            is_own = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - worker["started"]) < 2
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, psutil.Error):
            return None
        return process if is_own else None

    def alive(self) -> bool:
        """Whether this run's own process is alive: it waits for its turn, or trains."""
        return self.process() is not None

    def is_asked_to_stop(self) -> bool:
        return (self.path / "stop").exists()

    def stop(self) -> None:
        """Ask the run to stop at its next step; it saves a checkpoint and its best adapter first."""
        (self.path / "stop").touch()


DISK_FULL_MESSAGE = Message("The disk is full. Free some space, then resume: the last whole checkpoint is kept.")
DISK_FULL_BYTES = 2**20


def _not_writable(path: Path | str) -> Message:
    return Message(
        "{path}: cannot be written. Change its rights, then resume: the last whole checkpoint is kept.", path=path
    )


def explain_exit(path: Path) -> str:
    """Why a process ended that logged no reason, as far as its folder at `path` shows."""
    if not os.access(path, os.W_OK):
        return _not_writable(path)
    if shutil.disk_usage(path).free < DISK_FULL_BYTES:
        return DISK_FULL_MESSAGE
    return Message("The training process exited unexpectedly (killed, or out of memory). It can be resumed.")


def explain_write_error(path: Path, e: BaseException) -> str:
    """The sentence for a write that failed in the run folder `path`; "" for any other error."""
    number, text = getattr(e, "errno", None), str(e)  # safetensors and torch have only the text

    def is_any_of(*numbers: int) -> bool:
        return number in numbers or any(f"os error {n})" in text for n in numbers)

    if is_any_of(*DISK_FULL_ERRNOS) or "PytorchStreamWriter failed writing" in text:
        return DISK_FULL_MESSAGE
    if is_any_of(*NO_PERMISSION_ERRNOS):
        return _not_writable(getattr(e, "filename", None) or path)
    return ""


def record_worker(run: Run, pid: int) -> None:
    """Write down which process trains the run, or waits to."""
    if not distributed.is_main_process():
        return
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:  # gone already: it failed at once, and its log says why
        started = time.time()
    write_atomic(run.path / "worker.json", to_json({"pid": pid, "started": started}))


def list_runs(persona: Persona) -> list[Run]:
    """The runs of a persona, newest first."""
    if not persona.runs_dir.is_dir():
        return []
    runs = [Run(p) for p in persona.runs_dir.iterdir() if (p / "run.json").is_file()]
    return sorted(runs, key=lambda r: r.name, reverse=True)


# fields of a card that no weights depend on: an adapter speaks, and is shared, with those of its persona now
PRESENT_FIELDS = (
    "author", "source", "rights", "sampling", "greeting", "alternate_greetings", "post_history_instructions",
    "character_book", "nickname",
)  # fmt: skip


def find_persona_card(adapter: Path) -> PersonaCard | None:
    """The card of the persona that an adapter's run belongs to (PERSONA/runs/RUN/adapter); None outside of one."""
    folder = find_persona_folder(adapter)
    if folder is None:
        return None
    file = folder / "persona.json"
    return parse_card(read_json(file, Message("a persona")), str(file))


def find_persona_folder(adapter: Path) -> Path | None:
    """The folder of the persona that an adapter's run, or a snapshot of it, belongs to; None outside of one."""
    above = adapter.resolve().parents
    for runs, folder in itertools.pairwise(above[1:4]):
        if runs.name == "runs" and (folder / "persona.json").is_file():
            return folder
    return None


def present_card(adapter: Path, card: PersonaCard) -> PersonaCard:
    """An adapter's card with PRESENT_FIELDS as its persona has them now; as it is where no persona can be read."""
    try:
        persona = find_persona_card(adapter)
    except PersonaError:
        return card
    return card.model_copy(update={n: getattr(persona, n) for n in PRESENT_FIELDS}) if persona else card


def open_run(path: Path) -> Run:
    """The run at `path`. Raises RunError where there is none."""
    run = Run(path.expanduser().resolve())
    if not (run.path / "run.json").is_file():
        raise RunError("{path}: not a training run (no run.json).", path=path)
    return run
