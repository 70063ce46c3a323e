"""Where a LoRA goes in a model, and how it begins: RunConfig → PEFT."""

import re
from typing import Any

import regex  # comes with transformers
import torch
from peft import LoraConfig

from persona import pissa
from persona.config import RunConfig
from persona.errors import InputError

# what families call the two halves of a layer
ATTENTION = ("self_attn", "attn", "attention")
MLP = ("mlp", "feed_forward")


HALVES = {"attention": ATTENTION, "mlp": MLP, "attention+mlp": ATTENTION + MLP}
SHOWN = 12  # names that a refusal lists


def targets(model: Any, wanted: str) -> str | list[str]:
    """What PEFT is to put a LoRA on, in its own form: "all-linear", or names of layers.

    wanted: all-linear, one of HALVES, names separated by commas, or re: and a regular expression for whole names. In a
    base that sees and hears too, the layers of its language model alone: those of its vision and audio towers have the
    same names, and text teaches them nothing. Raises InputError naming the layers that there are.
    """
    wanted = wanted.strip()
    has_towers = model.config.get_text_config() is not model.config
    if wanted == "all-linear" and not has_towers:
        return wanted
    inside = ""
    if has_towers:
        language = model.get_decoder()
        inside = next(name for name, module in model.named_modules() if module is language) + ".layers."
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith(inside)]
    if wanted.startswith("re:"):
        return _matching(layers, wanted.removeprefix("re:").strip())
    if wanted == "all-linear":
        wanted = "attention+mlp"  # the towers' part in the language model has linear layers of its own
    if wanted in HALVES:  # by where they are: q_proj is called qkv_proj, q_a_proj … elsewhere
        found = [n for n in layers if len(p := n.split(".")) > 1 and p[-2] in HALVES[wanted]]
        if not found:
            raise InputError(
                "target_modules={wanted}: not known for this base. Name its layers: {layers}.",
                wanted=wanted,
                layers=_some(layers),
            )
        return found
    names = [m.strip() for m in wanted.split(",") if m.strip()]
    if unknown := [n for n in names if not any(_ends(layer, n) for layer in layers)] or not names:
        said = ", ".join(unknown) if isinstance(unknown, list) else wanted
        raise InputError(
            "target_modules: this base has no layer {said!r}. It has {layers}.", said=said, layers=_some(layers)
        )
    return [layer for layer in layers if any(_ends(layer, n) for n in names)]


def _ends(layer: str, name: str) -> bool:
    return f".{layer}".endswith(f".{name}")


def _matching(layers: list[str], pattern: str) -> list[str]:
    try:
        # re knows no limit, and there are expressions that would run for years
        found = [n for n in layers if regex.fullmatch(pattern, n, timeout=1.0)]
    except TimeoutError:
        raise InputError(
            "target_modules=re:{pattern}: takes too long. Write it without nested repeats.", pattern=f"{pattern:.100}"
        ) from None
    except regex.error as e:
        raise InputError(
            "target_modules=re:{pattern}: not a regular expression ({reason}).", pattern=pattern, reason=e
        ) from e
    if not found:
        raise InputError(
            "target_modules=re:{pattern}: matches no linear layer. It must match a whole name, such as "
            "{first} or {last}; e.g. re:.*{ending}.",
            pattern=pattern,
            first=layers[0],
            last=layers[-1],
            ending=re.escape(layers[0].rpartition(".")[2]),
        )
    return found


def _some(layers: list[str]) -> str:
    """The names that layers end with, the first few of them."""
    names = list(dict.fromkeys(n.rpartition(".")[2] for n in layers))
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def lora_config(c: RunConfig, model: Any, token_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    """token_rows: of tokenrows.to_train, trained beside the LoRA."""
    rank, alpha, begins = c.lora_r, float(c.lora_alpha), c.init_lora_weights
    if pissa.asked(begins):
        rank, alpha = pissa.doubled(rank, alpha, c.use_rslora)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        lora_dropout=c.lora_dropout,
        target_modules=targets(model, c.target_modules),
        init_lora_weights=begins if begins in ("gaussian", "orthogonal") else True,
        use_rslora=c.use_rslora,
        use_dora=c.use_dora,
        trainable_token_indices=token_rows,
    )
