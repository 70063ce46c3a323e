"""The loss: negative log-likelihood (NLL) of the learned tokens. The trainer minimizes what the evaluation reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from persona.models import memory
from persona.models.flat_batch import flatten_if_possible
from persona.models.placement import input_device, lora_autocast
from persona.template.render import IGNORE_INDEX, TrainingExample

# rows with input_ids and labels → one batch of tensors, such as train.collator.Collator
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]


def nll_sum(
    model: Any, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """Summed NLL of the learned tokens in nats, differentiable, and their number. Parameters as of `token_nll`."""
    losses, _ = token_nll(model, input_ids, labels, position_ids)
    return losses.sum(), losses.numel()


def token_nll(
    model: Any, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL of each learned token in nats, (n,) float32, and the row that it is in, (n,).

    input_ids, labels and position_ids: (rows, length). The output layer is computed at learned positions only: with
    Gemma's 262,144 tokens it is most of the work of a step, and two thirds of the positions are prompt or padding. A
    plain output layer takes `TiledNLL`; a model that does more to its logits (soft caps, scales, a bias, quantized
    weights) computes its own.
    """
    rows, before = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    target = labels[rows, before + 1]
    keep = rows * labels.shape[1] + before  # of all positions of the batch
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if position_ids is not None:
        inputs["position_ids"] = position_ids
    elif flat := flatten_if_possible(causal, input_ids, labels):
        inputs |= {"input_ids": flat.ids, "position_ids": flat.positions, "flat": flat}
        keep = flat.place.flatten()[keep]
    with lora_autocast(causal):
        if _has_plain_head(causal):
            hidden, weight = causal.base_model(**inputs).last_hidden_state, causal.get_output_embeddings().weight
            hidden = hidden.flatten(0, 1)[keep.to(hidden.device)].to(weight.device)
            return TiledNLL.apply(hidden, weight, target.to(weight.device)), rows.to(weight.device)
        logits = _logits_at(model, causal.get_output_embeddings(), keep, inputs)
    scores = logits.float().view(-1, logits.shape[-1])
    return F.cross_entropy(scores, target.to(scores.device), reduction="none"), rows.to(scores.device)


def _logits_at(model: Any, head: Any, keep: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """The model's own logits at the positions `keep` (n,) alone, (1, n, vocabulary). head: its output layer.

    logits_to_keep takes such a mask in the newest transformers only.
    """
    hook = head.register_forward_pre_hook(lambda _, hidden: hidden[0].flatten(0, 1)[keep.to(hidden[0].device)][None])
    try:
        return model(**inputs).logits
    finally:
        hook.remove()


def _has_plain_head(model: Any) -> bool:
    """Whether the logits are one frozen matrix times the hidden states, and nothing else."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in memory.LOGIT_SCALE_SETTINGS)
    frozen = not head.weight.requires_grad and not head.weight.is_meta  # it may wait elsewhere (placement.py)
    return type(head) is torch.nn.Linear and head.bias is None and frozen and not scaled


class TiledNLL(torch.autograd.Function):
    """Cross entropy of a frozen output layer, computed in tiles of the vocabulary.

    The usual way makes (n, 262144) float32 matrices for logits, softmax and gradient, and moving them costs more than
    the products. Here a tile's logits are reduced to a running maximum and sum of exponentials (online softmax, Milakov
    & Gimelshein 2018) while they are in the CPU's cache, and with them the gradient of the hidden states: the mean of
    the weights' rows under the softmax, minus the target's row. The weights need no gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """hidden (n, d), weight (V, d), target (n,) → NLL of each target, (n,) float32."""
        hidden, learns = hidden.to(weight.dtype), ctx.needs_input_grad[0]
        with torch.autocast(hidden.device.type, enabled=False):
            top = hidden.new_full((len(hidden), 1), -torch.inf, dtype=torch.float32)
            total, mean = torch.zeros_like(top), torch.zeros_like(hidden, dtype=torch.float32)
            for tile in weight.split(memory.VOCAB_TILE):
                scores = (hidden @ tile.T).float()
                higher = torch.maximum(top, scores.amax(-1, keepdim=True))
                shrink = (top - higher).exp_()
                total.mul_(shrink).add_(scores.sub_(higher).exp_().sum(-1, keepdim=True))
                if learns:
                    mean.mul_(shrink).add_(scores.to(weight.dtype) @ tile)
                top = higher
            rows = weight[target].float()
            losses = (total.log() + top).squeeze(-1) - (hidden.float() * rows).sum(-1)
            if learns:
                ctx.save_for_backward(mean.div_(total).sub_(rows))
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].unsqueeze(-1), None, None


@dataclass(frozen=True)
class NllScores:
    """NLL in nats and number of learned tokens of each example, in the order of the examples."""

    nats: list[float]
    tokens: list[int]

    @property
    def mean(self) -> float:
        """Nats per learned token; every token has the same weight."""
        return sum(self.nats) / sum(self.tokens)


@torch.no_grad()
def score_examples(model: Any, examples: Sequence[TrainingExample], collate: Collate, batch_size: int = 8) -> NllScores:
    """The NLL of each example. The model is left in the mode (training or evaluation) that it was in."""
    device = input_device(model)
    order = sorted(range(len(examples)), key=lambda n: len(examples[n].input_ids))
    was_training = model.training
    model.eval()
    nats, tokens = [0.0] * len(order), [0] * len(order)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([{"input_ids": examples[n].input_ids, "labels": examples[n].labels} for n in chosen])
        losses, rows = token_nll(model, batch["input_ids"].to(device), batch["labels"].to(device))
        sums = losses.new_zeros(len(chosen)).index_add_(0, rows, losses).tolist()
        counts = torch.bincount(rows, minlength=len(chosen)).tolist()
        for n, total, count in zip(chosen, sums, counts, strict=True):
            nats[n], tokens[n] = total, count
    model.train(was_training)
    return NllScores(nats, tokens)


def mean_nll(model: Any, examples: Sequence[TrainingExample], collate: Collate, batch_size: int = 8) -> float:
    """Mean negative log-likelihood in nats per learned token."""
    return score_examples(model, examples, collate, batch_size).mean
