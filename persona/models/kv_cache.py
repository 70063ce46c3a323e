"""A key-value cache whose rows come and go: other lengths, and rows of another cache beside its own.

Rows are aligned at their newest token, as in a left-padded batch. The mask hides the zeros before a row's first token,
so a row's scores are the same whatever the lengths of the others.
"""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def can_join(cache: Any) -> bool:
    """Whether rows of another cache can join: keys and values are all that the layers keep of a token."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def set_length(cache: Any, length: int) -> None:
    """Keep the last `length` tokens of every row, with zeros before the first where there are fewer."""
    for layer in _filled(cache):
        kept = length
        if isinstance(layer, DynamicSlidingWindowLayer):
            kept, layer.cumulative_length = min(length, layer.sliding_window - 1), length
        layer.keys, layer.values = _last(layer.keys, kept), _last(layer.values, kept)


def join(cache: Any, other: Any) -> None:
    """Add the rows of `other`, a cache of the same model and length."""
    for layer, more in zip(_filled(cache), _filled(other), strict=True):
        layer.keys = torch.cat([layer.keys, more.keys])
        layer.values = torch.cat([layer.values, more.values])


def _filled(cache: Any) -> list[Any]:
    """Layers that share the keys of another one have none."""
    return [layer for layer in cache.layers if layer.is_initialized]


def _last(states: torch.Tensor, length: int) -> torch.Tensor:
    """states (rows, heads, tokens, size) → (rows, heads, length, size)."""
    missing = length - states.shape[2]
    return pad(states, (0, 0, missing, 0)) if missing > 0 else states[:, :, states.shape[2] - length :]
