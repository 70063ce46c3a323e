"""One running batch per model, which several callers share: rows join and leave between two of its steps.

A thread computes it for as long as there are rows. Each caller gets its own replies, sees its own errors, and ends its
own rows. What a row says depends on nobody else in the batch (models/generate.py).
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from persona.models.generate import Batch, Generation, Row

# rows × tokens of the longest, prompt and reply: 1.2 GB of keys and values with Gemma 3 270M in float32, at the most.
# A single caller may have more, as in a turn of its own
MAX_CACHE_TOKENS = 2**15
MAX_JOINING_TOKENS = 2**11  # of prompts that are computed at a time, while the other rows wait
GATHER_SECONDS = 0.005  # seconds that the first rows of a batch wait for company


@dataclass(eq=False)
class _Caller:
    """The rows of one caller. updates: their replies after each token; at last None, or what went wrong."""

    rows: list[Row]
    updates: "SimpleQueue[list[Generation] | Exception | None]" = field(default_factory=SimpleQueue)

    def report(self) -> None:
        self.updates.put([row.reply for row in self.rows])


class SharedBatch:
    """The batch of one model. Thread-safe. read_model: returns the torch model, with its adapters as they are now."""

    def __init__(self, read_model: Callable[[], Any], tokenizer: Any):
        self.read_model = read_model
        self.batch = Batch(None, tokenizer)
        self.changed = threading.Condition()  # guards the three below
        self.waiting: list[_Caller] = []  # to join, first come, first served
        self.thread: threading.Thread | None = None
        self.pausing = 0  # how many want the model without the batch, or have it
        self.model_lock = threading.Lock()  # held during each step, and while the batch is paused
        self.running: list[_Caller] = []  # of the thread

    def stream(self, rows: Sequence[Row]) -> Generator[list[Generation]]:
        """Yield the replies of the rows after each token, until each is complete or halted.

        Closing the iterator takes the rows out. When it has ended, the batch works on none of them. Raises what went
        wrong with them.
        """
        mine = _Caller(list(rows))
        with self.changed:
            self.waiting.append(mine)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="persona-batch", daemon=True)
                self.thread.start()
        ended = False
        try:
            while not ended:
                update = mine.updates.get()
                ended = not isinstance(update, list)
                if isinstance(update, Exception):
                    raise update
                if update is not None:
                    yield update
        finally:
            for row in rows:
                row.cancelled = True
            # the garbage collector may close a forgotten iterator in that thread, which cannot wait for itself
            while not ended and threading.current_thread() is not self.thread:
                ended = not isinstance(mine.updates.get(), list)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model without the batch, between two steps, for as long as the block lasts."""
        with self.changed:
            self.pausing += 1
        try:
            with self.model_lock:
                self.batch.suspend()
                try:
                    yield
                finally:
                    self._guard(lambda: self.batch.resume(self.read_model()))
        finally:
            with self.changed:
                self.pausing -= 1
                self.changed.notify_all()

    def _work(self) -> None:
        time.sleep(GATHER_SECONDS)
        while True:
            with self.changed:
                self.changed.wait_for(lambda: not self.pausing)  # they come first, or they would never come
                if not (self.waiting or self.running):
                    self.thread = None
                    return
            with self.model_lock:
                self.batch.model = self.read_model()
                if joining := self._take_joining():
                    self._join(joining)
                if self.running:
                    self._compute(self.batch.step, self.running)

    def _take_joining(self) -> list[_Caller]:
        """Those who can join now, in their order; the first one in any case where nobody is in the batch."""
        taken: list[_Caller] = []
        with self.changed:
            while self.waiting and self.batch.can_grow:
                new = [row for caller in (*taken, self.waiting[0]) for row in caller.rows]
                if (taken or self.running) and not self._has_room(new):
                    break
                taken.append(self.waiting.pop(0))
        return taken

    def _has_room(self, new: Sequence[Row]) -> bool:
        rows = [*self.batch.rows, *new]
        longest = max(len(row.prompt) + row.sampling.max_new_tokens for row in rows)
        prompts = len(new) * max(len(row.prompt) for row in new)
        return len(rows) * longest <= MAX_CACHE_TOKENS and prompts <= MAX_JOINING_TOKENS

    def _join(self, joining: Sequence[_Caller]) -> None:
        """The first tokens of new rows: of all together, or one caller after the other where that fails."""
        try:
            self.batch.join([row for caller in joining for row in caller.rows])
        except Exception as e:
            if len(joining) == 1:
                joining[0].updates.put(e)
            else:
                for caller in joining:
                    self._join([caller])
            return
        self.running += joining
        self._compute(lambda: None, joining)

    def _compute(self, step: Callable[[], None], callers: Sequence[_Caller]) -> None:
        """Take a step and pass on its tokens. Callers whose rows have all left hear that they are done."""

        def step_and_report() -> None:
            step()
            for caller in callers:
                caller.report()
            self.batch.advance()

        self._guard(step_and_report)
        rows = set(self.batch.rows)
        done = [caller for caller in self.running if rows.isdisjoint(caller.rows)]
        self.running = [caller for caller in self.running if caller not in done]
        for caller in done:
            if not all(row.reply.ended for row in caller.rows):
                caller.report()  # an incomplete character that was held back
            caller.updates.put(None)

    def _guard(self, work: Callable[[], None]) -> None:
        """Do what concerns all rows of the batch. Where it fails, all callers hear why, and the next batch is new."""
        try:
            work()
        except Exception as e:
            self.batch.close()
            failed, self.running = self.running, []
            for caller in failed:
                caller.updates.put(e)
