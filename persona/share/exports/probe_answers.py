"""The adapter's answers to its probes, with which everything that is written for other programs is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from persona.models import generate
from persona.models.sampling import Sampling
from persona.template.render import Renderer

REPLY_TOKENS = 16  # of each answer
MAX_PROBES = 10


@dataclass(frozen=True)
class MergeDifference:
    """Merged model compared with base + adapter, over the first tokens of greedy answers to the probes.

    largest: difference of any logit; kl: mean KL(base + adapter ‖ merged) in nats per token; same: share of tokens with
    the same argmax; dtype: of the arithmetic on both sides.
    """

    tokens: int
    largest: float
    kl: float
    same: float
    dtype: str


@dataclass(frozen=True)
class ProbeAnswers:
    """Greedy answers of base + adapter.

    questions: those that were asked; rows: (prompt ids, the answer's first ids) of each; logits: of each row's answer
    and the token after it, (tokens + 1, vocabulary) in float32.
    """

    questions: tuple[str, ...]
    rows: list[tuple[list[int], list[int]]]
    logits: list[torch.Tensor]

    def compare(self, model: Any) -> MergeDifference:
        """The difference of `model`, the merged one as it was stored."""
        new = torch.cat([_reply_logits(model, *row) for row in self.rows])
        old = torch.cat(self.logits)
        p, q = old.log_softmax(-1), new.log_softmax(-1)
        return MergeDifference(
            tokens=len(old),
            largest=float((old - new).abs().max()),
            kl=float((p.exp() * (p - q)).sum(-1).mean()),
            same=float((old.argmax(-1) == new.argmax(-1)).float().mean()),
            dtype=str(model.dtype).removeprefix("torch."),
        )

    def log_probabilities(self) -> list[list[float]]:
        """Of each answer's tokens, in nats."""
        return [
            logits[: len(reply)]
            .log_softmax(-1)
            .gather(1, torch.tensor(reply, dtype=torch.long)[:, None])[:, 0]
            .tolist()
            for logits, (_, reply) in zip(self.logits, self.rows, strict=True)
        ]


def answer_probes(model: Any, renderer: Renderer, questions: Sequence[str]) -> ProbeAnswers:
    """The first REPLY_TOKENS of the greedy answers to at most MAX_PROBES questions; without one, to "?"."""
    asked = tuple(questions[:MAX_PROBES]) or ("?",)
    prompts = [renderer.render_prompt([], q).ids for q in asked]
    greedy = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=REPLY_TOKENS)
    *_, replies = generate.generate_batch(model, renderer.tokenizer, prompts, greedy, renderer.stop_id)
    answers = [renderer.tokenizer(r.text, add_special_tokens=False)["input_ids"][:REPLY_TOKENS] for r in replies]
    rows = list(zip(prompts, answers, strict=True))
    return ProbeAnswers(asked, rows, [_reply_logits(model, *row) for row in rows])


@torch.inference_mode()
def _reply_logits(model: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """(tokens + 1, vocabulary), float32: the logits for each token of the reply and for the one after it."""
    ids = torch.tensor([prompt + reply], device=model.device)
    return model(input_ids=ids, use_cache=False, logits_to_keep=len(reply) + 1).logits[0].float().cpu()
