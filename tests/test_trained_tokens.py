"""Trained token rows: written, opened, used in a batch beside other adapters, and refused where they do not fit."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import CARD, FACTS, load, with_lora, write_adapter

from persona.errors import AdapterError
from persona.models import adapter, attach, trained_tokens
from persona.models.base import Base
from persona.models.mixed_lora import MixedLora
from persona.template.chat_template import read_template

WEIGHTS = "adapter_model.safetensors"
ROW = 7
IDS = torch.tensor([[5, ROW, 9, 60, 33, ROW]])


def logits(model, ids=IDS, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits


@pytest.fixture(scope="module", params=["tied-gemma", "tied-llama", "untied-gemma", "untied-llama"])
def folder(request, tmp_path_factory) -> Path:
    """A random base of two layers. Gemma scales its embedding, which a row must be, too."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tied, kind = request.param.split("-")
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
             "num_key_value_heads": 1, "intermediate_size": 64, "tie_word_embeddings": tied == "tied"}  # fmt: skip
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes)) if kind == "gemma" else LlamaForCausalLM(LlamaConfig(**sizes))
    path = tmp_path_factory.mktemp("bases") / request.param
    model.save_pretrained(path)
    return path


def write(folder: Path, target: Path, also: tuple[int, ...] = (), **settings):
    """An adapter with a LoRA and the rows ROW and `also`, all random, as training would leave it."""
    model = load(folder)
    layer, ids = next(iter(trained_tokens.select_trainable_tokens(model, ROW).items()))
    model = with_lora(model, trainable_token_indices={layer: [*ids, *also]}, **settings)
    for name, weight in model.named_parameters():
        if "trainable_tokens_delta" in name:
            torch.nn.init.normal_(weight, std=0.5)
    base = Base("someone/tiny", folder)
    adapter.save_adapter(model, target, base=base, template=read_template("chatml"), card=CARD, facts=FACTS)
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"lora_alpha": 1}], ids=["plain", "rslora", "small-alpha"]
)
def test_what_was_trained_is_what_speaks(folder, tmp_path, settings):
    for also in ((), (9, 60)):
        trained = logits(write(folder, tmp_path / "a", also, **settings))
        opened = attach.attach_adapter(load(folder), adapter.read_adapter(tmp_path / "a"), "x")
        assert torch.allclose(logits(opened), trained, atol=1e-4)
    trained = logits(write(folder, tmp_path / "a", **settings))
    only_lora = write_adapter(folder, tmp_path / "b", **settings)
    assert (logits(only_lora) - trained)[..., ROW].abs().max() > 0.1, "the row must matter"
    if "untied" not in folder.name:
        assert (logits(only_lora) - trained)[:, 2:].abs().max() > 0.1, "tied: what is read changes too"


def test_peft_opens_it_like_any_other(folder, tmp_path):
    trained = logits(write(folder, tmp_path / "a"))
    assert torch.allclose(logits(PeftModel.from_pretrained(load(folder), tmp_path / "a")), trained, atol=1e-6)
    names = [n for n in load_file(tmp_path / "a" / WEIGHTS) if n.endswith(trained_tokens.TRAINED_TOKENS_SUFFIX)]
    assert len(names) == 1 and (tmp_path / "a" / WEIGHTS).stat().st_size < 100_000, "the row, not the matrix"


def test_three_voices_in_one_batch(folder, tmp_path):
    """Base, an adapter with a row and one without, attached in either order: none changes another's reply."""
    trained, plain = logits(write(folder, tmp_path / "a")), logits(write_adapter(folder, tmp_path / "b", seed=5))
    base = logits(load(folder))
    for order in ("ab", "ba"):
        model = load(folder)
        for name in order:
            model = attach.attach_adapter(model, adapter.read_adapter(tmp_path / name), f"voice-{name}")
        with MixedLora(model, [(), (("voice-a", 1.0),), (("voice-b", 1.0),)]):
            mixed = logits(model, IDS.repeat(3, 1))
        for got, wanted in zip(mixed, (base, trained, plain), strict=True):
            assert torch.allclose(got, wanted[0], atol=1e-5)


