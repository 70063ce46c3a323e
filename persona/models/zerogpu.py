"""Request a GPU on a ZeroGPU Space. Imported before torch."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from persona.store import deployment, workspace
from persona.store.deployment import has_zerogpu


def request_gpu(seconds: int) -> Callable[[Callable], Callable]:
    """Mark a function that needs the GPU for up to `seconds`. Off ZeroGPU it stays the same function.

    On ZeroGPU it runs in a forked process: arguments and results are pickled, and globals that it sets are lost.
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
    """`gpu`, with the visitor told to the forked process: it outlives its request, and may know an earlier one's."""
    streams = inspect.isgeneratorfunction(function)

    def work(visitor: str, *args: Any) -> Any:
        with workspace.as_visitor(visitor):
            return function(*args)

    def stream(visitor: str, *args: Any) -> Iterator[Any]:
        steps = function(*args)
        try:
            while True:
                with workspace.as_visitor(visitor):  # step by step: a generator has no context of its own
                    try:
                        said = next(steps)
                    except StopIteration:
                        return
                yield said
        finally:
            with workspace.as_visitor(visitor):
                steps.close()

    inside = marked(stream if streams else work, duration=seconds)

    @functools.wraps(function)  # Gradio reads the parameters' annotations
    def call(*args: Any) -> Any:
        return inside(workspace.current_visitor(), *args)

    @functools.wraps(function)
    def call_stream(*args: Any) -> Iterator[Any]:
        yield from inside(workspace.current_visitor(), *args)

    return call_stream if streams else call


if has_zerogpu():
    import spaces  # noqa: F401  (it patches torch, so it must be there first)
