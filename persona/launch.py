"""Start a run in a process of its own, where it waits in line (waiting.py) and then trains; stop it; find it again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from persona import hardware, remedy, space, waiting
from persona.errors import InputError, Message, RunError
from persona.files import INSTALLED, PROJECT
from persona.folder import Persona
from persona.progress import ACTIVE
from persona.runs import Run, create_run, list_runs, note_worker


def start(run: Run) -> None:
    """Put the run in line, new or resumed; it starts at once when nothing else trains on this machine.

    Its process outlives page and terminal. Raises RunError when it is under way already, or done.
    """
    reap()
    with waiting.locked():
        _refuse(run)
        (run.path / "stop").unlink(missing_ok=True)
        (run.path / "worker.json").unlink(missing_ok=True)
        if space.zero():  # no process outlives a request there: the page trains it in slices (slices.py)
            run.log("state", state="starting")
            return
        waiting.join(run)
        _processes()


def start_on_cluster(run: Run, storage: str, address: str) -> None:
    """Send the run, new or resumed, to a Ray cluster (cluster.py), which has a line of its own."""
    reap()
    _refuse(run)
    (run.path / "stop").unlink(missing_ok=True)
    (run.path / "worker.json").unlink(missing_ok=True)
    _spawn(run, "starting", "persona.cluster", storage, address)


def revive() -> None:
    """Give a new process to every run in line whose own is gone: the machine was restarted, or it was killed."""
    reap()
    if waiting.tickets():
        with waiting.locked():
            _processes()


def _processes() -> None:
    for n, ticket in enumerate(waiting.tickets()):
        if not ticket.run.alive():
            free = n == 0 and waiting.training() is None
            _spawn(ticket.run, "starting" if free else "queued", "persona.waiting")


def stop(run: Run) -> bool:
    """Cancel a run that waits (returns True), or ask one that trains to stop at its next step."""
    run.stop()
    return waiting.leave(run)


def _refuse(run: Run) -> None:
    seen = run.progress()
    if run.alive() and seen.status in ACTIVE:  # one that has just ended may still be on its way out
        raise RunError(
            "{run} is already waiting for its turn." if seen.status == "queued" else "{run} is already running.",
            run=run.name,
        )
    if seen.status == "done":
        raise RunError(
            "{run} is done; there is nothing to resume. Its adapter is {adapter}.", run=run.name, adapter=run.adapter
        )


def _spawn(run: Run, state: str, module: str, *words: str) -> None:
    run.log("state", state=state)
    hardware.spin_less()
    env = dict(os.environ)
    if not INSTALLED:  # Python finds an installed copy by itself, and site-packages must not come before its library
        env["PYTHONPATH"] = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    with (run.path / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(run.path), *words],
            cwd=run.path, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        note_worker(run, child.pid)
    except InputError:  # a full disk; a process that nobody can find again must not train beside the next one
        child.kill()
        child.wait()
        raise
    _children[run.path] = child


_children: dict[Path, subprocess.Popen] = {}  # kept so that an ended child is reaped by poll()


def start_smaller(persona: Persona, run: Run) -> Run:
    """Do what the failure of `run` proposed (Progress.remedy): go on with it where that is the same training, else
    start a new run. Returns the run that was started. Raises RunError if nothing was proposed.
    """
    changed = run.progress().remedy
    if not changed:
        raise RunError("{run}: it proposes no smaller settings. Resume it, or start a new run.", run=run.name)
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
    message = Message(
        "The system killed the training (signal 9), as it does when memory runs out. {advice}",
        advice=remedy.advice(changed),
    )
    run.log("state", state="interrupted", message=message, remedy=changed)


def active_run(personas: list[Persona]) -> Run | None:
    """The run that is training now, else the one that waits for its turn, if one does."""
    reap()
    found = [(r, r.progress().status) for p in personas for r in list_runs(p) if r.alive()]
    under_way = [(status == "queued", r) for r, status in found if status in ACTIVE]
    return min(under_way, key=lambda x: x[0])[1] if under_way else None