def test_strength_goes_from_the_base_to_what_was_trained(folder, tmp_path):
    trained, base = logits(write(folder, tmp_path / "a")), logits(load(folder))
    model = attach.attach_adapter(load(folder), adapter.read_adapter(tmp_path / "a"), "x")
    attach.set_adapter_strength(model, "x", 0)
    assert torch.equal(logits(model), base)
    attach.set_adapter_strength(model, "x", 0.5)
    half = logits(model)
    attach.set_adapter_strength(model, "x", 1)
    with MixedLora(model, [(("x", 0.5),)]):
        assert torch.allclose(logits(model), half, atol=1e-5), "as in a chat's batch"
    assert not torch.allclose(half, base, atol=1e-2) and not torch.allclose(half, trained, atol=1e-2)
    attach.set_adapter_strength(model, "x", 1)
    assert torch.allclose(logits(model), trained, atol=1e-5)


def change(path: Path, settings=None, **tensors) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    if settings is not None:
        config["trainable_token_indices"] = settings
        (path / "adapter_config.json").write_text(json.dumps(config))
    state = load_file(path / WEIGHTS)
    key = next(k for k in state if k.endswith(trained_tokens.TRAINED_TOKENS_SUFFIX))
    if "value" in tensors:
        state[key] = tensors["value"]
    if "name" in tensors:
        state[tensors["name"]] = state.pop(key)
    if "without" in tensors:
        del state[key]
    save_file(state, path / WEIGHTS)


@pytest.mark.parametrize("tensors, why", [
    ({"value": torch.zeros(1, 31)}, r"token rows \(.*, 1×31\) do not fit this base. Open it with its own"),
    ({"value": torch.zeros(2, 32)}, "2×32"),
    ({"value": torch.zeros(32)}, "do not fit this base"),
    ({"name": "base_model.model.model.layers.0.mlp.up_proj" + trained_tokens.TRAINED_TOKENS_SUFFIX}, "do not fit this base"),
    ({"without": True}, "are not all there"),
], ids=["hidden", "count", "flat", "layer", "missing"])  # fmt: skip
def test_rows_of_another_base_are_refused_before_anything_is_attached(folder, tmp_path, tensors, why):
    write(folder, tmp_path / "a")
    change(tmp_path / "a", **tensors)
    model = load(folder)
    with pytest.raises(AdapterError, match=why):
        attach.attach_adapter(model, adapter.read_adapter(tmp_path / "a"), "x")
    assert not [n for n, _ in model.named_modules() if "lora" in n]


def test_a_token_beyond_the_vocabulary_is_refused(folder, tmp_path):
    write(folder, tmp_path / "a")
    change(tmp_path / "a", settings={next(iter(trained_tokens.select_trainable_tokens(load(folder), ROW))): [200]})
    with pytest.raises(AdapterError, match="do not fit this base"):
        attach.attach_adapter(load(folder), adapter.read_adapter(tmp_path / "a"), "x")


@pytest.mark.parametrize("settings", [[-1], [1, 1], ["7"], [True], [], list(range(65)), {"lm_head": 7}, 7, {"": [[]]}])
def test_settings_that_name_no_tokens_are_refused(folder, tmp_path, settings):
    write(folder, tmp_path / "a")
    change(tmp_path / "a", settings=settings)
    with pytest.raises(AdapterError, match=r"adapter_config.json: trainable_token_indices=.* token ids each"):
        adapter.read_adapter(tmp_path / "a")


def test_a_bare_list_means_the_embedding(folder, tmp_path):
    """As PEFT reads it; others may have saved theirs so."""
    if "untied" in folder.name:
        pytest.skip("there it names the output layer")
    trained = logits(write(folder, tmp_path / "a"))
    change(tmp_path / "a", settings=[ROW])
    assert torch.allclose(
        logits(attach.attach_adapter(load(folder), adapter.read_adapter(tmp_path / "a"), "x")), trained, atol=1e-5
    )
