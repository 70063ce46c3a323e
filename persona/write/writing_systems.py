"""The script of a text (Han, Latin, Cyrillic, …); simplified and traditional Chinese."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from persona.errors import Message
from persona.store.cjk import HAN, KANA

LATIN = ("LATIN",)
LANGUAGE_SCRIPTS = {
    "zh": ("HAN",), "yue": ("HAN",), "lzh": ("HAN",), "ja": ("HAN", "KANA"), "ko": ("HANGUL", "HAN"),
    **dict.fromkeys(("ru", "uk", "be", "bg", "sr", "mk", "kk", "mn"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)), "he": ("HEBREW",), "el": ("GREEK",), "th": ("THAI",),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sv", "da", "nb", "no", "fi", "hu", "ro",
                     "tr", "vi", "id", "ms", "la", "ca", "hr", "sk", "sl", "et", "lv", "lt", "sw"), LATIN),
}  # fmt: skip
SCRIPT_NAMES = {
    "HAN": Message("Chinese characters"), "KANA": Message("Japanese kana"), "HANGUL": Message("Korean"),
    "LATIN": Message("Latin"), "CYRILLIC": Message("Cyrillic"), "ARABIC": Message("Arabic"),
    "HEBREW": Message("Hebrew"), "GREEK": Message("Greek"), "THAI": Message("Thai"),
    "DEVANAGARI": Message("Devanagari"),
}  # fmt: skip


class _ScriptTable(dict[str, str]):
    """Character → script, by its Unicode name; "" for what is no letter. Each character is looked up once."""

    def __missing__(self, character: str) -> str:
        name = unicodedata.name(character, "") if character.isalpha() else ""
        first = re.split("[ -]", name)[0]
        self[character] = {"CJK": "HAN", "HIRAGANA": "KANA", "KATAKANA": "KANA"}.get(first, first)
        return self[character]


_SCRIPT = _ScriptTable()


def count_scripts(text: str) -> Counter[str]:
    """Letters per script; a Han, kana or Hangul character counts as 3 letters, which carry about as much."""
    found = Counter(map(_SCRIPT.__getitem__, text))
    del found[""]
    for script in ("HAN", "KANA", "HANGUL"):
        if script in found:
            found[script] *= 3
    return found


def expected_scripts(language: str, answers: Sequence[Counter[str]]) -> tuple[str, ...]:
    """The persona's scripts: by the card's language, else the one that leads in nine of ten answers, else none."""
    if codes := [c for c in re.split(r"[^a-z]+", language.lower()) if c in LANGUAGE_SCRIPTS]:
        return tuple({script for code in codes for script in LANGUAGE_SCRIPTS[code]})
    leading = Counter(found.most_common(1)[0][0] for found in answers if found)
    script, most = leading.most_common(1)[0] if leading else ("", 0)
    if not script or most < 0.9 * leading.total():
        return ()
    return ("HAN", "KANA") if script == "KANA" else (script,)


def find_foreign_script(found: Counter[str], own: tuple[str, ...]) -> str:
    """The name of the script of an answer that is mostly not in the persona's own, else ""."""
    foreign = Counter({script: n for script, n in found.items() if script not in own})
    most = foreign.most_common(1)
    if not own or not most or most[0][1] < 6 or foreign.total() * 1.5 < found.total() - foreign.total():
        return ""
    return SCRIPT_NAMES.get(most[0][0], most[0][0].capitalize())


def _common_ideographs(encoding: str, first: int, last: int) -> set[str]:
    """The ideographs in rows of a two-byte encoding."""
    rows = bytes(b for high in range(first, last + 1) for low in range(0x40, 0xFF) for b in (high, low))
    pieces = (rows[n : n + 2].decode(encoding, "ignore") for n in range(0, len(rows), 2))
    return set(re.findall(f"[{HAN}]", "".join(pieces)))


_BOTH = set("叶恒迹泛晞璟璘玥妳牠祂瓖昇煖唸吋呎瞭氾汍昤晅呎堉琍珪祐韹")  # names, newer pronouns
_RARE_IN_BIG5 = set("裏衆爲峯牀綫羣")


@cache
def _one_form_only() -> tuple[set[str], set[str]]:
    """Characters that are only simplified, and only traditional.

    What is common in the mainland's GB 2312 (level 1) and absent from Taiwan's Big5 is a simplified form; and the other
    way round.
    """
    simplified = _common_ideographs("gb2312", 0xB0, 0xD7) - _common_ideographs("big5", 0xA4, 0xF9) - _BOTH
    traditional = _common_ideographs("big5", 0xA4, 0xC6) - _common_ideographs("gb2312", 0xB0, 0xF7) - _BOTH
    return simplified, traditional | _RARE_IN_BIG5


def split_chinese_forms(text: str) -> tuple[set[str], set[str]]:
    """Characters that are only simplified and only traditional. Japanese has both, so a text with kana has none."""
    if text.isascii():
        return set(), set()
    if re.search(f"[{KANA}]", text):
        return set(), set()
    simplified, traditional = _one_form_only()
    characters = set(text)
    return characters & simplified, characters & traditional
