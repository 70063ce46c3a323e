"""What lint says about a set: one finding, its stable key, and the words and small measures that the rules share."""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from persona.pairs import Pair

Severity = Literal["error", "warning", "hint"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")

# one unit is about one word: a Han or kana character, a Hangul syllable, or a run of other letters and digits
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]+")
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Finding:
    """Something about the pairs that the author should look at.

    pairs: rows (from 1) that it is about. message: place, what, and what to do. fix: what a click does, "" if nothing.
    key: rule + hash of the texts concerned; it survives renumbering and a reload, and is another one for other texts.
    """

    rule: str
    severity: Severity
    pairs: tuple[int, ...]
    message: str
    fix: str = ""
    key: str = ""


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """Rule → number of different rows that it found."""
    rows: dict[str, set[int]] = {}
    for finding in findings:
        rows.setdefault(finding.rule, set()).update(finding.pairs)
    return {rule: len(found) for rule, found in sorted(rows.items())}


def key_of(rule: str, texts: Iterable[str]) -> str:
    # backslashreplace: half a character is refused when pairs are read, but must not crash the check of a table
    joined = "\x1f".join(texts).encode("utf-8", "backslashreplace")
    return f"{rule}:{hashlib.sha256(joined).hexdigest()[:16]}"


def texts_of(pair: Pair) -> list[str]:
    """Everything said in the pair, oldest first."""
    return [*(text for turn in pair.history for text in turn), pair.instruction, pair.output]


def places(pair: Pair) -> list[tuple[str, str]]:
    """(where it stands, text) of everything said in the pair."""
    earlier = [
        (f"{who} of earlier turn {n}", text)
        for n, turn in enumerate(pair.history, 1)
        for who, text in zip(("question", "answer"), turn, strict=True)
    ]
    return [*earlier, ("question", pair.instruction), ("answer", pair.output)]


def plain(text: str) -> str:
    """The text as a reader compares it: no case, width, spaces or punctuation. Punctuation alone stays as it is."""
    words = _NO_WORD.sub("", text)
    if not words:
        return text.strip()
    return words.casefold() if words.isascii() else unicodedata.normalize("NFKC", words).casefold()


def units(text: str) -> int:
    return len(_UNIT.findall(text))


def quote(text: str, most: int = 40) -> str:
    """The text in one line and in quotation marks, cut after `most` characters."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= most else line[: most - 1] + '…'}”"


def quotes(texts: Sequence[str], most: int = 3) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(quote(t) for t in texts[:most]) + more


def numbers(rows: Collection[int], most: int = 5) -> str:
    """'pair 3', 'pairs 3, 5 and 9', 'pairs 1, 2, 3, 4, 5 and 20 more'"""
    shown = [str(r) for r in rows][:most]
    if len(rows) > most:
        shown.append(f"{len(rows) - most} more")
    return ("pair " if len(rows) == 1 else "pairs ") + " and ".join(
        [", ".join(shown[:-1]), shown[-1]][len(shown) < 2 :]
    )
