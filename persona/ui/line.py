"""The line before the model: one question is answered at a time, and who waits is told for how many and how long."""

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

import anyio.to_thread
import gradio as gr

from persona.ui.common import duration
from persona.ui.words import t

SECOND = 1.0  # between two looks at one's place
REMEMBERED = 8  # answers, of which the mean says how long the next will take


class Line:
    """First come, first served. Its methods are called in the one event loop of the server."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Event] = []  # the first of them is being answered
        self.lasted: deque[float] = deque(maxlen=REMEMBERED)
        self.began = 0.0

    def join(self, mine: asyncio.Event) -> None:
        self.waiting.append(mine)
        self._call()

    def leave(self, mine: asyncio.Event) -> None:
        if mine.is_set():
            self.lasted.append(time.monotonic() - self.began)
        self.waiting.remove(mine)
        self._call()

    def _call(self) -> None:
        if self.waiting and not self.waiting[0].is_set():
            self.waiting[0].set()
            self.began = time.monotonic()

    def words(self, mine: asyncio.Event) -> str:
        """How many questions are before this one, and about how long they take."""
        before = self.waiting.index(mine)
        said = t("1 question is before yours.") if before == 1 else t("{n} questions are before yours.", n=before)
        if not self.lasted:
            return said
        left = sum(self.lasted) / len(self.lasted) * before - (time.monotonic() - self.began)
        return said + t(" About {time} left.", time=duration(max(1, left)))


LINE = Line()


def in_line(stream: Callable[..., Generator[tuple]], outputs: Sequence[Any], status: gr.HTML) -> Callable:
    """A handler that streams into `outputs` → one that waits for its turn first, and tells its place in `status`.

    Who waits keeps no thread busy, so that a long line does not stop the rest of the page.
    """

    def told(words: str) -> tuple:
        return tuple(words if output is status else gr.skip() for output in outputs)

    @functools.wraps(stream)
    async def answered(*args: Any) -> AsyncIterator[tuple]:
        mine = asyncio.Event()
        LINE.join(mine)
        try:
            while not mine.is_set():
                yield told(LINE.words(mine))
                with suppress(TimeoutError):
                    await asyncio.wait_for(mine.wait(), SECOND)
            async for made in _in_threads(stream(*args)):
                yield made
        finally:  # done, stopped, or the visitor has gone
            LINE.leave(mine)

    return answered


async def _in_threads(steps: Generator[tuple]) -> AsyncIterator[tuple]:
    try:
        while (made := await anyio.to_thread.run_sync(next, steps, None)) is not None:
            yield made
    finally:
        await anyio.to_thread.run_sync(steps.close)
