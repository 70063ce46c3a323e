"""A pause leaves no trace: the same losses at each step, and the same adapter, byte for byte, as if it had not been."""

import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from training import Seen, build, hash_weights

from persona.models import hardware, stop_token
from persona.models.loss import NllScores
from persona.train import prepare, snapshots
from persona.train import run as train_run
from persona.train.evaluator import Evaluator
from persona.train.monitor import ResourceMonitor
from persona.train.run_folder import Run
from persona.train.trainer import RunCallback, Trainer

pytest_plugins = "training"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]  # a trainer is built for nearly every test here

# 12 rows to learn from: 4 steps an epoch, 24 in all, an evaluation and a checkpoint at every third
SETTINGS = {"batch_size": 3, "max_steps": 24}
DICE = {"lora_dropout": 0.3, "neftune_noise_alpha": 5}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make(make):
    return partial(make, **SETTINGS)


def taken(run: Run) -> list[dict]:
    """The steps and evaluations in the order in which they were made, without the times."""
    return [
        {k: v for k, v in e.items() if k not in ("time", "seconds", *ResourceMonitor().sample())}
        for e in run.events()
        if e["event"] in ("step", "eval")
    ]


@pytest.fixture
def pause_at(monkeypatch):
    """Ask the run to stop at these steps, as the Stop button does."""
    real, wanted = RunCallback.on_step_end, set()

    def stop(self, args, state, control, **options):
        self.stop_requested = self.stop_requested or state.global_step in wanted
        return real(self, args, state, control, **options)

    monkeypatch.setattr(RunCallback, "on_step_end", stop)
    return wanted.update


def measuring(seen: Seen, figures: dict[int, float]):
    """In place of Evaluator.score_held_out: this NLL a token at these steps, 6 at others."""

    def score_held_out(self, model) -> NllScores:
        tokens = [e.learned for e in self.prepared.held_out]
        return NllScores([figures.get(seen.trainer.state.global_step, 6.0) * t for t in tokens], tokens)

    return score_held_out


