"""Learning from preferences: direct preference optimization (DPO, Rafailov et al. 2023) of the adapter gone on from.

    reference.json    in the run folder: NLL of every answer under that adapter, before the first step

A row of the run is a pair with the better answer and the worse one beside it; a batch holds the better ones, then the
worse ones. The reference is the adapter that the run begins with. Its likelihoods are measured once, so that neither a
second model nor a second adapter is in memory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from persona.models import loss
from persona.models.loss import NllScores
from persona.store.files import to_json, write_atomic
from persona.template.render import TrainingExample
from persona.train import distributed
from persona.train.collator import Collator
from persona.train.evaluator import Evaluator
from persona.train.trainer import Trainer


@dataclass(frozen=True)
class SideScores:
    """The better and the worse answer of each preference."""

    chosen: NllScores
    rejected: NllScores

    @property
    def margins(self) -> list[float]:
        """By how much the better answer is likelier, in nats per token: so a longer answer is no worse for that."""
        sides = zip(self.chosen.nats, self.chosen.tokens, self.rejected.nats, self.rejected.tokens, strict=True)
        return [r / m - c / n for c, n, r, m in sides]

    @property
    def margin(self) -> float:
        return sum(self.margins) / len(self.margins)

    @property
    def accuracy(self) -> float:
        """The share of preferences whose better answer is the likelier one; equally likely counts half."""
        return sum((m > 0) + 0.5 * (m == 0) for m in self.margins) / len(self.margins)


def preference_losses(change: torch.Tensor, beta: float) -> torch.Tensor:
    """DPO's loss of each preference. change: how far the log-likelihood of the better answer has grown since the
    reference, less that of the worse one, in nats."""
    return -F.logsigmoid(beta * change)


@dataclass(frozen=True)
class PreferenceCollator:
    """Preferences → one batch of twice as many rows, and `row`: the number of each preference."""

    collate: Collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        worse = [{"input_ids": r["rejected_input_ids"], "labels": r["rejected_labels"]} for r in rows]
        return {**self.collate([*rows, *worse]), "row": torch.tensor([r["row"] for r in rows])}


def to_rows(chosen: Sequence[TrainingExample], rejected: Sequence[TrainingExample]) -> list[dict[str, Any]]:
    """The rows of the training set."""
    return [
        {"input_ids": c.input_ids, "labels": c.labels, "rejected_input_ids": r.input_ids, "rejected_labels": r.labels,
         "row": n}
        for n, (c, r) in enumerate(zip(chosen, rejected, strict=True))
    ]  # fmt: skip


class PreferenceTrainer(Trainer):
    """The trainer with DPO's loss, and the better answer's NLL as much beside it as sft_weight says.

    Both are means over the preferences of a step; that NLL is per token of the answer.
    """

    evaluator: "PreferenceEvaluator"

    def _row_lengths(self) -> list[int]:
        lengths = zip(self.train_dataset["input_ids"], self.train_dataset["rejected_input_ids"], strict=True)
        return [max(len(c), len(r)) for c, r in lengths]

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(b["row"]) for b in batches)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        row, config = inputs["row"], self.evaluator.prepared.config
        losses, rows = loss.token_nll(model, inputs["input_ids"], inputs["labels"])
        nats = losses.new_zeros(2 * len(row)).index_add(0, rows, losses)
        tokens = torch.bincount(rows, minlength=len(nats))[: len(row)]
        better, worse = nats.chunk(2)
        chosen_change, rejected_change = (
            side.new_tensor(scores.nats)[row.to(side.device)] - side
            for side, scores in ((better, self.evaluator.reference.chosen), (worse, self.evaluator.reference.rejected))
        )
        change = chosen_change - rejected_change
        total = (preference_losses(change, config.beta) + config.sft_weight * better / tokens).sum()
        self._metrics["train"]["reward_margin"].append(config.beta * change.mean().item())
        self._metrics["train"]["reward_chosen"].append(config.beta * chosen_change.mean().item())
        result = total / (num_items_in_batch if num_items_in_batch is not None else len(row))
        return (result, {}) if return_outputs else result


class PreferenceEvaluator(Evaluator):
    """An Evaluator that also measures which answers the model prefers.

    reference, held_out_reference: the scores under the adapter that the run goes on from.
    """

    reference: SideScores
    held_out_reference: SideScores

    def measure_reference(self, model: Any) -> None:
        """Score both sides of every preference, or read what an earlier start of this run measured."""
        file = self.prepared.run.path / "reference.json"
        p = self.prepared
        sides = (p.train, p.rejected, p.held_out, p.rejected_held_out)
        if distributed.is_main_process() and not file.is_file():
            write_atomic(file, to_json({"nats": [self._score(model, side).nats if side else [] for side in sides]}))
        scores = [
            NllScores(nats, [e.learned for e in side])
            for nats, side in zip(json.loads(file.read_text())["nats"], sides, strict=True)
        ]
        self.reference, self.held_out_reference = SideScores(*scores[:2]), SideScores(*scores[2:])

    def _score_sides(self, model: Any) -> SideScores:
        return SideScores(self.score_held_out(model), self._score(model, self.prepared.rejected_held_out))

    def measure(self, model: Any) -> tuple[NllScores, dict[str, Any]]:
        sides = self._score_sides(model)
        return sides.chosen, {"accuracy": sides.accuracy, "margin": sides.margin, "losses": self._losses(sides)}

    def _losses(self, scores: SideScores) -> list[float]:
        """DPO's loss of each held-out preference."""
        nats = [torch.tensor(s.nats) for s in (scores.chosen, scores.rejected)]
        before = [torch.tensor(s.nats) for s in (self.held_out_reference.chosen, self.held_out_reference.rejected)]
        change = (before[0] - nats[0]) - (before[1] - nats[1])
        return preference_losses(change, self.prepared.config.beta).tolist()

    def final_figures(self, model: Any) -> dict[str, Any]:
        """How often the better held-out answer is the likelier one, before the run and now; None with none held out."""
        before = after = None
        if self.prepared.held_out:
            before, after = self.held_out_reference, self._score_sides(model)
        return {
            "accuracy_before": before and before.accuracy,
            "accuracy_after": after and after.accuracy,
            "margin_before": before and before.margin,
            "margin_after": after and after.margin,
        }
