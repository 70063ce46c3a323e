"""What other libraries print while a model is opened, turned off for that time."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers(warnings: bool = True) -> Iterator[None]:
    """While it lasts, transformers draws no progress bars, and without `warnings` it logs errors only."""
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    if not warnings:
        transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def silence_bitsandbytes() -> None:
    """Let bitsandbytes log errors only. PEFT imports it where it is installed, and it warns of an optional package.

    Call it before an adapter is attached.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
