"""RunConfig → PEFT's LoraConfig: the layers a LoRA goes on, its rank and scale, and how it is initialized."""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from persona.errors import InputError
from persona.models import quantization, trained_modules
from persona.train.config import RunConfig
from persona.train.target_modules import ends_with_name, list_layer_names, match_layers, split_names


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
    # adapters between tower and language model are linear layers too
    return match_layers(layers, "attention+mlp" if wanted == "all-linear" else wanted)


def make_lora_config(c: RunConfig, model: Any, token_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    """PEFT's settings for `model`. token_rows: rows that are trained beside the LoRA (models/trained_tokens.py)."""
    rank, alpha, init = c.lora_r, float(c.lora_alpha), c.init_lora_weights
    if c.is_pissa:
        rank, alpha = double_rank_for_pissa(rank, alpha, c.use_rslora)
    targets = select_target_modules(model, c.target_modules)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        lora_dropout=c.lora_dropout,
        target_modules=targets,
        init_lora_weights=init if init in ("gaussian", "orthogonal") else True,
        use_rslora=c.use_rslora,
        use_dora=c.use_dora,
        bias=c.bias,
        modules_to_save=select_modules_to_save(model, c.modules_to_save, targets),
        fan_in_fan_out=quantization.has_transposed_weights(model),
        trainable_token_indices=token_rows,
    )


def select_modules_to_save(model: Any, wanted: str, targets: str | list[str]) -> list[str] | None:
    """The modules_to_save of a LoraConfig. wanted: endings of names, separated by commas; targets: of the LoRA.

    Raises InputError for a name that is not there, or is not one plain layer that no LoRA is on.
    """
    layers = {n: m for n, m in model.named_modules() if trained_modules.is_plain_layer(m)}
    names, found = split_names(wanted), []
    for name in names:
        matches = [layer for layer in layers if ends_with_name(layer, name)]
        if not matches:
            others = [n for n, m in layers.items() if not isinstance(m, torch.nn.Linear) or "." not in n]
            raise InputError(
                "modules_to_save: this base has no layer {name!r} that can be trained whole. It has {layers}.",
                name=name,
                layers=list_layer_names(others),
            )
        head = model.get_output_embeddings()
        with_lora = targets == "all-linear" and any(
            isinstance(layers[n], torch.nn.Linear | Conv1D) and layers[n] is not head for n in matches
        )
        if with_lora or (isinstance(targets, list) and set(matches) & set(targets)):
            raise InputError(
                "modules_to_save: {name} has a LoRA already. Leave it out there, or out of target_modules.", name=name
            )
        found += matches
    return found or None


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
                layer=name.removeprefix(trained_modules.PEFT_PREFIX),
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
