"""The thinking of a model: the <think>…</think> block that a reply may begin with.

Templates write it, chats fold it, lint counts it: they all tell it apart here.
"""

import re

OPEN, CLOSE = "<think>", "</think>"
MODES = ("none", "keep", "train")  # what a run does with it; RunConfig.thinking says what each means
_INSIDE = r"((?:(?!</?think>).)*)"
_BLOCK = re.compile(rf"\s*(?:{OPEN})?{_INSIDE}{CLOSE}\s*", re.S)
_BEGUN = re.compile(rf"\s*{OPEN}{_INSIDE}", re.S)


def _find_block(text: str) -> re.Match[str] | None:
    """The block that a text begins with. Most texts have none, and are not searched letter by letter for it."""
    return _BLOCK.match(text) if CLOSE in text else None


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, reply). The block's beginning may be missing: some prompts write it. ("", text) without a block."""
    found = _find_block(text)
    return (found[1].strip(), text[found.end() :]) if found else ("", text)


def split_partial(text: str) -> tuple[str, str]:
    """The same of a text that is still being written: its block may not be closed yet."""
    begun = _BEGUN.fullmatch(text)
    return (begun[1].strip(), "") if begun else split_thinking(text)


def join_thinking(thinking: str, reply: str) -> str:
    """The reply with the thinking before it, as a pair holds both."""
    return f"{OPEN}\n{thinking.strip()}\n{CLOSE}\n\n{reply}" if thinking.strip() else reply


def is_block_of(text: str, thinking: str) -> bool:
    """Whether the text is one block with this thinking, and nothing else. Its beginning may be missing."""
    found = _find_block(text)
    return found is not None and found.end() == len(text) and found[1].strip() == thinking


def has_block(text: str) -> bool:
    """Whether the text begins with a block, an empty one included."""
    return _find_block(text) is not None
