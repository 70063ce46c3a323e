"""Where a LoRA goes in a model, and how it begins: RunConfig → PEFT."""

import re
from typing import Any

import torch
from peft import LoraConfig

from persona.config import RunConfig
from persona.errors import InputError

# what families call the two halves of a layer
ATTENTION = ("self_attn", "attn", "attention")
MLP = ("mlp", "feed_forward")


def targets(model: Any, wanted: str) -> str | list[str]:
    """What PEFT is to put a LoRA on, in its own form: "all-linear", names of layers, or a regular expression.

    wanted: all-linear, attention, or names separated by commas. In a base that sees and hears too, the layers of its
    language model alone: those of its vision and audio towers have the same names, and text teaches them nothing.
    """
    names = [m.strip() for m in wanted.split(",")]
    has_towers = model.config.get_text_config() is not model.config
    if wanted == "all-linear" and not has_towers:
        return wanted
    language = model.get_decoder()
    if wanted in ("all-linear", "attention"):  # by where they are: q_proj is called qkv_proj, q_a_proj … elsewhere
        halves = ATTENTION if wanted == "attention" else ATTENTION + MLP
        linear = [n.split(".") for n, m in language.named_modules() if isinstance(m, torch.nn.Linear)]
        names = sorted({n[-1] for n in linear if len(n) > 1 and n[-2] in halves})
        if not names:
            raise InputError(f"target_modules={wanted}: not known for this base. Name its layers, joined by commas.")
    if not has_towers:
        return names
    prefix = next(name for name, module in model.named_modules() if module is language)
    return rf"{re.escape(prefix)}\.layers\.(.*\.)?({'|'.join(map(re.escape, names))})"


def lora_config(c: RunConfig, model: Any, token_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    """token_rows: of tokenrows.to_train, trained beside the LoRA."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=c.lora_r,
        lora_alpha=c.lora_alpha,
        lora_dropout=c.lora_dropout,
        target_modules=targets(model, c.target_modules),
        init_lora_weights=True if c.init_lora_weights == "default" else c.init_lora_weights,
        use_rslora=c.use_rslora,
        use_dora=c.use_dora,
        trainable_token_indices=token_rows,
    )
