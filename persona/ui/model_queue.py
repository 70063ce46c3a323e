"""What must be done one after the other: the model's answers, whose line tells who waits how long; a window's edits."""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import anyio.to_thread
import gradio as gr

from persona.models import zerogpu
from persona.ui.i18n import t
from persona.ui.page import show_errors
from persona.ui.widgets import format_duration

GPU_SECONDS = 60  # seconds that an answer may have the GPU of ZeroGPU
REPEAT_POSITION_SECONDS = (
    10.0  # seconds until the place is told again though nobody has left; telling a long line costs the page time
)
REMEMBERED_ANSWERS = 8  # answers, of which the mean says how long the next will take


class ModelQueue:
    """First come, first served. Its methods are called in the one event loop of the server."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Event] = []  # set when their place has changed; the first is being answered
        self.lasted: deque[float] = deque(maxlen=REMEMBERED_ANSWERS)
        self.began = 0.0

    def join(self, mine: asyncio.Event) -> None:
        self.waiting.append(mine)
        if self.waiting[0] is mine:
            self.began = time.monotonic()

    def leave(self, mine: asyncio.Event) -> None:
        now = time.monotonic()
        if self.waiting[0] is mine:
            self.lasted.append(now - self.began)
            self.began = now
        self.waiting.remove(mine)
        for other in self.waiting:
            other.set()

    def words(self, mine: asyncio.Event) -> str:
        """How many questions are before this one, and about how long they take; "" when it is its turn."""
        before = self.waiting.index(mine)
        if not before:
            return ""
        said = t("1 question is before yours.") if before == 1 else t("{n} questions are before yours.", n=before)
        if not self.lasted:
            return said
        left = sum(self.lasted) / len(self.lasted) * before - (time.monotonic() - self.began)
        return said + t(" About {time} left.", time=format_duration(max(1, left)))


MODEL_QUEUE = ModelQueue()


def wait_in_queue(stream: Callable[..., Iterator[tuple]], outputs: Sequence[Any], status: gr.HTML) -> Callable:
    """A handler that asks the model and streams into `outputs` → one that waits for its turn first, and tells its place
    in `status`; its errors are shown, and it has the GPU where there is one to be had.

    Who waits keeps no thread busy, so that a long line does not stop the rest of the page.
    """
    speak = zerogpu.request_gpu(GPU_SECONDS)(show_errors(stream))

    def told(words: str) -> tuple:
        return tuple(words if output is status else gr.skip() for output in outputs)

    @functools.wraps(stream)
    async def answered(*args: Any) -> AsyncIterator[tuple]:
        mine = asyncio.Event()
        MODEL_QUEUE.join(mine)
        try:
            while words := MODEL_QUEUE.words(mine):
                mine.clear()
                yield told(words)
                with suppress(TimeoutError):
                    await asyncio.wait_for(mine.wait(), REPEAT_POSITION_SECONDS)
            async with aclosing(_in_threads(speak(*args))) as steps:
                async for made in steps:
                    yield made
        finally:  # done, stopped, or the visitor has gone
            MODEL_QUEUE.leave(mine)

    return answered


async def _in_threads(steps: Generator[tuple]) -> AsyncGenerator[tuple]:
    one = threading.Lock()  # who stops does not wait for the step that is computed: closing has to

    def step() -> tuple | None:
        with one:
            return next(steps, None)

    def close() -> None:
        with one:
            steps.close()

    try:
        while (made := await anyio.to_thread.run_sync(step)) is not None:
            yield made
    finally:
        await anyio.to_thread.run_sync(close)
