"""One batch of prompts → their replies, token by token: what every answer in this house is made by.

Rows share the forward pass and, where their settings are the same, the random numbers: at every step the same Gumbel
noise is added to each row's scores, and the largest wins, which is an exact draw from softmax(scores) (Gumbel 1954;
Maddison et al. 2014). So two rows differ because the adapter differs, never because the dice did; and who else is in
the batch changes nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from persona.models.malloc import trim_malloc
from persona.models.mixed_lora import AdapterWeights, MixedLora
from persona.models.sampling import Sampling

TOP_P_CANDIDATES = 1024  # tokens that top_p looks at before it looks at all


@dataclass(frozen=True)
class Generation:
    """What one row has said so far.

    ended: by its own stop token, not by the limit. first and seconds: from the start of the batch to the row's first
    token and to its newest. error: why this row says nothing, in words for people.
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
    return False


def generate_batch(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling],
    stop_id: int | Sequence[int],
    mixes: Sequence[AdapterWeights] | None = None, halted: Callable[[int], bool] = never_halted,
) -> Iterator[list[Generation]]:  # fmt: skip
    """Yield one reply a prompt after every token. The model is in eval mode, and nobody else may use it meanwhile.

    sampling, stop_id: one for all rows, or one a row; the tokenizer's own eos always ends a reply too. mixes: the
    adapters of each row, on a PeftModel; None: the model as it is. halted(row): asked after every token; a row that is,
    ends there. A row that has ended, or reached its max_new_tokens, leaves the batch.
    """
    start = time.perf_counter()
    given = [stop_id] * len(prompts) if isinstance(stop_id, int) else stop_id
    stops = [{s, tokenizer.eos_token_id} for s in given]
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    draws, texts = {s: Sampler(s) for s in samplings}, [_StreamedText(tokenizer) for _ in prompts]
    replies = [Generation() for _ in prompts]
    with DecodeLoop(model, prompts, mixes, tokenizer.pad_token_id) as step:
        rows = list(range(len(prompts)))  # those still in the batch
        while True:
            said = [texts[row].ids for row in rows]
            chosen = _sample_tokens(draws, [samplings[row] for row in rows], step.logits(), said)
            now = time.perf_counter() - start
            for row, token in zip(rows, chosen, strict=True):
                old = replies[row]
                if token in stops[row]:
                    replies[row] = replace(old, text=texts[row].whole(), ended=True)
                else:
                    replies[row] = Generation(
                        texts[row].add(token), old.tokens + 1, first=old.first or now, seconds=now
                    )
            yield list(replies)
            kept = [n for n, row in enumerate(rows) if not (_is_finished(replies[row], samplings[row]) or halted(row))]
            if not kept:
                break
            step.feed(chosen, kept)
            rows = [rows[n] for n in kept]
    if not all(r.ended for r in replies):  # half a character that waited for its other half is shown now
        yield [replace(r, text=t.whole()) for r, t in zip(replies, texts, strict=True)]


def _sample_tokens(
    draws: "dict[Sampling, Sampler]", samplings: Sequence[Sampling], logits: torch.Tensor, said: Sequence[list[int]]
) -> list[int]:  # fmt: skip
    """A token a row; rows of the same settings are drawn together."""
    chosen = [0] * len(samplings)
    for same, draw in draws.items():
        rows = [n for n, own in enumerate(samplings) if own == same]
        if rows:
            for n, token in zip(rows, draw(logits[rows], [said[n] for n in rows]).tolist(), strict=True):
                chosen[n] = token
    return chosen


def _is_finished(reply: Generation, sampling: Sampling) -> bool:
    return reply.ended or reply.tokens >= sampling.max_new_tokens


