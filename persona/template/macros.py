"""Macros of character cards ({{char}}, {{random:a,b}}, …), resolved where a text is used: no model reads one.

Named as in the card specification V3 ("curly braced syntaxes") and in SillyTavern. What is drawn at random follows from
seeds, so that base, persona and a retry read the same prompt. Unknown ones are text, and stay.
"""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MAX_DEPTH = 5  # macros within macros
MAX_LENGTH = 100_000  # characters of a text with its macros resolved
_INNERMOST = re.compile(r"\{\{([^{}]{0,5000})\}\}|<(char|bot|user)>", re.I)
_ROLL = re.compile(r"(\d{0,3})d?(\d{1,6})([+-]\d{1,6})?", re.I)
_NOTHING = ("//", "comment:", "comment ", "hidden_key:", "noop", "original", "trim")


@dataclass(frozen=True)
class MacroValues:
    """What macros stand for. seed: of {{random}} and {{roll}}, another each turn; chat: of {{pick}}, one a chat."""

    char: str
    user: str
    seed: str = ""
    chat: str = ""


def resolve_macros(text: str, values: MacroValues) -> str:
    """The text with every known macro replaced."""
    if "{{" not in text and "<" not in text:
        return text
    for _ in range(MAX_DEPTH):
        count = 0

        def replace(match: re.Match[str]) -> str:
            nonlocal count
            count += 1
            return _resolve((match[1] or match[2]).strip(), match[0], values, str(count))

        resolved = _INNERMOST.sub(replace, text)
        if resolved == text or len(resolved) > MAX_LENGTH:
            break
        text = resolved
    return text


def _resolve(body: str, whole: str, values: MacroValues, place: str) -> str:
    """What one macro becomes. place: its number in the text, so that two equal ones are drawn apart."""
    name, colon, rest = body.partition(":")
    name = name.strip().lower()
    if not colon and (simple := _SIMPLE.get(name)):
        return simple(values)
    if name in ("random", "pick") and colon:
        options = _split_options(rest)
        return _draw(options, values.chat if name == "pick" else values.seed, body, place)
    if name == "roll" or (not colon and name.startswith("roll ")):
        return _roll(rest.strip() if colon else name[5:].strip(), whole, values.seed, place)
    if name == "reverse" and colon:
        return rest[::-1]
    return "" if body.lower().startswith(_NOTHING) else whole


def _split_options(text: str) -> list[str]:
    """a,b with \\, for a comma; or, as SillyTavern writes it, ::a::b."""
    if text.startswith(":"):
        return text[1:].split("::")
    return [option.replace("\\,", ",").strip() for option in re.split(r"(?<!\\),", text)]


def _draw(options: Sequence[str], *seed: str) -> str:
    return options[_number(*seed) % len(options)]


def _roll(dice: str, whole: str, seed: str, place: str) -> str:
    """1d6+2, d6 or 6."""
    match = _ROLL.fullmatch(dice.replace(" ", ""))
    if not match or not int(match[2]):
        return whole
    count = int(match[1] or 1) if "d" in dice.lower() else 1
    sides = int(match[2]) if "d" in dice.lower() else int(match[1] + match[2])
    rolls = (1 + _number(seed, dice, place, str(n)) % max(sides, 1) for n in range(count))
    return str(sum(rolls) + int(match[3] or 0))


def _number(*seed: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(seed).encode("utf-8", "replace")).digest()[:8], "big")


def draw(*seed: str) -> float:
    """A number from 0 up to 1, the same for the same seed."""
    return _number(*seed) / 2**64


def chance(percent: float, *seed: str) -> bool:
    """Whether something happens that happens `percent` times in a hundred; the same for the same seed."""
    return _number(*seed) % 10_000 < percent * 100


_SIMPLE: dict[str, Callable[[MacroValues], str]] = {
    "char": lambda v: v.char, "bot": lambda v: v.char, "user": lambda v: v.user, "newline": lambda _: "\n",
    "time": lambda _: time.strftime("%H:%M"), "date": lambda _: time.strftime("%d %B %Y"),
    "weekday": lambda _: time.strftime("%A"), "isotime": lambda _: time.strftime("%H:%M"),
    "isodate": lambda _: time.strftime("%Y-%m-%d"),
}  # fmt: skip
