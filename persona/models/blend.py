"""A blend of adapters by weight, or one adapter at a strength, written as an adapter of its own.

A LoRA's update is a product, s·B·A, so a weighted sum of updates is again one: the A stacked, the B beside each other,
each times its weight and scale. That is exact, and its rank is the sum of the ranks. To a lower rank it is the best
approximation there is (Eckart & Young 1936), by an SVD of the two small factors, and its error is stated.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import AdapterError, InputError
from persona.models.adapter import WEIGHTS_FILE, Adapter, lora_scale, open_adapter_file, write_adapter_folder
from persona.models.trained_modules import PEFT_PREFIX
from persona.store.files import write_atomic

MAX_RANK = 1024  # of a blend, as of a run


@dataclass(frozen=True)
class Blend:
    """A blend that was written. error: the norm of what is missing over that of the update, 0 where it is exact."""

    folder: Path
    rank: int
    error: float


def save_blend(parts: Sequence[tuple[Adapter, str, float]], target: Path, rank: int = 0) -> Blend:
    """Write the sum of the adapters' updates as an adapter folder; card and template are the first one's.

    parts: each adapter with its name, as the card says it, and its weight. rank: to reduce it to; 0: exact. Raises
    AdapterError or InputError for adapters that cannot be added, and for a rank that cannot be had.
    """
    _require_addable(parts)
    layers = _stack_layers([(adapter, weight) for adapter, _, weight in parts])
    full = next(iter(layers.values()))[0].shape[0]
    if (not rank and full > MAX_RANK) or rank > MAX_RANK or rank < 0:
        raise InputError(
            "rank {rank}: a blend has a rank of up to {limit}. Give a lower rank.", rank=rank or full, limit=MAX_RANK
        )
    error = 0.0
    if rank and rank < full:
        layers, error = _reduce_rank(layers, rank)
        full = rank
    first = parts[0][0]
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": first.base_id, "r": full,
        "lora_alpha": full, "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(layers),
        "inference_mode": True,
    }  # fmt: skip

    def write_weights(folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        tensors = {
            f"{PEFT_PREFIX}{name}.lora_{part}.weight": tensor.contiguous()
            for name, (a, b) in layers.items()
            for part, tensor in (("A", a), ("B", b))
        }
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        write_atomic(folder / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")

    write_adapter_folder(
        write_weights, target, base=_base_of(first), template=first.template, card=first.card,
        facts=_describe(parts, sorted(layers), full, error),
    )  # fmt: skip
    return Blend(target, full, error)


def _require_addable(parts: Sequence[tuple[Adapter, str, float]]) -> None:
    first = parts[0][0]
    for adapter, name, weight in parts:
        if not 0 <= weight <= 2:
            raise InputError("{name}*{weight}: a weight is between 0 and 2.", name=name, weight=weight)
        if adapter.settings.get("use_dora") or adapter.settings.get("trainable_token_indices"):
            raise AdapterError(
                "{name}: a DoRA, or an adapter with trained token rows, is no sum of products and cannot be blended "
                "into one. Compare them side by side instead, or merge it into its base: persona export --as merged.",
                name=name,
            )
        if (adapter.base_id.lower(), adapter.base_revision) != (first.base_id.lower(), first.base_revision):
            raise AdapterError(
                "{name} was trained on {base}, the first one on {other}. Only adapters of the same base can be "
                "blended.",
                name=name,
                base=adapter.base_id,
                other=first.base_id,
            )


def _stack_layers(parts: Sequence[tuple[Adapter, float]]) -> dict[str, tuple[Any, Any]]:
    """Layer → (A, B) of the sum, float32; where an adapter has no LoRA on a layer, its rows are zero.

    A: (rank, in_features), B: (out_features, rank), so that the update is B A.
    """
    import torch

    loaded = [_load_layers(adapter, weight) for adapter, weight in parts]
    names = sorted({name for layers, _ in loaded for name in layers})
    stacked: dict[str, tuple[Any, Any]] = {}
    for name in names:
        a_one, b_one = next(layers[name] for layers, _ in loaded if name in layers)
        factors = [
            layers.get(name, (a_one.new_zeros(rank, a_one.shape[1]), b_one.new_zeros(b_one.shape[0], rank)))
            for layers, rank in loaded
        ]
        if len({(a.shape[1], b.shape[0]) for a, b in factors}) > 1:
            raise AdapterError("{layer}: of another size in one of the adapters. They are not of one base.", layer=name)
        stacked[name] = torch.cat([a for a, _ in factors]), torch.cat([b for _, b in factors], dim=1)
    return stacked


def _load_layers(adapter: Adapter, weight: float) -> tuple[dict[str, tuple[Any, Any]], int]:
    """Layer → (A, weight · scale · B), all padded to the adapter's largest rank, and that rank."""
    import torch
    from safetensors.torch import load

    with open_adapter_file(adapter.path / WEIGHTS_FILE) as f:
        state = load(f.read())
    found: dict[str, dict[str, Any]] = {}
    for key, tensor in state.items():
        layer, _, part = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        found.setdefault(layer, {})[part] = tensor.float()
    if any(set(parts) != {"A.weight", "B.weight"} for parts in found.values()):
        raise AdapterError(
            "{name}: holds tensors that are no plain LoRA, and cannot be blended.", name=adapter.card.name
        )
    rank = max(parts["A.weight"].shape[0] for parts in found.values())
    layers = {}
    for layer, parts in found.items():
        own = parts["A.weight"].shape[0]
        scale = lora_scale(adapter.settings, layer, own)
        a = torch.nn.functional.pad(parts["A.weight"], (0, 0, 0, rank - own))
        layers[layer] = a, torch.nn.functional.pad(weight * scale * parts["B.weight"], (0, rank - own))
    return layers, rank


