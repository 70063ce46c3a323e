"""Generation: a batch of prompts → their replies, token by token. Page, command line, API and evaluation all use it.

Rows share the forward pass and, where their settings are equal, the random numbers: at each step the same Gumbel noise
is added to every row's scores and the largest is taken, which is an exact sample of softmax(scores) (Gumbel 1954;
Maddison et al. 2014). Two rows differ because their adapters differ, never because of sampling noise, and the other
rows of a batch change nothing.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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

from persona.models.decode_loop import DecodeLoop, open_decode_loop
from persona.models.mixed_lora import AdapterWeights
from persona.models.sampling import Sampling
from persona.store import thinking as blocks

TOP_P_CANDIDATES = 1024  # likeliest tokens that top_p sorts first; the whole vocabulary only where they do not suffice


@dataclass(frozen=True)
class Generation:
    """The reply of one row so far.

    ended: by its stop token, not by the limit. first and seconds: from the start of the batch to the row's first and
    newest token. error: why this row has no reply, for people. thinking: of a row that thinks, what stands in the
    block before the text; `tokens` counts both.
    """

    text: str = ""
    tokens: int = 0
    ended: bool = False
    error: str = ""
    first: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    thinking: str = ""

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
    thinking: str | None = None,
) -> Iterator[list[Generation]]:  # fmt: skip
    """Yield the replies to all prompts after each token.

    model: in evaluation mode, and used by nobody else meanwhile. sampling, stop_id: one for all rows, or one a row; the
    tokenizer's eos ends a reply too. mixes: the adapters of each row, on a PeftModel; None: the model as it is.
    is_halted(row): asked after each token, and ends that row where true. A row that has ended, or has reached its
    max_new_tokens, leaves the batch. thinking: as ChatPrompt.thinking, of all rows.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    stop_ids = [stop_id] * len(prompts) if isinstance(stop_id, int) else stop_id
    rows = [
        Row(prompt, samplings[n], stop_ids[n], mixes[n] if mixes else (), partial(is_halted, n), thinking)
        for n, prompt in enumerate(prompts)
    ]
    yield from answer_rows(model, tokenizer, rows, mixed=mixes is not None)


def answer_rows(model: Any, tokenizer: Any, rows: "Sequence[Row]", mixed: bool = True) -> Generator[list[Generation]]:
    """Yield the replies to the rows, a batch of their own, after each token; as generate_batch."""
    batch = Batch(model, tokenizer, mixed)
    try:
        batch.join(rows)
        while True:
            yield [row.reply for row in rows]
            batch.advance()
            if not batch.rows:
                break
            batch.step()
    finally:
        batch.close()
    if not all(row.reply.ended for row in rows):  # an incomplete character that was held back is shown now
        yield [row.reply for row in rows]


@dataclass(eq=False)
class Row:
    """A row of a Batch: a prompt, how it is answered, and the reply so far.

    mix: its adapters. is_halted: asked after each token, and ends the row where true, as does `cancelled`. thinking:
    as ChatPrompt.thinking.
    """

    prompt: list[int]
    sampling: Sampling
    stop_id: int
    mix: AdapterWeights = ()
    is_halted: Callable[[], bool] = bool
    thinking: str | None = None
    cancelled: bool = False
    reply: Generation = Generation()

    def start(self, tokenizer: Any, sampler: "Sampler", began: float) -> None:
        self.began, self.sampler, self.text = began, sampler, _StreamedText(tokenizer, self.thinking is not None)
        self.stops, self.reply = {self.stop_id, tokenizer.eos_token_id}, Generation()

    def add(self, token: int, at: float) -> None:
        now, old = at - self.began, self.reply
        if token in self.stops:
            self.finish(ended=True)
        else:
            thought, text = self._split(self.text.add(token))
            self.reply = Generation(text, old.tokens + 1, first=old.first or now, seconds=now, thinking=thought)

    def finish(self, ended: bool = False) -> None:
        """Show an incomplete character that was held back, too."""
        thought, text = self._split(self.text.decode())
        self.reply = replace(self.reply, text=text, thinking=thought, ended=ended)

    def _split(self, text: str) -> tuple[str, str]:
        return ("", text) if self.thinking is None else blocks.split_partial(self.thinking + text)

    @property
    def is_complete(self) -> bool:
        return self.reply.ended or self.reply.tokens >= self.sampling.max_new_tokens


