"""What a verdict offers as a button, and where each leads."""

import os
import time
from types import SimpleNamespace

import pytest
from finished_runs import new_run
from test_report_html import interval, made

from persona.judge import evaluate
from persona.train.config import make_config
from persona.ui import next_steps, voice_picker
from persona.ui.app import build_app
from persona.ui.navigation import TRAIN
from persona.ui.steps import train
from persona.ui.steps.compare import judge_tab

pytest_plugins = "finished_runs"
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(mags, monkeypatch):
    run = new_run(mags, epochs=5)
    run.adapter.mkdir()
    monkeypatch.setattr(voice_picker, "find_adapter", lambda _: SimpleNamespace(path=run.adapter))
    return run


def offered(run) -> list[str]:
    buttons = judge_tab.offer_next_steps(f"run/mags/{run.name}")
    return [step for step, button in zip(next_steps.STEPS, buttons, strict=True) if button.visible]


def test_the_buttons_are_those_of_the_saved_verdict(run):
    assert offered(run) == []
    evaluate.save_report(made(), run)
    assert offered(run) == []
    forgot = made().drift.model_copy(update={"rise": interval(1.2, 0.1)})
    evaluate.save_report(made(drift=forgot), run)
    assert offered(run) == ["rehearsal"]
    assert judge_tab.offer_next_steps("")[0].visible is False, "no adapter"
    assert judge_tab.offer_next_steps(f"run/mags/{run.name}@4")[2].visible is False, "of a snapshot nothing is saved"


def test_a_report_is_of_the_adapter_until_another_step_is_chosen_whatever_its_card_says(run, monkeypatch):
    """A card that is renewed, as before sharing, changes the adapter's folder and nothing that was measured."""
    monkeypatch.setattr(judge_tab, "_report_html", lambda *_: "")
    monkeypatch.setattr(judge_tab, "_report_file", lambda *_: "")
    run.log("chosen", step=6, time=time.time() - 60)
    report = evaluate.save_report(made(missing=["probes"]), run).with_name("report.json")
    later = report.stat().st_mtime + 60
    (run.adapter / "README.md").touch()
    os.utime(run.adapter, (later, later))
    adapter = SimpleNamespace(path=run.adapter)
    monkeypatch.setattr(evaluate, "run_of", lambda _: run)
    assert judge_tab.last_report(f"run/mags/{run.name}")[0] == ""
    assert judge_tab._stopped_report(adapter).missing == ["probes"], "it goes on from there"
    run.log("chosen", step=4, time=later)
    assert "before step 4 became" in judge_tab.last_report(f"run/mags/{run.name}")[0]
    assert judge_tab._stopped_report(adapter) is None


def test_a_button_sets_the_setting_and_opens_the_step(run):
    assert train.propose_rehearsal()[1:] == [TRAIN, 0.2]
    assert train.propose_epochs(f"run/mags/{run.name}")[1:] == [TRAIN, 10.0]
    assert next_steps.double_epochs(make_config(epochs=600)) == 1000


def test_each_button_is_on_the_page_and_leads_to_its_step():
    demo = build_app()
    ids = {c["props"].get("elem_id"): c["id"] for c in demo.config["components"]}
    targets = {"interview": None, "epochs": "set-epochs", "rehearsal": "set-rehearsal-fraction", "base": None}
    for step, setting in targets.items():
        [event] = [d for d in demo.config["dependencies"] if (ids[f"next-{step}"], "click") in map(tuple, d["targets"])]
        assert ids["steps"] in event["outputs"] and (setting is None or ids[setting] in event["outputs"])
