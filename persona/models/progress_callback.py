"""The callback by which downloads and conversions report progress."""

from collections.abc import Callable

from persona.errors import Message


def ignore_progress(_: str) -> None:
    pass


ProgressCallback = Callable[[str], None]


class ProgressUpdate(Message):
    """A progress text that says how far the one before it has come; to be shown in its place."""
