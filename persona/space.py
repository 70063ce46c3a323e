"""What is different on a Hugging Face Space: its address, a GPU lent by the minute (ZeroGPU), and whose token is whose.

page.py imports this file before anything that may import torch, because `spaces` has to come first on ZeroGPU. Anywhere
else nothing is imported, and `gpu` leaves a function as it is. Not verified: no Space could be reached from here.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from persona import files

OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def here() -> bool:
    """Whether this process runs on a Space."""
    return bool(os.environ.get("SPACE_ID"))


def zero() -> bool:
    """Whether the Space has ZeroGPU: a GPU is there only inside functions marked with `gpu`."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")  # as the spaces package reads it


def signs_in() -> bool:
    """Whether visitors can sign in: a Space whose README says hf_oauth gets these variables."""
    return here() and all(os.environ.get(name) for name in OAUTH)


def address() -> str:
    """Where the Space itself is served, "" off a Space. SPACE_HOST may name several hosts, the first is its own."""
    host = os.environ.get("SPACE_HOST", "").split(",")[0].strip()
    return f"https://{host}" if host else ""


def gpu(seconds: int) -> Callable[[Callable], Callable]:
    """Mark a function that needs the GPU for up to `seconds`. Off ZeroGPU it stays the same function.

    On ZeroGPU it runs in a forked process: arguments and results are pickled, and globals that it sets are lost.
    """

    def mark(function: Callable) -> Callable:
        if not zero():
            return function
        import spaces

        return _told(spaces.GPU, function, seconds) if files.shared() else spaces.GPU(function, duration=seconds)

    return mark


def _told(marked: Callable[..., Callable], function: Callable, seconds: int) -> Callable:
    """`gpu`, with the visitor told to the forked process: it outlives its request, and may know an earlier one's."""
    streams = inspect.isgeneratorfunction(function)

    def work(visitor: str, *args: Any) -> Any:
        with files.asking(visitor):
            return function(*args)

    def stream(visitor: str, *args: Any) -> Iterator[Any]:
        steps = function(*args)
        try:
            while True:
                with files.asking(visitor):  # step by step: a generator has no context of its own
                    try:
                        said = next(steps)
                    except StopIteration:
                        return
                yield said
        finally:
            with files.asking(visitor):
                steps.close()

    inside = marked(stream if streams else work, duration=seconds)

    @functools.wraps(function)  # Gradio reads the parameters' annotations
    def call(*args: Any) -> Any:
        return inside(files.visitor(), *args)

    @functools.wraps(function)
    def call_stream(*args: Any) -> Iterator[Any]:
        yield from inside(files.visitor(), *args)

    return call_stream if streams else call


if zero():
    import spaces  # noqa: F401  (it patches torch, so it must be there first)
