"""The speaker of a quotation, read off the text beside it in Chinese and English. A helper of `novel`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from persona.store.cjk import HAN
from persona.write.importers.speaker_turns import UNSPACED_SCRIPT

QUOTATION_MARKS = {"“": "”", "「": "」", "『": "』", '"': '"', "‘": "’"}
CLOSING_NOT_APOSTROPHE = re.compile(r"(?<=[.!?,;…—。！？，；])’(?!\w)")
MAX_DISTANCE = 80  # characters beside a quotation that are searched for its speaker
PRONOUN = "?"  # the speaker is named by a pronoun only

PRONOUNS = ("他们", "她们", "他", "她", "它", "其")
VERB = (
    r"(?:(?:说|問|问|答|回|笑|叫|喊|喝|骂|叹|哭|嚷|怒|应|劝|解释|补充|吩咐|嘱咐|追问|反问|开口|接口|感叹|低语|嘟囔|吼|嗔|赞|奏|禀|"
    r"說|罵|嘆|應|勸|讚|稟|喃喃)道|(?:低语|嘟囔|解释|补充|吩咐|回答|追问|反问|开口|喃喃)|说着|说|說|问|問|答|喊|吼|曰|(?<![知味报难])道)"
    r"(?:了|着|过)?(?:一句|一声)?"
)
SAYS = re.compile(VERB + r"[：:，,]?\s?$")
SAYS_AFTER = re.compile(rf"[，,]?\s?(?P<subject>[^。！？!?；;：:，,“「『\s]{{1,16}}?){VERB}(?=[\s。，,！!；;.…：:—]|$)")
MANNER_ADVERB = re.compile(
    r"(?:也|又|便|就|忙|才|却|只|再|还|都|连忙|急忙|赶紧|忽然|突然|冷冷|淡淡|缓缓|慢慢|轻轻|幽幽|冷|微|苦|轻声|低声|大声|高声|柔声|沉声|"
    r"厉声|小声|含笑|微笑|冷笑|苦笑|笑|哭|点头|摇头|点点头|摇摇头|叹气|叹了口气|皱眉|抬头|低头|回头|忍不住|不禁|这才|终于|接着|继续|随即|"
    r"立刻|正色|恭敬|认真|平静|温和|不解|好奇|惊讶|愤怒|激动|高兴|急切|疑惑|(?:对|向|跟|朝|和).{1,6})(?:地|着|了)?$"
)
NO_NAME = re.compile(r".*(?:[有这那谁什么听可据心自没不想难所以然后于但如果常俗话口中嘴里是在把被给]|的$|上$|得$)|一")
ZH_NAME = re.compile(rf"[{HAN}·]{{2,4}}$|[{HAN}]{{1,6}}·[{HAN}·]{{1,8}}$|我$")

SAID = (
    r"(?:said|says|asked|asks|replied|replies|answered|cried|shouted|whispered|murmured|muttered|exclaimed|added|continued|"
    r"returned|remarked|observed|called|snapped|sighed|declared|explained|insisted|began|repeated|inquired|enquired|demanded|"
    r"agreed|admitted|suggested|warned|laughed|growled|hissed|yelled|screamed|breathed|mumbled|responded|protested|announced)"
)
EN_NAME = (
    r"(?P<name>(?:(?:Mr|Mrs|Ms|Dr|St)\.? )?[A-Z][\w’'-]{0,30}(?: [A-Z][\w’'-]{1,30}){0,3}"
    r"|[Tt]he (?:[a-z-]{2,20} )?[a-z-]{2,20}|he|she|they|it)"
)
SAID_BEFORE = re.compile(
    rf"{EN_NAME},? (?:\w{{2,20}}ly )?{SAID}(?: \w{{2,20}}ly| to \w{{1,30}}| at last| again)?[,:]\s?$"
)
SAID_AFTER = (
    re.compile(rf"\s?{SAID} {EN_NAME}(?=[\s.,;:!?—-]|$)"),
    re.compile(rf"\s?{EN_NAME} (?:\w{{2,20}}ly )?{SAID}(?=[\s.,;:!?—-]|$)"),
)
EN_PRONOUNS = {"he", "she", "they", "it"}
NO_EN_NAME = re.compile(r"(?:and|but|then|so|when|as|that|this|there|what|who|we|you|someone|somebody)$", re.I)
NAME_WORDS = re.compile(rf"[{HAN}·]+|[A-Z][\w’'-]*(?: [A-Z][\w’'-]*)*|the [a-z-]+(?: [a-z-]+)?")
SENTENCE_END = ".!?,;…—。！？，；~～"


class KnownNames:
    """The speaker names of a file, and where they occur in a text."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        lengths: dict[str, set[int]] = {}
        for name in self.names:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def at(self, text: str, at: int = 0) -> str:
        """The longest name at this offset, or ""."""
        sizes = self._lengths.get(text[at : at + 1], ())
        return next((text[at : at + n] for n in sizes if text[at : at + n] in self.names), "")

    def within(self, text: str) -> set[str]:
        found: set[str] = set()
        for word in NAME_WORDS.finditer(text):
            at = word.start()
            while at < word.end():
                name = self.at(text, at)
                if name:
                    found.add(name)
                at += len(name) or 1
        return found


