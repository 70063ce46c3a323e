"""Create a run, start it in a process of its own, stop it, retry it, find it again: what page and command line call.

create_run() writes the run folder; start_run() takes a ticket in the queue (queue.py) and starts the run's process
(__main__.py), which waits there for its turn and then trains.
"""

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message, PersonaError, RunError, join
from persona.models import base, bundled, hardware, malloc
from persona.store import deployment, quotas
from persona.store.files import expand_home, explain_disk_error, path_exists, to_json, write_atomic
from persona.store.pairs import Pair, find_unfinished, hash_pairs
from persona.store.persona_folder import Persona
from persona.store.preferences import Preference
from persona.store.workspace import child_environment, is_for_visitor
from persona.template.chat_template import read_template, shipped_templates
from persona.train import change_settings, distributed, engines, oom_recovery, plan, queue, validate
from persona.train.aliases import resolve_aliases
from persona.train.config import PREFERENCE_SETTINGS, RunConfig, count_steps, make_config
from persona.train.parent import (
    Parent,
    adopt_settings,
    copy_parent,
    reopen_parent,
    repeat_new,
    split_preferences,
    split_since,
)
from persona.train.plan import TrainingEstimate
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.train.run_folder import Run, list_runs, record_worker

MIN_PREFERENCES = 4  # to learn from and to measure on
MIN_PAIRS = 2  # one to learn from, one to measure on
WAIT_SECONDS = 0.3  # between two looks at a run


