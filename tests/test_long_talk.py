"""The scripted talk of an evaluation: what is asked, what is counted, and what the verdict makes of it."""

from types import SimpleNamespace

import pytest
from test_report_html import made

from persona.judge import long_talk, report_html, scoring, verdict
from persona.judge.measurements import EvalBudget, EvalSession
from persona.judge.report_model import LongTalk, TalkTurn
from persona.judge.scoring import EvalWork
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.store.pairs import Pair
from persona.store.persona_folder import ProbeRule
from persona.template.render import ChatPrompt

RULE = ProbeRule(ask="Who are you?", must_mention=("Mags",))
FREE = ProbeRule(ask="Well?")


class FakeRenderer:
    """A prompt is its messages, a token a character."""

    stop_id = 1

    def render_prompt(self, history, text):
        whole = "|".join([*(m for turn in history for m in turn), text])
        return ChatPrompt(whole, [0] * len(whole))


@pytest.fixture
def talking(monkeypatch):
    """measure_long_talk with a model whose reply is `reply(prompt, seed)`; returns (LongTalk, asked prompts)."""

    def talk(reply, rules=(RULE, FREE), context=100_000, **limits):
        asked = []

        def ask_columns(model, columns, samplings, stop_id, work):
            asked.extend((c.prompt.text, s.seed) for c, s in zip(columns, samplings, strict=True))
            return [Generation(text=reply(c.prompt.text, s.seed)) for c, s in zip(columns, samplings, strict=True)]

        monkeypatch.setattr(scoring, "ask_columns", ask_columns)
        held = [(Pair("Who?", "I keep the light of Sable Point."), None)] * 10
        session = EvalSession(
            SimpleNamespace(context_tokens=context), "mags", FakeRenderer(), held, [], list(rules),
            EvalBudget(**limits), Sampling(max_new_tokens=50), EvalWork(lambda _: None),
        )  # fmt: skip
        return long_talk.measure_long_talk(session, "en"), asked

    return talk


def test_rules_are_asked_beside_the_talk_and_leave_no_trace_in_it(talking):
    talk, asked = talking(lambda prompt, seed: f"Mags {seed}" if prompt.endswith(RULE.ask) else f"Aye {seed}.")
    assert talk.rules == [RULE.ask], "only a probe with rules can be broken"
    assert [t.said for t in talk.turns] == list(long_talk.SCRIPT["en"])
    assert [len(t.kept) for t in talk.turns] == [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 2]
    assert all(t.replies == ["Aye 0.", "Aye 1."] for t in talk.turns), "each talk has its own random numbers"
    assert all(RULE.ask not in prompt.removesuffix(RULE.ask) for prompt, _ in asked)
    last = [(p, seed) for p, seed in asked if p.endswith(RULE.ask)][-1]
    assert last == ("|".join(f"{said}|Aye 1." for said in long_talk.SCRIPT["en"][:11]) + f"|{RULE.ask}", 1)


def test_circles_other_languages_and_admissions_are_counted_by_turn(talking):
    def reply(prompt, seed):
        if not prompt.endswith(long_talk.SCRIPT["en"][11]):
            return "A fair wind tonight."
        return ("the sea and " * 40) if seed else "今天天气很好，我们去海边走走吧，好不好？"

    talk, _ = talking(reply)
    assert [(t.circles, t.foreign) for t in talk.turns[10:]] == [(0, 0), (1, 1)]
    talk, _ = talking(lambda prompt, seed: "I am an AI." if "afraid" in prompt else "No.")
    assert [t.admissions for t in talk.turns] == [0] * 6 + [2] * 5 + [4]


def test_a_base_for_short_texts_loses_the_oldest_exchanges_and_it_is_said(talking):
    talk, asked = talking(lambda *_: "Aye.", context=250)
    assert talk.turns[0].left_out == 0 < talk.turns[-1].left_out
    assert all(len(prompt) <= 200 for prompt, _ in asked)
    assert "no room for the" in report_html.render_html(made(talk=talk))


def test_without_talks_nothing_is_asked(talking):
    assert talking(lambda *_: "x", talks=0) == (None, [])


def test_the_work_is_counted_before_it_begins():
    session = EvalSession(None, "mags", None, [], [], [RULE] * 12, EvalBudget(), Sampling(max_new_tokens=50), None)
    assert long_talk.count_work(session).total() == 12 * 51, "two talks, and five rules in each: one batch a turn"
    session.limits = EvalBudget(talks=6)
    assert long_talk.count_work(session).total() == (9 + 3 * 2) * 51, "36 columns are two batches"


def talk_of(first: str, last: str) -> LongTalk:
    """first, last: a letter for each answer to a rule at turns 1 and 12; + is kept."""
    kept = {1: [x == "+" for x in first], 12: [x == "+" for x in last]}
    turns = [TalkTurn(said="x", replies=["y"], answers=1, kept=kept.get(n, [])) for n in range(1, 13)]
    return LongTalk(talks=1, rules=["?"] if first else [], turns=turns)


@pytest.mark.parametrize(
    ("first", "last", "kind"),
    [
        ("++++++++++", "+++++-----", "drifts"),  # five lost, none gained: 1 in 32 by chance
        ("++++++++++", "++++++----", "learned"),
        ("+++++++---", "--+++++++-", "learned"),  # two lost, two gained
        ("", "", "learned"),
    ],
)
def test_a_persona_that_wears_off_drifts(first, last, kind):
    report = made(talk=talk_of(first, last))
    found = verdict.decide_verdict(report)
    assert found.kind == kind
    said = f"In a talk of 12 turns it kept {first.count('+')} of {len(first)} rules at turn 1 and {last.count('+')}"
    assert (said in found.said) == (kind == "drifts")
    assert any(said in remark for remark in found.remarks) == (kind == "learned" and bool(first))


def test_the_report_draws_the_talk():
    html = report_html.render_html(made(talk=talk_of("++++", "+++-")))
    assert "A long talk" in html and "rules kept" in html and "Rules kept here: 3 of 4" in html
    assert "rules kept" not in report_html.render_html(made(talk=talk_of("", "")))