CASES = {
    # in an epoch's middle, at its end, at an evaluation, at both an epoch's end and an evaluation
    "dice": ({**DICE, "max_steps": 15}, (1, 4, 9, 12)),
    # 5 batches an epoch, so that its last step joins fewer; 4 epochs of 2 steps
    "joined-batches": ({**DICE, "batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 8}, (1, 5)),
    "stop-token-bfloat16": ({**DICE, "dtype": "bfloat16", "train_stop_token": True, "max_steps": 9}, (2, 5)),
    "linear-dora-nothing-held-out": (
        {
            "lr_scheduler_type": "linear",
            "warmup": 5,
            "weight_decay": 0.1,
            "use_dora": True,
            "eval_fraction": 0,
            "max_steps": 9,
        },
        (3, 8),
    ),
}


ALWAYS = ("dice", "linear-dora-nothing-held-out")  # in CI; the others before a release


@pytest.mark.parametrize(
    "changes, pauses",
    [pytest.param(*case, id=n, marks=[] if n in ALWAYS else pytest.mark.release) for n, case in CASES.items()],
)
def test_a_paused_run_is_the_run_that_never_paused(make, pause_at, monkeypatch, changes, pauses):
    monkeypatch.setattr(
        stop_token, "count_similar_rows_on_disk", lambda *_: 1000 if changes.get("train_stop_token") else 0
    )
    whole, run = make(**changes), make(**changes)
    expected = train_run.train_run(whole)
    pause_at(pauses)
    results = [train_run.train_run(run) for _ in pauses]
    made = [r["steps"] for r in results if r["status"] == "stopped"]
    assert made == [p for p in pauses if p < expected["steps"]]
    result = train_run.train_run(run) if results[-1]["status"] == "stopped" else results[-1]
    assert result["status"] == "done"
    assert taken(run) == taken(whole)
    assert {k: result[k] for k in ("steps", "base_nll", "adapter_nll")} == {
        k: expected[k] for k in ("steps", "base_nll", "adapter_nll")
    }
    assert hash_weights(run) == hash_weights(whole)


def test_early_stopping_counts_on_after_a_pause(make, pause_at, monkeypatch, seen):
    """Two evaluations without gain, a pause between them, and one in an epoch that evaluates nothing."""
    figures = {3: 5.0, 6: 4.0, 9: 4.5, 12: 4.2, 15: 3.0}
    monkeypatch.setattr(Evaluator, "score_held_out", measuring(seen, figures))
    whole, run = make(early_stopping_patience=2), make(early_stopping_patience=2)
    assert train_run.train_run(whole)["steps"] == 12
    pause_at((2, 10))
    results = [train_run.train_run(run) for _ in range(3)]
    assert [(r["status"], r["steps"]) for r in results] == [("stopped", 2), ("stopped", 10), ("done", 12)]
    assert taken(run) == taken(whole) and hash_weights(run) == hash_weights(whole)


@pytest.mark.release
def test_slices_of_time_are_one_run(make, monkeypatch):
    """A deadline each, as on a shared GPU; and its clock goes on."""
    whole, run = make(max_steps=9), make(max_steps=9)
    train_run.train_run(whole)
    now, spent = [0.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    for module in ("persona.train.trainer", "persona.train.run"):
        monkeypatch.setattr(f"{module}.time", clock)
    real = Trainer.training_step

    def a_second(self, *args, **options):
        now[0] += 1
        return real(self, *args, **options)

    monkeypatch.setattr(Trainer, "training_step", a_second)
    for wanted in (("stopped", 4), ("stopped", 8), ("done", 9)):
        result = train_run.train_run(run, deadline=3.5)
        spent.append(result["seconds"])
        assert (result["status"], result["steps"]) == wanted
    assert taken(run) == taken(whole) and hash_weights(run) == hash_weights(whole)
    seconds = [e["seconds"] for e in run.events() if e["event"] == "step"]
    assert seconds == sorted(seconds) and spent == sorted(spent) and spent[0] > 0


def test_random_numbers_drawn_in_an_evaluation_leave_no_trace(make, monkeypatch):
    plain, run = make(max_steps=6, **DICE), make(max_steps=6, **DICE)
    train_run.train_run(plain)
    real = Evaluator.score_held_out

    def drawing(self, model):
        torch.rand(7)
        return real(self, model)

    monkeypatch.setattr(Evaluator, "score_held_out", drawing)
    monkeypatch.setattr(train_run, "measure_base", lambda *_, **__: 6.0)
    train_run.train_run(run)
    assert hash_weights(run) == hash_weights(plain)


def test_every_epoch_has_an_order_of_its_own_and_every_row_once(make):
    _, trainer = build(make())
    orders = []
    for step in (0, 4, 8, 5):
        trainer.state.global_step = step
        torch.manual_seed(step)
        orders.append([tuple(b["input_ids"].flatten().tolist()) for b in trainer.get_train_dataloader()])
        assert sorted(n for batch in trainer.get_train_dataloader().batch_sampler for n in batch) == list(range(12))
    assert len({tuple(o) for o in orders[:3]}) == 3 and orders[3] == orders[1]


def test_the_better_of_best_checkpoint_and_last_step_is_written_at_a_stop(make, pause_at, monkeypatch, seen):
    """And that measuring leaves no trace in the run: it is neither an evaluation nor the best of one."""
    pause_at((4, 5))
    run = make()
    figures = {3: 5.0, 4: 4.0, 5: 5.5}
    monkeypatch.setattr(Evaluator, "score_held_out", measuring(seen, figures))
    train_run.train_run(run)
    written, last = (run.adapter, run.checkpoints / "checkpoint-4")
    weights = "adapter_model.safetensors"
    assert (written / weights).read_bytes() == (last / weights).read_bytes()
    train_run.train_run(run)
    assert (run.adapter / weights).read_bytes() == (snapshots.snapshot_dir(run, 3) / weights).read_bytes()
    assert [e["step"] for e in run.events() if e["event"] == "eval"] == [0, 3]


def test_a_run_keeps_its_number_format(make, monkeypatch):
    """What was faster when it began may be slower when it goes on."""
    run = make(dtype="auto", max_steps=2)
    train_run.train_run(run, deadline=0.0)
    other = hardware.Machine("cpu", "test", 10**9, 2, (("float32", 1e9), ("bfloat16", 3e9)))
    monkeypatch.setattr(hardware, "this_machine", lambda: other)
    assert prepare.prepare_run(run).plan.train_dtype == "float32"
    assert prepare.prepare_run(make(dtype="auto")).plan.train_dtype == "bfloat16"
