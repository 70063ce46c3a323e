"""Write, what the page says of pairs: search, find and replace, what a pair lacks, what an import brings."""

import gradio as gr
import pytest

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.store.persona_folder import create_persona_at, default_card, free_path
from persona.train.progress import RunProgress
from persona.ui import page
from persona.ui.steps.train import run_view
from persona.ui.steps.write import mask_preview, pairs_table, replace_tab
from persona.ui.steps.write.pairs_status import pairs_status_html


@pytest.fixture
def ada(home):
    pairs = [Pair("The kettle?", "The kettle's on, <b>and</b> KETTLE two."), Pair("Tea?", "Yes.")]
    return create_persona_at(free_path("ada"), default_card("Ada"), pairs)


def test_what_a_pair_lacks_is_named_as_the_table_names_it():
    said = pairs_status_html([Pair("", "b"), Pair("a", ""), Pair("a", "b", (("", "c"),))])
    assert "#1: “Someone says” is empty" in said and "#2: “The persona answers” is empty" in said
    assert "#3: an earlier turn is empty" in said and "instruction" not in said and "output" not in said


def test_search_marks_what_it_found():
    long = "so it goes on and on " * 4
    pair = Pair(f"{long}kettle{long}", "<i>Kettle</i>", source="kettle.txt")
    said = pairs_table.found_html(pair, "kettle")
    assert said.count("<mark>") == 3 and "<mark>Kettle</mark>" in said and "&lt;i&gt;" in said and "<i>" not in said
    assert "…" in said and long not in said
    assert pairs_table.found_html(pair, "") == "" == pairs_table.found_html(pair, "lamp")
    assert "… and 6 more" in pairs_table.found_html(Pair("x" * 10, "y"), "x")


def test_a_replacement_shows_the_old_whole_and_then_the_new(ada):
    said, button = replace_tab.preview_replacement("ada", "kettle", "pot <of> tea", False)
    assert "The <del>kettle</del> → <ins>pot &lt;of&gt; tea</ins>?" in said and "<del>KETTLE</del>" in said
    assert "&lt;b&gt;and" in said and button.value == "Replace in 1 pair"
    said, _ = replace_tab.preview_replacement("ada", "kettle", "", True)
    assert "<del>kettle</del>'s on" in said and "→" not in said and "KETTLE" in said


def test_a_text_that_is_too_long_is_said_in_the_preview_and_not_as_an_error(ada):
    event = gr.EventData(None, {"row": 1, "texts": {"instruction": "a", "output": "x" * 5_000_000}})
    assert "more than 100,000" in mask_preview.preview_typed("ada", "", "auto", 512, False, event)


def test_an_error_leaves_again_once_it_can_have_been_read():
    short, long = (page.error_notice(InputError(text)).duration for text in ("x", "x" * 600))
    assert page.NOTICE_SECONDS < short < long and long - short > 30


def test_the_axis_of_steps_has_no_parts_of_a_step():
    assert run_view.step_axis(RunProgress(step=1, steps=2)) == [0, run_view.WHOLE_STEPS]
    assert run_view.loss_plot(RunProgress(step=9, steps=60, train=[(1, 2.0)])).x_lim == [0, 60]
