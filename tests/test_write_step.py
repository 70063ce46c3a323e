"""Write, what the page says of pairs: search, find and replace, what a pair lacks, what an import brings."""

import json
from collections import defaultdict
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
from persona.ui.app import build_app
from persona.ui.steps.train import run_view
from persona.ui.steps.write import import_tab, lint_tab, mask_preview, pairs_tab, pairs_table, replace_tab
from persona.ui.steps.write.pairs_status import pairs_status_html
from persona.write.lint.finding import Finding


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


def save_edit(slug, **data):
    event = gr.EventData(None, data)
    return pairs_tab.save_edit(slug, "", pairs_table.SORT_ORDERS[0], "", 0, [], event)


def test_a_pair_that_the_table_shows_already_is_added_without_drawing_the_table(ada):
    update = save_edit("ada", do="add", row=1, shown=True)
    assert [p.instruction for p in ada.pairs()] == ["The kettle?", "", "Tea?"]
    assert update.pair_number == 2 and "3 pairs" in update.status and update.refusal == ""
    assert update.table == gr.skip() and 'data-row="4"' in save_edit("ada", do="add", row=3).table


def test_why_an_edit_is_refused_is_returned_to_the_table(ada, monkeypatch):
    said = []
    monkeypatch.setattr(pairs_tab, "show_warning", said.append)
    refused = {"do": "edit", "row": 2, "field": "output", "old": "No.", "text": "Maybe."}
    assert "changed elsewhere" in save_edit("ada", **refused).refusal and len(said) == 1
    assert save_edit("ada", **refused | {"old": "Yes."}).refusal == "" and ada.pairs()[1].output == "Maybe."


def test_a_refusal_names_the_columns_as_the_table_does(ada, monkeypatch):
    said = []
    monkeypatch.setattr(pairs_tab, "show_warning", said.append)
    data = {"do": "edit", "row": 1, "field": "instruction", "old": ada.pairs()[0].instruction, "text": "x" * 100_001}
    refusal = save_edit("ada", **data).refusal
    assert refusal.startswith("Pair 1: 'Someone says' has 100,001 characters") and said == [refusal]


def test_an_edit_is_of_the_persona_whose_table_it_was_made_in(ada, home):
    other = create_persona_at(free_path("ben"), default_card("Ben"), [Pair("Tea?", "Yes.")])
    update = save_edit("ben", do="add", row=1, shown=True, persona="ada")
    assert update == pairs_tab.TableUpdate(refusal="") and (len(ada.pairs()), len(other.pairs())) == (3, 1)


def test_an_empty_pair_is_not_complained_of_three_times(ada):
    finding = Finding("unfinished", "error", (3,), "nothing is written", "Delete the empty pair", "unfinished:")
    assert "nothing is written" in lint_tab.marks_html([finding])["3"]
    assert "Delete" not in lint_tab.marks_html([finding])["3"]  # the row has a button for it
    assert mask_preview.mask_card("ada", Pair("", " "), 3, page.RenderSettings("", "auto", 512, False)) == ""


def test_the_preview_says_that_it_waits_for_the_base(ada, monkeypatch):
    """And shows the pair as it is then: it may have been edited meanwhile."""
    settings = ("new-base", "auto", 512, False, "none")

    def convert(*_):
        ada.save_pairs([Pair("Since?", "Now.")])

    monkeypatch.setattr(mask_preview, "_opened", set())
    monkeypatch.setattr(mask_preview, "open_page_renderer", convert)
    monkeypatch.setattr(mask_preview, "mask_card", lambda slug, pair, *_: pair.output)
    shown = list(mask_preview.preview_mask("ada", 1, *settings))
    assert "Preparing the base model" in shown[0] and shown[1:] == ["Now."]
    event = gr.EventData(None, {"row": 1, "texts": {"instruction": "a", "output": "b"}})
    assert mask_preview.preview_typed("ada", *settings, event) == "b"
    assert mask_preview.preview_typed("ada", "another", *settings[1:], event) == gr.skip()
    assert list(mask_preview.preview_mask("ada", 1, *settings)) == ["Now."]


def test_a_text_that_is_too_long_is_said_in_the_preview_and_not_as_an_error(ada, monkeypatch):
    monkeypatch.setattr(mask_preview, "_opened", {""})
    event = gr.EventData(None, {"row": 1, "texts": {"instruction": "a", "output": "x" * 5_000_000}})
    assert "more than 100,000" in mask_preview.preview_typed("ada", "", "auto", 512, False, "none", event)


def test_an_error_leaves_again_once_it_can_have_been_read():
    short, long = (page.error_notice(InputError(text)).duration for text in ("x", "x" * 600))
    assert page.NOTICE_SECONDS < short < long and long - short > 30


def test_the_axis_of_steps_ends_with_the_run():
    assert run_view.step_axis(RunProgress(step=1, steps=2)) == [0, 2] and run_view.step_axis(RunProgress()) == [0, 1]
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


