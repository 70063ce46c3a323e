"""Long work of a handler, in a thread: a handler can only show what it yields."""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from persona.errors import Message, PersonaError

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


class Stopped(Exception):
    """Raised by the report of a StoppableWork that was stopped."""


class StoppableWork:
    """Work in a thread, one at a time for each visitor, which ends by stop() or when its window is closed."""

    def __init__(self, busy: Message):
        """busy: said to a visitor who starts a second one."""
        self.busy = busy
        self._stops: dict[str, threading.Event] = {}  # of what runs, by visitor

    @contextlib.contextmanager
    def running(
        self, visitor: str, work: Callable[[Callable[[Any], None], Callable[[], bool]], Result]
    ) -> Iterator[tuple[Iterator[Any], Future[Result]]]:
        """Start work(report, is_stopped), and stop it when the block ends. Gives what start_in_thread() returns.

        The result is the exception Stopped where it was stopped. Raises PersonaError while other work of this visitor
        runs.
        """
        stop = threading.Event()
        if self._stops.setdefault(visitor, stop) is not stop:
            raise PersonaError(self.busy)

        def run(report: Callable[[Any], None]) -> Result:
            def report_unless_stopped(progress: Any) -> None:
                if stop.is_set():
                    raise Stopped
                report(progress)

            try:
                return work(report_unless_stopped, stop.is_set)
            finally:
                del self._stops[visitor]

        try:
            yield start_in_thread(run)
        finally:
            stop.set()

    def stop(self, visitor: str) -> None:
        if stop := self._stops.get(visitor):
            stop.set()
