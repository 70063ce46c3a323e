"""Out of memory: what to lower, in what order, as an event, a sentence and one call."""

import os
import signal
import subprocess
from functools import partial

import pytest
import torch
from cases import check_each

from persona.errors import BaseError, RunError
from persona.models import hardware, loss
from persona.models.base import Base, load_base_model
from persona.store.persona_folder import Persona, open_persona
from persona.train import launcher, oom_recovery
from persona.train import run as train_run
from persona.train.config import make_config
from persona.train.run_folder import Run, list_runs, record_worker

pytest_plugins = "training"

HOST, GPU = MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def make(make, plain_cpu):
    return partial(make, eval_fraction=0.2)  # 13 rows: an epoch's last batch has one row


def persona_of(run: Run) -> Persona:
    return open_persona(run.path.parents[1])


def test_what_torch_says_when_a_cpu_has_no_memory_is_known():
    with pytest.raises(RuntimeError) as e:
        torch.empty(2**50)
    assert type(e.value) is RuntimeError and hardware.is_out_of_memory(e.value)
    assert hardware.is_out_of_memory(HOST) and hardware.is_out_of_memory(GPU)
    assert not hardware.is_out_of_memory(RuntimeError("shape")) and not hardware.is_out_of_memory(KeyError("x"))


ONE = {"batch_size": 1, "gradient_accumulation_steps": 8}
STEPS = [
    ({}, HOST, {"batch_size": 4, "gradient_accumulation_steps": 2}),
    ({"batch_size": 9, "gradient_accumulation_steps": 2}, HOST, {"batch_size": 3, "gradient_accumulation_steps": 6}),
    ({"batch_size": 7}, GPU, {"batch_size": 1, "gradient_accumulation_steps": 7}),
    (ONE, HOST, {"gradient_checkpointing": True}),
    ({"batch_size": 2, "gradient_accumulation_steps": 1024}, HOST, {"gradient_checkpointing": True}),
    ({**ONE, "gradient_checkpointing": True}, HOST, {}),
    ({**ONE, "gradient_checkpointing": True}, GPU, {"quantization": "nf4"}),
    ({**ONE, "gradient_checkpointing": True, "quantization": "int8"}, GPU, {"quantization": "nf4"}),
    ({**ONE, "gradient_checkpointing": True, "quantization": "nf4"}, GPU, {}),
    ({**ONE, "gradient_checkpointing": True, "init_lora_weights": "pissa"}, GPU, {}),
    ({}, KeyError("x"), {}),
]


def test_one_step_at_a_time():
    def check(settings, error, want):
        config = make_config(**settings)
        assert oom_recovery.propose_changes(config, error) == want
        make_config(**{**settings, **want})  # which checks the values
        assert oom_recovery.can_resume_with(want) == ("quantization" not in want)

    check_each(STEPS, check)


@pytest.mark.parametrize(
    "changed, button",
    [
        ({"batch_size": 4, "gradient_accumulation_steps": 2}, "Lower batch size to 4 and resume"),
        ({"gradient_checkpointing": True}, "Turn on gradient checkpointing and resume"),
        ({"quantization": "nf4"}, "Start again with the base in 4 bits (quantization nf4)"),
        ({}, ""),
    ],
)
def test_the_words_of_the_button(changed, button):
    assert oom_recovery.describe_changes(changed) == button
    assert "choose a smaller base" in oom_recovery.make_memory_advice(
        {}
    ) and "gradient_checkpointing=true" in oom_recovery.make_memory_advice({"gradient_checkpointing": True})


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        HOST,
        *(
            pytest.param(e, marks=pytest.mark.release)
            for e in (GPU, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
        ),
    ],
)
def test_a_run_without_memory_goes_on_with_less_as_if_nothing_had_been(make, monkeypatch, error):
    """Rows, order and steps stay the same: the curve is that of the run that had memory enough."""
    whole = make()
    expected = train_run.train_run(whole)
    run = make()
    real = loss.nll_sum

    def poor(model, ids, *more):
        if len(run.progress().train) == 2 and len(ids) > 2:
            raise HOST
        return real(model, ids, *more)

    monkeypatch.setattr("persona.train.trainer.nll_sum", poor)
    with pytest.raises(MemoryError):
        train_run.train_run(run)
    seen = run.progress()
    assert seen.status == "failed"
    assert seen.message == (
        "Out of memory. Lower batch size to 2 and resume (batch_size=2, gradient_accumulation_steps=2)."
    )
    assert seen.smaller_settings == {"batch_size": 2, "gradient_accumulation_steps": 2}
    monkeypatch.setattr(launcher, "start_run", train_run.train_run)
    assert launcher.retry_smaller(persona_of(run), run) == run
    monkeypatch.undo()
    assert (run.config().batch_size, run.config().gradient_accumulation_steps) == (2, 2)
    seen = run.progress()
    assert (seen.status, seen.smaller_settings, seen.step) == ("done", {}, expected["steps"])
    for curve in ("train", "held_out"):
        got, want = (dict(getattr(r.progress(), curve)) for r in (run, whole))
        assert got == pytest.approx(want, rel=1e-4)


def test_another_training_is_a_new_run(make, monkeypatch):
    run = make()
    run.log("state", state="failed", message="Out of memory.", remedy={"quantization": "nf4"})
    monkeypatch.setattr(launcher, "start_run", lambda r: None)
    other = launcher.retry_smaller(persona_of(run), run)
    assert other != run and {r.name for r in list_runs(persona_of(run))} == {run.name, other.name}
    assert (run.config().quantization, other.config().quantization) == ("none", "nf4")


def test_without_a_proposal_nothing_is_started(make):
    run = make()
    run.log("state", state="failed", message="No.")
    with pytest.raises(RunError, match="proposes no smaller settings"):
        launcher.retry_smaller(persona_of(run), run)


@pytest.mark.parametrize("how, status", [(signal.SIGKILL, "killed"), (signal.SIGTERM, "ended")])
def test_a_training_that_the_system_killed_says_so(make, how, status):
    """What Linux does to a process when no memory is left: signal 9, and no word from the process itself."""
    run = make()
    run.log("state", state="running")
    child = subprocess.Popen(["sleep", "60"])
    record_worker(run, child.pid)
    launcher._children[run.path] = child
    os.kill(child.pid, how)
    child.wait()
    launcher.reap_children()
    assert run.path not in launcher._children
    seen = run.progress()
    assert seen.status == "interrupted"
    if status == "killed":
        assert "killed the training (signal 9), as it does when memory runs out. Lower batch size to 2" in seen.message
        assert seen.smaller_settings == {"batch_size": 2, "gradient_accumulation_steps": 2}
    else:
        assert "exited unexpectedly" in seen.message and not seen.smaller_settings


def test_a_run_that_was_done_before_it_was_killed_stays_done(make):
    run = make()
    child = subprocess.Popen(["sleep", "60"])
    record_worker(run, child.pid)
    run.log("state", state="done")
    launcher._children[run.path] = child
    child.kill()
    child.wait()
    launcher.reap_children()
    assert run.progress().status == "done" and not run.progress().smaller_settings


@pytest.mark.parametrize("error", [GPU, MemoryError()])
def test_no_memory_for_the_base_is_no_broken_base(tiny_gemma, monkeypatch, error):
    import transformers

    def full(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(type(error)):
        load_base_model(Base("x", tiny_gemma), "float32")
    error = RuntimeError("shape")
    with pytest.raises(BaseError, match=r"x: cannot be opened \(RuntimeError: shape\)"):
        load_base_model(Base("x", tiny_gemma), "float32")
