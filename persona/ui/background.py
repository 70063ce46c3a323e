"""Long work of a handler, in a thread: a handler can only show what it yields."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

Progress = TypeVar("Progress")
Result = TypeVar("Result")


def start_in_thread(
    work: Callable[[Callable[[Progress], None]], Result],
) -> tuple[Iterator[Progress], Future[Result]]:
    """Start `work(report)` for this request's visitor. Returns what it reports until it ends, and its result."""
    reported: SimpleQueue[tuple[Progress] | None] = SimpleQueue()
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work(lambda progress: reported.put((progress,))))
        except BaseException as e:
            future.set_exception(e)
        finally:
            reported.put(None)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return (item[0] for item in iter(reported.get, None)), future
