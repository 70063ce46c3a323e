"""How a run can fail: before it starts, on numbers that are none, on a full disk; what was good before is kept."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from training import PAIRS, events

from persona import errors
from persona.errors import AdapterError, InputError, RunError
from persona.models import adapter, loss
from persona.store.pairs import Pair
from persona.train import checkpoints
from persona.train import run as train_run
from persona.train.run_folder import Run
from persona.train.trainer import Trainer

pytest_plugins = "training"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]  # a trainer is built for nearly every test


def test_a_loss_that_is_not_finite_ends_the_run(make, monkeypatch):
    run, real = make(max_steps=6), loss.nll_sum

    def diverging(*args):
        total, learned = real(*args)
        return (total * float("nan") if len(events(run, "step")) == 2 else total), learned

    monkeypatch.setattr("persona.train.trainer.nll_sum", diverging)
    with pytest.raises(RunError, match=r"infinite at step 3\. Lower learning_rate \(now 0\.01\) and start again"):
        train_run.train_run(run)
    assert_failed_and_clean(run, last=2)
    best = min(e["nll"] for e in events(run, "eval") if e["step"])
    assert run.progress().result["adapter_nll"] == pytest.approx(best, rel=1e-6)


def test_a_gradient_that_is_not_finite_ends_the_run(make, monkeypatch):
    """The loss was still a number; the weights after this step are none."""
    run, real = make(max_steps=2, eval_fraction=0), loss.nll_sum

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    def diverging(*args):
        total, learned = real(*args)
        return (Broken.apply(total) if len(events(run, "step")) == 1 else total), learned

    monkeypatch.setattr("persona.train.trainer.nll_sum", diverging)
    with pytest.raises(RunError, match=r"at step 2\. Lower learning_rate"):
        train_run.train_run(run)
    assert_failed_and_clean(run, last=1)


def test_a_run_that_diverges_at_once_has_nothing_to_keep(make, monkeypatch):
    run, real = make(max_steps=3), loss.nll_sum
    monkeypatch.setattr("persona.train.trainer.nll_sum", lambda *args: (real(*args)[0] * float("nan"), 1))
    with pytest.raises(RunError, match=r"at step 1\. Lower learning_rate \(now 0\.01\) and start again\.$"):
        train_run.train_run(run)
    assert not run.adapter.exists() and run.progress().result == {}


def assert_failed_and_clean(run: Run, last: int):
    """What was good before is kept, as a checkpoint and as an adapter."""
    seen = run.progress()
    assert seen.status == "failed" and "Lower learning_rate" in seen.message
    assert "the adapter holds the best" in seen.message and seen.result["status"] == "failed"
    assert adapter.read_adapter(run.adapter), "it holds finite numbers alone"
    newest = checkpoints.find_last_checkpoint(run.checkpoints)
    assert newest.name == f"checkpoint-{last}"
    for file in run.path.rglob("*.safetensors"):
        assert all(w.isfinite().all() for w in load_file(file).values()), file
    kept = load_file(run.adapter / "adapter_model.safetensors")
    found = [load_file(f) for f in run.checkpoints.rglob("*.safetensors")]
    assert any(all(torch.equal(kept[n], c[n]) for n in kept) for c in found)


NO_STOP = ("{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
           "{% endgeneration %}{% else %}{{ m['content'] }}: {% endif %}{% endfor %}")  # fmt: skip
NEVER_START = {
    "too-long": ([*PAIRS[:3], Pair("a", "b" * 100)], {"max_length": 64}, r"pair 4: the reply would be cut: .* is 64"),
    "control-token": ([*PAIRS[:2], Pair("a", "b<end_of_turn>c")], {}, r"pair 3: 'output' holds <end_of_turn>"),
    "no-stop-token": (PAIRS, {"template": "own.jinja"}, r"Template own: a reply ends with .* never learn to stop"),
    "unknown-template": (PAIRS, {"template": "nope"}, r"'nope': no such template"),
    "unknown-base": (PAIRS, {"base": "/nowhere"}, r"'/nowhere': no such folder"),
    "unknown-layer": (PAIRS, {"target_modules": "nope"}, r"this base has no layer 'nope'\. It has q_proj, k_proj"),
}


@pytest.mark.parametrize("pairs, changes, why", NEVER_START.values(), ids=NEVER_START)
def test_what_cannot_be_right_never_starts(make, tmp_path, pairs, changes, why):
    (tmp_path / "own.jinja").write_text(NO_STOP)
    if changes.get("template") == "own.jinja":
        changes = {"template": str(tmp_path / "own.jinja")}
    run = make(pairs, **changes)
    with pytest.raises(Exception, match=why) as e:
        train_run.train_run(run)
    assert isinstance(e.value, errors.PersonaError)
    assert run.progress().status == "failed" and run.progress().message == str(e.value)
    assert not run.checkpoints.exists() and not run.adapter.exists() and events(run, "step") == []


FULL = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_when_the_adapter_is_written(make, monkeypatch, error):
    from peft import PeftModel

    run, real = make(max_steps=1, eval_fraction=0), PeftModel.save_pretrained

    def full(self, folder, **options):
        if Path(folder).name == ".adapter.new":
            raise error
        return real(self, folder, **options)

    monkeypatch.setattr(PeftModel, "save_pretrained", full)
    with pytest.raises(AdapterError, match="No space left on device.*Free some space and resume"):
        train_run.train_run(run)
    assert run.progress().status == "failed" and "Free some space and resume" in run.progress().message
    assert not run.adapter.exists() and checkpoints.find_last_checkpoint(run.checkpoints), (
        "what was trained can still be had"
    )
    monkeypatch.undo()
    assert train_run.train_run(run)["status"] == "done" and adapter.read_adapter(run.adapter)


@pytest.mark.parametrize("error", [*FULL.values(), RuntimeError("PytorchStreamWriter failed writing file data/0")])
def test_a_full_disk_when_a_checkpoint_is_written(make, monkeypatch, error):
    run, real = make(max_steps=3), Trainer._save

    def full(self, output_dir=None, state_dict=None):
        if self.state.global_step == 2:
            raise error
        return real(self, output_dir, state_dict)

    monkeypatch.setattr(Trainer, "_save", full)
    with pytest.raises(type(error)):
        train_run.train_run(run)
    assert run.progress().status == "failed"
    assert run.progress().message.startswith("The disk is full. Free some space, then resume")
    assert checkpoints.find_last_checkpoint(run.checkpoints).name == "checkpoint-1"


@pytest.mark.parametrize(
    "error, why",
    [
        (MemoryError(), "Out of memory. Nothing smaller is left in the settings: choose a smaller base"),
        (torch.OutOfMemoryError("CUDA"), "Out of memory. Nothing smaller"),
        (InputError("pair 3: no."), "pair 3: no."),
        (KeyError("x"), "KeyError: 'x'. The details are in the run's log.txt"),
    ],
)
def test_a_failure_is_explained(tmp_path, error, why):
    assert train_run.explain_error(error, tmp_path).startswith(why)
