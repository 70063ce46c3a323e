"""A handler that asks the model waits in the queue for the part that needs it, and shows its place meanwhile."""

import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Hashable, Iterator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import gradio as gr

from persona.compare.model_queue import EXPORT_QUEUE, MODEL_QUEUE, ModelQueue, Ticket, WaitEstimate
from persona.models import zerogpu
from persona.store.deployment import has_zerogpu
from persona.ui.i18n import t
from persona.ui.page import show_errors, visitor_key
from persona.ui.widgets import format_duration

REPEAT_POSITION_SECONDS = 10.0  # until an unchanged place is shown again; a long queue costs the page time


def position_text(place: WaitEstimate, of_export: bool = False) -> str:
    """How many questions, or exports, are before this one, and about how long they take."""
    n = place.before
    if of_export:
        text = t("{n} export(s) (is|are) before yours.", n=n)
    else:
        text = t("{n} question(s) (is|are) before yours.", n=n)
    if place.seconds is None:
        return text
    return text + t(" About {time} left.", time=format_duration(max(1, place.seconds)))


def model_work(seconds: float | Callable[..., float]) -> Callable[[Callable[..., Iterator]], Callable[..., Generator]]:
    """Mark a generator that works on the model: its errors are shown on the page, and it gets the GPU on ZeroGPU.

    A handler yields it in a ModelTurn. seconds: of the GPU, at most, or a function of the same arguments.
    """
    return lambda stream: zerogpu.request_gpu(seconds)(show_errors(stream))


@dataclass(frozen=True)
class ModelTurn:
    """What a handler yields to have work(*args), a `model_work`, done in a turn on the model.

    Everything else that the handler does, a download for example, keeps nobody waiting. show: makes what the page
    shows of what the work yields. of_export: the turn is one in the queue of exports. batch_key, rows: as of a Ticket.
    """

    work: Callable[..., Generator]
    args: tuple
    show: Callable[[Any], tuple] = lambda values: values
    of_export: bool = False
    batch_key: Hashable = None
    rows: int = 1

    @property
    def queue(self) -> ModelQueue:
        return EXPORT_QUEUE if self.of_export else MODEL_QUEUE


def wait_in_queue(stream: Callable[..., Iterator], outputs: Sequence[Any], status: gr.HTML) -> Callable:
    """Make a generator of values for `outputs`, and of ModelTurns, the handler of an event.

    Each turn waits in the queue, with its place in `status`. Waiting keeps no thread busy, so that a long queue does
    not stop the rest of the page. Errors are shown on the page.
    """
    handler = show_errors(stream)

    def show_status(text: str) -> tuple:
        return tuple(text if output is status else gr.skip() for output in outputs)

    @functools.wraps(stream)
    async def handle(*args: Any) -> AsyncIterator[tuple]:
        async with aclosing(_in_threads(handler(*args))) as steps:
            async for step in steps:
                if not isinstance(step, ModelTurn):
                    yield step
                    continue
                async with aclosing(_take_turn(step)) as values:
                    async for value in values:
                        if isinstance(value, WaitEstimate):
                            yield show_status(position_text(value, step.of_export))
                        else:
                            yield step.show(value)

    return handle


async def _take_turn(turn: ModelTurn) -> AsyncGenerator:
    """The places of the turn while it waits, then the values of its work."""
    queue = turn.queue
    batch_key = None if has_zerogpu() else turn.batch_key  # there each work has a process of its own
    ticket = queue.join(visitor_key(), "export" if turn.of_export else "question", batch_key=batch_key, rows=turn.rows)
    try:
        async with aclosing(queue.wait_for_turn(ticket, REPEAT_POSITION_SECONDS)) as places:
            async for place in places:
                yield place
        async with aclosing(_in_threads(turn.work(*turn.args), ticket)) as values:
            async for value in values:
                yield value
    finally:  # done, stopped, or the visitor has gone
        queue.leave(ticket)


async def _in_threads(steps: Generator, ticket: Ticket | None = None) -> AsyncGenerator:
    """The values of a generator whose steps are computed in threads, one at a time, within the ticket's turn."""
    one = threading.Lock()  # a Stop does not wait for the step that is computed, but closing the generator has to

    def step() -> Any:
        with one, ticket.held() if ticket else nullcontext():
            return next(steps, _ENDED)

    def close() -> None:
        with one, ticket.held() if ticket else nullcontext():
            steps.close()

    # a turn that shares a batch waits in its thread for each token: that is not one of those that serve the whole page
    limiter = anyio.CapacityLimiter(2) if ticket else None
    try:
        while (values := await anyio.to_thread.run_sync(step, limiter=limiter)) is not _ENDED:
            yield values
    finally:
        await anyio.to_thread.run_sync(close, limiter=limiter)


_ENDED = object()
