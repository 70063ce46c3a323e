"""GPT-2, whose linear layers are Conv1D with transposed weights: DoRA in a mixed batch, PiSSA, files of other programs."""

import json

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from tiny_models import load, make_adapter
from transformers import GPT2Config, GPT2LMHeadModel

from persona.models import adapter, attach
from persona.models.mixed_lora import MixedLora
from persona.train import lora_config
from persona.train.config import RunConfig

IDS = torch.tensor([[2, 301, 302, 5, 280, 7]])


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory, byte_tokenizer):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bases") / "tiny-gpt2"
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(byte_tokenizer), n_embd=32, n_layer=2, n_head=2, bos_token_id=0,
                                       eos_token_id=2))  # fmt: skip
    model.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}])
def test_a_row_of_a_mixed_batch_is_what_peft_computes_alone(tiny_gpt2, tmp_path, changes):
    opened, base = make_adapter(tiny_gpt2, tmp_path / "one", **changes)
    model = attach.attach_adapter(load(base.path), opened, "one")
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and "one" in layer.lora_magnitude_vector:
            with torch.no_grad():  # as a training would move it
                layer.lora_magnitude_vector["one"].weight.mul_(1 + 0.3 * torch.rand(layer.out_features))
    want = logits(model)
    with MixedLora(model, [(("one", 1.0),)]):
        got = logits(model)
    assert torch.allclose(got, want, atol=1e-5)
    with model.disable_adapter():
        assert (want - logits(model)).abs().max() > 0.1, "or this test sees nothing"


def test_pissa_begins_at_the_base_and_with_its_main_directions(tiny_gpt2):
    config = RunConfig(init_lora_weights="pissa", lora_r=4, lora_alpha=4)
    model = load(tiny_gpt2)
    before = logits(model)
    model = get_peft_model(model, lora_config.make_lora_config(config, model)).eval()
    lora_config.initialize_pissa(model, "pissa", 4)
    assert torch.allclose(logits(model), before, atol=1e-5)
    layer = model.get_submodule("base_model.model.transformer.h.0.mlp.c_fc")
    first = layer.lora_B["default"].weight[:, :4] @ layer.lora_A["default"].weight[:4]  # (out, in)
    left, sizes, right = torch.linalg.svd(layer.get_base_layer().weight.T)
    assert torch.allclose(first, (left[:, :4] * sizes[:4]) @ right[:4], atol=1e-3)


def test_an_adapter_of_another_base_is_refused_layer_by_layer(tiny_gpt2, tmp_path):
    opened, _ = make_adapter(tiny_gpt2, tmp_path / "one")
    file = tmp_path / "one" / "adapter_config.json"
    assert json.loads(file.read_text())["fan_in_fan_out"] is True
    wider = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=48, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=2))
    with pytest.raises(adapter.AdapterError, match=r"transformer\.h\.0\.attn\.c_attn: lora_A\.weight is 4×32, with this base it must be 4×48"):  # fmt: skip
        attach.attach_adapter(wider, opened, "one")
