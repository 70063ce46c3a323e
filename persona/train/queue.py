"""The line of runs that wait for this machine: one trains, the others wait, first come first served.

On a shared server visitors take turns: whoever has fewer runs before goes first, so that ten runs of one visitor do not
keep another waiting for ten. A visitor is told their place, and nothing of others' runs.

    queue/000007.json     a ticket: {"run": folder}; among equals the smallest number is next. Cancel removes it
    queue/now.json        {"run": folder} of the run whose turn came last
    queue/.training       locked by the process that trains, for as long as it lives
    queue/.lock           held for a moment by whoever reads and changes the line

There is no daemon. Each run has its own small process (`python -m persona.train.queue RUN`, started by launch.py) that
waits here, without torch, and then is the process that trains. A page or terminal that is closed changes nothing for
it. The operating system frees the lock of a process however that ends, so nothing that is killed can block the line; a
ticket whose process is gone is passed over, keeps its place, and gets a new process from the next launch.revive().
"""

import contextlib
import json
import math
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock

from persona.errors import Message, PersonaError
from persona.store import files
from persona.store.files import to_json, write_atomic
from persona.store.workspace import data_root, owner_of
from persona.train import run_folder
from persona.train.progress import RunProgress
from persona.train.run_folder import Run

POLL_SECONDS = 0.5  # seconds between two looks at the line


@dataclass(frozen=True)
class Ticket:
    file: Path
    run: Run


@dataclass(frozen=True)
class QueuePosition:
    """A place in the line. number: 1 is next. after: the run just before, None where it is somebody else's.

    left: seconds of the run that trains now; wait: of all before, None where one of them is not known.
    """

    number: int
    after: Run | None
    left: float | None
    wait: float | None = None


def queue_dir() -> Path:
    return data_root() / "queue"


def lock_queue() -> AbstractContextManager:
    """For `with`: nobody else changes the line meanwhile."""
    return files.lock_folder(queue_dir())


def list_tickets() -> list[Ticket]:
    """All who wait, the next one first; runs that were deleted meanwhile are left out."""
    found, now = _tickets_by_number(), _last_called_run()
    before = Counter([owner_of(now.path)] if now and now.alive() and now not in [t.run for t in found] else [])
    turns = []
    for ticket in found:
        owner = owner_of(ticket.run.path)
        turns.append((before[owner], ticket.file.name, ticket))
        before[owner] += 1
    return [ticket for _, _, ticket in sorted(turns, key=lambda x: x[:2])]


