"""Adapters with trained biases and whole layers: opened, side by side with others, at half strength, merged; trained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CARD, FACTS, load, with_lora
from training import PAIRS, build, hash_weights
from transformers import GPT2Config, GPT2LMHeadModel

from persona.compare.session import LoadedModel
from persona.errors import AdapterError, InputError
from persona.models import adapter, attach, memory, trained_modules
from persona.models.base import Base
from persona.models.mixed_lora import MixedLora
from persona.share.exports import merged_model
from persona.template.chat_template import read_template
from persona.train import lora_config, validate
from persona.train import plan as train_plan
from persona.train import run as train_run
from persona.train.config import RunConfig, make_config

pytest_plugins = "training"
pytestmark = pytest.mark.usefixtures("plain_cpu")
IDS = torch.tensor([[2, 301, 302, 5, 280, 7]])
FOREIGN = {
    "biases of the LoRA's layers": ("gpt2", {"bias": "lora_only", "target_modules": ["c_attn"]}),
    "all biases": ("gpt2", {"bias": "all", "target_modules": ["c_attn"]}),
    "a bias of B": ("gpt2", {"lora_bias": True}),
    "embedding and norm": ("gpt2", {"modules_to_save": ["wte", "ln_f"]}),
    "scaled embedding": ("gemma", {"modules_to_save": ["embed_tokens"]}),
    "output layer": ("gemma", {"modules_to_save": ["lm_head"]}),
    "both, and norms": ("gemma", {"modules_to_save": ["lm_head", "embed_tokens", "input_layernorm", "q_norm"]}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_gemma, byte_tokenizer):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bases") / "gpt2"
    made = GPT2LMHeadModel(GPT2Config(vocab_size=len(byte_tokenizer), n_embd=32, n_layer=2, n_head=2, bos_token_id=0,
                                      eos_token_id=2))  # fmt: skip
    made.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return {"gpt2": folder, "gemma": tiny_gemma}


def logits(model, ids=IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def write_foreign(folder, target, **settings):
    """An adapter whose other trained parameters are moved too; returns its model."""
    model = with_lora(load(folder), fan_in_fan_out=folder.name == "gpt2", **settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and ("lora_" not in name or name.endswith("bias")):
                weight.add_(0.2 * torch.randn_like(weight))
    adapter.save_adapter(model, target, base=Base("someone/tiny", folder), template=read_template("chatml"), card=CARD,
                         facts=FACTS)  # fmt: skip
    return model


@pytest.mark.slow
@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_adapter_opens_answers_beside_others_and_merges(bases, tmp_path, case):
    kind, settings = FOREIGN[case]
    folder = bases[kind]
    want = logits(write_foreign(folder, tmp_path / "one", **settings))
    write_foreign(folder, tmp_path / "two", seed=2)
    base = logits(load(folder))
    assert (want - base).abs().max() > 0.1, "or this test sees nothing"
    opened = adapter.read_adapter(tmp_path / "one")
    model = attach.attach_adapter(load(folder), opened, "one")
    assert torch.allclose(logits(model), want, atol=1e-5)
    model = attach.attach_adapter(model, adapter.read_adapter(tmp_path / "two"), "two")
    with MixedLora(model, [(), (("one", 1.0),), (("two", 1.0),), (("one", 0.5),)]):
        rows = logits(model, IDS.repeat(4, 1))
    two = logits(attach.attach_adapter(load(folder), adapter.read_adapter(tmp_path / "two"), "two"))
    for row, alone in zip(rows, (base, want, two), strict=False):
        assert torch.allclose(row, alone[0], atol=1e-4)
    half = attach.attach_adapter(load(folder), opened, "one")
    attach.set_adapter_strength(half, "one", 0.5)
    trained_modules.blend_trained_layers(half, "one", 0.5)
    assert torch.allclose(logits(half)[0], rows[3], atol=1e-4)
    merged = merged_model._merge_layers(attach.attach_adapter(load(folder), opened, "one"))
    assert torch.allclose(logits(merged), want, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(load(tmp_path / "merged")), want, atol=1e-4), "as stored, tied or not"


def test_the_base_is_itself_again_when_the_last_adapter_goes(bases, tmp_path):
    write_foreign(bases["gemma"], tmp_path / "one", modules_to_save=["embed_tokens"])
    opened = LoadedModel(Base("someone/tiny", bases["gemma"]))
    name = opened.attach(adapter.read_adapter(tmp_path / "one"))
    del opened.attached[name]
    opened._remove_adapter(name)
    assert torch.equal(logits(opened.model), logits(load(bases["gemma"])))


def test_what_cannot_be_attached_is_refused(bases, tmp_path):
    write_foreign(bases["gpt2"], tmp_path / "one", bias="all")
    file = tmp_path / "one" / "adapter_model.safetensors"
    state = load_file(file)
    key = "base_model.model.transformer.ln_f.bias"

    def open_with(**changes):
        save_file({k: v for k, v in {**state, **changes}.items() if v is not None}, file)
        return attach.attach_adapter(load(bases["gpt2"]), adapter.read_adapter(tmp_path / "one"), "one")

    with pytest.raises(AdapterError, match=r"Its trained bias of transformer\.ln_f \(48\) does not fit this base"):
        open_with(**{key: torch.zeros(48)})
    with pytest.raises(AdapterError, match=r"Its trained weight of transformer\.h \(2\) does not fit"):
        open_with(**{"base_model.model.transformer.h.weight": torch.zeros(2)})
    with pytest.raises(AdapterError, match=r"c_attn has both a LoRA, .*, and a weight of its own"):
        open_with(**{"base_model.model.transformer.h.0.attn.c_attn.weight": torch.zeros(32, 96)})
    config = tmp_path / "one" / "adapter_config.json"
    settings = json.loads(config.read_text())
    for changes, why in (({"bias": "some"}, "bias='some' is not one of none, all, lora_only"),
                         ({"modules_to_save": "(a+)+"}, r"modules_to_save=.* names no layers"),
                         ({"modules_to_save": ["(a+)+"]}, r"modules_to_save=.* names no layers")):  # fmt: skip
        config.write_text(json.dumps(settings | changes))
        with pytest.raises(AdapterError, match=why):
            open_with()


# ---- trained here


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "kind, changes",
    [("gpt2", {"bias": "all"}), ("gpt2", {"bias": "lora_only"}), ("gemma", {"modules_to_save": "embed_tokens, norm"})],
)
def test_a_run_trains_them_and_its_adapter_is_the_model(make, seen, bases, kind, changes, dtype):
    template = "chatml" if kind == "gpt2" else "gemma-base"
    run = make(PAIRS[:8], base=str(bases[kind]), template=template, max_steps=3, lora_r=4, dtype=dtype, **changes)
    result = train_run.train_run(run)
    assert result["adapter_nll"] < result["base_nll"]
    trained, opened = seen.trainer.model.eval(), adapter.read_adapter(run.adapter)
    beside = {n: p for n, p in trained.named_parameters() if p.requires_grad and "lora_" not in n}
    assert beside and all(p.dtype == torch.float32 for p in beside.values())
    before = load(bases[kind]).state_dict()
    moved = [n for n, p in beside.items() if not torch.equal(p, _original(before, n))]
    assert len(moved) == len(beside)
    assert result["trainable_parameters"] == sum(p.numel() for p in trained.parameters() if p.requires_grad)
    model = attach.attach_adapter(load(bases[kind]), opened, "x")
    if dtype == "float32":
        assert torch.allclose(logits(model), logits(trained), atol=1e-4)


def _original(before, name: str) -> torch.Tensor:
    name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save.default", "")
    return before[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [pytest.param({"bias": "all"}, marks=pytest.mark.release), {"modules_to_save": "wte"}]
)
def test_a_stopped_run_ends_as_one_that_was_not_stopped(make, bases, changes):
    ends = []
    for stopped in (False, True):
        run = make(PAIRS[:8], base=str(bases["gpt2"]), template="chatml", max_steps=4, lora_r=4, **changes)
        if stopped:
            run.stop()
            assert train_run.train_run(run)["steps"] == 1
            (run.path / "stop").unlink()
        train_run.train_run(run)
        ends.append(hash_weights(run))
    assert ends[0] == ends[1]


def test_layers_that_cannot_be_trained_whole_are_named(bases, tiny_gemma):
    def select(folder, wanted, targets="all-linear"):
        model = load(folder)
        c = RunConfig(modules_to_save=wanted, target_modules=targets)
        return lora_config.make_lora_config(c, model).modules_to_save

    assert set(select(tiny_gemma, "embed_tokens, lm_head")) == {"model.embed_tokens", "lm_head"}
    assert not select(tiny_gemma, " ")
    with pytest.raises(InputError, match=r"no layer 'nope' that can be trained whole\. It has embed_tokens, "):
        select(tiny_gemma, "nope")
    with pytest.raises(InputError, match="modules_to_save: q_proj has a LoRA already"):
        select(tiny_gemma, "q_proj")
    assert len(select(tiny_gemma, "q_proj", "mlp")) == 2
    with pytest.raises(InputError, match="bias=all and use_dora do not go together"):
        validate.check_config(
            make_config(bias="all", use_dora=True), validate.DevicePlan("cpu", "float32", "float32", "")
        )
    with pytest.raises(InputError, match="train_stop_token and modules_to_save do not go together"):
        validate.check_config(make_config(train_stop_token=True, modules_to_save="lm_head"),
                              validate.DevicePlan("cpu", "float32", "float32", ""))  # fmt: skip


def test_memory_of_layers_trained_whole_is_planned(tiny_gemma):
    base = Base("x", tiny_gemma)
    rows, hidden = base.tensors()["model.embed_tokens.weight"]
    for wanted, parameters in (
        ("", 0),
        ("embed_tokens", rows * hidden),
        ("lm_head, model.norm", rows * hidden + hidden),
    ):
        assert train_plan.count_whole_layers(base, RunConfig(modules_to_save=wanted)) == parameters
    shape = train_plan.read_base_shape(base)
    steps = [memory.StepShape(1, 8, 4, rank=0, trained=n) for n in (0, 1000)]
    assert memory.estimate_memory(shape, steps[1]).training == 16_000 + memory.estimate_memory(shape, steps[0]).training


def test_a_run_is_built_with_the_names_of_peft(make, tiny_gemma):
    _, trainer = build(make(modules_to_save=["lm_head"], max_steps=1))
    assert trainer.model.peft_config["default"].modules_to_save == ["lm_head"]
