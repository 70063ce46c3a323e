"""Settings that change before a run is resumed: which may, what they do from there, and what run.json says of it."""

import pytest
import torch
from training import events

from persona.errors import InputError, RunError
from persona.models import malloc
from persona.train import launcher
from persona.train import run as train_run
from persona.train.run_folder import Run

pytest_plugins = "training"


def test_what_cannot_change_is_refused_by_name(make):
    run = make(max_steps=6)
    before = run.manifest()
    cases = [
        ({"r": 8}, "r=8: cannot change once a run has begun"),
        ({"seed": 1, "base": "x", "epochs": 9}, "base=x, seed=1: cannot change"),
        ({"max_grad_norm": 2}, "max_grad_norm=2.0: cannot change"),
        ({"batch_size": 2}, "2 rows a step, where this run has 4. Change both"),
        ({"num_train_epochs": "many"}, "num_train_epochs='many': "),
        ({"report_to": "swanlab"}, "report_to=swanlab: its package is not installed"),
        ({"epoch": 1}, "epoch=1: no such setting (did you mean epochs?)"),
    ]
    for settings, why in cases:
        with pytest.raises(InputError) as e:
            launcher.change_run(run, settings)
        assert why in str(e.value), e.value
    run.log("state", state="done")
    with pytest.raises(RunError, match="is done; there is nothing to resume"):
        launcher.change_run(run, {"max_steps": 9})
    assert run.manifest() == before


def test_what_changes_is_recorded_and_said(make):
    run = make(max_steps=6)
    run.update_manifest(expected_seconds=100.0)
    assert launcher.change_run(run, {"max_steps": 6, "lora_r": 32}) == [], "as they are"
    assert "changes" not in run.manifest()
    notes = launcher.change_run(run, {"max_steps": "9", "eval_steps": 4, "per_device_train_batch_size": 2,
                                      "gradient_accumulation_steps": 2})  # fmt: skip
    assert "max_steps: 6 → 9" in notes[0] and "from step 0" in notes[0]
    assert "9 steps in all, instead of 6: the cosine schedule" in notes[1] and len(notes) == 2
    config, (change,) = run.config(), run.manifest()["changes"]
    assert (config.max_steps, config.eval_steps, config.batch_size) == (9, 4, 2)
    assert change["step"] == 0 and change["settings"]["max_steps"] == [6, 9]
    assert "seconds" not in run.expected(), "what was expected was of other steps"
    assert launcher.change_run(run, {"epochs": 7})[1:] == ["epochs changes nothing: max_steps=9 counts."]
    assert len(run.manifest()["changes"]) == 2


def stop_at(step: int, run: Run, monkeypatch) -> None:
    real = train_run.RunCallback.on_step_end

    def stop(self, args, state, control, **options):
        self.stop_requested = self.stop_requested or state.global_step == step
        return real(self, args, state, control, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train_run.RunCallback, "on_step_end", stop)
        assert train_run.train_run(run)["status"] == "stopped"
    (run.path / "worker.json").unlink()  # this very process


@pytest.mark.slow
def test_a_run_goes_on_with_what_was_changed(make, plain_cpu, monkeypatch):
    """More steps, a lower rate on the new schedule, other evaluations and checkpoints, from the checkpoint on."""
    torch.set_num_threads(1)
    monkeypatch.setattr(malloc, "disable_malloc_trim", lambda: None)
    run = make(max_steps=6, lr_scheduler_type="linear", warmup=0, eval_steps=2, save_steps=3)
    stop_at(4, run, monkeypatch)
    rates = [e["learning_rate"] for e in events(run, "step")]
    assert rates == pytest.approx([1e-2 * (1 - n / 6) for n in range(4)])
    launcher.change_run(run, {"max_steps": 10, "learning_rate": 1e-3, "eval_steps": 3, "diary_probes": 1})
    result = train_run.train_run(run)
    assert (result["status"], result["steps"]) == ("done", 10)
    later = [e["learning_rate"] for e in events(run, "step")][4:]
    assert later == pytest.approx([1e-3 * (1 - n / 10) for n in range(4, 10)])
    assert [e["step"] for e in events(run, "eval")] == [0, 2, 4, 6, 9, 10]
    assert run.manifest()["changes"][0]["step"] == 4


@pytest.mark.slow
def test_a_run_that_is_to_end_earlier_ends(make, plain_cpu, monkeypatch):
    monkeypatch.setattr(malloc, "disable_malloc_trim", lambda: None)
    run = make(max_steps=6)
    stop_at(4, run, monkeypatch)
    assert "it ends at once" in launcher.change_run(run, {"max_steps": 3})[-1]
    result = train_run.train_run(run)
    assert (result["status"], result["steps"]) == ("done", 4)
