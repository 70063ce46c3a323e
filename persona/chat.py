"""Several voices from one model: base, base with the persona's prompt, adapters; streamed from one batch.

Each column is a row of the batch. Rows share the forward pass, the settings and the random numbers: at every step the
same Gumbel noise is added to each row's scores, and the largest wins, which is an exact draw from softmax(scores)
(Gumbel 1954; Maddison et al. 2014). So two columns differ because the adapter differs, never because the dice did.
The page, the command line and the tests all stream through `stream`.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from persona import adapter as adapters
from persona import base as bases
from persona import hardware
from persona.adapter import Adapter
from persona.base import Base
from persona.errors import AdapterError, InputError
from persona.render import Prompt, Renderer

BASE = "__base__"  # PEFT's name for "no adapter" in a mixed batch
CONTEXT = 4096  # tokens of prompt and reply together that a chat may reach


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, the same for every column. temperature 0 is greedy.

    The defaults are for a small base: at 0.7 it wanders off, at 0 it repeats itself. The repetition penalty (Keskar et
    al. 2019) counts only what the reply has said so far, so that names in the prompt stay as likely as they were.
    """

    temperature: float = 0.4
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.1
    seed: int = 0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 5:
            raise InputError(f"temperature={self.temperature}: from 0 (always the likeliest token) to 5.")
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InputError(f"top_p={self.top_p}, top_k={self.top_k}: top_p is in (0, 1], top_k at least 0.")
        if not 1 <= self.repetition_penalty <= 2:
            raise InputError(f"repetition_penalty={self.repetition_penalty}: from 1 (none) to 2.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed}: from 0 to {2**63 - 1}.")
        if not 1 <= self.max_new_tokens <= CONTEXT:
            raise InputError(f"max_new_tokens={self.max_new_tokens}: from 1 to {CONTEXT}.")


@dataclass(frozen=True)
class Column:
    """One voice: which adapter speaks (BASE for none), and the prompt that it is given."""

    adapter: str
    prompt: Prompt


@dataclass(frozen=True)
class Reply:
    """What one column has said so far. `ended`: by its own stop token, not by the limit."""

    text: str = ""
    tokens: int = 0
    ended: bool = False


class Voices:
    """A base in memory with the adapters attached to it, and the lock that one forward pass at a time needs."""

    def __init__(self, base: Base):
        self.base = base
        self.plan = hardware.make_plan(hardware.this_machine())
        self.tokenizer = bases.load_tokenizer(base)
        self.model = bases.load_model(base, self.plan.chat_dtype, self.plan.device)
        self.lock = threading.Lock()
        self.attached: dict[str, tuple[Adapter, float]] = {}

    def attach(self, adapter: Adapter) -> str:
        """Load the adapter if it is not there yet, or has changed on disk. Returns its name in this model.

        Raises AdapterError when it does not fit the base, or cannot share a batch with it.
        """
        if adapter.settings.get("use_dora"):
            raise AdapterError(
                f"The adapter {adapter.card.name} was trained with use_dora=True, which rescales the base's own "
                "weights: it cannot answer beside the base in one batch. Train it again with use_dora=False to compare."
            )
        name = f"a{abs(hash(adapter.path)):x}"
        stamp = (adapter.path / "adapter_model.safetensors").stat().st_mtime
        with self.lock:
            if self.attached.get(name, (None, 0.0))[1] == stamp:
                return name
            if self.attached.pop(name, None):
                if self.attached:
                    self.model.delete_adapter(name)
                else:  # PEFT has no model without an adapter: back to the plain base
                    self.model = self.model.unload()
            self.model = adapters.attach(self.model, adapter, name)
            self.attached[name] = (adapter, stamp)
        return name

    def without_adapters(self) -> AbstractContextManager:
        """The plain base for as long as the block lasts; hold the lock."""
        return self.model.disable_adapter() if self.attached else nullcontext()

    def set_strength(self, name: str, strength: float) -> None:
        if not 0 <= strength <= 2:
            raise InputError(f"strength={strength}: from 0 (the base) over 1 (as trained) to 2.")
        adapters.set_strength(self.model, name, strength)


_open: dict[str, Voices] = {}
_opening = threading.Lock()


def open_voices(base: Base) -> Voices:
    """The base in memory; the last one is kept, an earlier one given up."""
    with _opening:
        if str(base.path) not in _open:
            _open.clear()
            _open[str(base.path)] = Voices(base)
        return _open[str(base.path)]


def base_of(adapter: Adapter, override: str = "") -> Base:
    """The base that an adapter was trained on. Raises AdapterError when its folder names none."""
    if not (override or adapter.base_id):
        raise AdapterError(f"{adapter.path.name}: does not say which base it was trained on. Name it with --base.")
    return bases.resolve(override or adapter.base_id, revision="" if override else adapter.base_revision)


def renderer_of(adapter: Adapter, tokenizer: Any, system: str | None = None) -> Renderer:
    """The renderer of the adapter's own training: same template, same system prompt."""
    chosen = adapter.card.system if system is None else system
    return Renderer(tokenizer, adapter.template, chosen, adapter.max_length)