def create_run(
    persona: Persona,
    config: RunConfig,
    estimate: TrainingEstimate | None = None,
    parent: Parent | None = None,
    preferences: Sequence[Preference] = (),
) -> Run:
    """A run folder, ready to start. Raises InputError when the pairs cannot make a run.

    estimate: what is expected of it, for those who wait for it and those who watch it. parent: the adapter that it goes
    on from; config has its settings (parent.adopt_settings). preferences: what it learns from instead of the persona's
    pairs; then it has a parent.
    """
    config = _with_absolute_paths(config)
    card, pairs = persona.card(), [p.pair for p in preferences] or persona.pairs()
    if preferences:
        _require_preferences(config, preferences, parent)
    else:
        require_trainable_pairs(persona, pairs)
    validate.require_packages(config)
    _require_open_names(config)
    quotas.require_disk_quota()
    rows = split_preferences(preferences, parent, config) if preferences else split_since(pairs, parent, config)
    if all(row.held_out for row in rows):
        raise InputError(
            "{path}: each pair that is left was held out by {parent}, so there is nothing to learn from. Write new "
            "pairs, or start a new run.",
            path=persona.pairs_file,
            parent=parent.name if parent else "",
        )
    quotas.require_step_quota(count_steps(config, len(repeat_new(rows, config.new_pair_repeats)))[0])
    run = Run(persona.runs_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    try:
        run.path.mkdir(parents=True)
    except OSError as e:
        raise InputError(explain_disk_error(run.path, e)) from e
    write_atomic(
        run.path / "pairs.jsonl", "".join(json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
    )
    manifest: dict[str, Any] = {
        "config": config.model_dump(),
        "persona": card.model_dump(mode="json"),
        "data_sha256": hash_pairs(pairs),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if preferences:
        manifest["kind"] = "preferences"
    if parent:
        manifest["parent"] = copy_parent(run, parent, rows)
    if estimate:
        manifest |= {f"expected_{name}": value for name, value in estimate.expected_figures(config).items()}
    write_atomic(run.path / "run.json", to_json(manifest))
    run.log("state", state="starting")
    return run


def create_preference_run(
    persona: Persona, preferences: Sequence[Preference], parent: Parent | None, given: Mapping[str, Any]
) -> Run:
    """create_run() on preferences, with PREFERENCE_SETTINGS and those of `given` on top. Raises InputError.

    Its memory is not estimated before: a run that needs too much proposes smaller settings.
    """
    config = make_preference_config(parent, given)
    machine = hardware.this_machine()
    validate.check_config(config, hardware.plan_device(machine, config.dtype), machine.gpus)
    return create_run(persona, config, parent=parent, preferences=preferences)


def make_preference_config(parent: Parent | None, given: Mapping[str, Any]) -> RunConfig:
    """The settings of a run on preferences. Raises InputError for those that are wrong, or not the parent's."""
    config = make_config("quick", **{**PREFERENCE_SETTINGS, **resolve_aliases(given)})
    return adopt_settings(config, parent, given) if parent else config


def _require_preferences(config: RunConfig, preferences: Sequence[Preference], parent: Parent | None) -> None:
    if parent is None:
        raise InputError("Preferences change an adapter: name the one to go on from, or train one first.")
    if len(preferences) < MIN_PREFERENCES:
        raise InputError(
            "{count} preferences are too few to learn from and to measure on: it takes {least}. Vote or correct more.",
            count=len(preferences),
            least=MIN_PREFERENCES,
        )
    if config.packing:
        raise InputError("packing: does not go with preferences. Set packing to false.")
    if config.rehearsal_fraction:
        raise InputError("rehearsal_fraction: does not go with preferences. Set it to 0.")
    if distributed.process_count() > 1:
        raise InputError("Preferences are learned in one process. Start it without accelerate or torchrun.")


def create_fitted_run(
    persona: Persona, config: RunConfig, given: Collection[str] = (), parent: Parent | None = None
) -> tuple[Run, list[str]]:
    """create_run() with the settings checked on this machine and fitted to its memory, and notes on what was changed.

    Settings named in `given` stay as they are. Raises InputError, BaseError for a base that cannot be opened.
    """
    if parent:
        config = adopt_settings(config, parent, given)
    config = _with_absolute_paths(config)
    note = base.check_base(config.base)
    fitted, estimate, notes = plan.fit_to_machine(persona, config, given, parent)
    return create_run(persona, fitted, estimate, parent), [*([note] if note else []), *notes]


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """A base or template that is named by a relative path, by its absolute one: the run's process has another folder.

    A name that is no path here is left as it is, and so is each of a visitor, who may name none.
    """
    if is_for_visitor():
        return config
    is_path = {
        "base": not bundled.find_bundled(config.base),
        "template": config.template not in shipped_templates(),
    }
    paths = {name: expand_home(getattr(config, name)) for name, possible in is_path.items() if possible}
    changes = {name: str(path.absolute()) for name, path in paths.items() if path.name and path_exists(path)}
    return config.model_copy(update=changes)


def _require_open_names(config: RunConfig) -> None:
    """Raises PersonaError for a path that a visitor may not name: the process that trains opens any, as the owner's."""
    if is_for_visitor():
        base.require_open_name(config.base)
        if config.template != "auto":
            read_template(config.template)


def require_trainable_pairs(persona: Persona, pairs: list[Pair]) -> None:
    """Raise InputError when there are too few pairs, or unfinished ones."""
    if len(pairs) < MIN_PAIRS:
        count = Message("no pairs") if not pairs else Message("one pair")
        raise InputError(
            "{path}: {have}. A run needs at least {min_pairs}, and a persona shows from about 100. Write "
            "more pairs, or open an example.",
            path=persona.pairs_file,
            have=count,
            min_pairs=MIN_PAIRS,
        )
    if missing := find_unfinished(pairs):
        wrong = [Message("pair {row}: {problem}.", row=row, problem=why) for row, why in missing[:20]]
        raise InputError(
            "{problems}\nFill in or delete it, then train again." if len(missing) == 1 else
            "{problems}\nFill in or delete them, then train again.",
            problems=join("\n", wrong),
        )  # fmt: skip


def start_run(run: Run) -> None:
    """Put the run, new or resumed, into the queue and start its process; it trains at once when nothing else does.

    The process outlives page and terminal. Raises RunError when the run is active already, or done.
    """
    reap_children()
    with queue.lock_queue():
        _prepare_start(run)
        if deployment.has_zerogpu():  # no process outlives a request: the page trains in slices (gpu_slices.py)
            run.log("state", state="starting")
            return
        queue.enqueue_run(run)
        _spawn_waiting_runs()


def start_on_cluster(run: Run, storage: str, address: str) -> None:
    """Send the run, new or resumed, to a Ray cluster (ray_cluster.py), which has a queue of its own."""
    reap_children()
    _prepare_start(run)
    _spawn(run, "starting", "persona.train.ray_cluster", storage, address)


def change_run(run: Run, settings: Mapping[str, Any]) -> list[str]:
    """Change settings of a run before it is resumed (change_settings.py). Returns notes on what they change.

    Raises RunError when the run is active, or done, and InputError for settings that cannot change.
    """
    _require_resumable(run)
    return change_settings.change_settings(run, settings)


def _prepare_start(run: Run) -> None:
    """Remove what is left of the run's last process. Raises RunError when the run is active already, or done."""
    _require_resumable(run)
    (run.path / "stop").unlink(missing_ok=True)
    (run.path / "worker.json").unlink(missing_ok=True)


def _require_resumable(run: Run) -> None:
    progress = run.progress()
    if run.alive() and progress.status in ACTIVE_STATUSES:  # a process whose run has ended may still be exiting
        raise RunError(
            "{run} is already waiting for its turn." if progress.status == "queued" else "{run} is already running.",
            run=run.name,
        )
    if progress.status == "done":
        raise RunError(
            "{run} is done; there is nothing to resume. Its adapter is {adapter}.", run=run.name, adapter=run.adapter
        )


def restart_waiting_runs() -> None:
    """Start a new process for every queued run whose own is gone: killed, or the machine was restarted."""
    reap_children()
    if queue.list_tickets():
        with queue.lock_queue():
            _spawn_waiting_runs()


def _spawn_waiting_runs() -> None:
    for n, ticket in enumerate(queue.list_tickets()):
        if not ticket.run.alive():
            is_next = n == 0 and queue.find_training_run() is None
            state = "starting" if is_next else "queued"
            _spawn(ticket.run, state, "persona.train", "--wait", python=_training_python(ticket.run))


def _training_python(run: Run) -> str:
    try:
        return engines.training_python(run.config())
    except PersonaError:  # damaged settings: the process logs what is wrong with them
        return sys.executable


_children: dict[Path, subprocess.Popen] = {}  # run folder → its process, kept so that poll() reaps it when it ends


def _spawn(run: Run, state: str, module: str, *arguments: str, python: str = sys.executable) -> None:
    """Start `python -m MODULE RUN ARGUMENTS` as the run's process."""
    run.log("state", state=state)
    malloc.limit_openmp_spin()
    with (run.path / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [python, "-m", module, str(run.path), *arguments],
            cwd=run.path, env=child_environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        record_worker(run, child.pid)
    except InputError:  # a full disk; a process that cannot be found again must not train beside the next one
        child.kill()
        child.wait()
        raise
    _children[run.path] = child


def wait_for_run(run: Run, on_progress: Callable[[RunProgress], None] | None = None) -> RunProgress:
    """Wait for the end of a run that was started. Raises RunError when it failed."""
    while (progress := run.progress()).status in ACTIVE_STATUSES:
        if on_progress:
            on_progress(progress)
        time.sleep(WAIT_SECONDS)
        reap_children()
    require_success(run, progress)
    return progress


def require_success(run: Run, progress: RunProgress) -> None:
    """Raises RunError, with what the run said last, unless it is done or was stopped."""
    if progress.status not in ("done", "stopped"):
        raise RunError(
            Message.of(progress.message)
            or Message("The run ended as {status}; see {log}.", status=progress.status, log=run.path / "log.txt")
        )


def stop_run(run: Run) -> bool:
    """Cancel a run that waits (returns True), or ask one that trains to stop at its next step."""
    if queue.cancel_waiting_run(run):  # first: its process, asked to stop, would take itself out of the queue
        return True
    run.stop()
    return False


def retry_smaller(persona: Persona, run: Run) -> Run:
    """Start `run` again with the smaller settings that its failure proposed (RunProgress.smaller_settings).

    It is resumed where these compute the same training, else a new run is created. Returns the run that was started.
    Raises RunError if nothing was proposed.
    """
    changes = run.progress().smaller_settings
    if not changes:
        raise RunError("{run}: it proposes no smaller settings. Resume it, or start a new run.", run=run.name)
    config = run.config().model_copy(update=changes)
    if oom_recovery.can_resume_with(changes):
        run.update_manifest(config=config.model_dump())
    else:
        run = create_run(persona, config, parent=reopen_parent(run), preferences=read_preferences(run))
    start_run(run)
    return run


def read_preferences(run: Run) -> list[Preference]:
    """The preferences that a run learns from; empty for one that learns pairs."""
    return [Preference(row.pair, row.rejected) for row in run.rows() if row.rejected]


def reap_children() -> None:
    """Collect processes that have ended, so that no zombie looks alive; log it where the system has killed one."""
    for path, child in list(_children.items()):
        if child.poll() is not None:
            del _children[path]
            if child.returncode == -signal.SIGKILL:
                _log_killed(Run(path))


def _log_killed(run: Run) -> None:
    """SIGKILL is most often Linux's out-of-memory killer; the process itself could log nothing."""
    waited = any(ticket.run == run for ticket in queue.list_tickets())
    if waited or run.progress().status != "interrupted":
        return
    changes = oom_recovery.propose_changes(run.config(), MemoryError())
    message = Message(
        "The system killed the training (signal 9), as it does when memory runs out. {advice}",
        advice=oom_recovery.make_memory_advice(changes),
    )
    run.log("state", state="interrupted", message=message, remedy=changes)


def find_active_run(personas: list[Persona]) -> Run | None:
    """The run of these personas that trains now, else one that waits for its turn, else None."""
    reap_children()
    alive = [(run, run.progress().status) for p in personas for run in list_runs(p) if run.alive()]
    active = [(status == "queued", run) for run, status in alive if status in ACTIVE_STATUSES]
    return min(active, key=lambda x: x[0])[1] if active else None
