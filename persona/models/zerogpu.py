"""Request a GPU on a ZeroGPU Space.

There, importing this module imports `spaces`, which patches torch and has to come before it: the page's server imports
this module first. Anywhere else the import does nothing.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from persona.store import deployment, workspace
from persona.store.deployment import has_zerogpu


def request_gpu(seconds: int) -> Callable[[Callable], Callable]:
    """A decorator for a function that needs the GPU for up to `seconds`. Off ZeroGPU it returns the function itself.

    On ZeroGPU the function runs in a forked process: arguments and results are pickled, and globals that it sets are
    lost.
    """

    def mark(function: Callable) -> Callable:
        if not has_zerogpu():
            return function
        import spaces

        return (
            _request_gpu_for_visitor(spaces.GPU, function, seconds)
            if deployment.is_shared_server()
            else spaces.GPU(function, duration=seconds)
        )

    return mark


def _request_gpu_for_visitor(marked: Callable[..., Callable], function: Callable, seconds: int) -> Callable:
    """`request_gpu` that passes on the visitor: the forked process serves several requests, of different visitors."""
    streams = inspect.isgeneratorfunction(function)

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

    on_gpu = marked(stream if streams else work, duration=seconds)

    @functools.wraps(function)  # Gradio reads the parameters' annotations
    def call(*args: Any) -> Any:
        return on_gpu(workspace.current_visitor(), *args)

    @functools.wraps(function)
    def call_stream(*args: Any) -> Iterator[Any]:
        yield from on_gpu(workspace.current_visitor(), *args)

    return call_stream if streams else call


if has_zerogpu():
    import spaces  # noqa: F401
