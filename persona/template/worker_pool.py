"""Worker processes for templates of unknown origin: started when needed, kept, ended when a template takes too much.

No lock is held while one renders. A visitor of a shared server has one at a time, so that nobody's template keeps the
others waiting. The worker gets no environment (no secrets), and nothing but JSON is read from it.
"""

import atexit
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from persona.errors import InputError, Message, TemplateError
from persona.store.workspace import current_visitor
from persona.template.jinja_engine import RenderedChat
from persona.template.worker import MAX_SECONDS

MAX_WORKERS = 4  # at once; 20 MB each
MAX_WAITING = 8  # requests of one visitor, waiting or rendering
MAX_WAIT = 10.0  # seconds for an answer, and for a free worker: the limit of CPU time ends a worker before
MAX_ANSWER = 32 << 20  # bytes
REFUSED_SECONDS = 60.0  # a template that took too much is refused at once
SECONDS_PER_CHAT = 0.1  # are usual: a hundred times as long as a real one takes
MAX_REMEMBERED = 1000  # templates
CHATS_PER_REQUEST = 64
CHARACTERS_PER_REQUEST = 250_000

_START = "import sys; sys.path[:0] = sys.argv[1:]; from persona.template import worker; worker.serve_requests()"
_ENVIRONMENT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # what Python may need to start


class _TookTooMuch(Exception):
    """A template used up the time, or else the memory, of its worker."""

    def __init__(self, time_ran_out: bool) -> None:
        self.time_ran_out = time_ran_out

    def explain(self) -> TemplateError:
        if self.time_ran_out:
            return TemplateError(
                "The template ran longer than {seconds:g} seconds. Is there a loop that never ends?",
                seconds=MAX_SECONDS,
            )
        return TemplateError("The template makes texts without end. Is there a loop that doubles something?")


class _Worker:
    """A worker process. Its pipes are unbuffered: a fork of this process can drop them without writing."""

    def __init__(self) -> None:
        found = [Path(__file__).parents[2], *(Path(str(m.__file__)).parents[1] for m in (jinja2, markupsafe))]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _START, *dict.fromkeys(str(path.resolve()) for path in found)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            cwd=Path(os.sep).resolve(),
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            start_new_session=True,  # Ctrl-C is not for it
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )  # fmt: skip
        self._overdue = False

        try:
            self._receive()
        except _TookTooMuch as e:
            raise RuntimeError(f"{sys.executable} did not start to render the template") from e

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: bytes) -> tuple[Any, float]:
        """The answer to a request, and its CPU seconds. Raises _TookTooMuch where the process ended instead."""
        match self._receive(len(request).to_bytes(4, "big") + request):
            case {"answer": answer, "seconds": float(seconds)}:
                return answer, seconds
        return None, 0.0

    def _receive(self, request: bytes = b"") -> Any:
        timer = threading.Timer(MAX_WAIT, self._end_overdue)
        timer.daemon = True
        timer.start()
        try:
            self._write(request)
            size = int.from_bytes(self._read(4), "big")
            if size > MAX_ANSWER:
                raise EOFError
            return json.loads(self._read(size))
        except (OSError, EOFError, ValueError, RecursionError) as e:
            self.end()
            cpu_ran_out = self.process.returncode == -getattr(signal, "SIGPROF", 0)
            raise _TookTooMuch(self._overdue or cpu_ran_out) from e
        finally:
            timer.cancel()
            timer.join()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.drop()

    def drop(self) -> None:
        """Close the pipes, at which the process ends."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _end_overdue(self) -> None:
        self._overdue = True
        self.process.kill()

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        rest = memoryview(data)
        while rest:
            rest = rest[self.process.stdin.write(rest) :]

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = bytearray()
        while len(data) < size:
            if not (piece := self.process.stdout.read(size - len(data))):
                raise EOFError
            data += piece
        return bytes(data)


class _Pool:
    """The workers, how many each visitor uses, and which templates took too much lately."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self.workers: set[_Worker] = set()
        self._rendering: Counter[str] = Counter()  # by visitor
        self._waiting: Counter[str] = Counter()
        self._refused: dict[str, tuple[float, _TookTooMuch]] = {}  # sha256 of a template → until when, and why
        self._spent: dict[str, float] = {}  # sha256 of a template → seconds beyond the usual

    def ask(self, text: str, request: bytes, chats: int) -> Any:
        """A worker's answer. Raises TemplateError where the template takes too much, or no worker becomes free."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self._check_refused(digest)
        with self._turn(), self._lend() as worker:
            self._check_refused(digest)  # it may have taken too much while this waited
            try:
                answer, seconds = worker.ask(request)
            except _TookTooMuch as e:
                self._refuse(digest, e)
                raise e.explain() from e
        self._charge(digest, seconds - SECONDS_PER_CHAT * chats)
        return answer

    def _check_refused(self, digest: str) -> None:
        until, why = self._refused.get(digest, (0.0, None))
        if why and time.monotonic() < until:
            raise why.explain()

    def _refuse(self, digest: str, why: _TookTooMuch) -> None:
        with self._changed:
            self._refused[digest] = time.monotonic() + REFUSED_SECONDS, why
            _keep_newest(self._refused)

    def _charge(self, digest: str, seconds: float) -> None:
        """What a template takes beyond the usual adds up to the limit: many slow chats are no better than one."""
        if seconds <= 0:
            return
        with self._changed:
            self._spent[digest] = self._spent.pop(digest, 0.0) + seconds
            _keep_newest(self._spent)
            if self._spent[digest] < MAX_SECONDS:
                return
            del self._spent[digest]
        self._refuse(digest, _TookTooMuch(time_ran_out=True))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until this visitor may render."""
        visitor = _identify_visitor()
        most = 1 if visitor else MAX_WORKERS
        with self._changed:
            self._waiting[visitor] += 1
            may_wait = not visitor or self._waiting[visitor] <= MAX_WAITING
            free = may_wait and self._changed.wait_for(
                lambda: self._rendering.total() < MAX_WORKERS and self._rendering[visitor] < most, MAX_WAIT
            )
            self._waiting -= Counter([visitor])  # drops the visitors that have none left
            if not free:
                raise TemplateError("Many templates are being rendered at this moment. Try again in a few seconds.")
            self._rendering[visitor] += 1
        try:
            yield
        finally:
            with self._changed:
                self._rendering -= Counter([visitor])
                self._changed.notify_all()

    @contextmanager
    def _lend(self) -> Iterator[_Worker]:
        with self._changed:
            worker = self._idle.pop() if self._idle else None
        if worker and not worker.alive:
            self._forget(worker)
            worker = None
        if not worker:
            worker = _Worker()
            self.workers.add(worker)
        try:
            yield worker
        finally:
            if worker.alive:
                with self._changed:
                    self._idle.append(worker)
            else:
                self._forget(worker)

    def _forget(self, worker: _Worker) -> None:
        self.workers.discard(worker)
        worker.end()


