"""Rows → the tensors of a batch: padded, or packed end to end.

Packing pads less where rows differ much in length. The training stays the same: the same rows in each step, the same
loss. Positions that start again at 0 tell where one row ends and the next begins; from them transformers makes a mask.
A layer that runs along the row without looking at the mask (linear attention, convolutions) would leak one row into the
next, so the base is tried first (validate.check_packing).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from persona.models import memory
from persona.template.render import IGNORE_INDEX
from persona.train import distributed


def pack_rows(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Which rows share a bin of at most `max_tokens` tokens: the longest first, each in the first bin with room for it.

    A row longer than that has a bin of its own.
    """
    bins: list[list[int]] = []
    room: list[int] = []  # tokens that each bin still takes
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        chosen = next((b for b, free in enumerate(room) if lengths[n] <= free), len(bins))
        if chosen == len(bins):
            bins.append([])
            room.append(max(max_tokens, lengths[n]))
        bins[chosen].append(n)
        room[chosen] -= lengths[n]
    return bins


@dataclass(frozen=True)
class Collator:
    """Rows → one right-padded batch, without an attention mask.

    Under a causal mask no position attends to what stands to its right, and padding has no label, so padding on the
    right needs no mask; without one, attention takes the faster kernel. Lengths are padded to a multiple of `multiple`.
    pack: rows are put end to end up to so many tokens; 0: they are not.
    """

    pad_id: int
    multiple: int = memory.PAD_MULTIPLE
    pack: int = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns input_ids and labels, both (rows, length) int64, and tokens: how many are not padding.

        Packed, position_ids too, which begin at 0 with each row, and with the padding.
        """
        sizes = [len(r["input_ids"]) for r in rows]
        bins = pack_rows(sizes, self.pack) if self.pack else [[n] for n in range(len(rows))]
        length = memory.padded_length(max(sum(sizes[n] for n in bin_rows) for bin_rows in bins), self.multiple)
        ids = torch.full((len(bins), length), self.pad_id)
        labels, positions = torch.full_like(ids, IGNORE_INDEX), torch.zeros_like(ids)
        for b, bin_rows in enumerate(bins):
            start = 0
            for n in bin_rows:
                end = start + sizes[n]
                ids[b, start:end] = torch.tensor(rows[n]["input_ids"])
                labels[b, start:end] = torch.tensor(rows[n]["labels"])
                if start:
                    labels[b, start] = IGNORE_INDEX  # the token before it belongs to another row
                positions[b, start:end] = torch.arange(sizes[n])
                start = end
            positions[b, start:] = torch.arange(length - start)
        batch = {"input_ids": ids, "labels": labels, "tokens": torch.tensor(sum(sizes))}
        return {**batch, "position_ids": positions} if self.pack else batch


def collate_own_rows(collate: Collator, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """This process's share of a batch's rows; where there are fewer rows than processes, one without labels.

    tokens counts those of the whole batch.
    """
    unlabelled = {"input_ids": rows[0]["input_ids"], "labels": [IGNORE_INDEX] * len(rows[0]["labels"])}
    return {
        **collate(distributed.take_own_rows(rows) or [unlabelled]),
        "tokens": torch.tensor(sum(len(r["input_ids"]) for r in rows)),
    }
