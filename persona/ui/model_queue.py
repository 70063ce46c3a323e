"""A handler that asks the model waits in the queue before it, and shows its place meanwhile."""

import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import anyio.to_thread
import gradio as gr
from gradio.context import LocalContext

from persona.compare.model_queue import MODEL_QUEUE, Ticket, WaitEstimate
from persona.errors import InputError
from persona.models import zerogpu
from persona.store import workspace
from persona.ui.i18n import t
from persona.ui.page import show_errors
from persona.ui.widgets import format_duration

GPU_SECONDS = 60  # seconds that an answer may have the GPU of ZeroGPU
REPEAT_POSITION_SECONDS = 10.0  # until an unchanged place is shown again; a long queue costs the page time


def visitor_key() -> str:
    """Who asks, for the queue: the visitor of a shared server, else the browser window."""
    request = LocalContext.request.get(None)
    window = str(getattr(request, "session_hash", "") or "")
    try:
        return workspace.current_visitor() or window
    except InputError:  # not known: the handler says so
        return window


def position_text(place: WaitEstimate) -> str:
    """How many questions are before this one, and about how long they take."""
    n = place.before
    text = t("1 question is before yours.") if n == 1 else t("{n} questions are before yours.", n=n)
    if place.seconds is None:
        return text
    return text + t(" About {time} left.", time=format_duration(max(1, place.seconds)))


def wait_in_queue(stream: Callable[..., Iterator[tuple]], outputs: Sequence[Any], status: gr.HTML) -> Callable:
    """Make a handler that streams the model's answers into `outputs` wait for its turn, with its place in `status`.

    Its errors are shown on the page, and it gets the GPU on ZeroGPU. Waiting keeps no thread busy, so that a long queue
    does not stop the rest of the page.
    """
    answer = zerogpu.request_gpu(GPU_SECONDS)(show_errors(stream))

    def show_status(text: str) -> tuple:
        return tuple(text if output is status else gr.skip() for output in outputs)

    @functools.wraps(stream)
    async def wait_and_answer(*args: Any) -> AsyncIterator[tuple]:
        ticket = MODEL_QUEUE.join(visitor_key(), "question")
        try:
            async with aclosing(MODEL_QUEUE.wait_for_turn(ticket, REPEAT_POSITION_SECONDS)) as places:
                async for place in places:
                    yield show_status(position_text(place))
            async with aclosing(_in_threads(answer(*args), ticket)) as steps:
                async for values in steps:
                    yield values
        finally:  # done, stopped, or the visitor has gone
            MODEL_QUEUE.leave(ticket)

    return wait_and_answer


async def _in_threads(steps: Generator[tuple], ticket: Ticket) -> AsyncGenerator[tuple]:
    """The values of a generator whose steps are computed in threads, one at a time, within the ticket's turn."""
    one = threading.Lock()  # a Stop does not wait for the step that is computed, but closing the generator has to

    def step() -> tuple | None:
        with one, ticket.held():
            return next(steps, None)

    def close() -> None:
        with one, ticket.held():
            steps.close()

    try:
        while (values := await anyio.to_thread.run_sync(step)) is not None:
            yield values
    finally:
        await anyio.to_thread.run_sync(close)
