"""Wait for another thread or process."""

import time
from collections.abc import Callable
from typing import Any


def wait_for(
    condition: Callable[[], Any], seconds: float = 200, what: str = "what was waited for", every: float = 0.02
) -> Any:
    """Poll until `condition()` is true, and return its value; the limit is for a test that would hang."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(every)
    return found
