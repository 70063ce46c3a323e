"""A finding of lint with its stable key, and the text helpers that the rules share."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from persona.errors import Message, join
from persona.store.cjk import HAN, HAN_RARE, HANGUL, KANA
from persona.store.pairs import Pair

Severity = Literal["error", "warning", "hint"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "hint")

# a word here: a Han or kana character, a Hangul syllable, or a run of other letters and digits
_UNSPACED = KANA + HAN + HAN_RARE + HANGUL
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Finding:
    """Something about the pairs that the author should look at.

    pairs: rows (from 1) that it is about. message: place, what, and what to do. fix: what a click does, "" if nothing.
    key: rule + hash of the texts concerned; it survives renumbering and a reload, and changes with the texts.
    """

    rule: str
    severity: Severity
    pairs: tuple[int, ...]
    message: str
    fix: str = ""
    key: str = ""


def count_by_rule(findings: Iterable[Finding]) -> dict[str, int]:
    """Rule → number of different rows that it found."""
    rows: dict[str, set[int]] = {}
    for finding in findings:
        rows.setdefault(finding.rule, set()).update(finding.pairs)
    return {rule: len(found) for rule, found in sorted(rows.items())}


def finding_key(rule: str, texts: Iterable[str]) -> str:
    joined = "\x1f".join(texts).encode("utf-8", "backslashreplace")
    return f"{rule}:{hashlib.sha256(joined).hexdigest()[:16]}"


def pair_texts(pair: Pair) -> list[str]:
    """Every text of the pair, oldest first."""
    return [*(text for turn in pair.history for text in turn), pair.instruction, pair.output]


QUESTION, ANSWER = Message("question"), Message("answer")


def label_texts(pair: Pair) -> list[tuple[str, str]]:
    """(label, text) of every text of the pair."""
    earlier = [
        (Message("{part} of earlier turn {n}", part=part, n=n), text)
        for n, turn in enumerate(pair.history, 1)
        for part, text in zip((QUESTION, ANSWER), turn, strict=True)
    ]
    return [*earlier, (QUESTION, pair.instruction), (ANSWER, pair.output)]


def normalize_text(text: str) -> str:
    """The text without case, width, spaces and punctuation. Text of punctuation alone stays as it is."""
    words = _NO_WORD.sub("", text)
    if not words:
        return text.strip()
    return words.casefold() if words.isascii() else normalize_unicode("NFKC", words).casefold()


MAX_MARKS = 30  # combining marks in a row, as in Unicode's Stream-Safe Text Format


def normalize_unicode(form: Literal["NFC", "NFKC"], text: str) -> str:
    """The text in that form; as it is where more than MAX_MARKS combining marks follow each other.

    To sort n of them, unicodedata takes n² steps, and no language has as many.
    """
    return text if text.isascii() or _many_marks().search(text) else unicodedata.normalize(form, text)


@cache
def _many_marks() -> re.Pattern[str]:
    marks = (chr(n) for n in range(0x300, 0x1F000) if unicodedata.combining(unicodedata.normalize("NFKD", chr(n))[0]))
    return re.compile(f"[{''.join(marks)}]{{{MAX_MARKS + 1}}}")


def count_words(text: str) -> int:
    return len(_WORD.findall(text))


def quote_text(text: str, most: int = 40) -> str:
    """The text in one line and in quotation marks, cut after `most` characters."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= most else line[: most - 1] + '…'}”"


def quote_texts(texts: Sequence[str], most: int = 3) -> str:
    shown = join(", ", [quote_text(t) for t in texts[:most]])
    return Message("{shown} and {count} more", shown=shown, count=len(texts) - most) if len(texts) > most else shown


def pairs_named(rows: Sequence[int], most: int = 5) -> Message:
    """'Pair 3', 'Pairs 3, 5 and 9', 'Pairs 1, 2, 3, 4, 5 and 20 more'"""
    if len(rows) == 1:
        return Message("Pair {row}", row=rows[0])
    if len(rows) > most:
        shown = join(", ", map(str, rows[:most]))
        return Message("Pairs {rows} and {count} more", rows=shown, count=len(rows) - most)
    return Message("Pairs {rows} and {last}", rows=join(", ", map(str, rows[:-1])), last=rows[-1])
