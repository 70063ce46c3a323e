"""A pair without earlier turns whose question or answer points at something that is not there."""

import re
from collections.abc import Iterator, Sequence

from persona.errors import Message
from persona.store.pairs import Pair
from persona.write.lint.finding import ANSWER, QUESTION, Finding, count_words, finding_key, pair_texts, quote_text

MAX_QUESTION_WORDS = 6  # a longer question says by itself what it is about

# as a whole: it takes up what was said, or only shows that it was heard
_TAKES_UP = re.compile(
    r"(?:and|but|so|or)(?: then| you| now| what)?|then what|what then|why not|which(?: one)?|that one|this one|"
    r"the other one|ok(?:ay)?|lol|haha\w*|hm+|yes|no|yeah|yep|nope|sure|really|again|same|me too|"
    r"(?:what|how) about (?:it|that|this|him|her|them)|(?:did|does|is|was|has) (?:he|she|it|they)|"
    r"嗯+|哦+|噢|啊|好的?|好吧|行|是的?|对|不是|哈哈+|呵呵|然后呢?|所以呢?|后来呢?|那个呢?|这个呢?|哪个|为什么不|"
    r"真的吗?|是吗|又来了?|他呢|她呢|它呢|他们呢|那他呢?|那她呢?|你呢|那你呢",
    re.I,
)
# at its beginning: it goes on with what was said
_GOES_ON = re.compile(
    r"(?:as|like) I (?:just )?said\b|the other one\b|that one\b|same here\b|me too\b|me neither\b|which is why\b|"
    r"and then (?:he|she|it|they)\b|because (?:he|she|it|they)\b|刚才说的|刚说过|我说过了|同上|就是那个|还是那个|"
    r"也一样|另外那个|另一个也",
    re.I,
)
_NO_LETTER = re.compile(r"[\W_]*")


def find_lacking_context(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """By words alone; judge/context_fit.py measures what these do not show."""
    for row, pair in enumerate(pairs, 1):
        if pair.history or not (pair.instruction.strip() and pair.output.strip()):
            continue
        question, answer = (text.strip(" \t\n?!.,…。？！，~～") for text in (pair.instruction, pair.output))
        if not question or _NO_LETTER.fullmatch(question) or (
            count_words(question) <= MAX_QUESTION_WORDS and _TAKES_UP.fullmatch(question)
        ):  # fmt: skip
            place, what = QUESTION, pair.instruction
        elif match := _GOES_ON.match(answer):
            place, what = ANSWER, match[0]
        else:
            continue
        message = Message(
            "Pair {row}, {place}: {what}: takes up something that was said before, and no earlier turn is here. Add "
            "the turn, reword it, or delete the pair.", row=row, place=place, what=quote_text(what),
        )  # fmt: skip
        yield Finding("lacks-context", "hint", (row,), message, "", finding_key("lacks-context", pair_texts(pair)))
