"""RunConfig → PEFT's LoraConfig: the layers a LoRA goes on, its rank and scale, and how it is initialized."""

import re
from typing import Any

import regex  # unlike re it has a timeout; a dependency of transformers
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from persona.errors import InputError
from persona.models import quantization
from persona.train.config import PATTERN_PREFIX, RunConfig

# what model families call the two halves of a layer
ATTENTION_PARENTS = ("self_attn", "attn", "attention", "self_attention", "linear_attn")
MLP_PARENTS = ("mlp", "feed_forward", "ffn")
LAYER_GROUPS = {"attention": ATTENTION_PARENTS, "mlp": MLP_PARENTS, "attention+mlp": ATTENTION_PARENTS + MLP_PARENTS}
MAX_SHOWN_NAMES = 12  # layer names that an error lists


def select_target_modules(model: Any, wanted: str) -> str | list[str]:
    """The target_modules of a LoraConfig: "all-linear", or names of layers.

    wanted: all-linear, one of LAYER_GROUPS, names separated by commas, or re: and a regular expression for whole names.
    In a multimodal base only layers of its language model are selected: those of its vision and audio towers have the
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
    linear = (torch.nn.Linear, Conv1D)  # GPT-2's are Conv1D
    layers = [n for n, m in model.named_modules() if isinstance(m, linear) and n.startswith(inside)]
    if wanted.startswith(PATTERN_PREFIX):
        return _match_pattern(layers, wanted.removeprefix(PATTERN_PREFIX).strip())
    if wanted == "all-linear":
        wanted = "attention+mlp"  # adapters between tower and language model are linear layers too
    if wanted in LAYER_GROUPS:
        return _match_group(layers, wanted)
    return _match_names(layers, wanted)


def _match_group(layers: list[str], group: str) -> list[str]:
    """By the module that they are in: q_proj is called qkv_proj, q_a_proj … in other families."""
    matches = [n for n in layers if len(parts := n.split(".")) > 1 and parts[-2] in LAYER_GROUPS[group]]
    if not matches:
        raise InputError(
            "target_modules={wanted}: not known for this base. Name its layers: {layers}.",
            wanted=group,
            layers=_list_layer_names(layers),
        )
    return matches


def _match_names(layers: list[str], wanted: str) -> list[str]:
    """wanted: endings of names, separated by commas, each of which must be there."""
    names = [n.strip() for n in wanted.split(",") if n.strip()]
    unknown = [n for n in names if not any(_ends_with_name(layer, n) for layer in layers)]
    if unknown or not names:
        raise InputError(
            "target_modules: this base has no layer {names!r}. It has {layers}.",
            names=", ".join(unknown) or wanted,
            layers=_list_layer_names(layers),
        )
    return [layer for layer in layers if any(_ends_with_name(layer, n) for n in names)]


def _ends_with_name(layer: str, name: str) -> bool:
    return f".{layer}".endswith(f".{name}")


def _match_pattern(layers: list[str], pattern: str) -> list[str]:
    try:
        matches = [n for n in layers if regex.fullmatch(pattern, n, timeout=1.0)]  # some patterns would run for years
    except TimeoutError:
        raise InputError(
            "target_modules=re:{pattern}: takes too long. Write it without nested repeats.", pattern=f"{pattern:.100}"
        ) from None
    except regex.error as e:
        raise InputError(
            "target_modules=re:{pattern}: not a regular expression ({reason}).", pattern=pattern, reason=e
        ) from e
    if not matches:
        raise InputError(
            "target_modules=re:{pattern}: matches no linear layer. It must match a whole name, such as "
            "{first} or {last}; e.g. re:.*{ending}.",
            pattern=pattern,
            first=layers[0],
            last=layers[-1],
            ending=re.escape(layers[0].rpartition(".")[2]),
        )
    return matches


def _list_layer_names(layers: list[str]) -> str:
    """The last parts of the layers' names, each once; the first few of them."""
    names = list(dict.fromkeys(n.rpartition(".")[2] for n in layers))
    return ", ".join(names[:MAX_SHOWN_NAMES]) + (", …" if len(names) > MAX_SHOWN_NAMES else "")


def make_lora_config(c: RunConfig, model: Any, token_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    """PEFT's settings for `model`. token_rows: rows that are trained beside the LoRA (models/trained_tokens.py)."""
    rank, alpha, init = c.lora_r, float(c.lora_alpha), c.init_lora_weights
    if c.is_pissa:
        rank, alpha = double_rank_for_pissa(rank, alpha, c.use_rslora)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        lora_dropout=c.lora_dropout,
        target_modules=select_target_modules(model, c.target_modules),
        init_lora_weights=init if init in ("gaussian", "orthogonal") else True,
        use_rslora=c.use_rslora,
        use_dora=c.use_dora,
        fan_in_fan_out=quantization.has_transposed_weights(model),
        trainable_token_indices=token_rows,
    )


def double_rank_for_pissa(rank: int, alpha: float, rslora: bool) -> tuple[int, float]:
    """Twice the rank, and the alpha that keeps the scale, alpha / r or alpha / sqrt(r), as it was."""
    return 2 * rank, alpha * (2**0.5 if rslora else 2)


@torch.no_grad()
def initialize_pissa(model: torch.nn.Module, init: str, rank: int) -> None:
    """Initialize the doubled LoRA of a PeftModel by PiSSA (Meng et al. 2024), and freeze its second half.

    The first half begins with the main directions of each weight, the second half subtracts them again: so the base
    stays as it is, and the adapter is a plain one. init: pissa, or pissa_niter_N for N rounds of an approximate SVD
    (Halko et al. 2009), which only changes where training begins.

    Raises InputError for a rank that a layer cannot have.
    """
    rounds = int(init.rpartition("_")[2]) if "niter" in init else None
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        weight = quantization.dequantize_weight(layer.get_base_layer()).float()
        if rank > min(weight.shape):
            raise InputError(
                "lora_r={rank} with {init}: {layer} has only {directions} directions. Lower lora_r.",
                rank=rank,
                init=init,
                layer=name.removeprefix("base_model.model."),
                directions=min(weight.shape),
            )
        if rounds is None:
            left, singular_values, right = torch.linalg.svd(weight, full_matrices=False)
        else:
            left, singular_values, right_t = torch.svd_lowrank(weight, rank, niter=rounds)
            right = right_t.T
        root = (singular_values[:rank] / layer.scaling["default"]).sqrt()
        a, b = root[:, None] * right[:rank], left[:, :rank] * root
        lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        lora_a.copy_(torch.cat([a, a]))
        lora_b.copy_(torch.cat([b, -b], dim=1))
        lora_a.register_hook(lambda g: torch.cat([g[:rank], torch.zeros_like(g[rank:])]))
        lora_b.register_hook(lambda g: torch.cat([g[:, :rank], torch.zeros_like(g[:, rank:])], dim=1))
