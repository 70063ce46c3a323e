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

from persona.errors import InputError
from persona.hardware import give_back_freed_memory
from persona.mixed import Mix, Mixed

CONTEXT = 4096  # tokens of prompt and reply together that a chat may reach
SHORTLIST = 1024  # tokens that top_p looks at before it looks at all


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy.

    The defaults are for a small base: at 0.7 it wanders off, at 0 it repeats itself. The repetition penalty (Keskar et
    al. 2019) counts only what the reply has said so far, so that names in the prompt stay as likely as they were. min_p
    (Nguyen et al. 2024) drops tokens less likely than this share of the likeliest; 0 drops none.
    """

    temperature: float = 0.4
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    seed: int = 0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 5:
            raise InputError(
                "temperature={temperature}: from 0 (always the likeliest token) to 5.", temperature=self.temperature
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InputError(
                "top_p={top_p}, top_k={top_k}: top_p is in (0, 1], top_k at least 0.",
                top_p=self.top_p,
                top_k=self.top_k,
            )
        if not 0 <= self.min_p <= 1:
            raise InputError("min_p={min_p}: from 0 (off) to 1.", min_p=self.min_p)
        if not 1 <= self.repetition_penalty <= 2:
            raise InputError(
                "repetition_penalty={repetition_penalty}: from 1 (none) to 2.",
                repetition_penalty=self.repetition_penalty,
            )
        if not 0 <= self.seed < 2**63:
            raise InputError("seed={seed}: from 0 to {most}.", seed=self.seed, most=2**63 - 1)
        if not 1 <= self.max_new_tokens <= CONTEXT:
            raise InputError(
                "max_new_tokens={max_new_tokens}: from 1 to {most}.",
                max_new_tokens=self.max_new_tokens,
                most=CONTEXT,
            )


@dataclass(frozen=True)
class Reply:
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


def nobody(_: int) -> bool:
    return False


def decode(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], sampling: Sampling | Sequence[Sampling],
    stop_id: int | Sequence[int],
    mixes: Sequence[Mix] | None = None, halted: Callable[[int], bool] = nobody,
) -> Iterator[list[Reply]]:  # fmt: skip
    """Yield one reply a prompt after every token. The model is in eval mode, and nobody else may use it meanwhile.

    sampling, stop_id: one for all rows, or one a row; the tokenizer's own eos always ends a reply too. mixes: the
    adapters of each row, on a PeftModel; None: the model as it is. halted(row): asked after every token; a row that is,
    ends there. A row that has ended, or reached its max_new_tokens, leaves the batch.
    """
    start = time.perf_counter()
    given = [stop_id] * len(prompts) if isinstance(stop_id, int) else stop_id
    stops = [{s, tokenizer.eos_token_id} for s in given]
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    draws, texts = {s: Draw(s) for s in samplings}, [_Text(tokenizer) for _ in prompts]
    replies = [Reply() for _ in prompts]
    with Steps(model, prompts, mixes, tokenizer.pad_token_id) as step:
        rows = list(range(len(prompts)))  # those still in the batch
        while True:
            said = [texts[row].ids for row in rows]
            chosen = _choose(draws, [samplings[row] for row in rows], step.logits(), said)
            now = time.perf_counter() - start
            for row, token in zip(rows, chosen, strict=True):
                old = replies[row]
                if token in stops[row]:
                    replies[row] = replace(old, text=texts[row].whole(), ended=True)
                else:
                    replies[row] = Reply(texts[row].add(token), old.tokens + 1, first=old.first or now, seconds=now)
            yield list(replies)
            kept = [n for n, row in enumerate(rows) if not (_over(replies[row], samplings[row]) or halted(row))]
            if not kept:
                break
            step.feed(chosen, kept)
            rows = [rows[n] for n in kept]
    if not all(r.ended for r in replies):  # half a character that waited for its other half is shown now
        yield [replace(r, text=t.whole()) for r, t in zip(replies, texts, strict=True)]


def _choose(
    draws: "dict[Sampling, Draw]", samplings: Sequence[Sampling], logits: torch.Tensor, said: Sequence[list[int]]
) -> list[int]:  # fmt: skip
    """A token a row; rows of the same settings are drawn together."""
    chosen = [0] * len(samplings)
    for same, draw in draws.items():
        rows = [n for n, own in enumerate(samplings) if own == same]
        if rows:
            for n, token in zip(rows, draw(logits[rows], [said[n] for n in rows]).tolist(), strict=True):
                chosen[n] = token
    return chosen


def _over(reply: Reply, sampling: Sampling) -> bool:
    return reply.ended or reply.tokens >= sampling.max_new_tokens


class Steps:
    """The forward passes of one batch, left-padded, with a key-value cache, for as long as a with block lasts."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], mixes: Sequence[Mix] | None, pad_id: int):
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
        self.mixed = Mixed(model, mixes) if mixes is not None else None

    def __enter__(self) -> "Steps":
        if self.mixed:
            self.mixed.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.mixed:
            self.mixed.__exit__()
        del self.cache
        give_back_freed_memory()  # each conversation has shapes of its own

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


class Draw:
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
                self.warp.append(Nucleus(float(sampling.top_p)))
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


class Nucleus(LogitsProcessor):
    """TopPLogitsWarper without sorting a whole vocabulary, which took a third of a step on a 262k one.

    The few likeliest tokens nearly always reach top_p together; a row where they do not is sorted as a whole.
    """

    def __init__(self, top_p: float):
        self.top_p, self.whole = top_p, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        best = scores.topk(min(SHORTLIST, scores.shape[-1]), dim=-1)
        shares = (best.values - scores.logsumexp(-1, keepdim=True)).exp()
        sums = shares.cumsum(-1)
        kept = best.values.masked_fill(sums - shares >= self.top_p, -torch.inf)
        out = torch.full_like(scores, -torch.inf).scatter(-1, best.indices, kept)
        for row in (sums[:, -1] < self.top_p).nonzero().flatten().tolist():
            out[row : row + 1] = self.whole(input_ids, scores[row : row + 1])
        return out


class _Text:
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
