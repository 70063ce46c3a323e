"""The first five minutes: what the page says is done and next, which steps open, and what is said where none does."""

import re
from types import SimpleNamespace

import gradio as gr
import pytest
from cases import check_each

from persona import base, files, folder, runs, waiting
from persona.config import make_config
from persona.embedded import Further
from persona.errors import BaseError, PersonaError
from persona.lint import Finding
from persona.pairs import Pair
from persona.progress import Progress
from persona.ui import asking, blind, judging, knobs, settings, talking, voices, way
from persona.ui.common import COMPARE, SHARE, TEMPLATE, TRAIN, WRITE
from persona.ui.opening import opening
from persona.ui.way import Seen

FULL = Seen(open=True, pairs=314)
TRAINED = Seen(open=True, pairs=314, run=Progress(status="done"), adapter=True)


@pytest.fixture
def ada(home):
    return folder.create(folder.free_path("ada"), folder.named("Ada"))


def test_a_step_opens_as_soon_as_what_it_needs_is_there():
    cases = [
        (Seen(), {TEMPLATE, TRAIN, SHARE}), (Seen(adapter=True), {TEMPLATE, TRAIN}), (Seen(open=True), {TEMPLATE, TRAIN, SHARE}),
        (Seen(open=True, pairs=1), {TRAIN, SHARE}), (FULL, {SHARE}), (TRAINED, set()),
    ]  # fmt: skip

    def check(seen, shut):
        assert {n for n in range(len(way.STEPS)) if way.closed(n, seen)} == shut

    check_each(cases, check)


def test_the_hint_says_what_is_done_and_what_is_next():
    cases = [
        (WRITE, Seen(), "three ways"), (WRITE, Seen(open=True), "first pair"),
        (WRITE, Seen(open=True, pairs=1200, unfinished=3), "1,200, unfinished: 3"),
        (WRITE, Seen(open=True, pairs=314, warnings=2), "314, findings: 2"), (WRITE, FULL, "Next: Template"),
        (TEMPLATE, FULL, "Next: Train"), (TRAIN, FULL, "press Start"), (TRAIN, Seen(open=True, pairs=1), "too few"),
        (TRAIN, Seen(True, 314, run=Progress(status="running", left=90)), "About 1 min 30 s left. You may close"),
        (TRAIN, Seen(True, 314, run=Progress(status="running")), "learning. You may close"),
        (TRAIN, Seen(True, 314, run=Progress(status="failed")), "did not end well"), (TRAIN, TRAINED, "Next: Compare"),
        (COMPARE, FULL, "no adapter yet"), (COMPARE, TRAINED, "press Send"),
        (SHARE, FULL, "nothing to share"), (SHARE, TRAINED, "zip needs no account"),
    ]  # fmt: skip

    def check(step, seen, words):
        assert words in way.hint(step, seen)

    check_each(cases, check)


def test_what_is_seen_is_what_is_on_disk(ada, tmp_path, monkeypatch):
    assert way.look("", []) == Seen()
    ada.save_pairs([Pair("Who?", "Ada."), Pair("What?", "")])
    warned = [Finding("short", "warning", (1,), "x"), Finding("short", "hint", (2,), "x")]
    assert way.look("ada", warned) == Seen(True, 2, 1, 1)
    ada.save_pairs([Pair("Who?", "Ada."), Pair("What?", "I count.")])
    run = runs.create_run(ada, make_config("quick"))
    monkeypatch.setattr(waiting, "progress", lambda r: Progress(status="done") if r.name == run.name else None)
    assert way.look("ada", []).run == Progress(status="done") and not way.look("ada", []).adapter
    run.adapter.mkdir()
    assert way.look("ada", []).adapter


def test_the_way_marks_the_step_that_is_shown_and_says_why_others_are_closed(ada):
    html = way.way_html("ada", WRITE, [])
    buttons = dict(re.findall(r'<button id="step-(\w+)-button" ([^>]*)>', html))
    assert list(buttons) == list(way.STEPS)
    assert [name for name, rest in buttons.items() if "aria-current" in rest] == ["write"]
    closed = {name for name, rest in buttons.items() if 'aria-disabled="true" title="There' in rest}
    assert closed == {"template", "train", "share"}, "Compare opens adapters of others"


