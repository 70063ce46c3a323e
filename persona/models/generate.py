"""Generation: a batch of prompts → their replies, token by token. Page, command line, API and evaluation all use it.

Rows share the forward pass and, where their settings are equal, the random numbers: at each step the same Gumbel noise
is added to every row's scores and the largest is taken, which is an exact sample of softmax(scores) (Gumbel 1954;
Maddison et al. 2014). Two rows differ because their adapters differ, never because of sampling noise, and the other
rows of a batch change nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from persona.models.decode_loop import open_decode_loop
from persona.models.mixed_lora import AdapterWeights
from persona.models.sampling import Sampling

TOP_P_CANDIDATES = 1024  # likeliest tokens that top_p sorts first; the whole vocabulary only where they do not suffice


@dataclass(frozen=True)
class Generation:
    """The reply of one row so far.

    ended: by its stop token, not by the limit. first and seconds: from the start of the batch to the row's first and
    newest token. error: why this row has no reply, for people.
    """

    text: str = ""
    tokens: int = 0
    ended: bool = False
    error: str = ""
    first: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def never_halted(_: int) -> bool:
    """For batches that nobody interrupts."""
    return False


def generate_batch(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling],
    stop_id: int | Sequence[int],
    mixes: Sequence[AdapterWeights] | None = None, is_halted: Callable[[int], bool] = never_halted,
) -> Iterator[list[Generation]]:  # fmt: skip
    """Yield the replies to all prompts after each token.

    model: in evaluation mode, and used by nobody else meanwhile. sampling, stop_id: one for all rows, or one a row; the
    tokenizer's eos ends a reply too. mixes: the adapters of each row, on a PeftModel; None: the model as it is.
    is_halted(row): asked after each token, and ends that row where true. A row that has ended, or has reached its
    max_new_tokens, leaves the batch.
    """
    start = time.perf_counter()
    stop_ids = [stop_id] * len(prompts) if isinstance(stop_id, int) else stop_id
    stops = [{s, tokenizer.eos_token_id} for s in stop_ids]
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    samplers, texts = {s: Sampler(s) for s in samplings}, [_StreamedText(tokenizer) for _ in prompts]
    replies = [Generation() for _ in prompts]
    longest = max(s.max_new_tokens for s in samplings)
    with open_decode_loop(model, prompts, mixes, tokenizer.pad_token_id, longest) as step:
        rows = list(range(len(prompts)))  # those still in the batch
        while True:
            generated = [texts[row].ids for row in rows]
            tokens = _sample_tokens(samplers, [samplings[row] for row in rows], step.logits(), generated)
            now = time.perf_counter() - start
            for row, token in zip(rows, tokens, strict=True):
                old = replies[row]
                if token in stops[row]:
                    replies[row] = replace(old, text=texts[row].decode(), ended=True)
                else:
                    replies[row] = Generation(
                        texts[row].add(token), old.tokens + 1, first=old.first or now, seconds=now
                    )
            yield list(replies)
            active = [
                n for n, row in enumerate(rows) if not (_is_finished(replies[row], samplings[row]) or is_halted(row))
            ]
            if not active:
                break
            step.append(tokens, active)
            rows = [rows[n] for n in active]
    if not all(r.ended for r in replies):  # an incomplete character that was held back is shown now
        yield [replace(r, text=t.decode()) for r, t in zip(replies, texts, strict=True)]


def _sample_tokens(
    samplers: "dict[Sampling, Sampler]", samplings: Sequence[Sampling], logits: torch.Tensor,
    generated: Sequence[list[int]]
) -> list[int]:  # fmt: skip
    """The next token of each row; rows with equal settings are sampled together."""
    tokens = [0] * len(samplings)
    for sampling, sampler in samplers.items():
        rows = [n for n, s in enumerate(samplings) if s == sampling]
        if rows:
            for n, token in zip(rows, sampler(logits[rows], [generated[n] for n in rows]).tolist(), strict=True):
                tokens[n] = token
    return tokens


def _is_finished(reply: Generation, sampling: Sampling) -> bool:
    return reply.ended or reply.tokens >= sampling.max_new_tokens


class Sampler:
    """Scores → one token a row, with the same random numbers for every row."""

    def __init__(self, sampling: Sampling):
        self.greedy = sampling.temperature == 0 or sampling.top_k == 1
        self.generator = torch.Generator(device="cpu").manual_seed(sampling.seed)
        penalty = float(sampling.repetition_penalty)
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1 else None
        self.warp = LogitsProcessorList()
        if not self.greedy:
            self.warp.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self.warp.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warp.append(FastTopPWarper(float(sampling.top_p)))
            if sampling.min_p:
                self.warp.append(MinPLogitsWarper(float(sampling.min_p)))

    @torch.inference_mode()
    def __call__(self, logits: torch.Tensor, generated: Sequence[list[int]] = ()) -> torch.Tensor:
        """logits (rows, vocabulary), generated: the tokens of each row so far → token ids, (rows,)."""
        if self.penalty and generated and generated[0]:
            logits = self.penalty(torch.tensor(list(generated), device=logits.device), logits)
        if self.greedy:
            return logits.argmax(-1)
        scores = self.warp(None, logits)
        # float64: the smallest uniform number must not round to 0, whose noise is minus infinity
        uniform = torch.rand(logits.shape[-1], generator=self.generator, dtype=torch.float64).clamp_(min=1e-300)
        if logits.is_cuda:  # where 262,144 logarithms take no time
            uniform = uniform.to(logits.device)
        gumbel = -torch.log(-torch.log(uniform))
        return (scores + gumbel.to(scores)).argmax(-1)


class FastTopPWarper(LogitsProcessor):
    """TopPLogitsWarper without sorting the whole vocabulary, which took a third of a step with 262,144 tokens.

    The likeliest TOP_P_CANDIDATES nearly always reach top_p together; where they do not, the row is sorted as a whole.
    """

    def __init__(self, top_p: float):
        self.top_p, self.full_sort = top_p, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        best = scores.topk(min(TOP_P_CANDIDATES, scores.shape[-1]), dim=-1)
        probabilities = (best.values - scores.logsumexp(-1, keepdim=True)).exp()
        sums = probabilities.cumsum(-1)
        kept = best.values.masked_fill(sums - probabilities >= self.top_p, -torch.inf)
        out = torch.full_like(scores, -torch.inf).scatter(-1, best.indices, kept)
        for row in (sums[:, -1] < self.top_p).nonzero().flatten().tolist():
            out[row : row + 1] = self.full_sort(input_ids, scores[row : row + 1])
        return out


class _StreamedText:
    """Tokens → text as they arrive; the bytes of an incomplete character are held back."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.shown = tokenizer, ""
        self.ids: list[int] = []

    def add(self, token: int) -> str:
        self.ids.append(token)
        text = self.decode()
        if not text.endswith("\ufffd"):
            self.shown = text
        return self.shown

    def decode(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)
