"""The first five minutes: what the page says is done and next, which steps open, and what is said where none does."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import gradio as gr
import pytest
from cases import check_each

from persona.compare import session
from persona.errors import BaseError, Message, PersonaError
from persona.models import base
from persona.models.progress_callback import ProgressUpdate
from persona.store import persona_folder, workspace
from persona.store.pairs import Pair
from persona.train import launcher, queue
from persona.train.config import make_config
from persona.train.progress import RunProgress, RunStatus
from persona.ui import navigation, voice_picker
from persona.ui.app import choose_in_list
from persona.ui.chosen import Chosen, ChosenView
from persona.ui.navigation import COMPARE, SHARE, TEMPLATE, TRAIN, WRITE, PersonaState
from persona.ui.steps.compare import blind_vote_tab, chat_tab, judge_tab, questions_tab
from persona.ui.steps.compare.loading import report_loading
from persona.ui.steps.train import settings_form
from persona.write.lint.finding import Finding

FULL = PersonaState(open=True, pairs=314)
TRAINED = PersonaState(open=True, pairs=314, run=RunProgress(status="done"), adapter=True, run_has_adapter=True)


@pytest.fixture
def ada(home):
    return persona_folder.create_persona_at(persona_folder.free_path("ada"), persona_folder.default_card("Ada"))


def test_a_step_opens_as_soon_as_what_it_needs_is_there():
    cases = [
        (PersonaState(), {TEMPLATE, TRAIN, SHARE}), (PersonaState(adapter=True), {TEMPLATE, TRAIN}), (PersonaState(open=True), {TEMPLATE, TRAIN, SHARE}),
        (PersonaState(open=True, pairs=1), {TRAIN, SHARE}), (FULL, {SHARE}), (TRAINED, set()),
    ]  # fmt: skip

    def check(seen, shut):
        assert {n for n in range(len(navigation.STEP_NAMES)) if navigation.closed_reason(n, seen)} == shut

    check_each(cases, check)


def test_the_hint_says_what_is_done_and_what_is_next():
    cases = [
        (WRITE, PersonaState(), "three ways"), (WRITE, PersonaState(open=True), "first pair"),
        (WRITE, PersonaState(open=True, pairs=1200, unfinished=3), "1,200, unfinished: 3"),
        (WRITE, PersonaState(open=True, pairs=314, warnings=2), "314, findings: 2"), (WRITE, FULL, "Next: Template"),
        (TEMPLATE, FULL, "Next: Train"), (TRAIN, FULL, "press Start training"),
        (TRAIN, replace(FULL, waits=True), "press Add to the queue"), (TEMPLATE, replace(FULL, untrainable=2), "cannot be trained on: 2."),
        (TRAIN, PersonaState(open=True, pairs=1), "too few"),
        (WRITE, PersonaState(open=True, pairs=1), "One pair is too few to train on"),
        (TRAIN, PersonaState(True, 314, run=RunProgress(status="running", left=90)), f"Time left: {navigation.TIME_LEFT}. You can close"),
        (TRAIN, PersonaState(True, 314, run=RunProgress(status="running")), "Training. You can close"),
        (TRAIN, TRAINED, "Next: Compare"),
        (COMPARE, FULL, "no adapter yet"), (COMPARE, TRAINED, "press Send"),
        (SHARE, FULL, "nothing to share"), (SHARE, TRAINED, "zip needs no account"),
    ]  # fmt: skip

    def check(step, seen, words):
        assert words in navigation.next_hint(step, seen)

    check_each(cases, check)


RUN_HINTS = {  # status → what is said without and with an adapter of that run
    "queued": ("waits for its turn", "waits for its turn"),
    "starting": ("Training. You can close", "Training. You can close"),
    "running": ("Training. You can close", "Training. You can close"),
    "done": ("its adapter was deleted", "Training is done. Next: Compare"),
    "stopped": ("left no adapter. Resume it", "was stopped at step"),
    "failed": ("did not finish", "did not finish"),
    "interrupted": ("did not finish", "did not finish"),
}


def test_each_status_of_a_run_has_its_own_words():
    """Whatever adapter is chosen beside it: an older run's, one from elsewhere, or none."""
    assert set(RUN_HINTS) == set(get_args(RunStatus))
    cases = [(status, has, chosen) for status in RUN_HINTS for has in (False, True) for chosen in (False, True)]

    def check(status, has_adapter, chosen):
        seen = PersonaState(
            True, 314, run=RunProgress(status=status, left=0.0), adapter=chosen, run_has_adapter=has_adapter
        )
        hint = navigation.next_hint(TRAIN, seen)
        assert RUN_HINTS[status][has_adapter] in hint and navigation.TIME_LEFT not in hint
        assert navigation.is_step_done(TRAIN, seen) == (status == "done" and has_adapter)

    check_each(cases, check)


