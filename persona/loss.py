"""The loss, in one place: the trainer minimises what the evaluation reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from persona.render import IGNORED, Example


@dataclass(frozen=True)
class Collator:
    """Rows → one right-padded batch, without an attention mask.

    Under a causal mask a position never sees what stands to its right, and padding has no label, so on the right it
    needs no mask; without one, attention takes the faster kernel. Lengths are padded to a multiple of `multiple`:
    a CPU builds its kernels anew for each shape.
    """

    pad_id: int
    multiple: int = 16

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns input_ids and labels, both (rows, length) int64, and tokens: how many are not padding."""
        longest = max(len(r["input_ids"]) for r in rows)
        length = -(-longest // self.multiple) * self.multiple
        ids = torch.full((len(rows), length), self.pad_id)
        labels = torch.full((len(rows), length), IGNORED)
        for n, row in enumerate(rows):
            ids[n, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels[n, : len(row["labels"])] = torch.tensor(row["labels"])
        return {"input_ids": ids, "labels": labels, "tokens": torch.tensor(sum(len(r["input_ids"]) for r in rows))}


def learned_logits(model: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary) and targets (n,) of the n positions whose next token is learned.

    The output layer runs over those positions alone: with Gemma's 262,144 rows it is most of the work of a step, and
    two thirds of the positions are prompt or padding.
    """
    keep = torch.zeros_like(labels, dtype=torch.bool)
    keep[:, :-1] = labels[:, 1:] != IGNORED
    target = labels[:, 1:][keep[:, :-1]]
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=keep).logits
    return logits.view(-1, logits.shape[-1]), target


@torch.no_grad()
def mean_nll(model: Any, examples: Sequence[Example], collate: Collator, batch_size: int = 8) -> float:
    """Mean negative log-likelihood in nats per learned token, each token weighing the same."""
    device = next(model.parameters()).device
    order = sorted(examples, key=lambda e: len(e.input_ids))
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for start in range(0, len(order), batch_size):
        rows = [{"input_ids": e.input_ids, "labels": e.labels} for e in order[start : start + batch_size]]
        batch = collate(rows)
        logits, target = learned_logits(model, batch["input_ids"].to(device), batch["labels"].to(device))
        total += F.cross_entropy(logits.float(), target, reduction="sum").double().cpu()
        count += target.numel()
    model.train(was_training)
    return (total / count).item()