def test_a_closed_step_says_why_and_an_open_one_opens(ada, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", said.append)
    stays = way.open_step(TEMPLATE, "ada")
    assert not isinstance(stays, gr.Walkthrough) and "no pairs yet" in said[0]
    ada.save_pairs([Pair("Who?", "Ada.")])
    assert way.open_step(TEMPLATE, "ada").selected == TEMPLATE
    assert not isinstance(way.open_step(9, "ada"), gr.Walkthrough)


@pytest.mark.parametrize("slug", ["", "ada"])
@pytest.mark.parametrize("nobody", [None, ""])
def test_a_question_to_nobody_is_refused_in_words(slug, nobody, ada):
    """The first thing a newcomer may do in step 4. Nothing is kept of it."""
    knob = (0.4, 0.9, 0, 0, 1.1, 16, 0)
    for ask in (talking.say("Hello?", "k" * 32, slug, nobody, [], "", 1.0, *knob),
                blind.ask("Hello?", "k" * 32, slug, nobody, "base", 1.0, *knob),
                asking.ask("Hello?", slug, nobody, [], 1.0, *knob)):  # fmt: skip
        with pytest.raises(PersonaError, match="no adapter yet"):
            list(ask)
    with pytest.raises(PersonaError, match="no adapter yet"):
        voices.cast(slug, nobody, [], 1.0)
    assert "Not measured yet" in judging.last(nobody)[0] and not list(ada.path.glob("talks/**/*.json*"))


def test_every_setting_says_when_to_touch_it():
    assert set(knobs.WHEN) == set(settings.EXPERT)
    with gr.Blocks():
        shown = {b.elem_id: b.info for b in settings.build("quick")}
    assert "twice the rank" in shown["set-lora-alpha"] and all(" → " in info for info in shown.values())


def test_what_is_waited_for_is_said_before_the_first_word(monkeypatch):
    """A base that must be made ready first takes a minute, one that is ready some seconds."""
    wanted = SimpleNamespace(base_id="<b>/base", base_revision="")
    monkeypatch.setattr(voices, "find", lambda chosen: wanted)
    monkeypatch.setattr(base, "ready", lambda name, revision: object())
    (words,) = opening("run/a/b")
    assert "a few seconds" in words
    (words,) = opening("server/x")
    assert "server" in words
    monkeypatch.setattr(base, "ready", lambda name, revision: None)
    fetched = []

    def resolve(name, progress, revision):
        progress(f"Downloading {name} from the Hub …")
        progress(Further(f"Downloading {name} from the Hub: 1,234 of 1,500 MB, less than a minute left"))
        fetched.append((name, files.home().name))

    monkeypatch.setattr(base, "resolve", resolve)
    monkeypatch.setattr(base, "travels", lambda name: True)
    monkeypatch.setenv("PERSONA_SHARED", "1")
    with files.asking("a" * 40):
        first, *told = opening("run/a/b")
    assert "about a minute" in first and fetched == [("<b>/base", "a" * 40)]
    assert told == ["Downloading &lt;b&gt;/base from the Hub …",
                    "Downloading &lt;b&gt;/base from the Hub: 1,234 of 1,500 MB, less than a minute left"]  # fmt: skip


def test_a_base_that_cannot_be_had_is_said_where_its_persona_is_asked(monkeypatch):
    monkeypatch.setattr(voices, "find", lambda chosen: SimpleNamespace(base_id="ann/gone", base_revision=""))
    monkeypatch.setattr(base, "ready", lambda name, revision: None)
    monkeypatch.setattr(base, "resolve", lambda *_: (_ for _ in ()).throw(BaseError("ann/gone: not on the Hub")))
    with pytest.raises(BaseError, match="ann/gone: not on the Hub"):
        list(opening("run/a/b"))
