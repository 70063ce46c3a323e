"""Time and tokens of a run's training loop."""

import time
from dataclasses import dataclass
from typing import Any


@dataclass
class TrainingClock:
    """Seconds and tokens of the training loop alone: evaluation and saving do not count.

    tokens: unpadded tokens of all rows seen; learned: those of them with a label.
    """

    seconds: float = 0.0
    tokens: int = 0
    learned: int = 0
    since: float | None = None  # time.perf_counter() when it was last resumed; None while it is paused

    def resume(self) -> None:
        self.since = time.perf_counter()

    def pause(self) -> None:
        self.seconds, self.since = self.elapsed(), None

    def elapsed(self) -> float:
        return self.seconds + (time.perf_counter() - self.since if self.since is not None else 0.0)

    def figures(self) -> dict[str, Any]:
        seconds = max(self.elapsed(), 1e-9)
        return {
            "seconds": round(seconds, 2),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "learned_tokens_per_s": round(self.learned / seconds, 1),
        }
