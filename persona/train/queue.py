"""The queue of runs that wait for this machine: one run trains at a time, first come first served.

On a shared server visitors take turns: the one with fewer runs ahead goes first, so that ten runs of one visitor do not
keep another waiting for ten. A visitor sees their own position, and nothing of others' runs.

    queue/000007.json     a ticket: {"run": folder}; among equals the smallest number is next. Cancelling deletes it
    queue/now.json        {"run": folder} of the run whose turn came last
    queue/.training       locked by the process that trains, for as long as it lives
    queue/.lock           held for a moment while the queue is read and changed

There is no daemon. Each run has a process of its own (`python -m persona.train RUN --wait`, started by launcher.py),
which waits here and then trains. Closing the page or the terminal does not affect it. The operating system frees the
lock of a process however that ends, so nothing that is killed can block the queue; a ticket whose process is gone is
skipped, keeps its place, and gets a new process from the next launcher.restart_waiting_runs().
"""

import contextlib
import json
import math
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
from persona.train.progress import RunProgress
from persona.train.run_folder import Run

POLL_SECONDS = 0.5  # seconds between two looks at the queue


@dataclass(frozen=True)
class Ticket:
    file: Path
    run: Run


@dataclass(frozen=True)
class QueuePosition:
    """Where a waiting run stands. Times are in seconds, None where they are not known."""

    number: int  # 1 is next
    after: Run | None  # the run just ahead; None where it is another visitor's
    left: float | None  # of the run that trains now
    wait: float | None = None  # of all runs ahead together


def queue_dir() -> Path:
    return data_root() / "queue"


def lock_queue() -> AbstractContextManager:
    """A context in which no other process changes the queue."""
    return files.lock_folder(queue_dir())


def list_tickets() -> list[Ticket]:
    """The tickets of all waiting runs, the next one first; runs deleted meanwhile are left out."""
    tickets, last = _tickets_by_number(), _last_called_run()
    # of each visitor; the last turn counts on when its run has ended, else the same visitor would be next
    runs_ahead = Counter([owner_of(last.path)] if last else [])
    turns = []
    for ticket in tickets:
        owner = owner_of(ticket.run.path)
        turns.append((runs_ahead[owner], ticket.file.name, ticket))
        runs_ahead[owner] += 1
    return [ticket for _, _, ticket in sorted(turns, key=lambda turn: turn[:2])]


