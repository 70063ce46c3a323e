"""A batch in which every row has its own LoRA, or a weighted blend of several, in one forward pass of the base.

PEFT's adapter_names takes one LoRA a row, splits the batch at every layer, leaves its hooks behind when a pass fails
(peft#3475) and does not support DoRA. Here the rows' A and B are stacked into two tensors a layer, zeros where a row
has none, and x A B is added to the base's output: the same numbers, in two operations.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import embedding

from persona.models.quantization import dequantize_weight

AdapterWeights = tuple[tuple[str, float], ...]  # adapters by name, each with its weight; (): the base alone


class MixedLora:
    """A context manager: inside it, row n of every batch through `model` uses the adapters mixes[n].

    At its end, after an error too, every layer has its own forward again. model: a PeftModel in eval mode with adapters
    attached by `attach_adapter`; or a model without adapters, for the base alone.
    """

    def __init__(self, model: Any, mixes: Sequence[AdapterWeights]):
        from peft.tuners.lora import LoraLayer
        from peft.utils.other import ModulesToSaveWrapper

        self.layers = [m for m in model.modules() if isinstance(m, LoraLayer | ModulesToSaveWrapper)]
        self.mixes = list(mixes)

    def __enter__(self) -> "MixedLora":
        try:
            self._replace_forwards()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self.layers:
            layer.__dict__.pop("forward", None)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """From now on the batch consists of only these of its rows."""
        self.mixes = [self.mixes[r] for r in rows]
        self._replace_forwards()

    @torch.inference_mode()
    def _replace_forwards(self) -> None:
        for layer in self.layers:
            if hasattr(layer, "modules_to_save"):
                layer.forward = partial(_mixed_module, layer, self.mixes)
            elif hasattr(layer.get_base_layer(), "num_embeddings"):
                layer.forward = partial(_mixed_embedding, layer, self.mixes)
            else:
                layer.forward = _linear_forward(layer, self.mixes)


def _linear_forward(layer: Any, mixes: Sequence[AdapterWeights]) -> Any:
    """A forward for a linear layer: x → base(x) + (base(x) - bias) · gain + x A B, each row with its own A, B, gain."""
    rows = [[(_lora_factors(layer, name), weight) for name, weight in mix if name in layer.lora_A] for mix in mixes]
    rank = max(sum(a.shape[1] for (a, _, _), _ in row) for row in rows)
    if not rank:
        return partial(_base_forward, layer)
    like = next(a for row in rows for (a, _, _), _ in row)  # for dtype and device
    a_rows = like.new_zeros(len(rows), layer.in_features, rank)
    b_rows = like.new_zeros(len(rows), rank, layer.out_features)
    gains, shifts = like.new_zeros(2, len(rows), 1, layer.out_features)
    for n, row in enumerate(rows):
        start = 0
        for (a, b, gain), weight in row:
            end = start + a.shape[1]
            a_rows[n, :, start:end] = a
            b_rows[n, start:end] = b * weight
            gains[n] += gain * weight
            start = end
    for n, mix in enumerate(mixes):
        for name, weight in mix:
            if name in layer.lora_B and (bias := layer.lora_B[name].bias) is not None:
                shifts[n] += bias * (layer.scaling[name] * weight)
    return partial(
        _mixed_linear, layer, a_rows, b_rows, gains if gains.any() else None, shifts if shifts.any() else None
    )


def _lora_factors(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """(A, B, gain) of an adapter in a linear layer: W x becomes W x + x A B + gain · W x.

    gain is 0 but for DoRA (Liu et al. 2024), which scales each row of W + sBA to a learned length:
    g (W + sBA) = W + g sBA + (g - 1) W.
    """
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight * layer.scaling[name]
    if name not in layer.lora_magnitude_vector:
        return a.T, b.T, 0.0
    weight = dequantize_weight(layer.get_base_layer()).to(b.dtype)
    gain = layer.lora_magnitude_vector[name].weight / torch.linalg.norm(weight + b @ a, dim=1)
    return a.T, b.T * gain, gain - 1


def _base_forward(layer: Any, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    return layer.base_layer(x, *args, **options)


def _mixed_linear(
    layer: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    gains: torch.Tensor | None,
    shifts: torch.Tensor | None,
    x: torch.Tensor,
) -> torch.Tensor:
    """x (rows, length, in), a (rows, in, rank), b (rows, rank, out) → (rows, length, out).

    gains and shifts (rows, 1, out): of DoRA, and of trained biases.
    """
    base_out = layer.base_layer(x)
    out = base_out.to(a.dtype)
    if gains is not None:
        bias = layer.base_layer.bias
        out = out + (out if bias is None else out - bias) * gains
    rows = len(a)
    if shifts is not None:
        out = (out.reshape(rows, -1, b.shape[2]) + shifts).view(out.shape)
    x, flat = x.to(a.dtype).reshape(rows, -1, a.shape[1]), out.reshape(rows, -1, b.shape[2])
    return torch.baddbmm(flat, torch.bmm(x, a), b).to(base_out.dtype).view(base_out.shape)


def _mixed_embedding(layer: Any, mixes: Sequence[AdapterWeights], ids: torch.Tensor) -> torch.Tensor:
    """ids (rows, length) → (rows, length, hidden), in a loop: only trained token rows have this one layer."""
    out = layer.base_layer(ids).clone()
    scale = layer._get_embed_scale()  # Gemma multiplies its embeddings
    for n, mix in enumerate(mixes):
        for name, weight in mix:
            if name in layer.lora_embedding_A:
                a, b = layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
                change = embedding(ids[n], a) @ b * (layer.scaling[name] * weight)
                out[n] += (change if scale is None else change * scale.to(change.dtype)).to(out.dtype)
    return out


def _mixed_module(layer: Any, mixes: Sequence[AdapterWeights], x: torch.Tensor) -> torch.Tensor:
    """A layer that adapters have trained copies of, x (rows, …) → the base's output and each row's differences to it.

    A model may join rows and positions before its output layer: they are taken apart by the number of rows.
    """
    base_out = layer.original_module(x)
    out = base_out.clone(memory_format=torch.contiguous_format)
    rows = out.view(len(mixes), -1, out.shape[-1])
    base_rows = base_out.reshape(rows.shape)
    given = x.reshape(len(mixes), -1, *(x.shape[-1:] if x.is_floating_point() else ()))  # token ids, or hidden states
    for n, mix in enumerate(mixes):
        for name, weight in mix:
            if name in layer.modules_to_save:
                copy = layer.modules_to_save[name](given[n])
                rows[n] += weight * (copy.to(out.dtype) - base_rows[n])
    return out
