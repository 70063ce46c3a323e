"""A quantized base: its gradients are those of its dequantized weights, and its adapter is an ordinary LoRA."""

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import lora_gradients, with_lora
from training import CARD, PAIRS, build

from persona.compare import session
from persona.compare.session import NO_ADAPTER, Column
from persona.errors import BaseError, InputError
from persona.models import adapter, loss, quantization
from persona.models.base import Base, load_base_model
from persona.models.loss import mean_nll, nll_sum
from persona.models.sampling import Sampling
from persona.store.persona_folder import create_persona_at
from persona.template.render import IGNORE_INDEX
from persona.train import prepare
from persona.train import run as train_run
from persona.train.collator import Collator
from persona.train.config import make_config
from persona.train.launcher import create_run
from persona.train.run_folder import Run

pytest_plugins = "training"
pytestmark = pytest.mark.usefixtures("plain_cpu")
needs_bnb = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
KINDS = ["nf4", "int8"]


# ---- gradients


@pytest.fixture(scope="module")
def folders(tmp_path_factory, sentencepiece_tokenizer, byte_tokenizer) -> dict[str, Path]:
    """Random bases of two layers, Gemma's tied head and Llama's own; all inputs are multiples of 64.

    Gemma's outputs are multiples of 32, so that bitsandbytes alone would repack them without an error; Llama's are not.
    """
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    common = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16, "initializer_range": 0.15}  # fmt: skip
    made = {}
    for name, tokenizer, kind, config, own in (
        ("gemma", sentencepiece_tokenizer, Gemma3ForCausalLM, Gemma3TextConfig,
         {"num_key_value_heads": 2, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "intermediate_size": 128}),
        ("llama", byte_tokenizer, LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1, "intermediate_size": 192}),
    ):  # fmt: skip
        ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
        made[name] = tmp_path_factory.mktemp("quantized") / name
        kind(config(vocab_size=len(tokenizer), **common, **own, **ids)).save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


def quantized(folder: Path, kind: str, dtype: str = "float32", device: str = "cpu"):
    return load_base_model(Base(folder.name, folder), dtype, device, kind)


def dense(folder: Path, model):
    """The base with the dequantized weights of `model`, as float32 matrices."""
    import bitsandbytes as bnb

    plain = load_base_model(Base(folder.name, folder), "float32", model.device.type)
    found = dict(plain.named_modules())
    for name, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data.clone(), layer.weight.quant_state)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            weight = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
        else:
            continue
        difference = (found[name].weight - weight).norm() / found[name].weight.norm()
        assert 0 < difference < 0.15, "it must be a rounding of these weights, and a real one"
        found[name].weight.data = weight.float()
    return plain


