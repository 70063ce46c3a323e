"""Reading a chat format off what it renders: texts that stand for contents, and what stands around them."""

from collections.abc import Sequence

SYSTEM = "Zq0sys"
USERS = ("Zq1ask", "Zq3ask", "Zq5ask")
REPLIES = ("Zq2say", "Zq4say")


def split_at_contents(text: str, contents: Sequence[str]) -> list[str] | None:
    """What stands before, between and after the contents; None unless each is there once, and in this order."""
    gaps = []
    for content in contents:
        gap, match, text = text.partition(content)
        if not match or content in text:
            return None
        gaps.append(gap)
    return [*gaps, text]
