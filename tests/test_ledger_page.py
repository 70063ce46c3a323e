"""Step 3, the ledger: what the table shows of each run, and what a click does."""

import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import gradio as gr
import pytest
from finished_runs import PAIRS, new_run

from persona.errors import InputError
from persona.judge import compare_runs
from persona.store.pairs import Pair, write_pairs
from persona.train import launcher, run_notes
from persona.train.run_folder import list_runs
from persona.ui import hard_pairs
from persona.ui.chosen import Chosen
from persona.ui.steps.train import ledger
from persona.write import interview

pytest_plugins = "finished_runs"


def press(slug, do, run, shown="", picked=()):
    event = SimpleNamespace(_data={"do": do, "run": run.name})
    return ledger.on_click(slug, shown, list(picked), Chosen(slug), event)


def changed(view) -> set[str]:
    """The components that the click changes."""
    return {name for name, value in view._asdict().items() if value not in (gr.skip(), "")}


def test_the_table_names_each_run_and_marks_the_one_shown(mags):
    first, second = new_run(mags, epochs=6), new_run(mags)
    run_notes.change_note(first, name="<b>Dry</b>", note="keep", starred=True)
    write_pairs(mags.pairs_file, [Pair("new", "pair")])
    table, picked, name, note = ledger.refresh(mags.slug, first.name, ["gone", second.name])
    assert picked == [second.name] and (name, note) == ("<b>Dry</b>", "keep")
    assert table.count("<tr") == 3 and "&lt;b&gt;Dry" in table and "<b>Dry" not in table
    assert "Epochs: 6.0" in table and "as preset Quick" in table and "since: +1 −40" in table and "★" in table
    assert table.count("class='shown'") == 1 and table.count("aria-checked='true'") == 1
    assert ledger.refresh("", "", [])[0].startswith("<div") and ledger.refresh(mags.slug, "", [])[1] == []


def test_one_held_out_pair_has_no_interval(mags):
    new_run(mags, [30.0])
    assert "3.000</div></td>" in ledger.refresh(mags.slug, "", [])[0]


def test_two_ticked_runs_are_compared_and_a_third_replaces_the_first(mags):
    runs = [new_run(mags), new_run(mags, [20.0, 21, 22, 23], epochs=6), new_run(mags)]
    view = press(mags.slug, "pick", runs[0])
    assert view.picked == [runs[0].name] and view.detail == ""
    view = press(mags.slug, "pick", runs[1], picked=view.picked)
    assert "Epochs" in view.detail and "held out" in view.detail and view.losses.visible
    assert len({row[2] for row in view.losses.value["data"]}) == 4
    view = press(mags.slug, "pick", runs[2], picked=view.picked)
    assert view.picked == [runs[1].name, runs[2].name]
    assert press(mags.slug, "pick", runs[2], picked=view.picked).detail == ""