def batch(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows * 100 + length)
    ids = torch.randint(3, 150, (rows, length))
    labels = ids.clone()
    labels[:, : length // 2] = IGNORE_INDEX
    return ids, labels


def measure(model, ids, labels, training: bool = True) -> float:
    model.train(training)  # no dropout anywhere: the mode may change nothing
    with torch.no_grad():
        return nll_sum(model, ids, labels)[0].item()


SHAPES = [(1, 5), (1, 17), (3, 31), (3, 16), (8, 64)]


@needs_bnb
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("rows, length", SHAPES)
@pytest.mark.parametrize("family", ["gemma", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_after_an_evaluation_are_those_of_the_dense_weights(folders, kind, family, rows, length, device):
    """An evaluation first, as every run has one: on a CPU it is what spoils the gradients of bitsandbytes alone.

    In 8 bits a GPU rounds the activations too (LLM.int8).
    """
    rounded = kind == "int8" and device == "cuda"
    small = quantized(folders[family], kind, device=device)
    plain = with_lora(dense(folders[family], small), size=0.1)
    small = with_lora(small, size=0.1)
    ids, labels = (x.to(device) for x in batch(rows, length))
    found = []
    for model in (small, plain):
        with model.disable_adapter():
            measure(model, ids, labels, training=False)
        held_out = measure(model, ids, labels, training=False)
        model.train()
        value, _ = nll_sum(model, ids, labels)
        value.backward()
        assert held_out == pytest.approx(value.item(), rel=1e-5), "what is measured is what is trained"
        found.append((value.item(), lora_gradients(model)))
    (got, mine), (want, theirs) = found
    assert got == pytest.approx(want, rel=2e-2 if rounded else 1e-3)
    assert mine.keys() == theirs.keys() and len(mine) == 2 * 2 * 7
    for name, gradient in theirs.items():
        likeness = F.cosine_similarity(mine[name].flatten(), gradient.flatten(), dim=0)
        assert likeness > (0.95 if rounded else 0.99), name
        assert float(mine[name].norm() / gradient.norm()) == pytest.approx(1, abs=0.1 if rounded else 0.02), name


@needs_bnb
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_too(folders, kind):
    """As trained where bfloat16 is faster: as close as its eight bits allow."""
    small = quantized(folders["gemma"], kind, "bfloat16")
    plain = with_lora(dense(folders["gemma"], small), size=0.1)
    small = with_lora(small, size=0.1)
    ids, labels = batch(3, 31)
    measure(small, ids, labels, training=False)
    for model in (small.train(), plain.train()):
        nll_sum(model, ids, labels)[0].backward()
    mine, theirs = lora_gradients(small), lora_gradients(plain)
    for name, gradient in theirs.items():
        assert F.cosine_similarity(mine[name].flatten().float(), gradient.flatten(), dim=0) > 0.98, name


@needs_bnb
def test_with_dora_too(folders):
    """Its magnitudes are those of the dequantized weights, and learn like them."""
    small = quantized(folders["gemma"], "nf4")
    plain = with_lora(dense(folders["gemma"], small), size=0.1, use_dora=True)
    small = with_lora(small, size=0.1, use_dora=True)
    ids, labels = batch(3, 31)
    measure(small, ids, labels, training=False)
    values = [nll_sum(model, ids, labels)[0] for model in (small.train(), plain.train())]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-3)
    for value in values:
        value.backward()
    mine, theirs = lora_gradients(small), lora_gradients(plain)
    assert mine.keys() == theirs.keys() and len(mine) == 2 * 3 * 7
    for name, gradient in theirs.items():
        assert F.cosine_similarity(mine[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


@needs_bnb
def test_why_dora_on_8_bits_is_refused(folders):
    """If this one fails, PEFT has fixed it and the refusal can go."""
    small = with_lora(quantized(folders["gemma"], "int8"), use_dora=True)
    measure(small, *batch(1, 5))  # it still has them in the first pass
    with pytest.raises(AttributeError):
        measure(small, *batch(1, 5))


# ---- what is quantized


@needs_bnb
@pytest.mark.parametrize("family", ["gemma", "llama"])
@pytest.mark.parametrize(
    "kind, layer, stored", [("nf4", "Linear4bit", torch.uint8), ("int8", "Linear8bitLt", torch.int8)]
)
def test_all_layers_but_embedding_and_head(folders, kind, layer, stored, family, monkeypatch):
    model = quantized(folders[family], kind, "bfloat16")
    names = {n for n, m in model.named_modules() if type(m).__name__ == layer}
    assert len(names) == 2 * 7 and all(".layers." in n for n in names)
    for name, weight in model.named_parameters():
        assert weight.dtype == (stored if name.removesuffix(".weight") in names else torch.bfloat16), name
    if kind == "nf4":
        state = model.model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, quantization.NF4_BLOCK)
        assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    taken = []
    apply = loss.TiledNLL.apply
    monkeypatch.setattr(loss.TiledNLL, "apply", lambda *a: taken.append(1) or apply(*a))
    assert measure(with_lora(model), *batch(1, 9)) > 0 and taken, "the head is plain: the tiles of loss.py still serve"


@needs_bnb
def test_a_base_that_a_cpu_would_read_wrongly_in_4_bits_is_refused(tiny_gemma):
    with pytest.raises(
        BaseError, match=r"o?_?proj has 32 inputs, not a multiple of 64\. Set quantization to int8 or none"
    ):
        quantized(tiny_gemma, "nf4")
    quantized(tiny_gemma, "int8")


@needs_bnb
def test_why_it_is_refused(tiny_gemma, monkeypatch):
    """If this one fails, bitsandbytes has fixed it and the refusal can go."""
    monkeypatch.setattr(quantization, "NF4_BLOCK", 1)
    small = quantized(tiny_gemma, "nf4")
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("only its AVX512 path is wrong")
    with pytest.raises(AssertionError, match="it must be a rounding"):
        dense(tiny_gemma, small)


@needs_bnb
def test_a_base_stored_quantized_is_guarded_and_not_quantized_again(folders, tmp_path):
    quantized(folders["gemma"], "nf4").save_pretrained(tmp_path / "stored")
    stored = Base("stored", tmp_path / "stored")
    model = load_base_model(stored, "float32")
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules())
    with pytest.raises(BaseError, match="quantized already. Set quantization to none"):
        load_base_model(stored, "float32", quantization="int8")


# ---- runs


@pytest.fixture
def make(make, folders):
    return partial(make, base=str(folders["gemma"]), max_steps=6)


def built(run: Run):
    return build(run)[1]


@needs_bnb
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"quantization": "nf4", "optim": "adamw_8bit"}, id="nf4"),
        pytest.param({"quantization": "int8", "gradient_checkpointing": True}, id="int8"),
        pytest.param({"quantization": "nf4", "dtype": "bfloat16"}, id="bfloat16", marks=pytest.mark.release),
        pytest.param({"quantization": "nf4", "train_stop_token": True}, id="stop-token", marks=pytest.mark.release),
    ],
)
def test_a_run_learns_and_its_adapter_opens_on_the_full_base(make, folders, changes):
    run = make(**changes)
    result = train_run.train_run(run)
    assert result["status"] == "done" and result["adapter_nll"] < result["base_nll"] - 0.1
    opened = adapter.read_adapter(run.adapter)
    assert opened.facts["config"]["quantization"] == changes["quantization"]
    assert "bitsandbytes" in opened.facts["versions"]
    assert f"the base in {changes['quantization']}" in (run.adapter / "README.md").read_text()
    voices = session.LoadedModel(Base("gemma", folders["gemma"]))
    assert not quantization.is_quantized(voices.model), "chat keeps full precision"
    rows = prepare.prepare_run(run).train
    before = mean_nll(voices.model, rows, Collator(0))
    name = voices.attach(opened)
    voices.model.set_adapter(name)
    assert mean_nll(voices.model, rows, Collator(0)) < before - 0.1
    renderer = session.renderer_of(opened, voices.tokenizer)
    columns = [Column(n, renderer.render_prompt([], "lamp 0?")) for n in (NO_ADAPTER, name)]
    *_, replies = session.stream_replies(voices, columns, Sampling(max_new_tokens=4), renderer.stop_id)
    assert len(replies) == 2 and all(r.tokens for r in replies)