class DecodeLoop:
    """The forward passes of one batch, left-padded, with a key-value cache, for as long as a with block lasts."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], mixes: Sequence[AdapterWeights] | None, pad_id: int):
        device = next(model.parameters()).device
        longest = max(map(len, prompts))
        padded = [[pad_id] * (longest - len(p)) + p for p in prompts]
        self.model, self.ids = model, torch.tensor(padded, device=device)
        lengths = torch.tensor([[len(p)] for p in prompts], device=device)
        places = torch.arange(longest, device=device) - (longest - lengths)
        self.positions = places.clamp(min=0)
        # rows of one length need no mask, and attention without one is faster
        self.mask = (places >= 0).long() if len({len(p) for p in prompts}) > 1 else None
        self.cache = DynamicCache(config=model.config)
        self.mixed = MixedLora(model, mixes) if mixes is not None else None

    def __enter__(self) -> "DecodeLoop":
        if self.mixed:
            self.mixed.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.mixed:
            self.mixed.__exit__()
        del self.cache
        trim_malloc()  # each conversation has shapes of its own

    @torch.inference_mode()
    def logits(self) -> torch.Tensor:
        """(rows, vocabulary), float32: the scores of each row's next token."""
        # as an index, which copies the last positions together: a product with the slice that 1 stands for has the CPU
        # copy the output layer's weights for each row, in Gemma's 335 MB and seconds a row
        last = torch.tensor([-1], device=self.ids.device)
        out = self.model(
            input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=last,
        )  # fmt: skip
        return out.logits[:, -1].float()

    def feed(self, chosen: list[int], kept: list[int]) -> None:
        """The token that each row has said; the rows that stay (the others leave the batch, which makes it faster)."""
        if len(kept) < len(chosen):
            rows = torch.tensor(kept, device=self.ids.device)
            self.cache.batch_select_indices(rows)
            self.positions = self.positions[rows]
            self.mask = None if self.mask is None else self.mask[rows]
            if self.mixed:
                self.mixed.keep(kept)
        self.ids = torch.tensor([[chosen[n]] for n in kept], device=self.ids.device)
        self.positions = self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(kept), 1)], dim=1)


class Sampler:
    """Scores (rows, vocabulary) → one token a row, all rows with the same random numbers."""

    def __init__(self, sampling: Sampling):
        self.greedy = sampling.temperature == 0
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
    def __call__(self, logits: torch.Tensor, said: Sequence[list[int]] = ()) -> torch.Tensor:
        """logits: (rows, vocabulary); said: the tokens of each row so far. Returns (rows,) token ids."""
        if self.penalty and said and said[0]:
            logits = self.penalty(torch.tensor(list(said), device=logits.device), logits)
        if self.greedy:
            return logits.argmax(-1)
        scores = self.warp(None, logits)
        # float64: the smallest uniform number must not round to 0, whose noise is minus infinity
        uniform = torch.rand(logits.shape[-1], generator=self.generator, dtype=torch.float64).clamp_(min=1e-300)
        gumbel = -torch.log(-torch.log(uniform))
        return (scores + gumbel.to(scores)).argmax(-1)


class FastTopPWarper(LogitsProcessor):
    """TopPLogitsWarper without sorting a whole vocabulary, which took a third of a step on a 262k one.

    The few likeliest tokens nearly always reach top_p together; a row where they do not is sorted as a whole.
    """

    def __init__(self, top_p: float):
        self.top_p, self.whole = top_p, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        best = scores.topk(min(TOP_P_CANDIDATES, scores.shape[-1]), dim=-1)
        shares = (best.values - scores.logsumexp(-1, keepdim=True)).exp()
        sums = shares.cumsum(-1)
        kept = best.values.masked_fill(sums - shares >= self.top_p, -torch.inf)
        out = torch.full_like(scores, -torch.inf).scatter(-1, best.indices, kept)
        for row in (sums[:, -1] < self.top_p).nonzero().flatten().tolist():
            out[row : row + 1] = self.whole(input_ids, scores[row : row + 1])
        return out


class _StreamedText:
    """Tokens → text as they come; half a character waits for its other half."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.shown = tokenizer, ""
        self.ids: list[int] = []

    def add(self, token: int) -> str:
        self.ids.append(token)
        text = self.whole()
        if not text.endswith("\ufffd"):
            self.shown = text
        return self.shown

    def whole(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)