def test_a_run_on_preferences_is_not_compared_by_pairs_or_by_its_loss(mags):
    first, second = new_run(mags), new_run(mags)
    rows = [replace(row, rejected="No.").to_dict() for row in second.rows()]
    (second.path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pairs(mags.pairs_file, [Pair("new", "pair")])
    table = ledger.refresh(mags.slug, "", [])[0]
    assert table.count("since: ") == 1 and "preferences + " in table
    assert table.count("data-do='hard'") == 1, "the chosen answers are no pairs to rewrite"
    found = compare_runs.compare_runs(first, second)
    assert found.pairs is None and found.losses["first_train"] and not found.losses["second_train"]
    detail = ledger.show_comparison(mags.slug, [first.name, second.name])["detail"]
    assert "Pairs that differ" not in detail


def test_a_run_is_opened_noted_starred_and_deleted(mags):
    run = new_run(mags)
    view = press(mags.slug, "open", run)
    assert view.shown == run.name and "class='shown'" in view.table
    press(mags.slug, "star", run)
    ledger.save_note(mags.slug, run.name, " Dry ", "keep", [])
    assert run_notes.read_note(run) == run_notes.RunNote(name="Dry", note="keep", starred=True)
    view = press(mags.slug, "delete", run, shown=run.name, picked=[run.name])
    assert (view.shown, view.picked) == ("", []) and list_runs(mags) == []
    with pytest.raises(InputError, match="no longer there"):
        press(mags.slug, "open", run)


def test_a_comparison_goes_with_its_runs(mags):
    """It tells them apart, has the new name of one, and ends when one is deleted."""
    first, second = new_run(mags), new_run(mags)
    both = [first.name, second.name]
    detail = press(mags.slug, "pick", second, picked=[first.name]).detail
    one, other = (ledger.run_title(run) for run in (first, second))
    assert one != other or (f"{one} (1)" in detail and f"{other} (2)" in detail)
    assert "Dry" in ledger.save_note(mags.slug, first.name, "Dry", "", both)[0]
    view = press(mags.slug, "delete", second, shown=first.name, picked=both)
    assert (view.detail, view.picked) == ("", [first.name])


def test_the_difference_to_the_pairs_of_now_is_escaped(mags):
    run = new_run(mags)
    write_pairs(mags.pairs_file, [Pair("question 0", "<script>"), *mags.scan()[0][1:]])
    view = press(mags.slug, "diff", run)
    assert changed(view) == {"detail", "losses"}
    assert "&lt;script&gt;" in view.detail and "answer 0" in view.detail and "<script>" not in view.detail


def test_a_run_is_repeated_gone_on_from_and_compared_in_chat(mags, plain_cpu, monkeypatch):
    started = []
    monkeypatch.setattr(launcher, "start_run", started.append)
    run = new_run(mags, epochs=6, learning_rate=1e-3)
    view = press(mags.slug, "again", run)
    assert [r.config() for r in started] == [run.config()] and view.shown == started[0].name
    run.adapter.mkdir()
    view = press(mags.slug, "chat", run)
    assert (view.shown_step, view.adapter) == (3, f"run/{mags.slug}/{run.name}")
    assert press(mags.slug, "share", run).shown_step == 4


def test_the_least_likely_pairs_lead_back_to_the_table_of_pairs(mags):
    run = new_run(mags, [30.0, 50, 20, 40])
    held_out = [r.pair for r in run.rows() if r.held_out]
    write_pairs(mags.pairs_file, [p for p in PAIRS if p != held_out[3]])
    detail = press(mags.slug, "hard", run).detail
    assert [detail.index(held_out[n].output + "<") for n in (1, 3, 0, 2)] == sorted(
        detail.index(p.output + "<") for p in held_out
    )
    number = mags.scan()[0].index(held_out[1]) + 1
    assert (
        f"data-do='rewrite' data-row='{number}' data-persona='{mags.slug}'" in detail
        and detail.count("data-do='rewrite'") == 3
        and "changed since" in detail
    )

    def press_button(do, slug=mags.slug):
        data = {"do": do, "row": str(number), "persona": mags.slug}
        _, step, *opened, tab = hard_pairs.on_click(slug, SimpleNamespace(_data=data))
        return step, *opened, tab.partition(" ")[0]

    assert press_button("rewrite") == (0, number, "pairs")
    before = interview.open_interview(mags)
    interview.save_draft(mags, before.number, "half an ans", before.question.text)
    assert press_button("ask") == (0, number, "interview")
    asked = interview.open_interview(mags)
    assert asked.question.text == held_out[1].instruction and asked.draft == ""
    assert interview.go_back(mags, asked.number).draft == "half an ans", "what was typed to another question stays"
    with pytest.raises(InputError, match=f"one of {mags.slug}"):
        press_button("ask", "other")


def test_on_zerogpu_again_trains_too(mags, plain_cpu, monkeypatch):
    monkeypatch.setattr(ledger.deployment, "has_zerogpu", lambda: True)
    trained = []
    monkeypatch.setattr(ledger.gpu_slices, "train_in_slices", lambda run: trained.append(run.name) or iter(["slice"]))
    run = new_run(mags)
    again = press(mags.slug, "again", run)
    assert list(ledger.train_repeated(mags.slug, again.repeated)) == ["slice"] and trained == [again.shown]
    assert list(ledger.train_repeated(mags.slug, press(mags.slug, "star", run).repeated)) == []
    with gr.Blocks() as blocks:
        page = MagicMock(**{name: gr.State("") for name in ("slug", "chosen", "steps", "shown_step", "pair_number")})
        page.chosen_view = lambda: [gr.State("") for _ in ledger.ChosenView._fields]
        view, box, save = ledger.build(page, gr.State(""), gr.Dropdown())
        ledger.connect(page, view, box, save, gr.State(), {"fn": str, "inputs": None, "outputs": None})
    assert ledger.train_repeated in [getattr(f.fn, "__wrapped__", None) for f in blocks.fns.values()]