def _reduce_rank(layers: dict[str, tuple[Any, Any]], rank: int) -> tuple[dict[str, tuple[Any, Any]], float]:
    """The best approximation of each layer's update at this rank, and the error over all layers."""
    import torch

    reduced, missing, whole = {}, 0.0, 0.0
    for name, (a, b) in layers.items():
        q_b, r_b = torch.linalg.qr(b.double())
        q_a, r_a = torch.linalg.qr(a.double().T)
        left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        kept = min(rank, len(values))
        root = values[:kept].sqrt()
        new_b, new_a = (q_b @ left[:, :kept]) * root, root[:, None] * (right[:kept] @ q_a.T)
        new_a = torch.nn.functional.pad(new_a, (0, 0, 0, rank - kept))
        reduced[name] = new_a.float(), torch.nn.functional.pad(new_b, (0, rank - kept)).float()
        missing += float((values[kept:] ** 2).sum())
        whole += float((values**2).sum())
    return reduced, (missing / whole) ** 0.5 if whole else 0.0


def _base_of(adapter: Adapter) -> dict[str, Any]:
    """As Base.to_dict(); the adapter's own run.json may say less, or come from elsewhere."""
    base = adapter.facts.get("base")
    said = base if isinstance(base, dict) else {}
    known = {name: str(said.get(name) or "") for name in ("revision", "licence", "licence_url")}
    return {"id": adapter.base_id, **known}


def _describe(
    parts: Sequence[tuple[Adapter, str, float]], layers: list[str], rank: int, error: float
) -> dict[str, Any]:
    """run.json of a blend: what it is made of, and the settings with which a run can go on from it."""
    configs = [a.facts["config"] if isinstance(a.facts.get("config"), dict) else {} for a, _, _ in parts]
    targets = {str(c.get("target_modules", "")) for c in configs}
    written = targets.pop() if len(targets) == 1 else ""
    settings = {"lora_r": rank, "lora_alpha": rank, "target_modules": written or ",".join(layers),
                "use_rslora": False, "use_dora": False, "init_lora_weights": "default"}  # fmt: skip
    return {
        "config": {"learning_rate": "–", "max_length": parts[0][0].max_length, **configs[0], **settings},
        "figures": {"base_nll": None, "adapter_nll": None},
        "blend": {"parts": [{"adapter": name, "weight": weight} for _, name, weight in parts], "error": error},
    }
