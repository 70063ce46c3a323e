"""Requests → rows of the model's batch, which the page's questions share.

Each request has a place in the queue before the model. When its turn has come, a thread answers it: its rows join the
batch that runs on its base, if one does.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from persona.compare import session
from persona.compare.model_queue import MODEL_QUEUE, Ticket
from persona.compare.session import NO_ADAPTER, Column
from persona.errors import PersonaError
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.serve.api_errors import ApiError, internal_error, unavailable
from persona.store import deployment
from persona.template.render import ChatPrompt

MAX_WAITING_ROWS = 32  # rows that may wait; a request beyond gets 429
RETRY_AFTER = 5  # seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartialReply:
    """One row's reply so far, as its client may see it. finish: "" while it goes on, else "stop" or "length"."""

    text: str
    tokens: int
    finish: str = ""
    thinking: str = ""


def visible_reply(reply: Generation, sampling: Sampling, stops: Sequence[str]) -> PartialReply:
    """The reply up to its first stop string; while it goes on, without an end that might become one. In the thinking
    before it no string stops.
    """
    text, tokens, thinking = reply.text, reply.tokens, reply.thinking
    positions = [position for stop in stops if (position := text.find(stop)) >= 0]
    if positions:
        return PartialReply(text[: min(positions)], tokens, "stop", thinking)
    if reply.ended:
        return PartialReply(text, tokens, "stop", thinking)
    if tokens >= sampling.max_new_tokens:
        return PartialReply(text, tokens, "length", thinking)
    return PartialReply(text[: len(text) - _partial_stop_length(text, stops)], tokens, thinking=thinking)


def _partial_stop_length(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` are the beginning of a stop string."""
    longest = max(map(len, stops), default=0) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s[:n] == text[-n:] for s in stops)), 0)


@dataclass(eq=False)
class GenerationRequest:
    """One request: a prompt with a row for each of its samplings.

    opening: the base and how it is opened, the arguments of session.open_model().
    on_update: called in a thread with the replies so far of all rows, after each token, or with an exception
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
        self.cancelled.set()


class Batcher:
    """The requests that wait or are answered, until close()."""

    def __init__(self, max_waiting_rows: int = MAX_WAITING_ROWS):
        self.max_waiting_rows = max_waiting_rows
        self.threads: dict[GenerationRequest, threading.Thread | None] = {}  # None: it waits for its turn
        self.mutex = threading.RLock()  # reentrant: a turn may come while its request joins the queue
        self.closing = False

    def submit(self, request: GenerationRequest) -> None:
        """Raises ApiError (429) when too many rows wait already, (503) when the server is stopping, and on ZeroGPU."""
        if deployment.has_zerogpu():
            raise unavailable("ZeroGPU lends its GPU to the page alone. The API needs a Space with a GPU of its own.")
        with self.mutex:
            if self.closing:
                raise unavailable("The server is stopping.")
            self.threads = {r: t for r, t in self.threads.items() if t or not r.cancelled.is_set()}
            waiting_rows = sum(len(r.samplings) for r, thread in self.threads.items() if not thread)
            if waiting_rows + len(request.samplings) > self.max_waiting_rows:
                raise ApiError(429, "Too many requests are waiting for the model. Try again in a few seconds.",
                              code="rate_limit_exceeded", retry_after=RETRY_AFTER)  # fmt: skip
            self.threads[request] = None
            request.ticket = MODEL_QUEUE.join(
                request.client, "api", lambda: self._start(request), request.opening, len(request.samplings)
            )
        self._start(request)

    def close(self) -> None:
        """Answer nobody any more; running answers are cut off."""
        with self.mutex:
            self.closing = True
            requests = dict(self.threads)
        for request, thread in requests.items():
            if thread:
                thread.join(timeout=30)
            elif request.ticket:
                MODEL_QUEUE.leave(request.ticket)
                request.fail(unavailable("The server is stopping."))

    def _start(self, request: GenerationRequest) -> None:
        """Answer the request if its turn has come. Called whenever that may be so."""
        with self.mutex:
            ticket = request.ticket
            waits = request in self.threads and self.threads[request] is None
            if self.closing or not (waits and ticket and ticket.turn.is_set()):
                return
            thread = threading.Thread(target=self._work, args=(request, ticket), name="persona-api", daemon=True)
            self.threads[request] = thread
            thread.start()

    def _work(self, request: GenerationRequest, ticket: Ticket) -> None:
        try:
            with ticket.held():
                self._answer(request)
        except Exception:
            log.exception("A request of the API failed")
            if not request.finished:
                request.fail(internal_error())
        finally:
            MODEL_QUEUE.leave(ticket)
            with self.mutex:
                self.threads.pop(request, None)

    def _answer(self, request: GenerationRequest) -> None:
        if request.cancelled.is_set():
            return
        try:
            model = session.open_model(*request.opening)
            name = model.attach(request.adapter) if request.adapter else NO_ADAPTER
        except PersonaError as e:
            log.warning("%s", e)
            request.fail(unavailable("This model cannot be opened; the server's log says why."))
            return
        columns = [Column(name, request.prompt, stop_id=request.stop_id)] * len(request.samplings)
        halted: set[int] = set()
        for replies in session.stream_replies(model, columns, request.samplings, halted=halted):
            halted |= self._report(request, replies)

    def _report(self, request: GenerationRequest, replies: Sequence[Generation]) -> set[int]:
        """Pass on the replies so far; returns the rows that need not go on."""
        for n, reply in enumerate(replies):
            if reply.error and not request.finished:
                log.warning("%s", reply.error)
                request.fail(unavailable("This model cannot speak now; the server's log says why."))
            # bytes that are no text can change how those before them read, but what a client may have seen stays: so a
            # stream's text is that of the whole reply, however fast the client reads
            if not (old := request.replies[n]).finish:
                new = visible_reply(reply, request.samplings[n], request.stops)
                thinking = old.thinking + new.thinking[len(old.thinking) :]
                request.replies[n] = replace(new, text=old.text + new.text[len(old.text) :], thinking=thinking)
        if self.closing and not request.finished:
            request.fail(unavailable("The server is stopping."))
        if not request.finished:
            request.finished = all(r.finish for r in request.replies)
            request.on_update(list(request.replies))
        if request.finished or request.cancelled.is_set():
            return set(range(len(replies)))
        return {n for n, reply in enumerate(request.replies) if reply.finish}
