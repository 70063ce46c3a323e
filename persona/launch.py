"""Start a run in a process of its own, and know which one is training now."""

import os
import subprocess
import sys
from pathlib import Path

from persona import hardware, space
from persona.errors import RunError
from persona.files import PROJECT
from persona.folder import Persona
from persona.progress import ACTIVE
from persona.runs import Run, list_runs, note_worker


def start(run: Run) -> None:
    """Start, or resume, the run in a process of its own that outlives page and terminal."""
    if run.alive():
        raise RunError(f"{run.name} is already running.")
    if run.progress().status == "done":
        raise RunError(f"{run.name} is done; there is nothing to resume. Its adapter is {run.adapter}.")
    (run.path / "stop").unlink(missing_ok=True)
    (run.path / "worker.json").unlink(missing_ok=True)
    run.log("state", state="starting")
    if space.zero():  # no process outlives a request there: the page trains it in slices (slices.py)
        return
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


def reap() -> None:
    """Collect children that have ended, so that no zombie looks alive."""
    for path, child in list(_children.items()):
        if child.poll() is not None:
            del _children[path]


def active_run(personas: list[Persona]) -> Run | None:
    """The run that is training now, if one is."""
    reap()
    return next((r for p in personas for r in list_runs(p) if r.alive() and r.progress().status in ACTIVE), None)