@pytest.mark.parametrize("step", range(5))
def test_the_page_follows_the_end_of_a_run_that_it_has_watched(ada, step):
    """The adapter is there only now: the window had none when it was opened, and has not been reloaded."""
    ada.save_pairs([Pair("Who?", "Ada."), Pair("What?", "I count.")])
    run = launcher.create_run(ada, make_config("quick"))
    opened = Chosen.newest_of("ada")
    assert not opened.adapter
    run.adapter.mkdir()
    run.log("state", state="done")
    html, *view = navigation.follow_run(opened, step, [], "")
    assert ChosenView(*view).chosen.adapter == f"run/ada/{run.name}" == ChosenView(*view).adapter_list.value
    assert 'id="step-share-button" data-step="4" aria-disabled' not in html and html.count('class="done"') == 2
    hints = {TRAIN: "Training is done", COMPARE: "Ask something", SHARE: "A zip needs no account"}
    assert hints.get(step, "") in html and "did not finish" not in html


def test_an_adapter_in_use_stays_when_another_run_ends(ada):
    ada.save_pairs([Pair("Who?", "Ada."), Pair("What?", "I count.")])
    runs = [launcher.create_run(ada, make_config("quick")) for _ in range(2)]
    older, newer = sorted(runs, key=lambda run: run.name)
    older.adapter.mkdir()
    in_use = Chosen.newest_of("ada")
    newer.adapter.mkdir()
    for step in (COMPARE, SHARE):
        assert navigation.follow_run(in_use, step, [], "")[1:] == ChosenView.unchanged()
    _, *view = navigation.follow_run(in_use, TRAIN, [], "")
    assert ChosenView(*view).adapter == f"run/ada/{newer.name}"


def test_new_or_example_leads_to_the_start_page(ada):
    *view, steps, step = choose_in_list("", Chosen("ada"))
    assert ChosenView(*view).slug == "" and (steps.selected, step) == (WRITE, WRITE)
    *view, steps, step = choose_in_list("", Chosen(adapter="opened/x", by_hand=True))
    assert (steps.selected, step) == (WRITE, WRITE), "beside an adapter from elsewhere too"
    *view, steps, step = choose_in_list("ada", Chosen())
    assert ChosenView(*view).slug == "ada" and not isinstance(steps, gr.Walkthrough)


def test_what_is_seen_is_what_is_on_disk(ada, tmp_path, monkeypatch):
    assert navigation.read_persona_state(Chosen(), []) == PersonaState()
    ada.save_pairs([Pair("Who?", "Ada."), Pair("What?", "")])
    warned = [Finding("short", "warning", (1,), "x"), Finding("short", "hint", (2,), "x")]
    assert navigation.read_persona_state(Chosen("ada"), warned) == PersonaState(True, 2, 1, 1)
    ada.save_pairs([Pair("Who?", "Ada."), Pair("What?", "I count.")])
    run = launcher.create_run(ada, make_config("quick"))
    monkeypatch.setattr(
        queue, "read_run_progress", lambda r: RunProgress(status="done") if r.name == run.name else None
    )
    assert (
        navigation.read_persona_state(Chosen.newest_of("ada"), []).run == RunProgress(status="done")
        and not navigation.read_persona_state(Chosen.newest_of("ada"), []).adapter
    )
    run.adapter.mkdir()
    assert navigation.read_persona_state(Chosen.newest_of("ada"), []).adapter


def test_the_way_marks_the_step_that_is_shown_and_says_why_others_are_closed(ada):
    html = navigation.navigation_html(Chosen("ada"), WRITE, [])
    buttons = dict(re.findall(r'<button id="step-(\w+)-button" ([^>]*)>', html))
    assert list(buttons) == list(navigation.STEP_NAMES)
    assert [name for name, rest in buttons.items() if "aria-current" in rest] == ["write"]
    closed = {name for name, rest in buttons.items() if 'aria-disabled="true" title="There' in rest}
    assert closed == {"template", "train", "share"}, "Compare opens adapters of others"


