"""Rows of a batch put end to end, each blind to the others: less padding where rows differ much in length.

Nothing in what is learned changes: the same rows a step, the same loss. Where one row ends and the next begins is told
by positions that start again at 0; from them transformers makes a mask. A layer that goes along the row without looking
at the mask (linear attention, convolutions) would let one row leak into the next, so a base is tried before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from persona.errors import InputError
from persona.models import memory
from persona.template.render import IGNORE_INDEX
from persona.train import distributed

PROBE_TOKENS = 24  # tokens of each row that a base is tried with: longer than a convolution reaches


def pack_rows(lengths: Sequence[int], most: int) -> list[list[int]]:
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
def check_packing(model: Any, name: str) -> None:
    """Raise InputError if a row that stands behind another in a packed one could tell what that other says.

    Tried rather than looked up: the same row behind two different ones, and alone.
    """
    config = model.config.get_text_config()
    first, other, row = (torch.arange(PROBE_TOKENS, device=model.device) * step % 97 + 1 for step in (3, 5, 7))
    first, other, row = (ids % config.vocab_size for ids in (first, other, row))
    place = torch.arange(PROBE_TOKENS, device=model.device)
    behind = [
        _packed_logits(model, torch.cat([x, row]), torch.cat([place, place]))[PROBE_TOKENS:] for x in (first, other)
    ]
    alone = _packed_logits(model, row, place)
    size = alone.std()
    # the shapes are the same behind both, and so is the rounding; alone it is another, in bfloat16 by a hundredth
    if (behind[0] - behind[1]).abs().max() > 1e-5 * size or (behind[0] - alone).abs().mean() > 0.05 * size:
        raise InputError(
            "packing: in {name} packed rows would see each other. Set packing to false for this base.", name=name
        )


def _packed_logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0].float()


@dataclass(frozen=True)
class Collator:
    """Rows → one right-padded batch, without an attention mask.

    Under a causal mask a position never sees what stands to its right, and padding has no label, so on the right it
    needs no mask; without one, attention takes the faster kernel. Lengths are padded to a multiple of `multiple`.
    `pack`: rows are put end to end up to so many tokens; 0: they are not.
    """

    pad_id: int
    multiple: int = memory.PAD_MULTIPLE
    pack: int = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns input_ids and labels, both (rows, length) int64, and tokens: how many are not padding.

        Packed, position_ids too, which begin at 0 with each row, and with the padding.
        """
        sizes = [len(r["input_ids"]) for r in rows]
        places = pack_rows(sizes, self.pack) if self.pack else [[n] for n in range(len(rows))]
        length = memory.padded_length(max(sum(sizes[n] for n in place) for place in places), self.multiple)
        ids = torch.full((len(places), length), self.pad_id)
        labels, positions = torch.full_like(ids, IGNORE_INDEX), torch.zeros_like(ids)
        for p, place in enumerate(places):
            at = 0
            for n in place:
                end = at + sizes[n]
                ids[p, at:end] = torch.tensor(rows[n]["input_ids"])
                labels[p, at:end] = torch.tensor(rows[n]["labels"])
                if at:
                    labels[p, at] = IGNORE_INDEX  # no token of its own row stands before it
                positions[p, at:end] = torch.arange(sizes[n])
                at = end
            positions[p, at:] = torch.arange(length - at)
        batch = {"input_ids": ids, "labels": labels, "tokens": torch.tensor(sum(sizes))}
        return {**batch, "position_ids": positions} if self.pack else batch


def collate_own_rows(collate: Collator, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """This process's rows of a batch; where there are fewer rows than processes, one that teaches nothing."""
    unlearned = {"input_ids": rows[0]["input_ids"], "labels": [IGNORE_INDEX] * len(rows[0]["labels"])}
    return {**collate(distributed.take_own_rows(rows) or [unlearned]),
            "tokens": torch.tensor(sum(len(r["input_ids"]) for r in rows))}  # fmt: skip
