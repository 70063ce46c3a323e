"""Pairs that are dropped by their length, in bulk: which, after a look, and back again."""

import pytest

from persona.errors import InputError
from persona.store import edit_history
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona, create_persona_at
from persona.ui.steps.write import length_tab
from persona.write.length_filter import LengthLimits, describe, drop_outside, find_outside

pytest_plugins = "tests.cli_fixtures"

PAIRS = [Pair("Who?", "Me."), Pair("Why do you ask?", "x" * 50), Pair("When?", "x" * 51), Pair("Where?", " x \n")]


def test_pairs_outside_the_limits_are_found():
    def rows(**limits):
        return [change.at for change in find_outside(PAIRS, LengthLimits(**limits))]

    assert rows(min_answer=50) == [0, 3] and rows(max_answer=50) == [2] and rows(min_answer=2) == [3]
    assert rows(min_question=5) == [0] and rows(max_question=6) == [1]
    assert rows(min_answer=3, max_answer=3, max_question=4) == [1, 2, 3]
    with pytest.raises(InputError, match="Give a length"):
        rows()
    assert describe(find_outside(PAIRS, LengthLimits(max_answer=50))[0]) == f"When? (5) → {'x' * 51} (51)"


def test_what_is_dropped_comes_back_with_undo(tmp_path):
    made = create_persona_at(tmp_path / "p", PersonaCard(name="p"), PAIRS)
    assert drop_outside(made, LengthLimits(min_answer=50)) == 2 and made.pairs() == PAIRS[1:3]
    assert drop_outside(made, LengthLimits(min_answer=50)) == 0
    edit_history.undo(made)
    assert made.pairs() == PAIRS


def test_the_command_shows_before_it_drops(tmp_path, value, call, refused):
    made = create_persona_at(tmp_path / "p", PersonaCard(name="p"), PAIRS)
    shown = value("filter", made.path, "--min-answer", 50)
    assert shown == {"pairs": 4, "dropped": 2, "rows": [1, 4], "applied": False} and made.pairs() == PAIRS
    _, text, _ = call("filter", made.path, "--min-answer", 50)
    assert "pair 1: Who? (4) → Me. (3)" in text and "2 of 4 pairs would be dropped; --apply" in text
    assert value("filter", made.path, "--min-answer", 50, "--apply")["applied"] and made.pairs() == PAIRS[1:3]
    assert "Give a length" in refused("filter", made.path)


def test_the_page_shows_before_it_drops(home):
    made = create_persona("p", PersonaCard(name="p"))
    made.save_pairs([*PAIRS, *(Pair(f"q{n}", "<b>") for n in range(30))], [])
    html, button = length_tab.preview_filter(made.slug, 50, None, None, None)
    assert "Outside: 32 of 34 pairs." in html and "&lt;b&gt;" in html and "and 12 more pairs" in html
    assert button.interactive and button.value == "Drop 32 pairs"
    done, button = length_tab.drop_pairs(made.slug, 50, None, None, None)
    assert "Dropped 32 pairs" in done and not button.interactive and made.pairs() == PAIRS[1:3]
    assert length_tab.preview_filter(made.slug, None, None, None, None)[0] == ""
