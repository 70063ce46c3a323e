"""PiSSA (Meng et al. 2024): a LoRA that begins as the main directions of each layer, on a base that stays as it is.

The paper trains W - sB₀A₀ + sBA, with W - sB₀A₀ frozen in the base's place. Here the base keeps its W, and the LoRA has
twice the rank: [B, -B₀]·[A; A₀], whose second half never moves. Function and gradients are the same. But the base stays
the base at any moment, a checkpoint is whole in itself, and the adapter is a plain one; nothing is converted.
"""

import torch
from peft.tuners.lora import LoraLayer

from persona.errors import InputError


def asked(init: str) -> bool:
    return init.startswith("pissa")


def doubled(rank: int, alpha: float, rslora: bool) -> tuple[int, float]:
    """Twice the rank, and the alpha with which the scale stays what it was: alpha / r, or alpha / sqrt(r)."""
    return 2 * rank, alpha * (2**0.5 if rslora else 2)


@torch.no_grad()
def begin(model: torch.nn.Module, init: str, rank: int) -> None:
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
