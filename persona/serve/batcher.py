"""Requests → batches: one thread owns the model, and what waits for the same base is answered together.

A batch is what came within a few milliseconds of its first request, or while the batch before it ran. Nobody joins one
that runs: a row's text would then not change either (decode.py), but its prompt would have to be computed among the
others' single tokens, and the cache be rebuilt for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from persona.compare import session
from persona.compare.session import NO_ADAPTER, Column
from persona.errors import AdapterError
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.serve.api_errors import ApiError, internal_error
from persona.template.render import ChatPrompt

BATCH_ROWS = 8  # of a batch; on two cores eight cost about twice as much as two
MAX_WAITING_ROWS = 32  # rows that may wait; more are told to come back
GATHER_SECONDS = 0.005  # seconds that the first request of a batch waits for company
RETRY_AFTER = 5  # seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartialReply:
    """What one row has said so far, as its client may see it. finish: "" while it speaks, else "stop" or "length"."""

    text: str
    tokens: int
    finish: str = ""


def visible_reply(reply: Generation, sampling: Sampling, stops: Sequence[str]) -> PartialReply:
    """The reply up to its first stop string; while it speaks, without an end that might become one."""
    found = [at for stop in stops if (at := reply.text.find(stop)) >= 0]
    if found:
        return PartialReply(reply.text[: min(found)], reply.tokens, "stop")
    if reply.ended:
        return PartialReply(reply.text, reply.tokens, "stop")
    if reply.tokens >= sampling.max_new_tokens:
        return PartialReply(reply.text, reply.tokens, "length")
    return PartialReply(reply.text[: len(reply.text) - _held(reply.text, stops)], reply.tokens)


def _held(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` are the beginning of a stop string."""
    longest = max(map(len, stops), default=0) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s[:n] == text[-n:] for s in stops)), 0)


@dataclass(eq=False)
class GenerationRequest:
    """One request: a prompt with a row for each of its samplings.

    tell: called in the worker's thread with what all rows have said so far, after each token, or with an exception at
    the end. gone: set by whoever asked, when nobody listens any more; its rows then leave the batch.
    """

    base: Base
    adapter: Adapter | None
    prompt: ChatPrompt
    stop_id: int
    samplings: Sequence[Sampling]
    stops: Sequence[str]
    tell: Callable[[list[PartialReply] | Exception], None]
    gone: threading.Event = field(default_factory=threading.Event)
    over: bool = False
    said: list[PartialReply] = field(init=False)

    def __post_init__(self) -> None:
        self.said = [PartialReply("", 0)] * len(self.samplings)

    def end(self, why: Exception) -> None:
        self.over = True
        self.tell(why)


class Batcher:
    """The waiting jobs and the thread that answers them; it starts with the first job and ends with close()."""

    def __init__(self, rows: int = BATCH_ROWS, waiting: int = MAX_WAITING_ROWS):
        self.rows, self.most = rows, waiting
        self.waiting: list[GenerationRequest] = []
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.closing = False

    def submit(self, job: GenerationRequest) -> None:
        """Raises Refusal (429) when too many wait already, and (503) when the server is stopping."""
        with self.changed:
            if self.closing:
                raise ApiError(503, "The server is stopping.", code="unavailable")
            self.waiting = [j for j in self.waiting if not j.gone.is_set()]
            if sum(len(j.samplings) for j in self.waiting) + len(job.samplings) > self.most:
                raise ApiError(429, "Too many requests are waiting for the model. Try again in a few seconds.",
                              code="rate_limit_exceeded", retry_after=RETRY_AFTER)  # fmt: skip
            self.waiting.append(job)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="persona-api", daemon=True)
                self.thread.start()
            self.changed.notify_all()

    def close(self) -> None:
        """Nobody is answered any more; those who speak are cut off."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        if self.thread:
            self.thread.join(timeout=30)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closing)
            time.sleep(GATHER_SECONDS)
            with self.changed:
                jobs = self.waiting if self.closing else self._take()
                self.waiting = [j for j in self.waiting if j not in jobs and not j.gone.is_set()]
            if self.closing:
                for job in jobs:
                    job.end(ApiError(503, "The server is stopping.", code="unavailable"))
                return
            try:
                self._answer(jobs)
            except Exception:
                log.exception("A batch of the API failed")
                for job in jobs:
                    if not job.over:
                        job.end(internal_error())

    def _take(self) -> list[GenerationRequest]:
        """The job that waited longest, and others for its base, as many as fit."""
        taken: list[GenerationRequest] = []
        for job in self.waiting:
            rows = sum(len(j.samplings) for j in taken) + len(job.samplings)
            if not job.gone.is_set() and (not taken or (job.base == taken[0].base and rows <= self.rows)):
                taken.append(job)
        return taken

    def _answer(self, jobs: Sequence[GenerationRequest]) -> None:
        if not jobs:
            return
        voices = session.open_model(jobs[0].base)
        columns: list[Column] = []
        rows: list[tuple[GenerationRequest, int]] = []
        for job in jobs:
            try:
                name = voices.attach(job.adapter) if job.adapter else NO_ADAPTER
            except AdapterError as e:
                log.warning("%s", e)
                job.end(ApiError(503, "This model cannot be opened; the server's log says why.", code="unavailable"))
                continue
            columns += [Column(name, job.prompt, stop_id=job.stop_id)] * len(job.samplings)
            rows += [(job, n) for n in range(len(job.samplings))]
        samplings, halted = [job.samplings[n] for job, n in rows], set[int]()
        if columns:
            for replies in session.stream_replies(voices, columns, samplings, halted=halted):
                halted |= self._report(rows, replies)

    def _report(self, rows: Sequence[tuple[GenerationRequest, int]], replies: Sequence[Generation]) -> set[int]:
        """Tell each job what is new; returns the rows that need not go on."""
        for (job, n), reply in zip(rows, replies, strict=True):
            if reply.error and not job.over:
                log.warning("%s", reply.error)
                job.end(ApiError(503, "This model cannot speak now; the server's log says why.", code="unavailable"))
            # what has ended stays as it was told: bytes that are no text can change how those before them read
            if not job.said[n].finish:
                job.said[n] = visible_reply(reply, job.samplings[n], job.stops)
        for job in dict.fromkeys(job for job, _ in rows):
            if self.closing and not job.over:
                job.end(ApiError(503, "The server is stopping.", code="unavailable"))
            if not job.over:
                job.over = all(s.finish for s in job.said)
                job.tell(list(job.said))
        return {at for at, (job, n) in enumerate(rows) if job.over or job.gone.is_set() or job.said[n].finish}