def test_a_table_says_how_many_pairs_it_has_and_offers_the_one_speaker_it_names(home, tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text("question,answer,speaker\nTea?,Yes.,Zosia\nRain?,Only sideways.,Zosia\nNo answer,,Zosia\n")
    voice, _ = import_tab.ask_whose_voice(str(file))
    assert voice.value == "Zosia" and "Pairs in all: 2." in voice.info
    file.write_text("question,answer,speaker\nTea?,Yes.,Zosia\nRain?,Only sideways.,Tom\n")
    voice, button = import_tab.ask_whose_voice(str(file))
    assert voice.value is None and not voice.choices and "Pairs in all: 2." in voice.info and button.visible


def test_what_was_skipped_is_listed_once_after_the_import(ada, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "q", "output": "a"}\n{"instruction": "no answer"}\n')
    report, _, preview = import_tab.add_imported_pairs(
        "ada", str(file), "", "", "alpaca", False, [], "drop", 0, "instruction", "output", "", ""
    )
    assert "<b>1 pair added</b>. Undo" in report and "1 skipped:" in report and preview == ""


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


def test_an_event_that_fails_covers_no_field_of_the_page():
    """Gradio covers each progress target of a failed event with "Error"; only an HTML view may be one."""
    config = build_app().config
    types = {component["id"]: component["type"] for component in config["components"]}
    covered = {
        (event["api_name"], types[target])
        for event in config["dependencies"]
        if event["show_progress"] != "hidden"
        for target in (event["outputs"] if event.get("show_progress_on") is None else event["show_progress_on"])
    }
    assert covered and {kind for _, kind in covered} == {"html"}, covered


def test_every_button_of_the_page_says_what_it_does():
    """An update, gr.Button(interactive=False), that is made while the page is built is one more button, called "Run"."""
    components = build_app().config["components"]
    unnamed = [c["id"] for c in components if c["type"] == "button" and c["props"].get("value") == "Run"]
    assert not unnamed


def test_no_two_listeners_that_wait_for_their_turn_share_an_event():
    """Gradio dispatches all listeners of an event again when one that had to wait runs: two wake each other for ever."""
    waiting = defaultdict(list)
    for event in build_app().config["dependencies"]:
        if event["backend_fn"] and event["trigger_mode"] == "always_last":
            for component, name in event["targets"]:
                waiting[component, name].append(event["api_name"])
    shared = [names for (component, _), names in waiting.items() if component is not None and len(names) > 1]
    assert waiting and not shared, "on_latest() keeps them apart"


def test_every_event_that_selects_a_step_says_so_to_those_who_follow_shown_step():
    """Gradio fires a step's own `select` for some ways of selecting it only: nothing listens to that."""
    config = build_app().config
    types = {component["id"]: component["type"] for component in config["components"]}
    [[(shown, _)]] = [e["targets"] for e in config["dependencies"] if e["api_name"] == "mark_step_shown"]
    selecting = 0
    for event in config["dependencies"]:
        if "walkthrough" in {types[i] for i in event["outputs"]}:
            selecting += 1
            assert shown in event["outputs"], event["api_name"]
        listened = {(types.get(component), name) for component, name in event["targets"]}
        assert ("walkthroughstep", "select") not in listened, event["api_name"]
    assert selecting > 10


def test_the_import_shows_and_adds_the_chosen_rows_only(ada, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"q{n}", "input": "in", "output": "a" * n} for n in range(1, 41)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = "train[:20]", 5, "3", "len(output)>9"
    assert "Pairs in all: 5." in import_tab.survey_source(str(file), "", "", "", *chosen).preview
    columns = "instruction", "output", "input", ""
    preview, add = import_tab.update_preview(str(file), "", "", "alpaca", [], "drop", 0, *columns, "alpaca-zh", *chosen)
    assert "### 输入:\nin" in preview and add.interactive
    import_tab.add_imported_pairs(
        "ada", str(file), "", "", "alpaca", False, [], "drop", 0, *columns, "alpaca-zh", *chosen
    )
    added = [pair for pair in find_persona("ada").pairs() if pair.source.startswith("rows.jsonl")]
    assert len(added) == 5 and all(10 <= len(pair.output) <= 20 for pair in added)
    assert all(pair.instruction.endswith("\n\n### 输入:\nin") for pair in added)
    with pytest.raises(InputError, match="Seed 'x'"):
        import_tab.survey_source(str(file), "", "", "", "", 5, "x")
    assert "Pairs in all: 40." in import_tab.survey_source(str(file), "", "", "", "", 0, "", "").preview
    with pytest.raises(InputError, match="no split"):
        import_tab.survey_source(str(file), "", "", "", "train+test")
    with pytest.raises(InputError, match="no split 'test'"):
        import_tab.survey_source(str(file), "", "", "", "test")
    assert import_tab.update_preview(None, "", "", "", [], "drop", 0, *columns, "line", *chosen)[0] == ""
