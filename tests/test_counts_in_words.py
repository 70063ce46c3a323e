"""A count and its word agree: one function chooses the word by the value before it."""

import re

import pytest

from persona.errors import Message, format_counts
from persona.ui.i18n import CHINESE, as_language, t


@pytest.mark.parametrize(
    "template, values, text",
    [
        ("{n} pair(s) (is|are) left", {"n": 1}, "1 pair is left"),
        ("{n:,} pair(s) (is|are) left", {"n": 1200}, "1,200 pairs are left"),
        ("{n} pair(s) of {m} repl(y|ies)", {"n": "1", "m": 2}, "1 pair of 2 replies"),
        ("No pair(s) before {n}", {"n": 1}, "No pair(s) before 1"),
        ("re:.*(q|v)_proj", {}, "re:.*(q|v)_proj"),
        ("{name}: {n} run(s)", {"name": "file(s) (a|b)", "n": 1}, "file(s) (a|b): 1 run"),
    ],
)
def test_the_word_goes_by_the_count_before_it(template, values, text):
    assert format_counts(template, values) == text


def test_messages_and_texts_of_the_page_agree_and_the_chinese_has_one_form():
    assert Message("{n:,} usable pair(s)", n=1) == "1 usable pair"
    assert t("{n} pair(s)", n=1) == "1 pair" and t("{n} pair(s)", n="1,000") == "1,000 pairs"
    with as_language("zh"):
        assert t("{n} pair(s)", n=1) == CHINESE["{n} pair(s)"].format(n=1)


def test_no_count_stands_before_a_word_that_is_always_plural():
    """What a persona is made of; `several` names the templates that are only said of several."""
    several = (
        r"too few|[Mm]ore than|at most|questions are more|general questions|different|votes and|this server|replies in"
    )
    words = "pairs|replies|conversations|answers|votes|questions|drafts|voices|findings|greetings|runs"
    wrong = [
        key for key in CHINESE if re.search(rf"\{{(n|count|rows|new)(:,)?\}} (?:\w+ )?({words})\b", key)
        and not re.search(several, key)
    ]  # fmt: skip
    assert wrong == []
