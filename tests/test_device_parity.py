"""The same training and the same chat on every device, in float32 from the same seed.

Each test compares its device with a run on the CPU. On a machine without a GPU that is a second run on the CPU, which
tries the tests themselves, before a release.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from tiny_models import new_run
from training import CARD, PAIRS, SETTINGS, hash_weights

from persona.compare import session
from persona.compare.session import NO_ADAPTER, Column
from persona.models import adapter, hardware
from persona.models.hardware import Machine
from persona.models.loss import mean_nll
from persona.models.sampling import Sampling
from persona.train import fused_kernels, prepare
from persona.train import run as train_run
from persona.train.collator import Collator
from persona.train.run_folder import Run
from persona.train.trainer import RunCallback

pytestmark = pytest.mark.slow

DEVICES = [pytest.param("cpu", marks=pytest.mark.release), pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS = 20
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=12)
QUESTIONS = ("lamp 0?", "Is the kettle lit?")


@contextmanager
def machine(device: str):
    """This machine has that device, and computes in float32 on it, in training and in chat."""
    rates = (("float32", 2e9), ("bfloat16", 1e9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "this_machine", lambda: Machine(device, "test", 10**10, 2, rates))
        yield


@pytest.fixture(scope="module", params=DEVICES)
def device(request) -> str:
    return request.param


@dataclass
class Trained:
    """A run that was trained on a device."""

    run: Run
    device: str
    result: dict[str, Any]

    @property
    def losses(self) -> list[float]:
        return [e["loss"] for e in self.run.events() if e["event"] == "step"]


def train(folder, base, device: str, pause_at: int = 0, **changes: Any) -> Trained:
    """A run of 20 steps. pause_at: the step after which it is stopped, and resumed from its checkpoint."""
    run = new_run(folder, CARD, PAIRS, **{"base": str(base), **SETTINGS, "max_steps": STEPS, **changes})
    real = RunCallback.on_step_end

    def stop(self, args, state, control, **options):
        self.stop_requested = self.stop_requested or state.global_step == pause_at
        return real(self, args, state, control, **options)

    with machine(device), pytest.MonkeyPatch.context() as patch:
        if pause_at:
            patch.setattr(RunCallback, "on_step_end", stop)
            assert train_run.train_run(run)["status"] == "stopped"
            patch.undo()
    with machine(device):
        result = train_run.train_run(run)
    return Trained(run, device, result)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory, tiny_gemma) -> Trained:
    return train(tmp_path_factory.mktemp("cpu"), tiny_gemma, "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_gemma, device) -> Trained:
    return train(tmp_path_factory.mktemp(device), tiny_gemma, device)


def open_voices(base, made: Trained, device: str) -> tuple[session.LoadedModel, str, Any]:
    """The base on a device with the adapter of a run: model, the adapter's name in it, and its renderer."""
    opened = adapter.read_adapter(made.run.adapter)
    with machine(device):
        voices = session.LoadedModel(session.base_of(opened, str(base)))
        name = voices.attach(opened)
    assert voices.model.device.type == device
    return voices, name, session.renderer_of(opened, voices.tokenizer)


def ask(voices: session.LoadedModel, names: list[str], renderer: Any) -> list[str]:
    """Greedy replies to QUESTIONS by each voice, all in one batch."""
    columns = [Column(n, renderer.render_prompt([], q)) for q in QUESTIONS for n in names]
    *_, replies = session.stream_replies(voices, columns, GREEDY, renderer.stop_id)
    return [r.text for r in replies]


def test_losses_are_those_of_the_cpu(on_cpu, trained):
    assert len(trained.losses) == STEPS and trained.result["status"] == "done"
    assert trained.losses == pytest.approx(on_cpu.losses, abs=1e-3)
    for figure in ("base_nll", "adapter_nll"):
        assert trained.result[figure] == pytest.approx(on_cpu.result[figure], abs=1e-3)


def test_rows_and_mask_are_those_of_the_cpu(on_cpu, trained):
    seen = []
    for made in (on_cpu, trained):
        with machine(made.device):
            prepared = prepare.prepare_run(made.run)
        seen.append([(e.input_ids, e.labels) for e in (*prepared.train, *prepared.held_out)])
    assert seen[0] == seen[1] and any(i == -100 for _, labels in seen[0] for i in labels)


@pytest.mark.parametrize("opened_on", DEVICES)
def test_an_adapter_opens_where_it_was_not_trained(on_cpu, trained, opened_on, tiny_gemma):
    """Greedy replies and the NLL are the same wherever the adapter was trained and is opened."""
    with machine("cpu"):
        prepared = prepare.prepare_run(on_cpu.run)
    collate = Collator(prepared.renderer.tokenizer.pad_token_id)
    said, nll = [], []
    for made, place in ((on_cpu, "cpu"), (trained, opened_on)):
        voices, name, renderer = open_voices(tiny_gemma, made, place)
        said.append(ask(voices, [NO_ADAPTER, name], renderer))
        voices.model.set_adapter(name)
        nll.append(mean_nll(voices.model, prepared.held_out, collate))
    assert said[0] == said[1] and said[0][0] != said[0][1]
    assert nll[1] == pytest.approx(nll[0], abs=1e-3)


def test_columns_in_a_batch_are_as_each_alone(trained, tiny_gemma):
    voices, name, renderer = open_voices(tiny_gemma, trained, trained.device)
    names = [NO_ADAPTER, name, voices.blend({name: 0.5})]
    alone = [ask(voices, [n], renderer) for n in names]
    together = ask(voices, names, renderer)
    assert together == [alone[n][q] for q in range(len(QUESTIONS)) for n in range(len(names))]


@pytest.mark.release  # on a CPU, test_resume.py stands for it
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_repeats_and_resumes_byte_for_byte(tmp_path, tiny_gemma, device, dtype):
    """On the same device: the kept adapter of a second run, and of one that was stopped and resumed."""
    settings = {"dtype": dtype, "lora_dropout": 0.1}
    whole = train(tmp_path, tiny_gemma, device, **settings)
    for pause_at in (0, 7):
        again = train(tmp_path, tiny_gemma, device, pause_at, **settings)
        assert again.losses == whole.losses
        assert hash_weights(again.run) == hash_weights(whole.run)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "off_by"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_the_training_kernels_change_no_loss(tmp_path, tiny_gemma, monkeypatch, dtype, off_by):
    """Norms, rotary embedding and LoRA as one function each, against transformers' and PEFT's modules."""
    ours = train(tmp_path, tiny_gemma, "cuda", dtype=dtype)
    monkeypatch.setattr(fused_kernels, "fused_kernels", lambda model: nullcontext())
    stock = train(tmp_path, tiny_gemma, "cuda", dtype=dtype)
    assert ours.losses == pytest.approx(stock.losses, abs=off_by)
    assert ours.losses != stock.losses  # other kernels round otherwise
