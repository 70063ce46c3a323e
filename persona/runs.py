"""One training run is one folder: its settings, its rows, its events. Start it, watch it, stop it, find it again.

Training is a child process (`python -m persona.train RUN`) that reads and writes this folder and nothing else. So a
reloaded tab, a closed terminal or a crash loses nothing, and page and command line see the same thing.
"""

import json
import math
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona import base, hardware, quantize
from persona.errors import InputError, RunError
from persona.files import PROJECT, disk_message, read_json, to_json, write_atomic
from persona.folder import Card, Persona, parse_card
from persona.pairs import Pair, check, sha256, unfinished

MIN_PAIRS = 2  # one to learn from, one to measure on


class RunConfig(BaseModel):
    """Every setting of a run. The names are those of PEFT and TRL; each is read in exactly one place, train.py."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    base: str = Field(base.DEFAULT, description="embedded name, Hub id, folder or .gguf file")
    template: str = Field("auto", description="auto, a name from templates/chat, or a .jinja file")
    max_length: int = Field(512, ge=8, le=32_768, description="tokens of one row; longer rows are refused, never cut")
    epochs: float = Field(3.0, gt=0, le=1000, description="passes over the pairs")
    max_steps: int = Field(-1, ge=-1, description="optimizer steps; -1: as many as the epochs need")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="its peak, after the warm-up")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate falls; cosine stays high longest, then lands softly"
    )
    warmup: float = Field(0.05, ge=0, description="below 1: share of the steps; else a number of steps")
    weight_decay: float = Field(0.0, ge=0, le=1, description="of the LoRA weights; a small adapter needs none")
    neftune_noise_alpha: float = Field(
        0.0, ge=0, le=100, description="noise on embeddings (NEFTune); 0: none, usual: 5"
    )
    lora_r: int = Field(16, ge=1, le=1024, description="how much the adapter can hold; 16 is plenty for a voice")
    lora_alpha: int = Field(32, ge=1, le=4096, description="the update is scaled by alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="0: random masks cost a third of the speed on a CPU")
    target_modules: str = Field("all-linear", description="all-linear, attention, or layer names joined by commas")
    init_lora_weights: Literal["default", "gaussian", "orthogonal"] = Field(
        "default", description="how A begins; B begins at zero, but both are orthogonal in the last case"
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r)")
    use_dora: bool = Field(False, description="weight-decomposed LoRA; cannot share a batch with the base in a chat")
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none", description="of the frozen base: 4 or 8 bits take less memory, on a GPU above all; needs bitsandbytes"
    )
    optim: str = Field("adamw_torch", description="an optimizer name of transformers")
    batch_size: int = Field(8, ge=1, le=1024, description="rows per forward pass")
    gradient_accumulation_steps: int = Field(1, ge=1, le=1024, description="batches an optimizer step; saves memory")
    gradient_checkpointing: bool = Field(False, description="less memory for a third more work")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: what is faster here")
    eval_fraction: float = Field(0.1, ge=0, le=0.5, description="share of the pairs held out to measure on")
    early_stopping_patience: int = Field(0, ge=0, description="stop after so many evaluations without gain; 0: never")
    learn_history: bool = Field(False, description="learn the replies of earlier turns too")
    train_stop_token: bool = Field(
        False, description="train the stop token's own row: for a base that never learned it"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the first weights, the order of rows, and who is held out")
    report_to: str = Field("none", description="a tracker of transformers: tensorboard, trackio, wandb, …")


PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "quick": ({"epochs": 3.0}, "Three passes. A first answer in minutes; enough to hear whether she is there."),
    "balanced": (
        {"epochs": 6.0, "learning_rate": 2e-4, "early_stopping_patience": 4},
        "Up to six calmer passes, ended early when the held-out pairs stop getting better.",
    ),
    "thorough": (
        {"epochs": 12.0, "learning_rate": 1e-4, "lora_r": 32, "lora_alpha": 64, "early_stopping_patience": 6},
        "A larger adapter and up to twelve slow passes, ended early likewise. For several hundred pairs and more.",
    ),
}


def make_config(preset: str = "quick", /, **changes: Any) -> RunConfig:
    """The preset with `changes` on top. Raises InputError naming every setting that is wrong."""
    if preset not in PRESETS:
        raise InputError(f"{preset!r}: no such preset. Choose one of {', '.join(PRESETS)}.")
    try:
        return RunConfig(**{**PRESETS[preset][0], **changes})
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, x['loc']))}={x.get('input')!r}: {x['msg']}" for x in e.errors()]
        known = ", ".join(RunConfig.model_fields)
        hint = f" Settings are: {known}." if any(x["type"] == "extra_forbidden" for x in e.errors()) else ""
        raise InputError("; ".join(wrong) + "." + hint) from e


def steps_of(config: RunConfig, rows: int) -> tuple[int, int]:
    """(optimizer steps in all, steps between evaluations): about ten evaluations a run, at least one an epoch."""
    per_epoch = math.ceil(rows / (config.batch_size * config.gradient_accumulation_steps))
    total = config.max_steps if config.max_steps > 0 else math.ceil(per_epoch * config.epochs)
    return total, max(1, min(per_epoch, math.ceil(total / 10)))


@dataclass(frozen=True)
class Row:
    pair: Pair
    held_out: bool


Status = Literal["starting", "running", "done", "stopped", "failed", "interrupted"]
ACTIVE = ("starting", "running")
STARTING_SECONDS = 3.0  # between the first event and the note of the process that writes the next


@dataclass(frozen=True)
class Progress:
    """What the events of a run say so far. Losses are nats per learned token; `left` is in seconds."""

    status: Status = "starting"
    message: str = ""
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    left: float | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    base_nll: float | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

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
        return read_json(self.path / "run.json", "a training run")

    def config(self) -> RunConfig:
        try:
            return RunConfig.model_validate(self.manifest()["config"])
        except (KeyError, ValidationError) as e:
            raise RunError(f"{self.path / 'run.json'}: its 'config' is damaged ({e}). Start a new run.") from e

    def card(self) -> Card:
        return parse_card(self.manifest().get("persona", {}), str(self.path / "run.json"))

    def rows(self) -> list[Row]:
        # not splitlines(): U+2028 and U+0085 are line ends to it, and pasted text holds them
        lines = (self.path / "pairs.jsonl").read_text(encoding="utf-8").split("\n")
        values = [json.loads(line) for line in lines if line]
        held_out = [bool(v.pop("held_out", False)) for v in values]
        return [Row(check(v), held) for v, held in zip(values, held_out, strict=True)]

    def update_manifest(self, **facts: Any) -> None:
        write_atomic(self.path / "run.json", to_json({**self.manifest(), **facts}))

    def log(self, event: str, **facts: Any) -> None:
        """Append one event. A single write call: a reader never sees half of a line that is not the last."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, ensure_ascii=False)
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
                yield json.loads(line)
            except json.JSONDecodeError:  # a line that a crash cut short
                continue

    def progress(self) -> Progress:
        """Replay the events; an active run whose process is gone was interrupted."""
        seen = _Replay()
        for event in self.events():
            seen.take(event)
        fresh = time.time() - seen.time < STARTING_SECONDS and not (self.path / "worker.json").exists()
        if seen.status in ACTIVE and not fresh and not self.alive():
            seen.status = "interrupted"
            seen.message = "The training process ended without a word (killed, or out of memory). It can be resumed."
        return seen.progress()

    def alive(self) -> bool:
        """Whether this run's own process lives: same pid and the same start time, so a reused pid is not it."""
        try:
            worker = json.loads((self.path / "worker.json").read_text())
            process = psutil.Process(worker["pid"])
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - worker["started"]) < 2
        except (OSError, ValueError, KeyError, psutil.Error):
            return False

    def stop(self) -> None:
        """Ask the run to stop at its next step; it saves a checkpoint and its best adapter first."""
        (self.path / "stop").touch()


