"""Requests → batches: one thread answers them, and what waits for the same base is answered together.

Each request has a place in the queue before the model. When the turn of one has come, the others of its base share it:
those that came within a few milliseconds, or while others had the model. Nobody joins a batch that runs: a row's text
would not change (models/generate.py), but its prompt would have to be computed among the others' single tokens, and the
cache be rebuilt for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from persona.compare import session
from persona.compare.model_queue import MODEL_QUEUE, Ticket
from persona.compare.session import NO_ADAPTER, Column
from persona.errors import AdapterError, PersonaError
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.serve.api_errors import ApiError, internal_error, unavailable
from persona.store import deployment
from persona.template.render import ChatPrompt

BATCH_ROWS = 8  # of a batch; on two cores eight cost about twice as much as two
MAX_WAITING_ROWS = 32  # rows that may wait; a request beyond gets 429
GATHER_SECONDS = 0.005  # seconds that the first request of a batch waits for company
RETRY_AFTER = 5  # seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartialReply:
    """One row's reply so far, as its client may see it. finish: "" while it goes on, else "stop" or "length"."""

    text: str
    tokens: int
    finish: str = ""


def visible_reply(reply: Generation, sampling: Sampling, stops: Sequence[str]) -> PartialReply:
    """The reply up to its first stop string; while it goes on, without an end that might become one."""
    positions = [position for stop in stops if (position := reply.text.find(stop)) >= 0]
    if positions:
        return PartialReply(reply.text[: min(positions)], reply.tokens, "stop")
    if reply.ended:
        return PartialReply(reply.text, reply.tokens, "stop")
    if reply.tokens >= sampling.max_new_tokens:
        return PartialReply(reply.text, reply.tokens, "length")
    return PartialReply(reply.text[: len(reply.text) - _partial_stop_length(reply.text, stops)], reply.tokens)


