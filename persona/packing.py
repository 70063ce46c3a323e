"""Rows of a batch put end to end, each blind to the others: less padding where rows differ much in length.

Nothing in what is learned changes: the same rows a step, the same loss. Where one row ends and the next begins is told
by positions that start again at 0; from them transformers makes a mask. A layer that goes along the row without looking
at the mask (linear attention, convolutions) would let one row leak into the next, so a base is tried before.
"""

from collections.abc import Sequence
from typing import Any

import torch

from persona.errors import InputError

TRIED = 24  # tokens of each row that a base is tried with: longer than a convolution reaches


def bins(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Which rows share a packed one of at most `most` tokens: the longest first, each where it still fits."""
    found: list[list[int]] = []
    room: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        place = next((p for p, free in enumerate(room) if lengths[n] <= free), len(room))
        if place == len(room):
            found.append([])
            room.append(max(most, lengths[n]))
        found[place].append(n)
        room[place] -= lengths[n]
    return found


@torch.no_grad()
def check(model: Any, name: str) -> None:
    """Raise InputError if a row that stands behind another in a packed one could tell what that other says.

    Tried rather than looked up: the same row behind two different ones, and alone.
    """
    config = model.config.get_text_config()
    first, other, row = (torch.arange(TRIED, device=model.device) * step % 97 + 1 for step in (3, 5, 7))
    first, other, row = (ids % config.vocab_size for ids in (first, other, row))
    place = torch.arange(TRIED, device=model.device)
    behind = [_logits(model, torch.cat([x, row]), torch.cat([place, place]))[TRIED:] for x in (first, other)]
    alone = _logits(model, row, place)
    size = alone.std()
    # the shapes are the same behind both, and so is the rounding; alone it is another, in bfloat16 by a hundredth
    if (behind[0] - behind[1]).abs().max() > 1e-5 * size or (behind[0] - alone).abs().mean() > 0.05 * size:
        raise InputError(
            "packing: in {name} packed rows would see each other. Set packing to false for this base.", name=name
        )


def _logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0].float()