class _Replay:
    """Events → Progress."""

    def __init__(self) -> None:
        self.status: Any = "starting"
        self.message = ""
        self.time = 0.0
        self.step = self.steps = 0
        self.seconds = 0.0
        self.pace: tuple[int, float] | None = None  # step and seconds when this process began stepping
        self.plan: dict[str, Any] = {}
        self.train: dict[int, float] = {}
        self.held_out: dict[int, float] = {}
        self.base_nll: float | None = None
        self.result: dict[str, Any] = {}

    def take(self, e: dict[str, Any]) -> None:
        kind = e.get("event")
        self.time = e.get("time", self.time)
        if kind == "state":
            self.status, self.message = e["state"], e.get("message", "")
            if e["state"] == "starting":
                self.pace, self.result = None, {}
        elif kind == "plan":
            self.plan, self.steps = e, e["steps"]
        elif kind == "step":
            self.step, self.seconds = e["step"], e["seconds"]
            self.pace = self.pace or (e["step"], e["seconds"])
            if e.get("loss") is not None and math.isfinite(e["loss"]):
                self.train[e["step"]] = e["loss"]
        elif kind == "eval":
            self.held_out[e["step"]] = e["nll"]
            if e["step"] == 0:
                self.base_nll = e["nll"]
        elif kind == "result":
            self.result = e

    def progress(self) -> Progress:
        left = None
        if self.status == "running" and self.pace and self.step > self.pace[0]:
            per_step = (self.seconds - self.pace[1]) / (self.step - self.pace[0])
            left = per_step * (self.steps - self.step)
        return Progress(
            self.status, self.message, self.step, self.steps, self.seconds, left, self.plan,
            sorted(self.train.items()), sorted(self.held_out.items()), self.base_nll, self.result,
        )  # fmt: skip


