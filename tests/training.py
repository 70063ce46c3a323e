"""Fixtures for tests of training: a tiny run, its events, and its trainer. Load with pytest_plugins."""

import pytest
import torch
from tiny_models import new_run

from persona.models import hardware
from persona.models.adapter import WEIGHTS_FILE
from persona.models.sampling import Sampling
from persona.store.files import hash_file
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.train import run as train_run
from persona.train import sample_log
from persona.train.clock import TrainingClock
from persona.train.evaluator import Evaluator
from persona.train.prepare import PreparedRun, prepare_run
from persona.train.run_folder import Run
from persona.train.trainer import RunCallback, Trainer

CARD = PersonaCard(name="Mags", system="Be dry.", language="en")
WORDS = ["lamp", "log", "wind", "light", "kettle", "point", "sable", "north"] * 2
PAIRS = [Pair(f"{word} {n}?", f"{word} is {n}. " + "It is lit. " * (n % 4)) for n, word in enumerate(WORDS)]


REAL_MACHINE = hardware.this_machine
SETTINGS = {"dtype": "float32", "batch_size": 4, "eval_fraction": 0.25, "learning_rate": 1e-2, "epochs": 2}


@pytest.fixture
def make(tmp_path, tiny_gemma, monkeypatch):
    """A new run on the tiny Gemma, with the settings above and any others."""
    # samples of the usual length take a third of a tiny run's time
    monkeypatch.setattr(sample_log, "SAMPLE_LOG_SAMPLING", Sampling(max_new_tokens=4))

    def make(pairs=PAIRS, card=CARD, **changes) -> Run:
        return new_run(tmp_path, card, pairs, **{"base": str(tiny_gemma), **SETTINGS, **changes})

    return make


def events(run: Run, kind: str) -> list[dict]:
    return [e for e in run.events() if e["event"] == kind]


def lora(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def build(run: Run) -> tuple[PreparedRun, Trainer]:
    """The run, prepared, and its trainer, as train_run builds them."""
    prepared, clock = prepare_run(run), TrainingClock()
    config = prepared.config
    callback = RunCallback(run, clock, config.early_stopping_patience, logging_steps=config.logging_steps)
    return prepared, train_run.build_trainer(prepared, clock, callback, Evaluator(prepared, clock))


def hash_weights(run: Run) -> str:
    return hash_file(run.adapter / WEIGHTS_FILE)


class Seen:
    """Captures the trainer and the prepared run of a run, by wrapping build_trainer()."""

    def __init__(self, patch: pytest.MonkeyPatch):
        real_build = train_run.build_trainer

        def build_trainer(prepared, *args):
            self.prepared, self.trainer = prepared, real_build(prepared, *args)
            self.before = lora(self.trainer.model)
            return self.trainer

        patch.setattr(train_run, "build_trainer", build_trainer)


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


def layers(trainer) -> set[str]:
    return {n.split(".")[-1] for n, m in trainer.model.named_modules() if hasattr(m, "lora_A")}