def _keep_newest(remembered: dict[str, Any]) -> None:
    while len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]


_pool = _Pool()


def _end_workers() -> None:
    for worker in list(_pool.workers):
        worker.end()


def _drop_workers_after_fork() -> None:
    """A forked process starts its own: two that write to one worker would read each other's answers."""
    global _pool
    for worker in list(_pool.workers):
        worker.drop()
        worker.process.returncode = 0  # not a child of this process
    _pool = _Pool()


atexit.register(_end_workers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_workers_after_fork)


def _identify_visitor() -> str:
    try:
        return current_visitor()
    except InputError:  # no request: a run of its own process
        return ""


def render_in_worker(text: str, chats: Iterable[list[dict]], variables: Mapping[str, Any]) -> Iterator[RenderedChat]:
    """Render conversations with a template of unknown origin. Raises TemplateError for what it raises, too."""
    for some in _split_chats(chats):
        request = json.dumps({"template": text, "chats": some, "variables": dict(variables)}).encode()
        yield from _read_answer(_pool.ask(text, request, len(some)), len(some))


def _split_chats(chats: Iterable[list[dict]]) -> Iterator[list[list[dict]]]:
    """In requests that take about the same time; one long chat is one."""
    some: list[list[dict]] = []
    characters = 0
    for chat in chats:
        size = sum(len(m["content"]) for m in chat)
        if some and (len(some) == CHATS_PER_REQUEST or characters + size > CHARACTERS_PER_REQUEST):
            yield some
            some, characters = [], 0
        some.append(chat)
        characters += size
    if some:
        yield some


def _read_answer(answer: Any, count: int) -> list[RenderedChat]:
    """The chats of an answer. Raises TemplateError for any other: nothing about it is taken for granted."""
    match answer:
        case {"chats": [*chats]} if len(chats) == count:
            return [RenderedChat(str(text), [(int(a), int(b)) for a, b in spans]) for text, spans in chats]
        case {"message": {"text": str(said)} as message}:
            raise TemplateError(Message.of(Message.from_json(said, message)))
        case {"kind": str(kind), "reason": str(reason)}:
            raise TemplateError("{kind}: {reason}", kind=kind, reason=reason)
    raise _TookTooMuch(time_ran_out=False).explain()