def test_a_closed_step_says_why_and_an_open_one_opens(ada, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", lambda text, **_: said.append(text))
    stays, _ = navigation.open_step(TEMPLATE, Chosen("ada"))
    assert not isinstance(stays, gr.Walkthrough) and "no pairs yet" in said[0]
    ada.save_pairs([Pair("Who?", "Ada.")])
    assert navigation.open_step(TEMPLATE, Chosen("ada"))[0].selected == TEMPLATE
    assert not isinstance(navigation.open_step(9, Chosen("ada"))[0], gr.Walkthrough)


@pytest.mark.parametrize("slug", ["", "ada"])
@pytest.mark.parametrize("nobody", [None, ""])
def test_a_question_to_nobody_is_refused_in_words(slug, nobody, ada):
    """The first thing a newcomer may do in step 4. Nothing is kept of it."""
    knob = (0.4, 0.9, 0, 0, 1.1, 16, 0)
    for ask in (chat_tab.send_message("Hello?", "k" * 32, slug, nobody, [], "", 1.0, *knob),
                blind_vote_tab.ask_both("Hello?", "k" * 32, slug, nobody, "base", 1.0, *knob),
                questions_tab.answer_questions("Hello?", slug, nobody, [], 1.0, *knob)):  # fmt: skip
        with pytest.raises(PersonaError, match="no adapter yet"):
            list(ask)
    with pytest.raises(PersonaError, match="no adapter yet"):
        voice_picker.open_comparison(slug, nobody, [], 1.0)
    assert "Not measured yet" in judge_tab.last_report(nobody)[0] and not list(ada.path.glob("talks/**/*.json*"))


def test_every_setting_says_when_to_touch_it():
    with gr.Blocks():
        shown = {b.elem_id: b.info for b in settings_form.build("quick")}
    assert "twice the rank" in shown["set-lora-alpha"] and all(" → " in info for info in shown.values())


def test_what_is_waited_for_is_said_before_the_first_word(monkeypatch):
    """A base that must be made ready first takes a minute, one that is ready some seconds."""
    wanted = SimpleNamespace(base_id="<b>/base", base_revision="", quantization="nf4")
    asked, plan = [], SimpleNamespace(fits=True, describe=lambda: Message("<b>/base in 4 bits: 9 GB"))
    monkeypatch.setattr(voice_picker, "find_adapter", lambda chosen: wanted)
    monkeypatch.setattr(session, "plan_opening", lambda *how: asked.append(how[1:]) or plan)
    monkeypatch.setattr(base, "find_local_base", lambda name, revision: object())
    monkeypatch.setattr(session, "is_open", lambda *how: True)
    assert list(report_loading("run/a/b", "int8")) == ["Writing …"]
    monkeypatch.setattr(session, "is_open", lambda *how: False)
    (words,) = report_loading("run/a/b", "int8")
    assert "a few seconds" in words and "&lt;b&gt;/base in 4 bits: 9 GB" in words and asked == [("int8", "nf4")]
    (words,) = report_loading("server/x")
    assert "server" in words
    monkeypatch.setattr(base, "find_local_base", lambda name, revision: None)
    fetched = []

    def resolve(name, progress, revision):
        progress(f"Downloading {name} from the Hub …")
        progress(ProgressUpdate(f"Downloading {name} from the Hub: 1,234 of 1,500 MB, less than a minute left"))
        fetched.append((name, workspace.current_workspace().name))

    monkeypatch.setattr(base, "resolve_base", resolve)
    monkeypatch.setattr(base, "is_portable_base_name", lambda name: True)
    monkeypatch.setenv("PERSONA_SHARED", "1")
    with workspace.as_visitor("a" * 40):
        first, *told = report_loading("run/a/b")
    assert "about a minute" in first and fetched == [("<b>/base", "a" * 40)]
    assert told == ["Downloading &lt;b&gt;/base from the Hub …",
                    "Downloading &lt;b&gt;/base from the Hub: 1,234 of 1,500 MB, less than a minute left"]  # fmt: skip


def test_a_base_that_cannot_be_had_is_said_where_its_persona_is_asked(monkeypatch):
    monkeypatch.setattr(
        voice_picker, "find_adapter", lambda chosen: SimpleNamespace(base_id="ann/gone", base_revision="")
    )
    monkeypatch.setattr(base, "find_local_base", lambda name, revision: None)
    monkeypatch.setattr(base, "resolve_base", lambda *_: (_ for _ in ()).throw(BaseError("ann/gone: not on the Hub")))
    with pytest.raises(BaseError, match="ann/gone: not on the Hub"):
        list(report_loading("run/a/b"))
