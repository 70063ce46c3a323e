"""What the interview and the review share: one thing at a time, large, with the turns before it."""

from collections.abc import Iterable
from html import escape
from pathlib import Path


def read_scripts(*names: str) -> str:
    """The scripts of this folder, one after another, as one component runs them."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in names)


def earlier_turns_html(history: Iterable[tuple[str, str]]) -> str:
    """The exchanges before the question. history: (user message, reply), oldest first."""
    return "".join(f"<p class='earlier'><span>{escape(user)}</span> {escape(reply)}</p>" for user, reply in history)
