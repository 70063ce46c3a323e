"""The shape of a base from config and headers alone, against what the instantiated model and PEFT's LoRA really have."""

import pytest
import torch
import transformers as t
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from persona.models import memory
from persona.models.base import Base

pytestmark = pytest.mark.slow  # together a dozen seconds

PLAIN = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
LLAMA = {**PLAIN, "intermediate_size": 160, "num_key_value_heads": 2}
WIDE_HEADS = {**LLAMA, "head_dim": 32}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 101}
# model_type → its config, and what it must say: queries, keys, inner, norms, qk_norm, mlp_kept, plain_head
ARCHITECTURES = {
    "llama": (LLAMA, (64, 32, 160, 2, False, 4, True)),
    "mistral": (LLAMA, (64, 32, 160, 2, False, 4, True)),
    "qwen2": (LLAMA, (64, 32, 160, 2, False, 4, True)),
    "qwen3": (WIDE_HEADS, (128, 64, 160, 2, True, 4, True)),
    "olmo2": (LLAMA, (64, 32, 160, 2, True, 4, True)),
    "gemma2": (WIDE_HEADS, (128, 64, 160, 4, False, 4, False)),
    "gemma3_text": (WIDE_HEADS, (128, 64, 160, 4, True, 4, True)),
    "phi3": ({**LLAMA, "pad_token_id": 0}, (64, 32, 160, 2, False, 4, True)),
    "glm4": ({**LLAMA, "head_dim": 16, "pad_token_id": 0}, (64, 32, 160, 4, False, 4, True)),
    "granite": (LLAMA, (64, 32, 160, 2, False, 4, True)),
    "phi": (LLAMA, (64, 32, 160, 1, False, 6, False)),
    "starcoder2": (LLAMA, (64, 32, 160, 2, False, 2, True)),
    "gpt_neox": ({**PLAIN, "intermediate_size": 160}, (64, 64, 160, 2, False, 2, True)),
    "opt": ({**PLAIN, "ffn_dim": 160, "word_embed_proj_dim": 64}, (64, 64, 160, 2, False, 2, True)),
    "falcon": (PLAIN, (64, 16, 256, 1, False, 2, True)),
    "bloom": ({"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 101}, (64, 64, 256, 2, False, 2, True)),
    "mpt": ({"d_model": 64, "n_heads": 4, "n_layers": 3, "vocab_size": 101}, (64, 64, 256, 2, False, 2, True)),
    "gpt2": (GPT, (64, 64, 256, 2, False, 6, True)),
    "gptj": ({**GPT, "rotary_dim": 8}, (64, 64, 256, 1, False, 6, False)),
    "gpt_bigcode": (GPT, (64, 16, 256, 2, False, 2, True)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_shape_is_that_of_the_model(name, tmp_path):
    config, wanted = ARCHITECTURES[name]
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    model = t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(name, **ids, **config))
    model.save_pretrained(tmp_path)
    saved = Base(name, tmp_path)
    shape = memory.infer_model_shape(saved.config(), saved.tensors())
    seen = (shape.queries, shape.keys, shape.inner, shape.norms, shape.qk_norm, shape.mlp_kept, shape.plain_head)
    assert seen == wanted
    assert (shape.layers, shape.hidden, shape.vocab) == (3, 64, 101)
    assert shape.parameters == model.num_parameters()
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
    assert shape.linear == sum(m.weight.numel() for m in layers)
    assert shape.largest == max(m.weight.numel() for m in layers)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert 2 * shape.lora == peft.get_nb_trainable_parameters()[0]


def kept_bytes(name: str, layers: int, tokens: int = 256) -> tuple[float, memory.ModelShape]:
    """Bytes a token that the decoder keeps for the backward pass of a LoRA, in float32, and the base's shape."""
    config = {**ARCHITECTURES[name][0], "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": layers}
    model = t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(name, **config))
    shape = memory.infer_model_shape(model.config.to_dict(), {n: tuple(p.shape) for n, p in model.named_parameters()})
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.enable_input_require_grads()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.get_base_model().base_model(input_ids=torch.ones(4, tokens // 4, dtype=torch.long), use_cache=False)
    return sum(x.untyped_storage().nbytes() for p, x in kept.items() if p not in weights) / tokens, shape


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt_neox"])
def test_activations_are_counted_as_pytorch_keeps_them(name):
    (two, shape), (four, _) = kept_bytes(name, 2), kept_bytes(name, 4)
    step = memory.StepShape(1, 1, 1, rank=8, dtype="float32")
    counted = memory.estimate_memory(shape, step).activations / shape.layers
    assert counted == pytest.approx((four - two) / 2, rel=0.15)