def _tickets_by_number() -> list[Ticket]:
    """All tickets, in the order in which they were taken."""
    tickets = []
    for file in sorted(queue_dir().glob("[0-9]*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # just deleted, or not a ticket
            run = Run(Path(json.loads(file.read_text(encoding="utf-8"))["run"]))
            if (run.path / "run.json").is_file():
                tickets.append(Ticket(file, run))
    return tickets


def list_waiting_runs() -> list[Run]:
    """The waiting runs, the next one first, without those whose process is gone."""
    return [t.run for t in list_tickets() if t.run.alive()]


def find_training_run() -> Run | None:
    """The run that trains now."""
    run = _last_called_run()
    waits_again = run in [t.run for t in _tickets_by_number()]  # resumed: now.json still names it from its last turn
    return run if run and run.alive() and not waits_again else None


def _last_called_run() -> Run | None:
    """The run whose turn came last, whether or not it still trains."""
    try:
        return Run(Path(json.loads((queue_dir() / "now.json").read_text(encoding="utf-8"))["run"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def enqueue_run(run: Run) -> None:
    """Take a ticket behind all others; a run that has one keeps it. To be called inside lock_queue()."""
    tickets = _tickets_by_number()
    if run not in [t.run for t in tickets]:
        number = max((int(t.file.stem) for t in tickets), default=0) + 1
        write_atomic(queue_dir() / f"{number:06}.json", to_json({"run": str(run.path)}))


def cancel_waiting_run(run: Run) -> bool:
    """Take the run out of the queue if it waits there: nothing is trained, and it can be resumed.

    Returns whether it waited.
    """
    with lock_queue():
        ticket = _find_ticket(run, _tickets_by_number())
        if ticket is None:
            return False
        ticket.file.unlink()
        process = run.process()
        if process and process.pid != psutil.Process().pid:  # it waits for the lock that is held here, or sleeps
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(10)
        run.log("state", state="stopped", message=Message("Cancelled while it waited. Resume puts it in line again."))
    return True


def _find_ticket(run: Run, tickets: list[Ticket]) -> Ticket | None:
    return next((t for t in tickets if t.run == run), None)


def find_position(run: Run) -> QueuePosition | None:
    """The run's position in the queue; None when it does not wait."""
    waiting, training = list_waiting_runs(), find_training_run()
    if run not in waiting:
        return None
    n = waiting.index(run)
    left = _left_now(training) if training else None
    times_ahead = [*([left] if training else []), *(r.expected().get("seconds") for r in waiting[:n])]
    wait = _add_times(times_ahead) if times_ahead else None
    after = waiting[n - 1] if n else training
    same_owner = after is not None and owner_of(after.path) == owner_of(run.path)
    return QueuePosition(n + 1, after if same_owner else None, left, wait)


def estimate_wait() -> float | None:
    """Seconds until a run that was added now would start; 0 where none trains or waits, None where it is not known."""
    training, waiting = find_training_run(), list_waiting_runs()
    return _add_times(
        [*([_left_now(training)] if training else []), *(run.expected().get("seconds") for run in waiting)]
    )


def _add_times(times: list[float | None]) -> float | None:
    """Their sum in seconds; None where one of them is not known."""
    known = [seconds for seconds in times if seconds is not None]
    return math.fsum(known) if len(known) == len(times) else None


def _left_now(run: Run) -> float | None:
    """Seconds until a run that trains will be done; None where that is not known, or should have been by now."""
    ends = run.progress().ends
    return None if ends is None or ends <= time.time() else ends - time.time()


def read_run_progress(run: Run) -> RunProgress:
    """The run's progress; while it waits, its position is the message."""
    progress = run.progress()
    position = find_position(run) if progress.status == "queued" else None
    return replace(progress, message=describe_position(position)) if position else progress


def describe_position(position: QueuePosition) -> str:
    """For example: 2nd in line, after 20260102-… of Mags; the run that trains now needs about 3 minutes more."""
    number, after = position.number, position.after
    text = Message("{ordinal} in line", ordinal=_ordinal(number))
    if after:
        text = Message(
            "{place}, after {run} of {persona}", place=text, run=after.name, persona=_persona_name(after)
        )  # fmt: skip
    if position.left is not None:
        text = Message(
            "{place}; the run that trains now needs about {time} more", place=text, time=_format_minutes(position.left)
        )
    if number > 1 and position.wait is not None:
        text = Message("{place}, all before it about {time}", place=text, time=_format_minutes(position.wait))
    return text


def _ordinal(number: int) -> Message:
    last_digit = number % 10 if number % 100 not in (11, 12, 13) else 0
    if last_digit == 1:
        return Message("{number}st", number=number)
    if last_digit == 2:
        return Message("{number}nd", number=number)
    return Message("{number}rd", number=number) if last_digit == 3 else Message("{number}th", number=number)


def _format_minutes(seconds: float) -> str:
    minutes = max(1, math.ceil(seconds / 60))
    if minutes >= 90:
        return Message("{hours:.1f} hours", hours=minutes / 60)
    return Message("{minutes} minute(s)", minutes=minutes)


def _persona_name(run: Run) -> str:
    try:
        return run.card().name
    except PersonaError:  # a damaged folder
        return run.persona_slug


def wait_for_turn(run: Run) -> FileLock | None:
    """Wait until it is this run's turn. Returns the lock to hold while it trains; None: cancelled, or deleted."""
    lock, announced = FileLock(queue_dir() / ".training"), False
    while True:
        if (run.path / "stop").exists():
            cancel_waiting_run(run)
        with lock_queue():
            tickets = list_tickets()
            ticket = _find_ticket(run, tickets)
            if ticket is None:
                return None
            is_first = not any(t.run.alive() for t in tickets[: tickets.index(ticket)])
            if is_first and _try_lock(lock):
                write_atomic(queue_dir() / "now.json", to_json({"run": str(run.path)}))
                run.log("state", state="starting")
                ticket.file.unlink()
                return lock
            if not announced and run.progress().status != "queued":
                run.log("state", state="queued")
            announced = True
        time.sleep(POLL_SECONDS)


def _try_lock(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except TimeoutError:
        return False
    return True