@needs_bnb
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_trained_in_float32_and_the_base_stays(make, kind):
    """TRL would make it bfloat16; the quantized bytes are the same after a run with evaluations."""
    trainer = built(make(quantization=kind))
    assert {m.weight.dtype for n, m in trainer.model.named_modules() if n.endswith(".base_layer")} == {
        "nf4": {torch.uint8}, "int8": {torch.int8}}[kind]  # fmt: skip
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert [n for n, p in trainer.model.named_parameters() if n in frozen and not torch.equal(p, frozen[n])] == []


@needs_bnb
@pytest.mark.slow
@pytest.mark.release
def test_an_8_bit_optimizer_is_the_one_of_bitsandbytes_and_resumes(make):
    """A matrix of 4096 numbers and more has its state in 8 bits, in a checkpoint too."""
    from bitsandbytes.optim import AdamW

    settings = {"quantization": "nf4", "optim": "adamw_8bit", "lora_r": 64, "learning_rate": 1e-3}
    trainer = built(make(**settings))
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, AdamW)
    assert {s["state1"].dtype for p, s in optimizer.state.items() if p.numel() >= 4096} == {torch.uint8}
    whole, halves = make(**settings), make(**settings)
    train_run.train_run(whole)
    assert train_run.train_run(halves, deadline=0)["status"] == "stopped"
    assert train_run.train_run(halves)["status"] == "done"
    losses = [[e["loss"] for e in r.events() if e["event"] == "step"] for r in (whole, halves)]
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-4)


@needs_bnb
@pytest.mark.release
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_embedded_base_learns_in_4_bits_for_the_full_base(embedded_base, tmp_path):
    """A few steps: the loss falls, and on the base in full precision the adapter is as much of a gain."""
    run = create_run(create_persona_at(tmp_path / "mags", CARD, PAIRS), make_config(
        quantization="nf4", dtype="bfloat16", batch_size=4, max_steps=4, learning_rate=1e-3))  # fmt: skip
    result = train_run.train_run(run)
    assert result["adapter_nll"] < result["base_nll"] - 0.5
    voices = session.LoadedModel(embedded_base)
    rows = prepare.prepare_run(run).held_out
    before = mean_nll(voices.model, rows, Collator(0))
    name = voices.attach(adapter.read_adapter(run.adapter))
    voices.model.set_adapter(name)
    after = mean_nll(voices.model, rows, Collator(0))
    print(f"\n4 bits: {result['base_nll']:.3f} → {result['adapter_nll']:.3f}; full: {before:.3f} → {after:.3f}")
    assert after < before - 0.5


@needs_bnb
@pytest.mark.slow
@pytest.mark.release
def test_dora_on_8_bits_is_refused_and_on_4_bits_trains(make):
    with pytest.raises(InputError, match="int8 with use_dora: .*Set quantization to nf4 or none"):
        prepare.prepare_run(make(quantization="int8", use_dora=True))
    result = train_run.train_run(make(quantization="nf4", use_dora=True))
    assert result["adapter_nll"] < result["base_nll"] - 0.1
