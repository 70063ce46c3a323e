"""A tiny base for 4 and 8 bits, in full precision and stored quantized. Load with pytest_plugins."""

from pathlib import Path

import pytest
import torch

from persona.models import quantization
from persona.models.base import Base


@pytest.fixture(scope="module")
def full(tmp_path_factory, byte_tokenizer) -> Path:
    """A tiny Llama whose layers have a multiple of 64 inputs, as 4 bits want it on a CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("quantized") / "tiny"
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, intermediate_size=192, initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


def store_quantized(full: Path, target: Path, kind: str) -> Base:
    """The base as the Hub's …-bnb-4bit repositories store it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = quantization.make_quantization_kwargs(kind, "bfloat16", "cpu")
    AutoModelForCausalLM.from_pretrained(full, dtype=torch.bfloat16, **options).save_pretrained(target)
    AutoTokenizer.from_pretrained(full).save_pretrained(target)
    return Base("someone/tiny-unsloth-bnb-4bit", target)
