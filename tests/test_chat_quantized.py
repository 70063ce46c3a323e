"""Chat and evaluation on a base in 4 or 8 bits: quantized when it is opened, or as it is stored."""

import importlib.util
import weakref
from dataclasses import replace

import pytest
import torch
from quantized_base import store_quantized
from tiny_models import new_run, write_adapter
from training import CARD, PAIRS

from persona.compare import session
from persona.compare.session import NO_ADAPTER, Column, LoadedModel, stream_replies
from persona.errors import AdapterError, BaseError
from persona.judge import evaluate
from persona.judge.measurements import EvalBudget
from persona.models import adapter, hardware
from persona.models.base import Base, load_base_model
from persona.models.generate import generate_batch
from persona.models.mixed_lora import MixedLora
from persona.models.quantization import is_quantized
from persona.models.sampling import Sampling
from persona.store.pairs import write_pairs
from persona.template.render import ChatPrompt
from persona.train import plan as train_plan
from persona.train import run as train_run

pytest_plugins = "quantized_base"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("plain_cpu"),
    pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed"),
]
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=10)
WARM = replace(GREEDY, temperature=0.9, seed=7)
SHORT, LONG = ChatPrompt("", [5, 60, 61]), ChatPrompt("", list(range(40, 75)))
FEW = EvalBudget(likelihoods=2, trained=1, answers=1, remembered=1, general=2, probes=1, seeds=1)


@pytest.fixture(scope="module")
def adapters(full, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(full, folder / "one", seed=1, size=0.1)
    write_adapter(full, folder / "two", seed=2, size=0.1, r=2, target_modules=["q_proj", "up_proj"])
    write_adapter(full, folder / "dora", seed=3, size=0.1, use_dora=True)
    return [adapter.read_adapter(folder / name) for name in ("one", "two", "dora")]


def say(model: LoadedModel, columns, sampling=GREEDY) -> list[str]:
    *_, replies = stream_replies(model, columns, sampling, -1)
    assert not any(r.error for r in replies)
    return [r.text for r in replies]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_columns_are_what_each_says_alone(full, adapters, kind):
    base = Base("someone/tiny", full)
    model = LoadedModel(base, kind)
    assert is_quantized(model.model)
    first, second = (model.attach(a) for a in adapters[:2])
    blend = model.blend({first: 0.5, second: 0.8})
    columns = [Column(NO_ADAPTER, LONG), Column(first, SHORT), Column(second, LONG), Column(first, LONG, 0.4),
               Column(blend, LONG)]  # fmt: skip
    if kind == "nf4":
        columns.append(Column(model.attach(adapters[2]), LONG))
    for sampling in (GREEDY, WARM):
        together = say(model, columns, sampling)
        assert together == [say(model, [column], sampling)[0] for column in columns]
    assert len(set(together)) == len(columns)
    plain = load_base_model(base, "float32", "cpu", kind)
    *_, (alone,) = generate_batch(plain, model.tokenizer, [LONG.ids], WARM, -1)
    assert alone.text == together[0], "the base's column is the quantized base"


def test_a_dora_column_in_4_bits_is_what_peft_computes(full, adapters):
    """Its gain is measured on the dequantized weights."""
    model = LoadedModel(Base("someone/tiny", full), "nf4")
    name = model.attach(adapters[2])
    ids = torch.tensor([LONG.ids])
    with torch.no_grad():
        model.model.set_adapter(name)
        want = model.model(ids).logits
        with MixedLora(model.model, [model.adapter_weights(name)]):
            torch.testing.assert_close(model.model(ids).logits, want, atol=1e-4, rtol=1e-4)
        with model.without_adapters():
            assert (model.model(ids).logits - want).abs().max() > 0.1


def test_dora_on_8_bits_is_refused_and_the_model_stays(full, adapters):
    model = LoadedModel(Base("someone/tiny", full), "int8")
    before = say(model, [Column(NO_ADAPTER, SHORT)])
    with pytest.raises(AdapterError, match="use_dora, which does not go with a base in 8 bits on a CPU"):
        model.attach(adapters[2])
    assert say(model, [Column(NO_ADAPTER, SHORT)]) == before


def test_another_quantization_is_another_model(full, adapters, monkeypatch):
    monkeypatch.setattr(session, "_open", {})
    base = Base("someone/tiny", full)
    whole = session.open_model(base)
    assert session.open_model(base, "auto", "nf4") is whole, "a CPU keeps full precision"
    whole.attach(adapters[0])
    gone = weakref.ref(whole.model)
    del whole
    small = session.open_model(base, "nf4")
    assert list(session._open) == [(str(full), "nf4")] and small.quantization == "nf4" and is_quantized(small.model)
    assert gone() is None, "the other one was let go first"
    monkeypatch.setattr(hardware, "free_memory", lambda _: -(10**9))
    assert session.open_model(base, "auto", "nf4") is small, "where full precision does not fit, it is as trained"
    with pytest.raises(BaseError, match="does not fit"):
        session.open_model(base)
    assert session.open_model(base, "nf4") is small


@pytest.mark.release
def test_an_evaluation_measures_the_quantized_base(full, adapters, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    asked = {"data": tmp_path / "pairs.jsonl", "base": str(full), "limits": FEW}
    said = []
    small = evaluate.evaluate_adapter(
        adapters[0], quantization="nf4", progress=lambda step: said.append(step.doing), **asked
    )
    whole = evaluate.evaluate_adapter(adapters[0], begun=small, **asked)
    assert (small.quantization, whole.quantization) == ("nf4", "none")
    assert "Measured with the base in 4 bits (nf4)." in small.notes and not any("4 bits" in n for n in whole.notes)
    assert any("in 4 bits (nf4): about" in text for text in said), "its memory is said before it is opened"
    assert small.likelihood.base.value != whole.likelihood.base.value, "what was begun in 4 bits does not go on"
    assert small.likelihood.base.value == pytest.approx(whole.likelihood.base.value, rel=0.2)


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.release)])
def test_a_base_stored_quantized_trains_chats_and_is_measured(full, tmp_path, kind):
    stored = store_quantized(full, tmp_path / "stored", kind)
    shape, whole = train_plan.read_base_shape(stored), train_plan.read_base_shape(Base("someone/tiny", full))
    assert replace(shape, stored="none", parameters=0) == replace(whole, parameters=0) and shape.stored == kind
    run = new_run(tmp_path, CARD, PAIRS, base=str(stored.path), max_steps=6, learning_rate=1e-2, batch_size=4)
    result = train_run.train_run(run)
    assert result["status"] == "done" and result["adapter_nll"] < result["base_nll"]
    trained = adapter.read_adapter(run.adapter)
    model = session.open_model(Base("stored", stored.path), "auto", trained.quantization)
    assert is_quantized(model.model) and trained.quantization == "none"
    columns = [Column(NO_ADAPTER, LONG), Column(model.attach(trained), LONG)]
    assert say(model, columns) == [say(model, [column])[0] for column in columns]
    found = evaluate.evaluate_adapter(trained, base=str(stored.path), limits=FEW)
    assert found.likelihood.adapter.value < found.likelihood.base.value
    assert found.likelihood.base.value == pytest.approx(result["base_nll"], rel=0.2), "what was trained on is measured"
