"""What rehearsal has cost and saved, in words, on the run's view and the command line."""

import json

import pytest
from finished_runs import new_run

from persona.judge import rehearsal_gain
from persona.ui.steps.train import run_view

pytest_plugins = "finished_runs"
pytestmark = pytest.mark.usefixtures("home")


def rehearse(run):
    """A finished run of 60 s, a quarter of whose tokens were rehearsed."""
    events = run.path / "events.jsonl"
    plan, *rest = map(json.loads, events.read_text().splitlines())
    plan |= {"tokens": 400, "rehearsal": 9, "rehearsal_tokens": 100}
    answered = [
        {"time": plan["time"], "event": "rehearsal", "answered": n, "seconds": s} for n, s in ((4, 8.0), (5, 12.0))
    ]
    events.write_text("".join(json.dumps(e) + "\n" for e in (*answered, plan, *rest)))
    return run


def measure(run, rise: float) -> None:
    (run.path / "report.json").write_text(json.dumps({"drift": {"rise": {"value": rise}}}))


def describe(run) -> str:
    return str(rehearsal_gain.describe_rehearsal(run, run.progress()))


def test_what_rehearsal_has_cost_and_saved(mags):
    run = rehearse(new_run(mags, rehearsal_fraction=0.2))
    cost = "Rehearsal: 9 general rows an epoch took about 15 s of the training steps, and the base's answers 20 s."
    assert describe(run) == f"{cost} Measure it in step 4, tab “Did it learn?”, to see how much it forgot."
    measure(run, 0.1)
    lost = f"{cost} On general questions, the NLL of right answers changed by +0.10 nats per token (less is better)."
    assert describe(run) == lost
    measure(new_run(mags, learning_rate=1e-3), 2.0)  # another recipe: no comparison
    assert describe(run) == lost
    without = new_run(mags)
    assert describe(run) == lost, "not measured"
    measure(without, 0.8)
    assert describe(run) == f"{lost} Without rehearsal ({without.name}) by +0.80."
    assert lost in run_view.run_status_html(run, run.progress()).replace("&#x27;", "'")
    assert describe(without) == "" and 'data-testid="rehearsal"' not in run_view.run_status_html(
        without, without.progress()
    )


def test_a_damaged_report_says_nothing(mags):
    run = rehearse(new_run(mags, rehearsal_fraction=0.2))
    for text in ("{", "[]", '{"drift": null}', '{"drift": {"rise": {"value": "x"}}}'):
        (run.path / "report.json").write_text(text)
        assert "Measure it in step 4" in describe(run)