class Batch:
    """Rows that are answered together. Each joins with `join`, and leaves when it is complete or halted.

    `join` and `step` each give rows a new token; `advance` follows each of them. model: as for generate_batch. mixed:
    whether rows have adapters of their own.
    """

    def __init__(self, model: Any, tokenizer: Any, mixed: bool = True):
        self.model, self.tokenizer, self.mixed = model, tokenizer, mixed
        self.rows: list[Row] = []
        self.loop: DecodeLoop | None = None
        self._newest: tuple[DecodeLoop, Sequence[Row], list[int]] | None = None  # whose tokens are not in the cache yet

    @property
    def can_grow(self) -> bool:
        """Whether rows can join now. A batch of a CUDA graph, and of a model with a state that is no cache, cannot."""
        return self.loop is None or self.loop.can_grow

    def join(self, rows: Sequence[Row]) -> None:
        """Compute the prompts of new rows, and their first tokens. After an error the batch is as it was before."""
        began, samplers = time.perf_counter(), {row.sampling: Sampler(row.sampling) for row in rows}
        for row in rows:  # equal settings that start together share their random numbers
            row.start(self.tokenizer, samplers[row.sampling], began)
        prompts, mixes = [row.prompt for row in rows], [row.mix for row in rows] if self.mixed else None
        if self.loop:
            loop = DecodeLoop(self.model, prompts, mixes, self.tokenizer.pad_token_id)
        else:
            longest = max(row.sampling.max_new_tokens for row in rows)
            loop = open_decode_loop(self.model, prompts, mixes, self.tokenizer.pad_token_id, longest)
        try:
            loop.__enter__()
            self._sample(loop, rows)
        except BaseException:
            self._discard(loop)
            raise

    def step(self) -> None:
        """One more token of every row."""
        assert self.loop
        self._sample(self.loop, self.rows)

    def _sample(self, loop: DecodeLoop, rows: Sequence[Row]) -> None:
        tokens, logits = [0] * len(rows), loop.logits()
        groups: dict[Sampler, list[int]] = {}
        for n, row in enumerate(rows):
            groups.setdefault(row.sampler, []).append(n)
        for sampler, group in groups.items():
            drawn = sampler(logits[group], [rows[n].text.ids for n in group]).tolist()
            for n, token in zip(group, drawn, strict=True):
                tokens[n] = token
        now = time.perf_counter()
        for row, token in zip(rows, tokens, strict=True):
            row.add(token, now)
        self._newest = loop, rows, tokens

    def advance(self) -> None:
        """Rows that are complete or halted leave; the newest token of the others enters the cache."""
        assert self._newest
        (loop, rows, tokens), self._newest = self._newest, None
        active = [n for n, row in enumerate(rows) if not (row.is_complete or row.cancelled or row.is_halted())]
        for row in rows:
            if row.is_complete and not row.reply.ended:
                row.finish()
        kept = [rows[n] for n in active]
        if kept:
            loop.append(tokens, active)
        if loop is self.loop:
            self.rows = kept
        elif not kept:
            self._discard(loop)
        else:
            self.rows = [*self.rows, *kept]
            if self.loop:
                self.loop.absorb(loop)
            else:
                self.loop = loop
        if not self.rows:
            self.close()

    def _discard(self, loop: DecodeLoop) -> None:
        """Leave a loop that does not join; the layers are those of the batch again."""
        loop.__exit__()
        if self.loop:
            self.loop.resume(self.model)

    def suspend(self) -> None:
        """Between two steps: let others use the model, until `resume`."""
        if self.loop:
            self.loop.suspend()

    def resume(self, model: Any) -> None:
        """Go on with the model, whose adapters may be others now."""
        self.model = model
        if self.loop:
            self.loop.resume(model)

    def close(self) -> None:
        """All rows leave."""
        loops = [self._newest[0]] if self._newest else []  # which may not have joined yet
        if self.loop and self.loop not in loops:
            loops.append(self.loop)
        self.loop, self.rows, self._newest = None, [], None
        for loop in loops:
            loop.__exit__()


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
    """Tokens → text as they arrive; the bytes of an incomplete character are held back.

    thinks: <think> and </think> are text, also where they are special tokens.
    """

    def __init__(self, tokenizer: Any, thinks: bool = False):
        self.tokenizer, self.shown = tokenizer, ""
        self.ids: list[int] = []
        special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special} if thinks else {}
        marks = {i for i, content in special.items() if content in (blocks.OPEN, blocks.CLOSE)}
        self.hidden = special.keys() - marks if marks else None

    def add(self, token: int) -> str:
        self.ids.append(token)
        text = self.decode()
        if not text.endswith("\ufffd"):
            self.shown = text
        return self.shown

    def decode(self) -> str:
        if self.hidden is None:
            return self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return self.tokenizer.decode([i for i in self.ids if i not in self.hidden])