@dataclass(frozen=True)
class Quotation:
    """A quotation as offsets of its text, without the marks. closed: it has its closing mark."""

    start: int
    end: int
    closed: bool


def find_quotations(text: str) -> list[Quotation]:
    """Outermost quotations in order. One without a closing mark ends with the paragraph or where the next begins."""
    found: list[Quotation] = []
    closing = _ClosingMarks(text)
    at = 0
    while at < len(text):
        close = QUOTATION_MARKS.get(text[at])
        if not close or (text[at] == "‘" and at and text[at - 1].isalnum()):
            at += 1
            continue
        end = closing.after(at, close)
        again = text.find(text[at], at + 1) if close != text[at] else -1
        closed = end >= 0 and not (0 <= again < end)
        end = end if closed else again if again >= 0 else len(text)
        found.append(Quotation(at + 1, end, closed))
        at = end + closed
    return found


class _ClosingMarks:
    """Where quotations end. Each place is searched for once, however many opening marks stand before it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next: dict[str, int] = {}

    def after(self, at: int, close: str) -> int:
        """The offset of the first `close` after `at`, or -1. Offsets are asked for in ascending order."""
        known = self._next.get(close, 0)
        if 0 <= known <= at:
            known = self._next[close] = self._find(at + 1, close)
        return known

    def _find(self, at: int, close: str) -> int:
        if close != "’":
            return self._text.find(close, at)
        end = CLOSING_NOT_APOSTROPHE.search(self._text, at)
        return end.start() if end else -1


def is_speech(text: str, quote: Quotation) -> bool:
    """Whether a quotation is speech, not a title or a quoted word: a sentence, or announced by a colon."""
    inside = text[quote.start : quote.end].strip()
    before = text[max(0, quote.start - 1 - MAX_DISTANCE) : quote.start - 1].rstrip()
    return bool(inside) and (inside[-1] in SENTENCE_END or before[-1:] in tuple("：:"))


def attribute_speakers(text: str, found: list[Quotation], known: KnownNames | None = None) -> list[str]:
    """The speaker of each quotation: a name, PRONOUN, or "". known: None while the names are being collected."""
    named = [""] * len(found)
    for n, quote in enumerate(found):
        previous = found[n - 1].end + 1 if n else 0
        following = found[n + 1].start - 1 if n + 1 < len(found) else len(text)
        after = text[quote.end + 1 : min(following, quote.end + 1 + MAX_DISTANCE)]
        before = text[max(previous, quote.start - 1 - MAX_DISTANCE) : quote.start - 1]
        taken = n and named[n - 1] and not before.rstrip().endswith(("：", ":"))
        who = ""
        if not (n and taken):
            who = _speaker_before(before, known)
        if not who and quote.closed and not (following < len(text) and after.rstrip().endswith(("：", ":"))):
            who = _speaker_after(after, text[quote.start : quote.end].rstrip()[-1:], known)
        named[n] = who
    return named


def _speaker_before(text: str, known: KnownNames | None) -> str:
    if found := SAID_BEFORE.search(text):
        return _english(found["name"])
    says = SAYS.search(text)
    if not says or not UNSPACED_SCRIPT.search(text):
        return ""
    sentence = re.split(r"[。！？!?；;”」』\s]", text[: says.start()])[-1]
    clause = re.split(r"[，,、]", sentence)[-1]
    return _subject(clause, known) or _only_name(sentence, known)


def _speaker_after(text: str, ending: str, known: KnownNames | None) -> str:
    for pattern in SAID_AFTER:
        found = pattern.match(text)
        if found and (ending != "." or text.lstrip()[:1].islower()):  # after a full stop, Ann said begins anew
            return _english(found["name"])
    found = SAYS_AFTER.match(text)
    return _subject(found["subject"], known) if found else ""


def _english(name: str) -> str:
    if name.lower() in EN_PRONOUNS:
        return PRONOUN
    return "" if NO_EN_NAME.match(name) else name


def _subject(clause: str, known: KnownNames | None) -> str:
    """The name with which a clause begins."""
    clause = clause.strip()
    if clause.startswith(PRONOUNS):
        return PRONOUN
    if known is not None:
        return known.at(clause)
    for _ in range(3):
        clause = MANNER_ADVERB.sub("", clause)
    return clause if ZH_NAME.match(clause) and not NO_NAME.match(clause) else ""


def _only_name(sentence: str, known: KnownNames | None) -> str:
    """The name with which a sentence begins if no other is in it: 甄嬛听了，忙笑道."""
    who = _subject(sentence, known) if known is not None else ""
    return who if who and known and known.within(sentence) == {who} else ""
