"""What the page says of a run's result: praise needs enough held-out pairs, and an interval on one side of zero."""

import pytest
from cases import check_each

from persona.judge import training_gain
from persona.store.persona_folder import create_persona_at, default_card, free_path
from persona.train.progress import EventReplay, RunProgress
from persona.train.run_folder import Run
from persona.ui import navigation
from persona.ui.navigation import TRAIN, WRITE, PersonaState
from persona.ui.steps.train import run_view
from persona.ui.steps.write.pairs_status import pairs_status_html

pytest_plugins = "training"


def replay(*events: dict) -> RunProgress:
    made = EventReplay()
    for event in events:
        made.add(event)
    return made.progress()


def trained(
    before: list[float], after: list[float], status: str = "done", steps: int = 20, last: int = 20
) -> RunProgress:
    """A run measured on pairs of 10 learned tokens each. before, after: nats of each pair."""
    tokens = 10 * len(before)
    return replay(
        {"event": "plan", "steps": steps, "held_out": len(before)},
        {"event": "eval", "step": 0, "nll": sum(before) / tokens, "rows": before},
        {"event": "step", "step": last, "seconds": 60.0, "loss": 2.0},
        {"event": "eval", "step": last, "nll": sum(after) / tokens, "rows": after},
        {"event": "chosen", "step": last},
        {"event": "state", "state": status},
    )


PRAISED = ([40.0, 31, 49, 41, 36, 44], [44.0] * 30)


@pytest.mark.parametrize("before, after, words", [
    ([50.0], [44.0], "Too few to tell whether it learned: it was measured on a single held-out pair"),
    ([50.0] * 4, [40.0] * 4, "Too few to tell whether it learned: it was measured on 4 held-out pairs"),
    ([50.0, 40, 60, 50, 45, 55], [60.0, 20, 70, 30, 60, 40], "on 6 held-out pairs a token became between"),  # a gain on average, and by chance
    ([50.0, 40, 60, 50, 45, 55], [40.0, 31, 49, 41, 36, 44], "It learned: in the held-out replies"),
    ([50.0, 40, 60, 50, 45, 55], [40.0, 31, 49, 41, 36, 44], "Measured on 6 held-out pairs only"),
    ([50.0] * 30, [44.0] * 30, "each token is on average 1.8 times as likely"),
    ([50.0] * 30, [60.0] * 10 + [44.0] * 20, "Nothing measurable was learned"),
])  # fmt: skip
def test_a_result_is_praised_only_where_it_was_earned(before, after, words):
    said = run_view.training_verdict_html(trained(before, after))
    assert words in said and ("It learned" in said) == (after in PRAISED)


def test_the_interval_is_that_of_the_chosen_step():
    gain = training_gain.estimate_gain(trained([50.0] * 30, [44.0] * 30))
    assert gain.value == pytest.approx(0.6) == gain.low == gain.high
    assert training_gain.estimate_gain(replay({"event": "eval", "step": 0, "nll": 5.0})) is None
    assert training_gain.estimate_gain(trained([float("nan")] * 30, [44.0] * 30)) is None


def test_a_stopped_run_says_so_and_offers_to_resume(tmp_path):
    run = trained([50.0] * 30, [44.0] * 30, status="stopped", steps=60, last=14)
    said = navigation.next_hint(TRAIN, PersonaState(True, 314, run=run, adapter=True, run_has_adapter=True))
    assert "stopped at step 14 of 60" in said and "Resume" in said and "done" not in said
    assert not navigation.is_step_done(TRAIN, PersonaState(True, 314, run=run, adapter=True))
    assert "Stopped at step 14 of 60. Resume goes on from there." in run_view.run_status_html(Run(tmp_path), run)


def test_a_run_that_ended_early_says_why(tmp_path):
    early = trained([50.0] * 30, [44.0] * 30, status="done", steps=60, last=40)
    said = run_view.run_status_html(Run(tmp_path), early)
    assert "Done at step 40 of 60: the held-out pairs were getting no better." in said and "width:100" in said
    whole = run_view.run_status_html(Run(tmp_path), trained([50.0] * 30, [44.0] * 30, status="done", steps=60, last=60))
    assert "getting no better" not in whole


def test_why_a_step_is_the_adapter_though_another_has_the_lowest_loss():
    events = [{"event": "eval", "step": 10, "nll": 3.9}, {"event": "eval", "step": 20, "nll": 4.0}]

    def said(chosen: int, is_last_by_settings: bool = False) -> str:
        shown = replay(*events, {"event": "step", "step": 20, "seconds": 1}, {"event": "chosen", "step": chosen})
        return run_view.chosen_step_text(shown, is_last_by_settings)

    assert "Step 10 has a lower held-out loss" in said(20) and "that of step 20" in said(20)
    assert "less than chance" in said(20)
    kept = said(20, is_last_by_settings=True)
    assert "(3.90; 4.00 at the end). The last one is kept, as the settings say" in kept and "chance" not in kept
    assert said(10) == said(10, is_last_by_settings=True) == "The adapter is that of step 10."


def test_the_settings_are_named_only_where_they_chose_the_last_step(make):
    run = make(load_best_model_at_end=False)

    def ended(steps: int) -> RunProgress:
        last = [{"event": "step", "step": 20, "seconds": 1}, {"event": "chosen", "step": 20}]
        return replay({"event": "plan", "steps": steps}, *last)

    assert run_view._is_last_by_settings(run, ended(20))
    assert not run_view._is_last_by_settings(run, ended(60)), "stopped early: the best one is taken"
    assert not run_view._is_last_by_settings(make(load_best_model_at_end=True), ended(20))


def test_too_few_pairs_are_said_before_the_start(home):
    cases = [(6, "too few"), (49, "too few"), (60, ""), (314, "")]

    def check(pairs, words):
        state = PersonaState(open=True, pairs=pairs)
        assert ("too few for a persona" in navigation.next_hint(WRITE, state)) == bool(words)
        assert navigation.is_step_done(WRITE, state) == (not words)

    check_each(cases, check)
    persona = create_persona_at(free_path("ada"), default_card("Ada"))
    assert "Too few to train on" not in pairs_status_html(persona.scan()[0])