def _partial_stop_length(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` are the beginning of a stop string."""
    longest = max(map(len, stops), default=0) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s[:n] == text[-n:] for s in stops)), 0)


@dataclass(eq=False)
class GenerationRequest:
    """One request: a prompt with a row for each of its samplings.

    opening: the base and how it is opened, the arguments of session.open_model().
    on_update: called in the worker's thread with the replies so far of all rows, after each token, or with an exception
    at the end. client: whose request it is, a visitor of the queue before the model.
    """

    opening: tuple[Base, str, str]
    adapter: Adapter | None
    prompt: ChatPrompt
    stop_id: int
    samplings: Sequence[Sampling]
    stops: Sequence[str]
    client: str = "api"
    on_update: Callable[[list[PartialReply] | Exception], None] = lambda _: None
    cancelled: threading.Event = field(default_factory=threading.Event)
    ticket: Ticket | None = None
    finished: bool = False
    replies: list[PartialReply] = field(init=False)

    def __post_init__(self) -> None:
        self.replies = [PartialReply("", 0)] * len(self.samplings)

    def fail(self, error: Exception) -> None:
        self.finished = True
        self.on_update(error)

    def cancel(self) -> None:
        """The client has gone: the request leaves the queue, or its rows the batch."""
        if self.ticket:
            MODEL_QUEUE.cancel(self.ticket)
        self.cancelled.set()  # last: the worker drops what is cancelled, so its place must be gone by then


class Batcher:
    """The waiting requests and the thread that answers them; it starts with the first one and ends with close()."""

    def __init__(self, max_rows: int = BATCH_ROWS, max_waiting_rows: int = MAX_WAITING_ROWS):
        self.max_rows, self.max_waiting_rows = max_rows, max_waiting_rows
        self.waiting: list[GenerationRequest] = []
        self.mutex = threading.Lock()
        self.changed = threading.Event()  # set when a turn may have come, and to close
        self.thread: threading.Thread | None = None
        self.closing = False

    def submit(self, request: GenerationRequest) -> None:
        """Raises ApiError (429) when too many rows wait already, (503) when the server is stopping, and on ZeroGPU."""
        if deployment.has_zerogpu():
            raise unavailable("ZeroGPU lends its GPU to the page alone. The API needs a Space with a GPU of its own.")
        with self.mutex:
            if self.closing:
                raise unavailable("The server is stopping.")
            waiting_rows = sum(len(r.samplings) for r in self.waiting if not r.cancelled.is_set())
            if waiting_rows + len(request.samplings) > self.max_waiting_rows:
                raise ApiError(429, "Too many requests are waiting for the model. Try again in a few seconds.",
                              code="rate_limit_exceeded", retry_after=RETRY_AFTER)  # fmt: skip
            request.ticket = MODEL_QUEUE.join(
                request.client, "api", self.changed.set, batch_key=request.opening, rows=len(request.samplings)
            )
            self.waiting.append(request)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="persona-api", daemon=True)
                self.thread.start()
        self.changed.set()

    def close(self) -> None:
        """Answer nobody any more; running answers are cut off."""
        with self.mutex:
            self.closing = True
        self.changed.set()
        if self.thread:
            self.thread.join(timeout=30)

    def _work(self) -> None:
        while not self.closing:
            self.changed.wait()
            self.changed.clear()
            if (ticket := self._ticket_with_turn()) and not self.closing:
                time.sleep(GATHER_SECONDS)
                batch = self._take_batch(ticket)
                try:
                    with ticket.held():
                        self._answer(batch)
                except Exception:
                    log.exception("A batch of the API failed")
                    for request in batch:
                        if not request.finished:
                            request.fail(internal_error())
                finally:
                    MODEL_QUEUE.leave(ticket)
        for request in self.waiting:
            if request.ticket:
                MODEL_QUEUE.leave(request.ticket)
            request.fail(unavailable("The server is stopping."))

    def _ticket_with_turn(self) -> Ticket | None:
        with self.mutex:
            return next((r.ticket for r in self.waiting if r.ticket and r.ticket.turn.is_set()), None)

    def _take_batch(self, ticket: Ticket) -> list[GenerationRequest]:
        """The request whose turn it is, and others for its base, as many as fit."""
        with self.mutex:
            tickets = [ticket, *MODEL_QUEUE.share_turn(ticket, self.max_rows)]
            batch = [r for r in self.waiting if r.ticket in tickets]
            self.waiting = [r for r in self.waiting if r not in batch and not r.cancelled.is_set()]
        return [r for r in batch if not r.cancelled.is_set()]

    def _answer(self, requests: Sequence[GenerationRequest]) -> None:
        if not requests:
            return
        try:
            model = session.open_model(*requests[0].opening)
        except PersonaError as e:
            log.warning("%s", e)
            for request in requests:
                request.fail(unavailable("This model cannot be opened; the server's log says why."))
            return
        columns: list[Column] = []
        rows: list[tuple[GenerationRequest, int]] = []
        for request in requests:
            try:
                name = model.attach(request.adapter) if request.adapter else NO_ADAPTER
            except AdapterError as e:
                log.warning("%s", e)
                request.fail(unavailable("This model cannot be opened; the server's log says why."))
                continue
            columns += [Column(name, request.prompt, stop_id=request.stop_id)] * len(request.samplings)
            rows += [(request, n) for n in range(len(request.samplings))]
        samplings, halted = [request.samplings[n] for request, n in rows], set[int]()
        if columns:
            for replies in session.stream_replies(model, columns, samplings, halted=halted):
                halted |= self._report(rows, replies)

    def _report(self, rows: Sequence[tuple[GenerationRequest, int]], replies: Sequence[Generation]) -> set[int]:
        """Pass each request its replies so far; returns the rows that need not go on."""
        for (request, n), reply in zip(rows, replies, strict=True):
            if reply.error and not request.finished:
                log.warning("%s", reply.error)
                request.fail(unavailable("This model cannot speak now; the server's log says why."))
            # bytes that are no text can change how those before them read, but what a client may have seen stays: so a
            # stream's text is that of the whole reply, however fast the client reads
            if not (old := request.replies[n]).finish:
                new = visible_reply(reply, request.samplings[n], request.stops)
                request.replies[n] = replace(new, text=old.text + new.text[len(old.text) :])
        for request in dict.fromkeys(request for request, _ in rows):
            if self.closing and not request.finished:
                request.fail(unavailable("The server is stopping."))
            if not request.finished:
                request.finished = all(r.finish for r in request.replies)
                request.on_update(list(request.replies))
        return {
            row for row, (request, n) in enumerate(rows)
            if request.finished or request.cancelled.is_set() or request.replies[n].finish
        }  # fmt: skip
