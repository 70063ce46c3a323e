"""A persona's own votes and corrections as preferences; `persona prefer`."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import gradio as gr
import pytest
from tiny_models import write_adapter_to_go_on_from

from persona.compare import blind_votes, conversation_store
from persona.compare.blind_votes import VoteSide
from persona.compare.conversation import ConversationAnswer, VoiceRecord, new_browser_key
from persona.compare.preference_sources import collect_all
from persona.errors import PersonaError
from persona.judge.preference_verdict import describe_preferences
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.store.preferences import PreferenceSet
from persona.train import launcher, prepare
from persona.train.parent import read_parent
from persona.train.progress import EventReplay, RunProgress
from persona.ui.navigation import COMPARE, TRAIN
from persona.ui.steps.compare import blind_vote_tab, train_on_votes
from persona.ui.steps.train import further, run_view
from persona.ui.steps.train.run_view import make_run_view

BASE = VoiceRecord("base", "base")
OWN = VoiceRecord("adapter", "mags", "run/mags/r1")
FOREIGN = VoiceRecord("adapter", "other", "run/other/r9")


def vote(log, said, better, worse, voice=OWN, rival=BASE, choice=None):
    """Ask, answer and vote; `better` is what `voice` says."""
    drawn = blind_votes.draw_question(log, said, [VoteSide(voice), VoteSide(rival)], "Be dry.", {})
    texts = {voice: better, rival: worse}
    sides = (drawn.left.voice, drawn.right.voice)
    blind_votes.record_answers(log, drawn.id, [ConversationAnswer(v, texts[v]) for v in sides])
    blind_votes.record_vote(log, drawn.id, choice or ("left" if sides[0] == voice else "right"))


def test_votes_and_corrections_are_preferences_and_the_rest_is_listed(tmp_path):
    corrected = Pair("Who?", "Mags.", source="correction")
    persona = create_persona_at(tmp_path / "mags", PersonaCard(name="Mags", system="Be dry."), [corrected])
    log = blind_votes.open_vote_log(persona.path, new_browser_key())
    vote(log, "Why?", "So.", "Because of many things.")
    vote(log, "Equal?", "Yes.", "Yes.")
    vote(log, "Other?", "I am another.", "No.", voice=FOREIGN)
    vote(log, "Both bad?", "a", "b", choice="bad")
    store = conversation_store.open_store(persona.path, new_browser_key())
    talk = conversation_store.start_conversation(store, "Who?")
    answers = [ConversationAnswer(OWN, "I am Bob."), ConversationAnswer(FOREIGN, "I am Eve.")]
    conversation_store.add_answers(store, talk, talk.turns[0].id, answers, {})
    found = collect_all(persona)
    assert [(p.pair.instruction, p.pair.output, p.rejected) for p in found.preferences] == [
        ("Why?", "So.", "Because of many things."),
        ("Who?", "Mags.", "I am Bob."),
    ]
    assert all(p.pair.system == "" for p in found.preferences), "the persona's own prompt"
    listed = "\n".join(found.left_out)
    assert all(
        text in listed
        for text in (
            "“Equal?”: the two answers are equal.",
            "“Other?”: an answer was made by another persona",
            "“Both bad?”: both bad",
        )
    )
    json.dumps([p.pair.to_dict() for p in found.preferences])


@pytest.fixture
def mags(tmp_path, monkeypatch):
    """A persona that the page has open; its adapters are not read."""
    persona = create_persona_at(tmp_path / "mags", PersonaCard(name="Mags", system="Be dry."), [Pair("a", "b")])
    monkeypatch.setattr(train_on_votes, "open_current_persona", lambda slug: persona)
    monkeypatch.setattr(train_on_votes.voice_picker, "conversation_dir", lambda *_: persona.path)
    monkeypatch.setattr(train_on_votes, "open_parent", lambda ref: str(ref))
    monkeypatch.setattr(launcher, "make_preference_config", lambda *_: None)
    monkeypatch.setattr(prepare, "select_trainable", lambda card, config, found, parent: PreferenceSet(found))
    return persona


def test_the_page_trains_on_this_visitors_votes(mags, monkeypatch):
    """Only theirs, from the adapter that is chosen; an adapter of no run is refused."""
    mine, other = new_browser_key(), new_browser_key()
    vote(blind_votes.open_vote_log(mags.path, mine), "Why?", "So.", "Because of many things.")
    vote(blind_votes.open_vote_log(mags.path, other), "When?", "Now.", "Later than that.")
    made = []
    create = lambda *work: made.append(work) or SimpleNamespace(name="r2")  # noqa: E731
    monkeypatch.setattr(train_on_votes.launcher, "create_preference_run", create)
    monkeypatch.setattr(train_on_votes.launcher, "start_run", lambda run: None)
    assert train_on_votes.train_on_votes(mine, "mags", "run/mags/r1")[1:] == [TRAIN, "r2"], "step 3 shows the new run"
    ((_, preferences, parent, given),) = made
    assert [p.pair.instruction for p in preferences] == ["Why?"] and (parent, given) == ("run/mags/r1", {})
    train_on_votes.train_on_votes(mine, "mags", "run/mags/r1", sft=False)
    assert made[-1][-1] == {"sft_weight": 0}
    with pytest.raises(PersonaError, match="adapter of this persona"):
        train_on_votes.train_on_votes(mine, "mags", "opened/mags")


def test_the_button_says_how_many_and_is_disabled_below_the_least(mags):
    key = new_browser_key()
    log = blind_votes.open_vote_log(mags.path, key)
    for n in range(3):
        vote(log, f"Why {n}?", "So.", "Because of many things.")
    vote(log, "<b>Tie?", "a", "b", choice="tie")
    button, about, *_ = train_on_votes.offer(key, "mags", "run/mags/r1")
    assert (button.value, button.interactive) == ("Train on 3 votes and corrections", False)
    assert "it takes 4" in about and "&lt;b&gt;Tie?”: tie." in about
    vote(log, "Why 3?", "So.", "Because of many things.")
    button, about, preview, number = train_on_votes.offer(key, "mags", "run/mags/r1")
    assert button.interactive and "it takes" not in about and preview.visible and number.maximum == 4
    button, about, *_ = train_on_votes.offer(key, "", "")
    assert not button.interactive and "Choose an adapter" in about


@pytest.mark.slow
def test_both_answers_are_shown_with_their_masks_and_checked(mags, tiny_gemma, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(train_on_votes, "open_current_persona", lambda slug: mags)
    monkeypatch.setattr(train_on_votes.voice_picker, "conversation_dir", lambda *_: mags.path)
    parent, make = (
        read_parent(write_adapter_to_go_on_from(tiny_gemma, tmp_path / "first")),
        launcher.make_preference_config,
    )
    monkeypatch.setattr(train_on_votes, "open_parent", lambda ref: parent)
    with_base = lambda parent, given: make(parent, {**given, "base": str(tiny_gemma)})  # noqa: E731
    monkeypatch.setattr(launcher, "make_preference_config", with_base)
    key = new_browser_key()
    log = blind_votes.open_vote_log(mags.path, key)
    vote(log, "Why?", "So.", "Because.")
    vote(log, "When?", "Now.", "<end_of_turn>")
    head, *sides = train_on_votes.show_masks(key, "mags", "run/mags/r1", 1)
    assert "Preference 1 of 2, from a blind vote" in head
    assert ["less often" in html for html in sides] == [False, True], "what is learned of each"
    for html, answer in zip(sides, ("So.", "Because."), strict=True):
        learned = "".join(re.findall(r'<span class="learned[^>]*>([^<]*)', html))
        assert learned.startswith(answer) and "Why?" in "".join(re.findall(r'<span class="masked[^>]*>([^<]*)', html))
    assert "control" in train_on_votes.show_masks(key, "mags", "run/mags/r1", 9)[2], "the nearest, with what is wrong"
    made, noted = [], []
    create = lambda *work: made.extend(work[1]) or SimpleNamespace(name="r2")  # noqa: E731
    monkeypatch.setattr(launcher, "create_preference_run", create)
    monkeypatch.setattr(launcher, "start_run", lambda run: None)
    monkeypatch.setattr(train_on_votes, "show_warning", noted.append)
    train_on_votes.train_on_votes(key, "mags", "run/mags/r1")
    assert [p.pair.instruction for p in made] == ["Why?"], "a vote cannot be corrected, so it must not stop the others"
    assert "Left out of the training: 1" in noted[0] and "“When?”" in noted[0] and "control" in noted[0]


@pytest.mark.parametrize("zerogpu", [True, False])
def test_on_zerogpu_the_button_trains_too(zerogpu, monkeypatch):
    monkeypatch.setattr(train_on_votes.deployment, "has_zerogpu", lambda: zerogpu)
    with gr.Blocks() as blocks:
        page = MagicMock(**{name: gr.State("") for name in ("slug", "adapter", "steps", "shown_step", "shown_run")})
        controls = train_on_votes.build(train_on_votes.build_button())
        train_on_votes.connect(page, gr.BrowserState(), controls, [page.steps.change], [])
    called = [f.fn.__wrapped__ for f in blocks.fns.values() if hasattr(f.fn, "__wrapped__")]
    assert train_on_votes.train_on_votes in called and (train_on_votes.run_on_zerogpu in called) == zerogpu


def test_after_such_a_run_the_vote_is_before_against_after(mags, monkeypatch):
    monkeypatch.setattr(train_on_votes.ChosenView, "showing", lambda who: [who])
    _, step, tabs, who = train_on_votes.vote_again("mags", "r2", SimpleNamespace(persona="mags"))
    assert (step, tabs.selected, who.adapter) == (COMPARE, "blind", "run/mags/r2")
    facts = SimpleNamespace(facts={"parent": {"adapter": "run/mags/r1"}})
    monkeypatch.setattr(blind_vote_tab.voice_picker, "find_adapter", lambda _: facts)
    rivals = [("", "base"), ("", "run/mags/r2@4"), ("", "run/mags/r1")]
    monkeypatch.setattr(blind_vote_tab, "list_rivals", lambda *_: rivals)
    assert blind_vote_tab.choose_rival("mags", "run/mags/r2") == "run/mags/r1"
    for result, visible in (({"accuracy_after": 0.5}, True), ({}, False)):
        view = make_run_view(None, RunProgress(status="done", result=result), gr.Radio([]), None, "", "")
        assert view.vote_again.visible == visible


def test_the_verdict_says_how_often_and_warns_where_the_chosen_answers_became_less_likely():
    figures = {"accuracy_before": 0.54, "accuracy_after": 0.83}
    learned = {"held_out": 20, "held_out_learned": [10] * 20}
    better, worse = {8: [9.0] * 20}, {8: [31.0, 30.0] * 10}
    seen = [
        RunProgress(result=figures, plan=learned, base_nll=3.0, chosen=8, start_rows=[20.0] * 20,
                    held_out_rows={0: [30.0] * 20, **rows})
        for rows in (better, worse)
    ]  # fmt: skip
    said = [describe_preferences(p) for p in seen]
    assert said[0] == "Of held-out choices it now prefers yours in 83 % (before 54 %; 20 choices)."
    assert said[1].startswith(said[0]) and "less likely" in said[1]
    assert describe_preferences(RunProgress()) == ""
    few = RunProgress(result=figures, plan={"held_out": 1})
    assert "1 choice). So few say little" in describe_preferences(few) and '"hint"' in further.change_html(few)
    assert [further.change_html(p).partition(" data")[0] for p in seen] == ['<div class="good"', '<div class="problem"']
    for after, kind in ((0.54, "hint"), (0.4, "problem")):
        same = replace(seen[0], result={"accuracy_before": 0.54, "accuracy_after": after})
        assert f'class="{kind}"' in further.change_html(same)


def test_a_run_on_preferences_shows_its_margin_its_accuracy_and_that_the_chosen_answers_fall():
    """As the events tell it: the evaluation of the base at step 0 is in none of the curves."""
    replay = EventReplay()
    for event in (
        {"event": "plan", "steps": 8, "held_out": 2, "held_out_learned": [10, 10]},
        {"event": "eval", "step": 0, "nll": 3.0, "rows": [30.0, 30.0], "accuracy": 0.1},
        {"event": "start", "step": 0, "nll": 2.0, "rows": [20.0, 20.0], "accuracy": 0.5},
        {"event": "state", "state": "running"},
        {"event": "step", "step": 4, "seconds": 1.0, "loss": 0.6, "reward_margin": 0.2, "reward_chosen": 0.1},
        {"event": "eval", "step": 4, "nll": 2.5, "rows": [25.0, 25.5], "accuracy": 1.0},
    ):
        replay.add(event)
    p = replay.progress()
    assert p.learns_preferences and not RunProgress().learns_preferences
    done = replace(p, status="done", result={"adapter_nll": 2.5})
    assert run_view.training_verdict_html(done) == "", "its loss is not what it was to learn"
    margin, accuracy, chosen = (
        [row[:2] for row in plot.value["data"]] for plot in run_view.chart_plots(p, run_view.PREFERENCE_CHARTS)
    )
    assert (margin, accuracy, chosen) == ([[4, 0.2]], [[0, 50.0], [4, 100.0]], [[0, 2.0], [4, 2.5]])
    assert {row[2] for row in run_view.loss_plot(p).value["data"]} == {"train"}, "its held-out loss is another"
    assert (
        "At step 4 your chosen answers have become less likely than before the run: 2.00 → 2.5"
        in further.warning_html(p)
    )
    assert not further.warning_html(replace(p, held_out_rows={0: [30.0, 30.0], 4: [19.0, 19.0]}))
    assert not any(plot.visible for plot in run_view.chart_plots(RunProgress(), run_view.PREFERENCE_CHARTS))
