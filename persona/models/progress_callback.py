"""How downloads and conversions report progress: a callback that takes a text for people."""

from collections.abc import Callable

from persona.errors import Message

ProgressCallback = Callable[[str], None]


def ignore_progress(_: str) -> None:
    """The callback for those who do not show progress."""


class ProgressUpdate(Message):
    """A progress text that replaces the one before it, such as the next percentage of the same download."""
