"""Fixtures for tests of the queue: real processes with a fake training. Load with pytest_plugins.

When its turn comes, the fake training logs that it runs and ends on request; it needs no torch.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import waiting

from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at, personas_dir
from persona.train import launcher, queue, run_folder
from persona.train.config import RunConfig
from persona.train.launcher import create_run
from persona.train.run_folder import Run

PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(6)]

# replaces train_run: it runs until there is a file "finish" (or "stop") in the run folder, and fails if another one is
# running
STAND_IN = """
import os, runpy, sys, time, types
import psutil
from persona.train import queue

def train_run(run, deadline):
    alone = queue.queue_dir() / "alone"
    other = int(alone.read_text()) if alone.exists() else 0
    # a zombie that its parent has not reaped yet is not running
    if other and psutil.pid_exists(other) and psutil.Process(other).status() != psutil.STATUS_ZOMBIE:
        run.log("state", state="failed", message="two at a time")
        return
    alone.write_text(str(os.getpid()))
    (run.path / "heavy").write_text(str(sorted({"torch", "transformers", "gradio"} & set(sys.modules))))
    run.log("plan", steps=10, rows=5)
    run.log("state", state="running")
    now = time.time()
    run.log("step", step=1, loss=2.0, seconds=60.0, time=now - 20)
    run.log("step", step=2, loss=2.0, seconds=80.0, time=now)
    time.sleep(0.1)
    while not (run.path / "finish").exists() and not (run.path / "stop").exists():
        time.sleep(0.02)
    alone.unlink()
    run.log("state", state="stopped" if (run.path / "stop").exists() else "done")

sys.modules["persona.train.run"] = types.SimpleNamespace(train_run=train_run)
queue.POLL_SECONDS = 0.05
runpy.run_module("persona.train", run_name="__main__")
"""
REAL = subprocess.Popen


def popen(command, **options):
    """subprocess.Popen, with the fake training."""
    ours = command[:3] == [sys.executable, "-m", "persona.train"]
    return REAL([sys.executable, "-c", STAND_IN, *command[3:]] if ours else command, **options)


@pytest.fixture
def stand_in(monkeypatch, home):
    """launcher.py starts the fake training; processes that a test leaves behind are killed by pid."""
    monkeypatch.setattr(launcher.subprocess, "Popen", popen)
    yield
    for run in (run_folder.Run(p.parent) for p in home.rglob("worker.json")):
        if process := run.process():
            process.kill()
            process.wait(10)
    launcher.reap_children()


@pytest.fixture
def new(home):
    """Create a run of a persona of that name in PERSONA_HOME."""

    def new(name="Mags") -> Run:
        path = personas_dir() / name.lower()
        persona = (
            persona_folder.Persona(path) if path.exists() else create_persona_at(path, PersonaCard(name=name), PAIRS)
        )
        return create_run(persona, RunConfig())

    return new


def wait_for(condition):
    """waiting.wait_for, which notices runs that have ended, as the page's timer does."""
    return waiting.wait_for(lambda: launcher.reap_children() or condition())


def status(run: Run) -> str:
    return run.progress().status


def started(*made: Run) -> None:
    """Start the runs in this order, and wait until the first one runs."""
    for run in made:
        launcher.start_run(run)
    wait_for(lambda: status(made[0]) == "running")


def finish(run: Run) -> None:
    (run.path / "finish").touch()


def states(run: Run) -> list[str]:
    return [e["state"] for e in run.events() if e["event"] == "state"]


def pid(run: Run) -> int:
    return json.loads((run.path / "worker.json").read_text())["pid"]


def kill(run: Run) -> None:
    os.kill(pid(run), signal.SIGKILL)
    wait_for(lambda: not run.alive())


def stray() -> list[str]:
    return [t.run.name for t in queue.list_tickets()]