def split(pairs: list[Pair], fraction: float, seed: int) -> list[Row]:
    """Hold out `fraction` of the pairs, at least one. Rows with the same instruction stay on one side."""
    groups: dict[str, list[int]] = {}
    for n, pair in enumerate(pairs):
        groups.setdefault(pair.instruction.strip(), []).append(n)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(len(pairs) * fraction)) if fraction else 0
    held: set[int] = set()
    for group in order[:-1]:
        if len(held) >= wanted:
            break
        held.update(group)
    return [Row(pair, n in held) for n, pair in enumerate(pairs)]


def create_run(persona: Persona, config: RunConfig) -> Run:
    """A run folder, ready to start. Raises InputError when the pairs cannot make a run."""
    card, pairs = persona.card(), persona.pairs()
    if len(pairs) < MIN_PAIRS:
        have = "no pairs" if not pairs else "one pair"
        raise InputError(
            f"{persona.pairs_file}: {have}. A run needs at least {MIN_PAIRS}, and a persona shows from about 100. "
            "Write more pairs, or open an example."
        )
    if missing := unfinished(pairs):
        shown = "\n".join(f"pair {row}: {why}." for row, why in missing[:20])
        raise InputError(f"{shown}\nFill in or delete {'it' if len(missing) == 1 else 'them'}, then train again.")
    quantize.require(config.quantization, config.optim)
    run = Run(persona.runs_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    try:
        run.path.mkdir(parents=True)
    except OSError as e:
        raise InputError(disk_message(run.path, e)) from e
    rows = split(pairs, config.eval_fraction, config.seed)
    lines = [{**r.pair.to_dict(), **({"held_out": True} if r.held_out else {})} for r in rows]
    write_atomic(run.path / "pairs.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    manifest = {
        "config": config.model_dump(),
        "persona": card.model_dump(mode="json"),
        "data_sha256": sha256(pairs),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomic(run.path / "run.json", to_json(manifest))
    run.log("state", state="starting")
    return run


def start(run: Run) -> None:
    """Start, or resume, the run in a process of its own that outlives page and terminal."""
    if run.alive():
        raise RunError(f"{run.name} is already running.")
    if run.progress().status == "done":
        raise RunError(f"{run.name} is done; there is nothing to resume. Its adapter is {run.adapter}.")
    (run.path / "stop").unlink(missing_ok=True)
    (run.path / "worker.json").unlink(missing_ok=True)
    run.log("state", state="starting")
    log = (run.path / "log.txt").open("ab")
    hardware.spin_less()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(
        [sys.executable, "-m", "persona.train", str(run.path)],
        cwd=run.path, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    log.close()
    note_worker(run, child.pid)
    _children[run.path] = child


_children: dict[Path, subprocess.Popen] = {}  # kept so that an ended child is reaped by poll()


def note_worker(run: Run, pid: int) -> None:
    """Remember which process does the run."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:  # gone already: it failed at once and says so in its log
        started = time.time()
    write_atomic(run.path / "worker.json", to_json({"pid": pid, "started": started}))


def reap() -> None:
    """Collect children that have ended, so that no zombie looks alive."""
    for path, child in list(_children.items()):
        if child.poll() is not None:
            del _children[path]


def list_runs(persona: Persona) -> list[Run]:
    """Newest first."""
    if not persona.runs_dir.is_dir():
        return []
    found = [Run(p) for p in persona.runs_dir.iterdir() if (p / "run.json").is_file()]
    return sorted(found, key=lambda r: r.name, reverse=True)


def open_run(path: Path) -> Run:
    run = Run(path.expanduser().resolve())
    if not (run.path / "run.json").is_file():
        raise RunError(f"{path}: not a training run (no run.json).")
    return run


def active_run(personas: list[Persona]) -> Run | None:
    """The run that is training now, if one is."""
    reap()
    return next((r for p in personas for r in list_runs(p) if r.alive() and r.progress().status in ACTIVE), None)
