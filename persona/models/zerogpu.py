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


def _run_on_gpu(function: Callable, seconds: float | Callable[..., float]) -> Callable:
    """The visitor is passed on: the forked process serves several requests, of different visitors."""
    import spaces

    streams = inspect.isgeneratorfunction(function)

    def duration(visitor: str, *args: Any) -> int:
        return math.ceil(min(seconds(*args) if callable(seconds) else seconds, GRANTED_SECONDS))

    def work(visitor: str, *args: Any) -> Any:
        with workspace.as_visitor(visitor):
            return function(*args)

    def stream(visitor: str, *args: Any) -> Iterator[Any]:
        steps = function(*args)
        try:
            while True:
                with workspace.as_visitor(visitor):  # at each step: a generator has no context of its own
                    try:
                        update = next(steps)
                    except StopIteration:
                        return
                yield update
        finally:
            with workspace.as_visitor(visitor):
                steps.close()

    on_gpu = spaces.GPU(stream if streams else work, duration=duration)

    @functools.wraps(function)  # Gradio reads the parameters' annotations
    def call(*args: Any) -> Any:
        return on_gpu(workspace.current_visitor(), *args)

    @functools.wraps(function)
    def call_stream(*args: Any) -> Iterator[Any]:
        yield from on_gpu(workspace.current_visitor(), *args)

    return call_stream if streams else call


if has_zerogpu():
    import spaces  # noqa: F401
