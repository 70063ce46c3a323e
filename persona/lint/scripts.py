"""In which script an answer is written: for drift away from the persona's language, and mixed Chinese characters.

What is compared are scripts, so languages that share one (English and German, Russian and Ukrainian) are not told
apart, and a Japanese reply without kana counts as Chinese.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from persona.errors import Message
from persona.lint.finding import Severity

LATIN = ("LATIN",)
LANGUAGES = {
    "zh": ("HAN",), "yue": ("HAN",), "lzh": ("HAN",), "ja": ("HAN", "KANA"), "ko": ("HANGUL", "HAN"),
    **dict.fromkeys(("ru", "uk", "be", "bg", "sr", "mk", "kk", "mn"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)), "he": ("HEBREW",), "el": ("GREEK",), "th": ("THAI",),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sv", "da", "nb", "no", "fi", "hu", "ro",
                     "tr", "vi", "id", "ms", "la", "ca", "hr", "sk", "sl", "et", "lv", "lt", "sw"), LATIN),
}  # fmt: skip
NAMES = {
    "HAN": Message("Chinese characters"), "KANA": Message("Japanese kana"), "HANGUL": Message("Korean"),
    "LATIN": Message("Latin"), "CYRILLIC": Message("Cyrillic"), "ARABIC": Message("Arabic"),
    "HEBREW": Message("Hebrew"), "GREEK": Message("Greek"), "THAI": Message("Thai"),
    "DEVANAGARI": Message("Devanagari"),
}  # fmt: skip


class _Scripts(dict[str, str]):
    """Character → script, by its Unicode name; "" for what is no letter. Each character is looked up once."""

    def __missing__(self, character: str) -> str:
        name = unicodedata.name(character, "") if character.isalpha() else ""
        first = re.split("[ -]", name)[0]
        self[character] = {"CJK": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA"}.get(first, first)
        return self[character]


_SCRIPT = _Scripts()


def scripts(text: str) -> Counter[str]:
    """Letters per script; a Han, kana or Hangul character weighs 3, as it says about what 3 letters say."""
    found = Counter(map(_SCRIPT.__getitem__, text))
    del found[""]
    for script in ("HAN", "KANA", "HANGUL"):
        if script in found:
            found[script] *= 3
    return found


def expected(language: str, answers: Sequence[Counter[str]]) -> tuple[str, ...]:
    """The persona's scripts: by her card's language, else the one that leads in nine of ten answers, else none."""
    if codes := [c for c in re.split(r"[^a-z]+", language.lower()) if c in LANGUAGES]:
        return tuple({script for code in codes for script in LANGUAGES[code]})
    leading = Counter(found.most_common(1)[0][0] for found in answers if found)
    script, most = leading.most_common(1)[0] if leading else ("", 0)
    if not script or most < 0.9 * leading.total():
        return ()
    return ("HAN", "KANA") if script == "KANA" else (script,)


def drift(found: Counter[str], own: tuple[str, ...]) -> str:
    """The script of an answer that is hardly in the persona's own, else ""."""
    foreign = Counter({script: n for script, n in found.items() if script not in own})
    most = foreign.most_common(1)
    if not own or not most or most[0][1] < 6 or foreign.total() * 1.5 < found.total() - foreign.total():
        return ""
    return NAMES.get(most[0][0], most[0][0].capitalize())


def _common(encoding: str, first: int, last: int) -> set[str]:
    """The ideographs in rows of a two-byte encoding."""
    rows = bytes(b for high in range(first, last + 1) for low in range(0x40, 0xFF) for b in (high, low))
    pieces = (rows[n : n + 2].decode(encoding, "ignore") for n in range(0, len(rows), 2))
    return {c for c in pieces if len(c) == 1 and "\u4e00" <= c <= "\u9fff"}


# Common in the mainland's GB 2312 (level 1) and absent from Taiwan's Big5: a simplified form; and the other way round.
# Left out are a few that both write (names, newer pronouns); added are forms that Big5 counts as rare.
_BOTH = set("叶恒迹泛晞璟璘玥妳牠祂瓖昇煖唸吋呎瞭氾汍昤晅呎堉琍珪祐韹")
SIMPLIFIED = _common("gb2312", 0xB0, 0xD7) - _common("big5", 0xA4, 0xF9) - _BOTH
TRADITIONAL = _common("big5", 0xA4, 0xC6) - _common("gb2312", 0xB0, 0xF7) - _BOTH | set("裏衆爲峯牀綫羣")


def _sides(text: str) -> tuple[set[str], set[str]]:
    """Characters that are only simplified and only traditional. Japanese has both, so a text with kana has none."""
    if text.isascii():
        return set(), set()
    characters = set(text)
    if any("\u3040" <= c <= "\u30ff" for c in characters):
        return set(), set()
    return characters & SIMPLIFIED, characters & TRADITIONAL


def mixed(language: str, answers: Sequence[str]) -> list[tuple[int, Severity, str, str]]:
    """(row, severity, the characters, what they are) of answers with characters of the set's rarer Chinese script."""
    code = language.lower()
    if code.split("-")[0] in ("ja", "ko"):
        return []
    rows = [_sides(answer) for answer in answers]
    simplified, traditional = (sum(len(pair[n]) for pair in rows) for n in (0, 1))
    wants_traditional = traditional > simplified
    if re.search(r"\b(hant|tw|hk|mo)\b", code):
        wants_traditional = True
    elif re.search(r"\b(hans|cn|sg)\b", code):
        wants_traditional = False
    kind = Message("simplified") if wants_traditional else Message("traditional")
    found: list[tuple[int, Severity, str, str]] = []
    for row, (simple, full) in enumerate(rows, 1):
        own, other = (full, simple) if wants_traditional else (simple, full)
        if other:
            order = sorted(other, key=answers[row - 1].index)
            found.append((row, "warning" if len(other) > len(own) else "hint", "".join(order[:8]), kind))
    return found
