"""Write, what the page says of pairs: search, find and replace, what a pair lacks, what an import brings."""

import json
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext

from persona.errors import InputError
from persona.store import edit_history
from persona.store.pairs import Pair, find_unfinished
from persona.store.persona_folder import create_persona_at, default_card, find_persona, free_path, list_personas
from persona.train.progress import RunProgress
from persona.ui import page
from persona.ui.steps.train import run_view
from persona.ui.steps.write import import_tab, mask_preview, pairs_table, replace_tab
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
    assert "<del>kettle</del>&#x27;s on" in said and "→" not in said and "KETTLE" in said


def test_a_text_that_is_too_long_is_said_in_the_preview_and_not_as_an_error(ada):
    event = gr.EventData(None, {"row": 1, "texts": {"instruction": "a", "output": "x" * 5_000_000}})
    assert "more than 100,000" in mask_preview.preview_typed("ada", "", "auto", 512, False, event)


def test_an_error_leaves_again_once_it_can_have_been_read():
    short, long = (page.error_notice(InputError(text)).duration for text in ("x", "x" * 600))
    assert page.NOTICE_SECONDS < short < long and long - short > 30


def test_the_axis_of_steps_has_no_parts_of_a_step():
    assert run_view.step_axis(RunProgress(step=1, steps=2)) == [0, run_view.WHOLE_STEPS]
    assert run_view.loss_plot(RunProgress(step=9, steps=60, train=[(1, 2.0)])).x_lim == [0, 60]


PLAY = "ADA: I count.\n\nBEN: What?\n\nADA: The wheels.\n\nBEN: How many?\n\nADA: Ten.\n"


def test_whose_voice_a_file_is_is_asked_before_a_persona_is_made(home, tmp_path):
    file = tmp_path / "chapter-7.txt"
    file.write_text(PLAY * 3)
    voice, button = import_tab.ask_whose_voice(str(file))
    assert [name for _, name in voice.choices] == ["ADA", "BEN"] and voice.value is None and button.visible
    with pytest.raises(InputError, match="Whose voice"):
        import_tab.start_from_file(str(file), " ")
    assert list_personas() == []
    slug, *_ = import_tab.start_from_file(str(file), "ADA")
    assert find_persona(slug).card().name == "ADA" and find_persona(slug).pairs() == []
    seen = import_tab.survey_for_persona(slug, str(file), "", "")
    assert seen.speakers.value == ["ADA"] and seen.add.interactive and "Pairs in all:" in seen.preview
    hidden, _ = import_tab.ask_whose_voice(None)
    assert not hidden.visible


def test_how_many_pairs_a_file_gives_is_said_before_the_import(ada, tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"q{n}", "output": "a"}) + "\n" for n in range(1234)))
    assert "Pairs in all: 1,234. The first 20:" in import_tab.survey_source(str(file), "", "").preview
    monkeypatch.setattr(import_tab.registry.count_pairs, "__defaults__", (1000,))
    assert "More than 1,000 pairs. The first 20:" in import_tab.survey_source(str(file), "", "").preview


def test_ten_questions_to_answer_are_one_edit(ada):
    ada.save_pairs([])
    assert 'data-do="starter"' in pairs_table.table_html([], [], pairs_table.TableView())
    assert pairs_table.apply_edit(ada, {"do": "starter", "row": 0}) == 1
    pairs = ada.pairs()
    assert len(pairs) == 10 and pairs[0].instruction == "Who are you?" and len(find_unfinished(pairs)) == 10
    edit_history.undo(ada)
    assert ada.pairs() == []


def test_what_a_closed_window_has_made_to_download_is_removed(home):
    made = []
    for window in ("one", "two"):
        token = LocalContext.request.set(SimpleNamespace(session_hash=window, headers={}))
        made.append(page.download_path("p.zip"))
        made[-1].write_bytes(b"x")
        LocalContext.request.reset(token)
    page.remove_downloads(SimpleNamespace(session_hash="one"))
    assert [file.parent.exists() for file in made] == [False, True]
    page.remove_downloads(SimpleNamespace(session_hash="two"))
    page.remove_downloads(SimpleNamespace(session_hash="never seen"))
    assert not made[1].parent.exists()
