"""One run, from rows to adapter: what it changes, what it keeps, and every way it can end."""

import json
import math
import os
import re
import signal

import pytest
import torch
from tiny_models import load
from training import CARD, PAIRS, events, lora
from waiting import wait_for

from persona.models import adapter, attach, loss
from persona.models.loss import mean_nll
from persona.template.chat_template import read_template
from persona.train import checkpoints, launcher, run_folder, snapshots
from persona.train import run as train_run
from persona.train.collator import Collator
from persona.train.trainer import Trainer

pytest_plugins = "training"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]  # a trainer is built for nearly every test


RESULT = {"run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll",
          "adapter_nll", "peak_memory_bytes", "trainable_parameters", "total_parameters"}  # fmt: skip


# ---- what is learned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_lora_tensor_changes_and_no_base_tensor_does(make, seen, tiny_gemma, dtype):
    train_run.train_run(make(eval_fraction=0, dtype=dtype, max_steps=4))
    model = seen.trainer.model
    after = lora(model)
    assert len(after) == 2 * 2 * 7, "A and B of seven matrices in two layers"
    assert [n for n in after if torch.equal(after[n], seen.before[n])] == []
    stored = load(tiny_gemma, dtype).state_dict()
    inside = model.get_base_model().state_dict()
    inner = {n.replace(".base_layer", ""): w for n, w in inside.items() if "lora_" not in n}
    assert inner.keys() == stored.keys()
    assert [n for n in stored if not torch.equal(inner[n], stored[n])] == []


def test_a_run_from_start_to_end(make, tiny_gemma):
    run = make()
    result = train_run.train_run(run)
    assert set(result) == RESULT
    assert result["status"] == "done" and result["steps"] == 2 * 3 and result["run"] == str(run.path)
    assert result["adapter_nll"] < result["base_nll"] - 0.1
    assert all(math.isfinite(result[k]) and result[k] > 0 for k in RESULT - {"run", "adapter", "status"})
    assert result["learned_tokens_per_s"] < result["tokens_per_s"]
    seen = run.progress()
    assert (seen.status, seen.step, seen.steps, seen.message) == ("done", 6, 6, "")
    assert {k: seen.result[k] for k in RESULT} == result and seen.base_nll == result["base_nll"]
    assert [s for s, _ in seen.train] == [1, 2, 3, 4, 5, 6] and [s for s, _ in seen.held_out] == [0, 1, 2, 3, 4, 5, 6]
    assert seen.plan["rows"] + seen.plan["held_out"] == len(PAIRS) and seen.plan["held_out"] == 4
    assert not run.checkpoints.exists(), "a finished run keeps its adapter alone"
    documented = re.findall(r"^    ([a-z.]+)/?  ", run_folder.__doc__, re.MULTILINE)
    assert {f.name for f in run.path.iterdir()} <= set(documented)
    opened = adapter.read_adapter(run.adapter)
    assert opened.card == CARD and opened.template == read_template("gemma-base")
    assert opened.facts["figures"]["steps"] == 6 and opened.facts["config"]["lora_r"] == 32
    for file in run.adapter.iterdir():
        text = file.read_bytes().decode("utf-8", "replace")
        assert not [p for p in (tiny_gemma, run.path) if str(p) in text], file.name


def test_tokens_are_counted_without_padding(make, seen):
    """Every row of every epoch once."""
    run = make(eval_fraction=0)
    result = train_run.train_run(run)
    rows = seen.prepared.train
    assert len(rows) == 16 and seen.trainer.clock.tokens == 2 * sum(len(e.input_ids) for e in rows)
    assert seen.trainer.clock.learned == 2 * sum(e.learned for e in rows)
    assert result["seconds"] == pytest.approx(seen.trainer.clock.seconds, abs=0.01)