def _tickets_by_number() -> list[Ticket]:
    """All tickets, in the order in which they were taken."""
    found = []
    for file in sorted(queue_dir().glob("[0-9]*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # just taken away, or no ticket
            run = Run(Path(json.loads(file.read_text(encoding="utf-8"))["run"]))
            if (run.path / "run.json").is_file():
                found.append(Ticket(file, run))
    return found


def list_waiting_runs() -> list[Run]:
    """The runs that wait, the next one first, without those whose process is gone."""
    return [t.run for t in list_tickets() if t.run.alive()]


def find_training_run() -> Run | None:
    """The run whose turn it is."""
    run = _last_called_run()
    waits_anew = run in [t.run for t in _tickets_by_number()]  # it was resumed: its name is still that of the last turn
    return run if run and run.alive() and not waits_anew else None


def _last_called_run() -> Run | None:
    """The run whose turn came last, whether it still trains or not."""
    try:
        return Run(Path(json.loads((queue_dir() / "now.json").read_text(encoding="utf-8"))["run"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def enqueue_run(run: Run) -> None:
    """Take a ticket, behind all others; a run that has one keeps it. Call it while `locked()`."""
    have = _tickets_by_number()
    if run not in [t.run for t in have]:
        number = max((int(t.file.stem) for t in have), default=0) + 1
        write_atomic(queue_dir() / f"{number:06}.json", to_json({"run": str(run.path)}))


def cancel_waiting_run(run: Run) -> bool:
    """Take the run out of the line, if it waits: nothing is trained, and it can be resumed. Whether it waited."""
    with lock_queue():
        mine = [t for t in list_tickets() if t.run == run]
        if not mine:
            return False
        mine[0].file.unlink()
        process = run.process()
        if process and process.pid != psutil.Process().pid:  # it waits for the lock that is held here, or sleeps
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(10)
        run.log("state", state="stopped", message=Message("Cancelled while it waited. Resume puts it in line again."))
    return True


def find_position(run: Run) -> QueuePosition | None:
    """Where the run is in the line; None when it does not wait."""
    waiting, now = list_waiting_runs(), find_training_run()
    if run not in waiting:
        return None
    n = waiting.index(run)
    left = now.progress().left if now else None
    each = [*([left] if now else []), *(read_expected_seconds(r) for r in waiting[:n])]
    wait = math.fsum(s for s in each if s is not None) if each and None not in each else None
    after = waiting[n - 1] if n else now
    mine = after is not None and owner_of(after.path) == owner_of(run.path)
    return QueuePosition(n + 1, after if mine else None, left, wait)


def record_expected_seconds(run: Run, seconds: float | None) -> None:
    """Keep with a run how long it is expected to take, for those who wait for it."""
    run.update_manifest(expected_seconds=seconds)


def read_expected_seconds(run: Run) -> float | None:
    """What was kept by `expect`."""
    try:
        seconds = run.manifest().get("expected_seconds")
    except PersonaError:  # a damaged folder: it will say so when its turn comes
        return None
    return float(seconds) if isinstance(seconds, int | float) else None


def read_run_progress(run: Run) -> RunProgress:
    """How far the run is, with its place as the message while it waits."""
    seen = run.progress()
    where = find_position(run) if seen.status == "queued" else None
    return replace(seen, message=describe_position(where)) if where else seen


def describe_position(where: QueuePosition) -> str:
    """2nd in line, after 20260102-… of Mags; the run that trains now needs about 3 minutes more."""
    last = where.number % 10 if where.number % 100 not in (11, 12, 13) else 0
    ordinal = {
        1: Message("{number}st", number=where.number),
        2: Message("{number}nd", number=where.number),
        3: Message("{number}rd", number=where.number),
    }.get(last, Message("{number}th", number=where.number))
    text = Message("{ordinal} in line", ordinal=ordinal)
    if where.after:
        text = Message("{place}, after {run} of {persona}", place=text, run=where.after.name,
                       persona=_persona_name(where.after))  # fmt: skip
    if where.left is not None:
        text = Message(
            "{place}; the run that trains now needs about {time} more", place=text, time=_format_minutes(where.left)
        )
    if where.number > 1 and where.wait is not None:
        text = Message("{place}, all before it about {time}", place=text, time=_format_minutes(where.wait))
    return text


def _format_minutes(seconds: float) -> str:
    minutes = max(1, math.ceil(seconds / 60))
    if minutes >= 90:
        return Message("{hours:.1f} hours", hours=minutes / 60)
    return Message("{minutes} minutes", minutes=minutes) if minutes > 1 else Message("1 minute")


def _persona_name(run: Run) -> str:
    try:
        return run.card().name
    except PersonaError:  # a damaged folder of another run: it will say so when its turn comes
        return run.path.parent.parent.name


def wait_for_turn(run: Run) -> FileLock | None:
    """Wait until it is this run's turn. Returns the lock to hold while it trains, or None: cancelled, or deleted."""
    lock, said = FileLock(queue_dir() / ".training"), False
    while True:
        if (run.path / "stop").exists():
            cancel_waiting_run(run)
        with lock_queue():
            waiting = list_tickets()
            mine = next((t for t in waiting if t.run == run), None)
            if mine is None:
                return None
            first = not any(t.run.alive() for t in waiting[: waiting.index(mine)])
            if first and _try_lock(lock):
                write_atomic(queue_dir() / "now.json", to_json({"run": str(run.path)}))
                run.log("state", state="starting")
                mine.file.unlink()
                return lock
            if not said and run.progress().status != "queued":
                run.log("state", state="queued")
            said = True
        time.sleep(POLL_SECONDS)


def _try_lock(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except TimeoutError:
        return False
    return True


def main() -> None:
    run = run_folder.open_run(Path(sys.argv[1]))
    run_folder.record_worker(run, psutil.Process().pid)
    lock = wait_for_turn(run)
    if lock:  # kept for as long as this process lives
        # as `python -m persona.train RUN`, but in this process: it holds the lock, and the run is known by its pid
        from persona.train.run import main as train_main  # imports torch: not while waiting

        raise SystemExit(train_main())


if __name__ == "__main__":
    main()
