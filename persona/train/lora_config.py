"""Where a LoRA goes in a model, and how it begins: RunConfig → PEFT."""

import re
from typing import Any

import regex  # comes with transformers
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from persona.errors import InputError
from persona.train.config import RunConfig

# what families call the two halves of a layer
ATTENTION_PARENTS = ("self_attn", "attn", "attention")
MLP_PARENTS = ("mlp", "feed_forward")


LAYER_GROUPS = {"attention": ATTENTION_PARENTS, "mlp": MLP_PARENTS, "attention+mlp": ATTENTION_PARENTS + MLP_PARENTS}
MAX_SHOWN_NAMES = 12  # names that a refusal lists


def select_target_modules(model: Any, wanted: str) -> str | list[str]:
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
        return _match_layers(layers, wanted.removeprefix("re:").strip())
    if wanted == "all-linear":
        wanted = "attention+mlp"  # the towers' part in the language model has linear layers of its own
    if wanted in LAYER_GROUPS:  # by where they are: q_proj is called qkv_proj, q_a_proj … elsewhere
        found = [n for n in layers if len(p := n.split(".")) > 1 and p[-2] in LAYER_GROUPS[wanted]]
        if not found:
            raise InputError(
                "target_modules={wanted}: not known for this base. Name its layers: {layers}.",
                wanted=wanted,
                layers=_list_layer_names(layers),
            )
        return found
    names = [m.strip() for m in wanted.split(",") if m.strip()]
    if unknown := [n for n in names if not any(_ends_with_name(layer, n) for layer in layers)] or not names:
        said = ", ".join(unknown) if isinstance(unknown, list) else wanted
        raise InputError(
            "target_modules: this base has no layer {said!r}. It has {layers}.",
            said=said,
            layers=_list_layer_names(layers),
        )
    return [layer for layer in layers if any(_ends_with_name(layer, n) for n in names)]


def _ends_with_name(layer: str, name: str) -> bool:
    return f".{layer}".endswith(f".{name}")


def _match_layers(layers: list[str], pattern: str) -> list[str]:
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


def _list_layer_names(layers: list[str]) -> str:
    """The names that layers end with, the first few of them."""
    names = list(dict.fromkeys(n.rpartition(".")[2] for n in layers))
    return ", ".join(names[:MAX_SHOWN_NAMES]) + (", …" if len(names) > MAX_SHOWN_NAMES else "")


def make_lora_config(c: RunConfig, model: Any, token_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    """token_rows: of `select_trainable_tokens`, trained beside the LoRA."""
    rank, alpha, begins = c.lora_r, float(c.lora_alpha), c.init_lora_weights
    if is_pissa(begins):
        rank, alpha = double_rank_for_pissa(rank, alpha, c.use_rslora)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        lora_dropout=c.lora_dropout,
        target_modules=select_target_modules(model, c.target_modules),
        init_lora_weights=begins if begins in ("gaussian", "orthogonal") else True,
        use_rslora=c.use_rslora,
        use_dora=c.use_dora,
        trainable_token_indices=token_rows,
    )


def is_pissa(init: str) -> bool:
    return init.startswith("pissa")


def double_rank_for_pissa(rank: int, alpha: float, rslora: bool) -> tuple[int, float]:
    """Twice the rank, and the alpha with which the scale stays what it was: alpha / r, or alpha / sqrt(r)."""
    return 2 * rank, alpha * (2**0.5 if rslora else 2)


@torch.no_grad()
def initialize_pissa(model: torch.nn.Module, init: str, rank: int) -> None:
    """Fill the doubled LoRA of a PeftModel, and hold its second half still while it is trained.

    init: pissa, or pissa_niter_N for N rounds of an approximate SVD (Halko et al. 2009); what it leaves out is only
    where the training begins, never what the model says. Raises InputError for a rank that a layer cannot have.
    """
    rounds = int(init.rpartition("_")[2]) if "niter" in init else None
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        weight = layer.get_base_layer().weight.float()
        if rank > min(weight.shape):
            where, most = name.removeprefix("base_model.model."), min(weight.shape)
            raise InputError(
                "lora_r={rank} with {init}: {where} has only {most} directions. Lower lora_r.",
                rank=rank,
                init=init,
                where=where,
                most=most,
            )
        if rounds is None:
            left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        else:
            left, sizes, turned = torch.svd_lowrank(weight, rank, niter=rounds)
            right = turned.T
        root = (sizes[:rank] / layer.scaling["default"]).sqrt()
        a, b = root[:, None] * right[:rank], left[:, :rank] * root
        lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        lora_a.copy_(torch.cat([a, a]))
        lora_b.copy_(torch.cat([b, -b], dim=1))
        lora_a.register_hook(lambda g: torch.cat([g[:rank], torch.zeros_like(g[rank:])]))
        lora_b.register_hook(lambda g: torch.cat([g[:, :rank], torch.zeros_like(g[:, rank:])], dim=1))