def test_the_chosen_moment_is_written_and_not_the_last(make, seen, tiny_gemma, monkeypatch):
    """The figure is that of the file, on a fresh base. Which one is chosen: test_snapshots.py."""
    monkeypatch.setattr(snapshots, "choose_best_snapshot", lambda rows, tokens: sorted(rows)[2])
    run = make(learning_rate=0.05, max_steps=8, load_best_model_at_end=True)
    result = train_run.train_run(run)
    nlls = [e["nll"] for e in events(run, "eval") if e["step"]]
    want = nlls[2]
    assert len(nlls) == 8 and abs(nlls[-1] - want) > 0.01, "they must differ, or this test sees nothing"
    assert result["adapter_nll"] == want and run.progress().chosen == 3
    opened = attach.attach_adapter(load(tiny_gemma), adapter.read_adapter(run.adapter), "x")
    collate = Collator(seen.prepared.renderer.tokenizer.pad_token_id)
    assert mean_nll(opened, seen.prepared.held_out, collate) == pytest.approx(want, rel=1e-4)
    assert mean_nll(load(tiny_gemma), seen.prepared.held_out, collate) == pytest.approx(result["base_nll"], rel=1e-4)


def test_without_held_out_rows_it_trains_and_measures_nothing(make):
    run = make(eval_fraction=0)
    result = train_run.train_run(run)
    assert set(result) == RESULT and result["status"] == "done"
    assert (result["base_nll"], result["adapter_nll"]) == (None, None)
    assert events(run, "eval") == [] and adapter.read_adapter(run.adapter)


def test_accumulated_batches_are_one_batch(make):
    """2 × 4 rows weigh each token as 8 rows do, though the rows differ in length."""
    first = {}
    for name, size, steps in (("whole", 8, 1), ("parts", 2, 4)):
        run = make(PAIRS[:9], eval_fraction=0.1, batch_size=size, gradient_accumulation_steps=steps, max_steps=3)
        train_run.train_run(run)
        assert len([r for r in run.rows() if not r.held_out]) == 8
        first[name] = [(e["loss"], e["grad_norm"]) for e in events(run, "step")]
    assert len(first["whole"]) == 3
    for whole, parts in zip(first["whole"], first["parts"], strict=True):
        assert parts == pytest.approx(whole, rel=2e-3)


def test_the_first_loss_is_that_of_the_base(make, seen):
    """An untrained LoRA changes nothing: mean nats per learned token, as in the evaluation."""
    run = make(PAIRS[:9], eval_fraction=0.1, batch_size=8, max_steps=1)
    train_run.train_run(run)
    want = mean_nll(load(seen.prepared.base.path), seen.prepared.train, seen.trainer.data_collator)
    assert events(run, "step")[0]["loss"] == pytest.approx(want, rel=1e-3)


def test_early_stopping_ends_early(make):
    run = make(learning_rate=0.4, max_steps=8, early_stopping_patience=1)
    result = train_run.train_run(run)
    nlls = [e["nll"] for e in events(run, "eval")][1:]
    assert result["steps"] < 8 and result["status"] == "done" and run.progress().status == "done"
    assert nlls[-1] >= min(nlls[:-1]) and result["adapter_nll"] == pytest.approx(min(nlls), rel=1e-6)


def test_the_last_step_is_kept_where_the_best_is_not_asked_for(make, monkeypatch):
    monkeypatch.setattr(snapshots, "choose_best_snapshot", lambda rows, tokens: sorted(rows)[2])
    run = make(learning_rate=0.05, max_steps=5, load_best_model_at_end=False)
    result = train_run.train_run(run)
    nlls = {e["step"]: e["nll"] for e in events(run, "eval")}
    assert run.progress().chosen == 5 and nlls[5] != nlls[3]
    assert result["adapter_nll"] == pytest.approx(nlls[5], rel=1e-6)


def saved_at(monkeypatch) -> list[int]:
    """The steps of which a checkpoint is written, as they come."""
    steps, real = [], Trainer._save_checkpoint
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda t, *a: steps.append(t.state.global_step) or real(t, *a))
    return steps


