"""The library's English → Chinese, at the page's border: library.zh.json holds a Chinese for each text it can make.

A key of it is the text with holes for its values: {0}, {1}, …, or {0:n} where only numbers stand. No value is ever a
pattern or a format string: a text is compared with the fixed pieces of a template, from left to right, in linear time.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from persona.ui.words import language

CATALOGUE: dict[str, str] = json.loads((Path(__file__).parent / "library.zh.json").read_text(encoding="utf-8"))
HOLE = re.compile(r"\{(\d)(:n)?\}")
NUMBERS = re.compile(r"[+\-–]?\d[\d.,:+\-–%/× ]*")  # one number, or several: 3, 5
WORD = re.compile(r"[a-z]{2,}")
DEEPEST = 5  # texts within texts; user text may look like ours, over and over
LONGEST = 10_000  # characters; a longer text is no message of ours
COLONS, RUN = 4, 3  # places where a text may be cut in two; sentences that one template may span
FINAL = ("。", "！", "？", "…", "：")
QUOTED = {'"': '"', "'": "'", "“": "”"}  # a value in quotation marks is somebody's own words


@dataclass(frozen=True)
class Template:
    """pieces: the fixed parts around the holes, one more than those. numeric: which holes hold numbers only."""

    pieces: tuple[str, ...]
    holes: tuple[str, ...]
    numeric: tuple[bool, ...]
    chinese: str

    def values(self, text: str) -> dict[str, str] | None:
        """What stands in the holes, each as short as it can be; None where the text is another."""
        first, last = self.pieces[0], self.pieces[-1]
        if len(self.pieces) == 1:
            return {} if text == first else None
        if not text.startswith(first) or not text.endswith(last):
            return None
        start, end, found = len(first), len(text) - len(last), []
        for piece in self.pieces[1:-1]:
            at = text.find(piece, start, end)
            if at < 0:
                return None
            found.append(text[start:at])
            start = at + len(piece)
        if start > end:
            return None
        found.append(text[start:end])
        for n, numeric in enumerate(self.numeric):
            if numeric and not NUMBERS.fullmatch(found[n]):
                return None
            found[n] = found[n].replace(", ", "、") if numeric else found[n]
        return dict(zip(self.holes, found, strict=True))


def translated(text: str) -> str:
    """A text of the library in the visitor's language. What the catalogue does not know stays English.

    Plain text in and out: escape it afterwards. A component's own label is none of the library's: that is for words.t.
    """
    return chinese(text) if language() == "zh" else text


@lru_cache(maxsize=2048)  # findings are many, and mostly made of the same parts
def chinese(text: str, depth: int = 0) -> str:
    """The text in Chinese: whole, or as far as its parts are known. depth: within how many others it stands."""
    bare = text.strip()
    if depth > DEEPEST or len(bare) > LONGEST or not WORD.search(bare) or QUOTED.get(bare[0]) == bare[-1]:
        return text
    for way in (_whole, _lines, _across, _semicolons, _after_colon, _sentences, _and):
        if (found := way(bare, depth)) is not None:
            return "\n" * (len(text) - len(text.lstrip("\n"))) + found
    return text


def _whole(text: str, depth: int, across: bool = False) -> str | None:
    """By one template, which knows no final period; at the beginning of a sentence it may have got a capital letter.

    across: a value may hold line breaks even where the template has none; else its lines come out better one by one.
    """
    plain = text.removesuffix(".")
    forms = (plain, plain[:1].lower() + plain[1:])
    for template in _candidates(forms):
        if "\n" in plain and not across and not any("\n" in piece for piece in template.pieces):
            continue
        values = next((v for form in forms if (v := template.values(form)) is not None), None)
        if values is not None:
            said = HOLE.sub(lambda m: chinese(values[m[1]].strip(" "), depth + 1), template.chinese)  # noqa: B023
            return said + "。" * (text != plain and not said.endswith(FINAL))
    return None


def _across(text: str, depth: int) -> str | None:
    return _whole(text, depth, across=True) if "\n" in text else None


def _lines(text: str, depth: int) -> str | None:
    return _parts(text.split("\n"), "\n", depth)


def _after_colon(text: str, depth: int) -> str | None:
    """A place and what is wrong there; the place may hold colons of its own."""
    for colon in islice(re.finditer(": ", text), COLONS):
        if (rest := _whole(text[colon.end() :], depth)) is not None:
            return f"{chinese(text[: colon.start()], depth)}：{rest}"
    return None


def _sentences(text: str, depth: int) -> str | None:
    """Several texts in a row, each the longest run of sentences that one template makes."""
    parts = re.split(r"(?<=[.?!…]) ", text)
    made, at = [], 0
    while at < len(parts) > 1:
        runs = ((end, " ".join(parts[at:end])) for end in range(min(at + RUN, len(parts)), at + 1, -1))
        whole = next(((end, said) for end, run in runs if (said := _whole(run, depth)) is not None), None)
        at, said = whole or (at + 1, chinese(parts[at], depth))
        made.append(said)
    return re.sub("(?<=[。！？；，]) ", "", " ".join(made)) if made and made != parts else None


def _semicolons(text: str, depth: int) -> str | None:
    return _parts(text.split("; "), "；", depth)


def _and(text: str, depth: int) -> str | None:
    return _parts(text.split(" and "), "、", depth)


def _parts(parts: list[str], joint: str, depth: int) -> str | None:
    made = [chinese(part, depth) for part in parts] if len(parts) > 1 else parts
    return joint.join(made) if made != parts else None


def _template(english: str, said: str) -> Template:
    found = list(HOLE.finditer(english))
    pieces = HOLE.sub("\0", english).split("\0")
    return Template(tuple(pieces), tuple(m[1] for m in found), tuple(bool(m[2]) for m in found), said)


def _words(template: Template) -> list[str]:
    """The words that stand in every text of the template; one beside a hole may go on in the hole's value."""
    return re.findall(r"(?<![\w\0])[A-Za-z]{2,}(?![\w\0])", "\0".join(template.pieces))


def _index() -> dict[str, list[Template]]:
    """Each template under its rarest word; under "" those that have none."""
    templates = [_template(english, said) for english, said in CATALOGUE.items()]
    often = Counter(word for template in templates for word in set(_words(template)))
    index: dict[str, list[Template]] = {}
    for template in templates:
        index.setdefault(min(_words(template), key=lambda w: often[w], default=""), []).append(template)
    return index


_INDEX = _index()


def _candidates(forms: tuple[str, ...]) -> list[Template]:
    """The templates that one of the forms of a text may be of; the one with the most text of its own first."""
    found = {word for form in forms for word in re.findall(r"(?<!\w)[A-Za-z]{2,}(?!\w)", form)} & _INDEX.keys()
    return sorted((t for word in (*found, "") for t in _INDEX.get(word, ())), key=lambda t: -sum(map(len, t.pieces)))
