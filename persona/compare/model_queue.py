"""The one queue before the model: questions of the page, requests of the API, evaluations, the command line.

A turn has the model alone, or shares it with others that answer from one batch (shared_batch.py), up to a number of
rows. Visitors with waiting work take turns (round robin), and the work of one visitor is done first come, first served:
whoever asks for much waits for it, and the others do not. Nobody overtakes, so a turn that needs the model alone comes
when those that run have ended. Exports, which merge a model of their own in memory, wait in a second queue.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

MAX_ROWS = 32  # of the turns that share a batch: a step costs little more for each row, until products limit it
REMEMBERED_TURNS = 8  # turns of a kind, of which the mean says how long the next one will take


@dataclass(eq=False)
class Ticket:
    """A place in the queue. visitor: whose work it is; kind: of work, whose recent durations give the expected wait.

    batch_key, rows: turns of one key run at the same time, with their rows in one batch; None: alone. adapters: that
    stay loaded during the turn. on_change: called, in any thread, when the turn has come or others have left; it must
    not block.
    """

    visitor: str
    kind: str
    on_change: Callable[[], None] = lambda: None
    batch_key: Hashable = None
    rows: int = 1
    turn: threading.Event = field(default_factory=threading.Event)  # set when the turn has come
    adapters: set[str] = field(default_factory=set)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this context works in the ticket's turn: what it calls takes no turn of its own."""
        token = _held_ticket.set(self)
        try:
            yield
        finally:
            _held_ticket.reset(token)


_held_ticket: ContextVar[Ticket | None] = ContextVar("held_ticket", default=None)


@dataclass(frozen=True)
class WaitEstimate:
    """How many tickets are served before one, and about how many seconds they take; None where that is not known."""

    before: int
    seconds: float | None


class ModelQueue:
    """Tickets of all who want the model. Thread-safe; a process that was forked begins with an empty queue."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        self._reset()

    def _reset(self) -> None:
        self.pid = os.getpid()
        self.mutex = threading.RLock()  # reentrant: a forgotten stream may be closed by the garbage collector in here
        self.active: list[Ticket] = []  # whose turn it is: one, or those that share a batch
        self.since = 0.0  # when the first of them began, or the last one before them ended
        self.waiting: dict[str, deque[Ticket]] = {}  # by visitor, in the order of their next turns
        self.durations: dict[str, deque[float]] = {}  # seconds of recent turns, by kind

    def join(
        self, visitor: str, kind: str, on_change: Callable[[], None] = lambda: None, batch_key: Hashable = None,
        rows: int = 1,
    ) -> Ticket:  # fmt: skip
        """Take a place. It has to be given back with `leave`, whatever happens."""
        if self.pid != os.getpid():  # the turn that was running belongs to the parent, as do those that waited
            self._reset()
        ticket = Ticket(visitor, kind, on_change, batch_key, rows)
        with self.mutex:
            self.waiting.setdefault(visitor, deque()).append(ticket)
            self._begin_turns()
        if ticket.turn.is_set():
            on_change()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """End the ticket's turn, or stop waiting for it. Harmless for one that has left."""
        with self.mutex:
            if ticket in self.active:
                self._end_turn(ticket)
            elif not self._stop_waiting(ticket):
                return
            self._begin_turns()
        self._tell_changes()

    def cancel(self, ticket: Ticket) -> None:
        """Stop waiting. A turn that has come already goes on: only the thread that works in it may end it."""
        with self.mutex:
            if not self._stop_waiting(ticket):
                return
            self._begin_turns()
        self._tell_changes()

    def estimate_wait(self, ticket: Ticket) -> WaitEstimate:
        """Of a ticket that waits."""
        with self.mutex:
            waiting = self.waiting_in_order()
            if ticket not in waiting or not self.active:
                return WaitEstimate(0, 0.0)
            running, ahead = self.active, waiting[: waiting.index(ticket)]
            means = {kind: sum(d) / len(d) for kind, d in self.durations.items()}
            before = len(running) + len(ahead)
            if any(t.kind not in means for t in (*running, *ahead)):
                return WaitEstimate(before, None)
            left = sum(means[t.kind] for t in running) - (time.monotonic() - self.since)
            return WaitEstimate(before, max(0.0, left) + sum(means[t.kind] for t in ahead))

    @contextmanager
    def turn(self, visitor: str = "", kind: str = "answer") -> Iterator[Ticket]:
        """The model, for as long as the block lasts; this thread waits for it. A turn that the context holds goes on.

        visitor: "" for the owner of this machine, and for work that no visitor asked for.
        """
        held = _held_ticket.get()
        if held is not None and held in self.active and self.pid == os.getpid():
            yield held
            return
        ticket = self.join(visitor, kind)
        try:
            ticket.turn.wait()
            yield ticket
        finally:  # also Ctrl-C while it waits
            self.leave(ticket)

    async def wait_for_turn(self, ticket: Ticket, repeat: float) -> AsyncGenerator[WaitEstimate]:
        """Yield the ticket's place until its turn has come: when it changes, and every `repeat` seconds.

        No thread waits. Replaces the ticket's on_change.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(changed.set)

        ticket.on_change = wake
        while not ticket.turn.is_set():
            changed.clear()
            place = self.estimate_wait(ticket)
            if place.before:  # else its turn has just come
                yield place
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), repeat)

    def _tell_changes(self) -> None:
        with self.mutex:
            tickets = [*self.active, *self.waiting_in_order()]
        for ticket in tickets:  # outside of the mutex: no lock of another's is taken while it is held
            ticket.on_change()

    def waiting_in_order(self) -> list[Ticket]:
        """All that wait, in the order of their turns: each round takes one of every visitor.

        A visitor whose turn is running comes after the others.
        """
        running = {t.visitor for t in self.active}
        lines = sorted(((v in running, list(line)) for v, line in list(self.waiting.items())), key=lambda x: x[0])
        longest = max((len(line) for _, line in lines), default=0)
        return [line[n] for n in range(longest) for _, line in lines if n < len(line)]

    def _stop_waiting(self, ticket: Ticket) -> bool:
        line = self.waiting.get(ticket.visitor, deque())
        if ticket not in line:
            return False
        line.remove(ticket)
        if not line:
            del self.waiting[ticket.visitor]
        return True

    def _end_turn(self, ticket: Ticket) -> None:
        self.active.remove(ticket)
        now = time.monotonic()  # of a batch, each takes the time since the one before it ended
        self.durations.setdefault(ticket.kind, deque(maxlen=REMEMBERED_TURNS)).append(now - self.since)
        self.since = now
        if ticket.visitor in self.waiting:  # behind those who came meanwhile
            self.waiting[ticket.visitor] = self.waiting.pop(ticket.visitor)

    def _begin_turns(self) -> None:
        while (waiting := self.waiting_in_order()) and self._can_begin(waiting[0]):
            self._stop_waiting(waiting[0])
            if not self.active:
                self.since = time.monotonic()
            self.active.append(waiting[0])
            waiting[0].turn.set()

    def _can_begin(self, ticket: Ticket) -> bool:
        if not self.active:
            return True
        rows = ticket.rows + sum(t.rows for t in self.active)
        return ticket.batch_key is not None and ticket.batch_key == self.active[0].batch_key and rows <= self.max_rows


MODEL_QUEUE = ModelQueue()
EXPORT_QUEUE = ModelQueue()