@pytest.mark.parametrize("every, want", [(0, [3, 6, 7]), (2, [2, 4, 6, 7]), (5, [5, 7])])
def test_checkpoints_and_evaluations_each_keep_their_own_steps(make, monkeypatch, every, want):
    steps = saved_at(monkeypatch)
    monkeypatch.setattr(train_run, "count_steps", lambda *_: (7, 3))
    run = make(max_steps=7, save_steps=every)
    train_run.train_run(run)
    assert steps == want and snapshots.list_snapshot_steps(run) == [3, 6, 7]
    assert [e["step"] for e in events(run, "eval")] == [0, 3, 6, 7]


@pytest.mark.parametrize("every, want", [(0, [1, 2, 3, 4, 5]), (2, [2, 4, 5])])
def test_checkpoints_without_held_out_rows(make, monkeypatch, every, want):
    steps = saved_at(monkeypatch)
    train_run.train_run(make(max_steps=5, save_steps=every, eval_fraction=0))
    assert steps == want


def test_a_run_goes_on_from_a_checkpoint_between_evaluations(make, monkeypatch):
    monkeypatch.setattr(train_run, "count_steps", lambda *_: (6, 3))
    runs, real = [make(max_steps=6, save_steps=2) for _ in range(2)], loss.nll_sum
    expected = train_run.train_run(runs[0])

    def dies(*args):
        if len(events(runs[1], "step")) == 5:
            raise MemoryError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr("persona.train.trainer.nll_sum", dies)
        with pytest.raises(MemoryError):
            train_run.train_run(runs[1])
    assert checkpoints.find_last_checkpoint(runs[1].checkpoints).name == "checkpoint-4"
    assert train_run.train_run(runs[1])["adapter_nll"] == pytest.approx(expected["adapter_nll"], rel=1e-4)


# ---- stop, resume


def test_a_deadline_of_nothing_makes_one_step_each_time(make):
    """A time slice on a shared GPU: stop at a step boundary, go on in the next slice."""
    run = make(max_steps=3)
    results = [train_run.train_run(run, deadline=0.0) for _ in range(3)]
    assert [(r["status"], r["steps"]) for r in results] == [("stopped", 1), ("stopped", 2), ("done", 3)]
    assert [s for s, _ in run.progress().train] == [1, 2, 3]


def test_signals_ask_it_to_stop_and_are_given_back(make, monkeypatch):
    """Ctrl-C and a shutdown end at a step boundary; afterwards they mean what they meant before."""
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    run, real = make(max_steps=5), loss.nll_sum

    def interrupted(*args):
        if not events(run, "step"):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr("persona.train.trainer.nll_sum", interrupted)
    result = train_run.train_run(run)
    assert (result["status"], result["steps"]) == ("stopped", 1)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.release
def test_a_killed_run_is_seen_as_interrupted_and_goes_on(make):
    run = make(max_steps=80)
    launcher.start_run(run)
    wait_for(lambda: checkpoints.find_last_checkpoint(run.checkpoints) or not run.alive())
    pid = json.loads((run.path / "worker.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    launcher._children[run.path].wait()
    seen = run.progress()
    assert seen.status == "interrupted" and 0 < seen.step < 80, (run.path / "log.txt").read_text()
    before = len(events(run, "step"))
    reached = int(checkpoints.find_last_checkpoint(run.checkpoints).name.rpartition("-")[2])
    launcher.start_run(run)
    wait_for(lambda: not run.alive())
    launcher.reap_children()
    seen = run.progress()
    assert (seen.status, seen.step, seen.result["steps"]) == ("done", 80, 80), (run.path / "log.txt").read_text()
    assert events(run, "step")[before]["step"] == reached + 1, "it went on where the checkpoint was"
    assert [s for s, _ in seen.train] == list(range(1, 81)) and adapter.read_adapter(run.adapter)
