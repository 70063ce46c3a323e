"""Start a run in a process of its own, where it waits in line (waiting.py) and then trains; stop it; find it again."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from persona.errors import InputError, Message, RunError, join
from persona.models import malloc
from persona.store import deployment, quotas
from persona.store.files import explain_disk_error, to_json, write_atomic
from persona.store.pairs import find_unfinished, hash_pairs
from persona.store.persona_folder import Persona
from persona.store.workspace import IS_INSTALLED, PROJECT_DIR
from persona.train import oom_recovery, queue, validate
from persona.train.config import RunConfig, count_steps
from persona.train.progress import ACTIVE_STATUSES
from persona.train.run_folder import Run, list_runs, record_worker
from persona.train.split import split_held_out


def start_run(run: Run) -> None:
    """Put the run in line, new or resumed; it starts at once when nothing else trains on this machine.

    Its process outlives page and terminal. Raises RunError when it is under way already, or done.
    """
    reap_children()
    with queue.lock_queue():
        _require_startable(run)
        (run.path / "stop").unlink(missing_ok=True)
        (run.path / "worker.json").unlink(missing_ok=True)
        if deployment.has_zerogpu():  # no process outlives a request: the page trains in slices (gpu_slices.py)
            run.log("state", state="starting")
            return
        queue.enqueue_run(run)
        _spawn_waiting_runs()


def start_on_cluster(run: Run, storage: str, address: str) -> None:
    """Send the run, new or resumed, to a Ray cluster (cluster.py), which has a line of its own."""
    reap_children()
    _require_startable(run)
    (run.path / "stop").unlink(missing_ok=True)
    (run.path / "worker.json").unlink(missing_ok=True)
    _spawn(run, "starting", "persona.train.ray_cluster", storage, address)


def restart_waiting_runs() -> None:
    """Give a new process to every run in line whose own is gone: the machine was restarted, or it was killed."""
    reap_children()
    if queue.list_tickets():
        with queue.lock_queue():
            _spawn_waiting_runs()


def _spawn_waiting_runs() -> None:
    for n, ticket in enumerate(queue.list_tickets()):
        if not ticket.run.alive():
            free = n == 0 and queue.find_training_run() is None
            _spawn(ticket.run, "starting" if free else "queued", "persona.train.queue")


def stop_run(run: Run) -> bool:
    """Cancel a run that waits (returns True), or ask one that trains to stop at its next step."""
    run.stop()
    return queue.cancel_waiting_run(run)


def _require_startable(run: Run) -> None:
    seen = run.progress()
    if run.alive() and seen.status in ACTIVE_STATUSES:  # one that has just ended may still be on its way out
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
    malloc.limit_openmp_spin()
    env = dict(os.environ)
    if not IS_INSTALLED:  # Python finds an installed copy by itself, and site-packages must not come before its library
        env["PYTHONPATH"] = os.pathsep.join([str(PROJECT_DIR), os.environ.get("PYTHONPATH", "")])
    with (run.path / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(run.path), *words],
            cwd=run.path, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        record_worker(run, child.pid)
    except InputError:  # a full disk; a process that nobody can find again must not train beside the next one
        child.kill()
        child.wait()
        raise
    _children[run.path] = child


_children: dict[Path, subprocess.Popen] = {}  # kept so that an ended child is reaped by poll()


def start_with_remedy(persona: Persona, run: Run) -> Run:
    """Do what the failure of `run` proposed (Progress.remedy): go on with it where that is the same training, else
    start a new run. Returns the run that was started. Raises RunError if nothing was proposed.
    """
    changed = run.progress().remedy
    if not changed:
        raise RunError("{run}: it proposes no smaller settings. Resume it, or start a new run.", run=run.name)
    config = run.config().model_copy(update=changed)
    if oom_recovery.can_resume_with(changed):
        run.update_manifest(config=config.model_dump())
    else:
        run = create_run(persona, config)
    start_run(run)
    return run


def reap_children() -> None:
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
    changed = oom_recovery.propose_changes(run.config(), MemoryError())
    message = Message(
        "The system killed the training (signal 9), as it does when memory runs out. {advice}",
        advice=oom_recovery.make_memory_advice(changed),
    )
    run.log("state", state="interrupted", message=message, remedy=changed)


def find_active_run(personas: list[Persona]) -> Run | None:
    """The run that is training now, else the one that waits for its turn, if one does."""
    reap_children()
    found = [(r, r.progress().status) for p in personas for r in list_runs(p) if r.alive()]
    under_way = [(status == "queued", r) for r, status in found if status in ACTIVE_STATUSES]
    return min(under_way, key=lambda x: x[0])[1] if under_way else None


MIN_PAIRS = 2  # one to learn from, one to measure on


def create_run(persona: Persona, config: RunConfig) -> Run:
    """A run folder, ready to start. Raises InputError when the pairs cannot make a run."""
    card, pairs = persona.card(), persona.pairs()
    if len(pairs) < MIN_PAIRS:
        have = Message("no pairs") if not pairs else Message("one pair")
        raise InputError(
            "{path}: {have}. A run needs at least {min_pairs}, and a persona shows from about 100. Write "
            "more pairs, or open an example.",
            path=persona.pairs_file,
            have=have,
            min_pairs=MIN_PAIRS,
        )
    if missing := find_unfinished(pairs):
        wrong = [Message("pair {row}: {problem}.", row=row, problem=why) for row, why in missing[:20]]
        raise InputError(
            "{problems}\nFill in or delete it, then train again." if len(missing) == 1 else
            "{problems}\nFill in or delete them, then train again.",
            problems=join("\n", wrong),
        )  # fmt: skip
    validate.require_packages(config)
    quotas.require_disk_quota()
    rows = split_held_out(pairs, config.eval_fraction, config.seed)
    quotas.require_step_quota(count_steps(config, sum(not r.held_out for r in rows))[0])
    run = Run(persona.runs_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    try:
        run.path.mkdir(parents=True)
    except OSError as e:
        raise InputError(explain_disk_error(run.path, e)) from e
    lines = [{**r.pair.to_dict(), **({"held_out": True} if r.held_out else {})} for r in rows]
    write_atomic(run.path / "pairs.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    manifest = {
        "config": config.model_dump(),
        "persona": card.model_dump(mode="json"),
        "data_sha256": hash_pairs(pairs),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_atomic(run.path / "run.json", to_json(manifest))
    run.log("state", state="starting")
    return run
