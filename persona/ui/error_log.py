"""What the server's log tells of an error in a handler: where it happened, and the beginning of what it says."""

import sys
import traceback
from types import SimpleNamespace

from gradio import queueing

MAX_MESSAGE = 200  # characters: Gradio's errors quote what the visitor sent, which may be all they wrote


def shorten_tracebacks() -> None:
    """Make Gradio's queue print the errors of handlers by `print_error`; it has no option for it."""
    queueing.traceback = SimpleNamespace(print_exc=print_error)  # type: ignore[assignment]


def print_error() -> None:
    """Print the exception that is being handled, without the exceptions before it."""
    _, error, trace = sys.exc_info()
    message = str(error)
    shown = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} … ({len(message):,} characters)"
    print("".join(traceback.format_tb(trace)) + f"{type(error).__name__}: {shown}", file=sys.stderr)
