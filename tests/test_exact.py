"""A pause leaves no trace: the same losses at each step, and the same adapter, byte for byte, as if it had not been."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from persona import checkpoints, hardware, stoptoken, train
from persona.config import make_config
from persona.folder import Card, create
from persona.pairs import Pair
from persona.runs import Run, create_run

pytestmark = pytest.mark.slow  # a trainer is built for nearly every test here

CARD = Card(name="Mags", system="Be dry.", language="en")
WORDS = ["lamp", "log", "wind", "light", "kettle", "point", "sable", "north"] * 2
PAIRS = [Pair(f"{word} {n}?", f"{word} is {n}. " + "It is lit. " * (n % 4)) for n, word in enumerate(WORDS)]
# 12 rows to learn from: 4 steps an epoch, 24 in all, an evaluation and a checkpoint at every third
SETTINGS = {"dtype": "float32", "batch_size": 3, "eval_fraction": 0.25, "learning_rate": 1e-2, "max_steps": 24}
DICE = {"lora_dropout": 0.3, "neftune_noise_alpha": 5}


@pytest.fixture(scope="module", autouse=True)
def machine():
    """One thread, no measuring, no GPU."""
    plain = hardware.Machine("cpu", "test", 10**9, 2, (("float32", 1e9), ("bfloat16", 1e9)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "this_machine", lambda: plain)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def make(tmp_path, tiny_gemma):
    def make(pairs=PAIRS, **changes) -> Run:
        folder = tmp_path / f"mags-{len(list(tmp_path.glob('mags-*')))}"
        return create_run(create(folder, CARD, pairs), make_config(**{"base": str(tiny_gemma), **SETTINGS, **changes}))

    return make


def sha(run: Run) -> str:
    return hashlib.sha256((run.adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def taken(run: Run) -> list[dict]:
    """The steps and evaluations in the order in which they were made, without the times."""
    return [
        {k: v for k, v in e.items() if k not in ("time", "seconds")}
        for e in run.events()
        if e["event"] in ("step", "eval")
    ]


@pytest.fixture
def pause_at(monkeypatch):
    """Ask the run to stop at these steps, as the Stop button does."""
    real, wanted = train.Watch.on_step_end, set()

    def stop(self, args, state, control, **options):
        self.asked = self.asked or state.global_step in wanted
        return real(self, args, state, control, **options)

    monkeypatch.setattr(train.Watch, "on_step_end", stop)
    return wanted.update


CASES = {
    "plain": ({}, (1, 5, 9, 14, 23)),  # in an epoch's middle, at an evaluation, just before the end
    "end-of-an-epoch": ({**DICE}, (4, 8, 12)),  # 12 is an evaluation too
    "dice": ({**DICE}, (2, 7, 17)),
    "dice-bfloat16": ({**DICE, "dtype": "bfloat16"}, (2, 7, 17)),
    # 5 batches an epoch, so that its last step joins fewer; 4 epochs of 3 steps
    "joined-batches": ({**DICE, "batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 8}, (1, 3, 4)),
    "nothing-held-out": ({**DICE, "eval_fraction": 0}, (2, 11)),
    "stop-token": ({**DICE, "train_stop_token": True}, (5, 10)),
    "stop-token-bfloat16": ({"dtype": "bfloat16", "train_stop_token": True, "max_steps": 9}, (2, 5)),
    "gets-worse": ({"learning_rate": 0.5, "early_stopping_patience": 2, **DICE}, (1, 4, 5, 7, 8, 10)),
    "linear": ({"lr_scheduler_type": "linear", "warmup": 5, "weight_decay": 0.1, "use_dora": True}, (3, 20)),
}


@pytest.mark.parametrize("changes, pauses", CASES.values(), ids=CASES)
def test_a_paused_run_is_the_run_that_never_paused(make, pause_at, monkeypatch, changes, pauses):
    monkeypatch.setattr(stoptoken, "stored_twins", lambda *_: 1000 if changes.get("train_stop_token") else 0)
    whole, run = make(**changes), make(**changes)
    expected = train.train(whole)
    pause_at(pauses)
    results = [train.train(run) for _ in pauses]
    made = [r["steps"] for r in results if r["status"] == "stopped"]
    assert made == [p for p in pauses if p < expected["steps"]]
    result = train.train(run) if results[-1]["status"] == "stopped" else results[-1]
    assert result["status"] == "done"
    assert taken(run) == taken(whole)
    assert {k: result[k] for k in ("steps", "base_nll", "adapter_nll")} == {
        k: expected[k] for k in ("steps", "base_nll", "adapter_nll")
    }
    assert sha(run) == sha(whole)