def stream(
    voices: Voices, columns: Sequence[Column], sampling: Sampling, stop_id: int, strength: float = 1.0
) -> Iterator[list[Reply]]:
    """Yield the replies of all columns after every token, until each has ended or reached the limit.

    The caller may stop at any time by closing the iterator. One batch at a time runs on a model; a second caller
    waits for its turn. Raises InputError for a prompt longer than the context.
    """
    longest = max(len(c.prompt.ids) for c in columns)
    if longest + sampling.max_new_tokens > CONTEXT:
        raise InputError(f"The conversation has {longest:,} tokens and no room for a reply. Clear it and start anew.")
    with voices.lock:
        for name in {c.adapter for c in columns} - {BASE}:
            if name not in voices.attached:
                raise AdapterError("This adapter is no longer open: its folder has changed. Choose it again.")
            voices.set_strength(name, strength)
        prompts, names = [c.prompt.ids for c in columns], [c.adapter for c in columns]
        yield from decode(voices.model, voices.tokenizer, prompts, sampling, stop_id, names)


def decode(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], sampling: Sampling, stop_id: int,
    names: Sequence[str] | None = None,
) -> Iterator[list[Reply]]:  # fmt: skip
    """The batch itself: one reply a prompt. The model must be in eval mode, and nobody else may use it meanwhile.

    names: the adapter of each row, on a PeftModel; None: the model as it is.
    """
    stops = {stop_id, tokenizer.eos_token_id}
    draw = _Draw(sampling)
    step = _Steps(model, prompts, names, tokenizer.pad_token_id)
    texts = [_Text(tokenizer) for _ in prompts]
    replies = [Reply() for _ in prompts]
    said: list[list[int]] = []  # the tokens of all rows, step by step
    try:
        for _ in range(sampling.max_new_tokens):
            chosen = draw(step.logits(), said).tolist()
            for n, token in enumerate(chosen):
                if replies[n].ended:
                    continue
                if token in stops:
                    replies[n] = replace(replies[n], text=texts[n].whole(), ended=True)
                else:
                    replies[n] = Reply(texts[n].add(token), replies[n].tokens + 1)
            yield list(replies)
            if all(r.ended for r in replies):
                return
            step.feed(chosen)
            said.append(chosen)
        yield [replace(r, text=t.whole()) for r, t in zip(replies, texts, strict=True)]
    except BaseException:
        purge_hooks(model)
        raise


class _Steps:
    """The forward passes of one batch, left-padded, with a key-value cache."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], names: Sequence[str] | None, pad_id: int):
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
        # on a plain model, without adapters, nobody needs a name
        self.options = {"adapter_names": list(names)} if names and hasattr(model, "get_base_model") else {}

    @torch.inference_mode()
    def logits(self) -> torch.Tensor:
        """(rows, vocabulary), float32: the scores of each row's next token."""
        out = self.model(
            input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1, **self.options,
        )  # fmt: skip
        return out.logits[:, -1].float()

    def feed(self, chosen: list[int]) -> None:
        self.ids = torch.tensor([[c] for c in chosen], device=self.ids.device)
        self.positions = self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(chosen), 1)], dim=1)


class _Draw:
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
                self.warp.append(TopPLogitsWarper(float(sampling.top_p)))

    @torch.inference_mode()
    def __call__(self, logits: torch.Tensor, said: Sequence[list[int]] = ()) -> torch.Tensor:
        """logits: (rows, vocabulary); said: the rows' tokens of every earlier step. Returns (rows,) token ids."""
        if self.penalty and said:
            logits = self.penalty(torch.tensor(list(said), device=logits.device).T.contiguous(), logits)
        if self.greedy:
            return logits.argmax(-1)
        scores = self.warp(None, logits)
        # float64: the smallest uniform number must not round to 0, whose noise is minus infinity
        uniform = torch.rand(logits.shape[-1], generator=self.generator, dtype=torch.float64).clamp_(min=1e-300)
        gumbel = -torch.log(-torch.log(uniform))
        return (scores + gumbel.to(scores)).argmax(-1)


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


def purge_hooks(model: Any) -> None:
    """Remove the hooks that PEFT leaves behind when a forward pass with adapter_names fails (peft#3475)."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if getattr(getattr(hook, "func", None), "__name__", "") == "_adapter_names_pre_forward_hook":
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def answer(
    adapter: Adapter, prompts: Sequence[str], sampling: Sampling, strength: float = 1.0, base: str = ""
) -> tuple[list[dict[str, Any]], float]:
    """Base and adapter on each prompt, every prompt a conversation of its own. Returns turns and tokens/s.

    A turn is {"prompt", "rendered", "base", "adapter"}; tokens/s counts both columns.
    """
    voices = open_voices(base_of(adapter, base))
    name = voices.attach(adapter)
    renderer = renderer_of(adapter, voices.tokenizer)
    turns, tokens, start = [], 0, time.perf_counter()
    for text in prompts:
        if not text.strip():
            raise InputError("The prompt is empty. Write something to say.")
        prompt = renderer.prompt([], text)
        columns = [Column(BASE, prompt), Column(name, prompt)]
        *_, last = stream(voices, columns, sampling, renderer.stop_id, strength)
        tokens += sum(r.tokens for r in last)
        turns.append({"prompt": text, "rendered": prompt.text, "base": last[0].text, "adapter": last[1].text,
                      "ended": last[1].ended})  # fmt: skip
    return turns, tokens / (time.perf_counter() - start)
