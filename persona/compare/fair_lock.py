"""A lock that is granted in the order of asking."""

import threading
from collections import deque


class FairLock:
    """A lock that is given in the order of asking; threading.Lock lets whoever asks in a loop go first each time."""

    def __init__(self) -> None:
        self.gate = threading.RLock()  # reentrant: a forgotten stream may be closed by the garbage collector in here
        self.waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        mine = threading.Event()
        with self.gate:
            self.waiting.append(mine)
            if self.waiting[0] is mine:
                mine.set()
        try:
            mine.wait()
        except BaseException:  # Ctrl-C while waiting: nobody may wait for this one
            self._leave(mine)
            raise

    def __exit__(self, *_: object) -> None:
        self._leave(self.waiting[0])

    def _leave(self, mine: threading.Event) -> None:
        with self.gate:
            self.waiting.remove(mine)
            if self.waiting:
                self.waiting[0].set()

    def locked(self) -> bool:
        return bool(self.waiting)
