"""Request a GPU on a ZeroGPU Space.

There, importing this module imports `spaces`, which patches torch and has to come before it: the page's server imports
this module first. Anywhere else the import does nothing.

A base is opened inside the functions that have the GPU, so that 4 and 8 bits work too: `spaces` emulates CUDA outside
of them, in the main thread only, and not for bitsandbytes.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from persona.store import workspace
from persona.store.deployment import has_zerogpu

GRANTED_SECONDS = 120  # that anyone may ask for at a time: visitors without an account have two minutes a day
# what an answer takes on a GPU, with room to spare, since ZeroGPU ends a function that takes longer; not measured by us
OPENING_SECONDS = 20.0  # to read a base of some billion weights from the disk
PASS_SECONDS, ROW_SECONDS = 0.03, 0.002  # of one token of a batch, and of each of its rows


def answer_seconds(tokens: int, rows: int) -> float:
    """Seconds for a batch of `rows` answers of up to `tokens` tokens, with the opening of the base."""
    return OPENING_SECONDS + tokens * (PASS_SECONDS + rows * ROW_SECONDS)


def request_gpu(seconds: float | Callable[..., float]) -> Callable[[Callable], Callable]:
    """A decorator for a function that needs the GPU for up to `seconds`; GRANTED_SECONDS are asked for at most.

    seconds may be a function of the same arguments. Off ZeroGPU the decorator returns the function itself. On ZeroGPU
    the function runs in a forked process, for the same visitor: arguments and results are pickled, globals that it sets
    are lost, and of an error only a gr.Error keeps its text.
    """

    def mark(function: Callable) -> Callable:
        return _run_on_gpu(function, seconds) if has_zerogpu() else function

    return mark


_carried: list[tuple[Callable[[], Any], Callable[[Any], AbstractContextManager]]] = [
    (workspace.current_visitor, workspace.as_visitor)
]


def carry(read: Callable[[], Any], use: Callable[[Any], AbstractContextManager]) -> None:
    """Pass on what read() returns of a request: its function works inside `with use(value)`.

    A forked process serves several requests, of different visitors, and holds the context of the first.
    """
    if (read, use) not in _carried:
        _carried.append((read, use))


def _read_carried() -> tuple[Any, ...]:
    return tuple(read() for read, _ in _carried)


def _inside(values: tuple[Any, ...]) -> ExitStack:
    stack = ExitStack()
    for (_, use), value in zip(_carried, values, strict=True):
        stack.enter_context(use(value))
    return stack


def _run_on_gpu(function: Callable, seconds: float | Callable[..., float]) -> Callable:
    import spaces

    streams = inspect.isgeneratorfunction(function)

    def duration(carried: tuple[Any, ...], *args: Any) -> int:
        return math.ceil(min(seconds(*args) if callable(seconds) else seconds, GRANTED_SECONDS))

    def work(carried: tuple[Any, ...], *args: Any) -> Any:
        with _inside(carried):
            return function(*args)

    def stream(carried: tuple[Any, ...], *args: Any) -> Iterator[Any]:
        steps = function(*args)
        try:
            while True:
                with _inside(carried):  # at each step: a generator has no context of its own
                    try:
                        update = next(steps)
                    except StopIteration:
                        return
                yield update
        finally:
            with _inside(carried):
                steps.close()

    on_gpu = spaces.GPU(stream if streams else work, duration=duration)

    @functools.wraps(function)  # Gradio reads the parameters' annotations
    def call(*args: Any) -> Any:
        return on_gpu(_read_carried(), *args)

    @functools.wraps(function)
    def call_stream(*args: Any) -> Iterator[Any]:
        yield from on_gpu(_read_carried(), *args)

    return call_stream if streams else call


if has_zerogpu():
    import spaces  # noqa: F401
