"""Every row of a batch with its own LoRA, or several by weight, in one forward pass of the base.

PEFT's adapter_names does one LoRA a row, splits the batch at every layer, leaves its hooks behind when a pass fails
(peft#3475) and knows no DoRA. Here each layer gets the rows' A and B stacked into two tensors, zeros where a row has
none, and adds x A B to what the base says: the same numbers, in two operations.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import embedding

AdapterWeights = tuple[tuple[str, float], ...]  # adapters by name, each with its weight; () is the base


class MixedLora:
    """While it lasts (a with block), row n of every batch through `model` speaks with mixes[n].

    model: a PeftModel whose adapters `adapter.attach` put there, in eval mode; or a plain one, for the base alone.
    """

    def __init__(self, model: Any, mixes: Sequence[AdapterWeights]):
        from peft.tuners.lora import LoraLayer

        self.layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        self.mixes = list(mixes)

    def __enter__(self) -> "MixedLora":
        try:
            self._set()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.__dict__.pop("forward", None)  # the class's own again

    def keep(self, rows: Sequence[int]) -> None:
        """From now on the batch has only these of its rows."""
        self.mixes = [self.mixes[r] for r in rows]
        self._set()

    @torch.inference_mode()
    def _set(self) -> None:
        for layer in self.layers:
            if hasattr(layer.get_base_layer(), "num_embeddings"):
                layer.forward = partial(_mixed_embedding, layer, self.mixes)
            else:
                layer.forward = _linear_forward(layer, self.mixes)


def _linear_forward(layer: Any, mixes: Sequence[AdapterWeights]) -> Any:
    """What replaces the layer's forward: x → base(x) + (base(x) - bias) · gain + x A B, row by row."""
    rows = [[(_lora_factors(layer, name), weight) for name, weight in mix if name in layer.lora_A] for mix in mixes]
    rank = max(sum(a.shape[1] for (a, _, _), _ in row) for row in rows)
    if not rank:
        return partial(_base_forward, layer)
    some = next(a for row in rows for (a, _, _), _ in row)
    a_rows = some.new_zeros(len(rows), layer.in_features, rank)
    b_rows = some.new_zeros(len(rows), rank, layer.out_features)
    gains = some.new_zeros(len(rows), 1, layer.out_features)
    for n, row in enumerate(rows):
        at = 0
        for (a, b, gain), weight in row:
            a_rows[n, :, at : at + a.shape[1]] = a
            b_rows[n, at : at + a.shape[1]] = b * weight
            gains[n] += gain * weight
            at += a.shape[1]
    return partial(_mixed_linear, layer, a_rows, b_rows, gains if gains.any() else None)


def _lora_factors(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """(A, B, gain) of an adapter in a linear layer: W x becomes W x + x A B + gain · W x.

    DoRA (Liu et al. 2024) scales each row of W + sBA to a learned length: g (W + sBA) is W + g sBA + (g - 1) W.
    """
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]
    if name not in layer.lora_magnitude_vector:
        return a.T, b.T, 0.0
    weight = layer.get_base_layer().weight.to(b.dtype)
    gain = layer.lora_magnitude_vector[name].weight / torch.linalg.norm(weight + b @ a, dim=1)
    return a.T, b.T * gain, gain - 1


def _base_forward(layer: Any, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    return layer.base_layer(x, *args, **options)


def _mixed_linear(
    layer: Any, a: torch.Tensor, b: torch.Tensor, gains: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    said = layer.base_layer(x)
    out = said.to(a.dtype)
    if gains is not None:
        bias = layer.base_layer.bias
        out = out + (out if bias is None else out - bias) * gains
    rows = len(a)
    x, flat = x.to(a.dtype).reshape(rows, -1, a.shape[1]), out.reshape(rows, -1, b.shape[2])
    return torch.baddbmm(flat, torch.bmm(x, a), b).to(said.dtype).view(said.shape)


def _mixed_embedding(layer: Any, mixes: Sequence[AdapterWeights], ids: torch.Tensor) -> torch.Tensor:
    """Row by row: only adapters with trained rows of tokens have this one layer (tokenrows.py)."""
    out = layer.base_layer(ids).clone()
    scale = layer._get_embed_scale()  # Gemma multiplies its embeddings
    for n, mix in enumerate(mixes):
        for name, weight in mix:
            if name in layer.lora_embedding_A:
                a, b = layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
                change = embedding(ids[n], a) @ b * (layer.scaling[name] * weight)
                out[n] += (change if scale is None else change * scale.to(change.dtype)).to(out.dtype)
    return out
