"""Degenerate repetition: does a text being generated go round in circles (Holtzman et al. 2020)?"""

import re

NGRAM = 8  # units that have to be repeated, word for word
MIN_OCCURRENCES = 3
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]")  # a CJK character, a word, a punctuation mark


def is_repeating(text: str) -> bool:
    """Whether the last NGRAM words or characters occur MIN_OCCURRENCES times in the text, without overlap.

    Numbers count as equal: a numbered list of the same item is a circle too.
    """
    units = _UNIT.findall(re.sub(r"\d+", "0", text))
    last, found, end = units[-NGRAM:], 0, len(units)
    while end >= NGRAM and found < MIN_OCCURRENCES:
        if units[end - NGRAM : end] == last:
            found += 1
            end -= NGRAM
        else:
            end -= 1
    return found >= MIN_OCCURRENCES
