"""Start a run in a process of its own, and know which one is training now."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from persona import hardware, remedy
from persona.errors import RunError
from persona.files import PROJECT
from persona.folder import Persona
from persona.progress import ACTIVE
from persona.runs import Run, create_run, list_runs, note_worker


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


def start_smaller(persona: Persona, run: Run) -> Run:
    """Do what the failure of `run` proposed (Progress.remedy): go on with it where that is the same training, else
    start a new run. Returns the run that was started. Raises RunError if nothing was proposed.
    """
    changed = run.progress().remedy
    if not changed:
        raise RunError(f"{run.name}: it proposes no smaller settings. Resume it, or start a new run.")
    config = run.config().model_copy(update=changed)
    if remedy.can_go_on(changed):
        run.update_manifest(config=config.model_dump())
    else:
        run = create_run(persona, config)
    start(run)
    return run


def reap() -> None:
    """Collect children that have ended, so that no zombie looks alive; say it of those that the system has killed."""
    for path, child in list(_children.items()):
        if child.poll() is not None:
            del _children[path]
            if child.returncode == -signal.SIGKILL:
                _note_killed(Run(path))


def _note_killed(run: Run) -> None:
    """Linux kills whoever takes the last memory, without a word to it; a person seldom does."""
    if run.progress().status != "interrupted":
        return
    changed = remedy.changes(run.config(), MemoryError())
    message = f"The system killed the training (signal 9), as it does when memory runs out. {remedy.advice(changed)}"
    run.log("state", state="interrupted", message=message, remedy=changed)


def active_run(personas: list[Persona]) -> Run | None:
    """The run that is training now, if one is."""
    reap()
    return next((r for p in personas for r in list_runs(p) if r.alive() and r.progress().status in ACTIVE), None)
