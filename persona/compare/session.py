"""Several voices from one model: base, base with the persona's prompt, adapters, blends; streamed from one batch.

Each column is a row of the batch, with its own prompt, stop token, adapters and strength. The page, the API, the
command line and the evaluation all stream through `stream_replies`.
"""

import gc
import threading
from bisect import bisect_left
from collections.abc import Container, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from persona.compare.chat_plan import ChatPlan, plan_chat
from persona.compare.model_queue import MODEL_QUEUE
from persona.compare.shared_batch import SharedBatch
from persona.errors import AdapterError, InputError, Message, PersonaError
from persona.models import attach as models_attach
from persona.models import base as bases
from persona.models import hardware, progress_callback, trained_modules
from persona.models.adapter import WEIGHTS_FILE, Adapter
from persona.models.base import Base
from persona.models.generate import Generation, Row, answer_rows
from persona.models.mixed_lora import AdapterWeights
from persona.models.placement import ONE_DEVICE, Placement
from persona.models.progress_callback import ProgressCallback
from persona.models.sampling import MAX_CONTEXT_TOKENS, Sampling
from persona.template.character_prompt import CharacterPrompt
from persona.template.render import ChatPrompt, Renderer
from persona.train.run_folder import present_card

NO_ADAPTER = "__base__"  # the column of no adapter
MAX_STRENGTH = 2.0
MAX_COLUMNS = 4  # that people compare at once
# adapters attached at a time, beside those in use, some 15 MB each on a 270M base; more than the columns of any page
MAX_ATTACHED = 8


@dataclass(frozen=True)
class Column:
    """One row of a batch: its adapter (a name from LoadedModel.attach; NO_ADAPTER for none) and its prompt.

    stop_id: None for that of the whole stream. error: why it cannot be answered, if that is known already. left_out:
    exchanges of the conversation, the oldest, that are not in the prompt for want of room.
    """

    adapter: str
    prompt: ChatPrompt
    strength: float = 1.0
    stop_id: int | None = None
    error: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class Voice:
    """Who answers in a column: an adapter or the base, with the template and system prompt of its questions."""

    label: str
    adapter: str
    renderer: Renderer
    strength: float = 1.0

    def render_column(self, history: Iterable[Sequence[str]], text: str, room: int = MAX_CONTEXT_TOKENS) -> Column:
        """The column for a question; a template that fails is the error of this column alone.

        room: tokens of the prompt, at most. Where the conversation has more, its oldest exchanges are left out; the
        system prompt and a greeting (the reply to an empty message) stay.
        """
        turns = [tuple(turn) for turn in history]
        greeting = turns[:1] if turns and not turns[0][0] else []
        turns = turns[len(greeting) :]

        def render(left_out: int) -> ChatPrompt:
            return self.renderer.render_prompt([*greeting, *turns[left_out:]], text)

        try:
            prompt, left_out = render(0), 0
            if len(prompt.ids) > room:
                left_out = bisect_left(range(len(turns)), True, key=lambda n: len(render(n).ids) <= room)
                prompt = render(left_out)
            stop = self.renderer.stop_id
        except PersonaError as e:
            return Column(self.adapter, ChatPrompt("", []), error=e.message)
        return Column(self.adapter, prompt, self.strength, stop, left_out=left_out)


class LoadedModel:
    """A base in memory with the adapters attached to it. What runs on it, or changes it, takes a turn in MODEL_QUEUE.

    model: the torch model, PEFT's as soon as an adapter is attached. quantization: none, nf4 or int8. placed: where
    the weights go.
    """

    def __init__(self, base: Base, quantization: str = "none", placed: Placement = ONE_DEVICE):
        self.base, self.quantization, self.placed = base, quantization, placed
        self.plan = hardware.plan_device(hardware.this_machine())
        self.tokenizer = bases.load_tokenizer(base)
        self.model = bases.load_base_model(
            base, self.plan.chat_dtype, self.plan.device, quantization, placed=placed.kwargs
        )
        self.batch = SharedBatch(lambda: self.model, self.tokenizer)
        self.mutex = threading.Lock()  # guards `attached`
        self.attached: dict[str, tuple[Adapter, int]] = {}  # with its file's time; the one used longest ago first
        self.blends: dict[str, AdapterWeights] = {}

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and reply together, at most: what the base was made for, within MAX_CONTEXT_TOKENS."""
        own = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)  # none with ALiBi
        return min(MAX_CONTEXT_TOKENS, own or MAX_CONTEXT_TOKENS)

    def attach(self, adapter: Adapter) -> str:
        """Load the adapter if it is not there yet, or has changed on disk. Returns its name in this model.

        Beyond MAX_ATTACHED, those used longest ago are removed, unless a turn that runs has attached them. Raises
        AdapterError when it does not fit the base.
        """
        name = f"a{abs(hash(adapter.path)):x}"
        try:
            stamp = (adapter.path / WEIGHTS_FILE).stat().st_mtime_ns
        except OSError as e:
            raise AdapterError("{adapter}: is no longer there. Choose another adapter.", adapter=adapter.path) from e
        with MODEL_QUEUE.turn(kind="attach") as turn, self.batch.paused(), self.mutex:
            others = {n for other in list(MODEL_QUEUE.active) if other is not turn for n in other.adapters}
            if name in others and self.attached.get(name, (adapter, stamp))[1] != stamp:
                name += f"_{stamp:x}"  # the others go on with the adapter as it was
            turn.adapters.add(name)
            loaded = self.attached.pop(name, None)
            if loaded and loaded[1] == stamp:
                self.attached[name] = loaded
                return name
            if loaded:
                self._remove_adapter(name)
            self.model = models_attach.attach_adapter(self.model, adapter, name)
            self.attached[name] = (adapter, stamp)
            unused = [n for n in self.attached if n not in others | turn.adapters]
            for old in unused[: max(0, len(self.attached) - MAX_ATTACHED)]:
                del self.attached[old]
                self._remove_adapter(old)
        return name

    def _remove_adapter(self, name: str) -> None:
        if self.attached:
            self.model.delete_adapter(name)
        else:  # PEFT has no model without an adapter: back to the plain base
            trained_modules.restore_base_layers(self.model)
            self.model = self.model.unload()

    def blend(self, weights: Mapping[str, float]) -> str:
        """Name the sum of attached adapters' updates at these weights (0 to MAX_STRENGTH); returns the name."""
        for name, weight in weights.items():
            if name not in self.attached:
                raise AdapterError("One part of this blend is not open. Open both adapters first.")
            check_strength(weight)
        name = "+".join(f"{n}*{w}" for n, w in weights.items())
        self.blends[name] = tuple(weights.items())
        return name

    def adapter_weights(self, name: str, strength: float = 1.0) -> AdapterWeights:
        """The (adapter, weight) parts of a column. Raises AdapterError when one of them is not attached."""
        if name == NO_ADAPTER:
            return ()
        parts = self.blends.get(name, ((name, 1.0),))
        with self.mutex:
            if any(n not in self.attached for n, _ in parts):
                raise AdapterError("This adapter is no longer open: its folder has changed. Choose it again.")
            check_strength(strength)
            for n, _ in parts:
                self.attached[n] = self.attached.pop(n)  # used just now
        return tuple((n, weight * strength) for n, weight in parts if weight * strength)

    def without_adapters(self) -> AbstractContextManager:
        """The plain base for as long as the block lasts; only within a turn."""
        return self.model.disable_adapter() if self.attached else nullcontext()


def check_strength(strength: float) -> None:
    """Raises InputError for a strength of an adapter that is out of range."""
    if not 0 <= strength <= MAX_STRENGTH:
        raise InputError(
            "strength={strength}: from 0 (the base) over 1 (as trained) to {limit}.",
            strength=strength,
            limit=MAX_STRENGTH,
        )


_open: dict[tuple[str, str], LoadedModel] = {}  # at most one, by folder and quantization
# folder, quantization and trained, as they were asked for → the quantization that was opened: the plan follows from the
# memory that is free, and an open model is not planned again with each question
_planned: dict[tuple[str, str, str], str] = {}
_opening = threading.Lock()


def plan_opening(base: Base, quantization: str = "auto", trained: str = "none") -> ChatPlan:
    """How open_model() would open the base now: plan_chat() on this machine, once the model that is open has gone."""
    machine = hardware.this_machine()
    held = sum(m.model.get_memory_footprint() for m in list(_open.values()))
    first, *others = hardware.free_gpu_memory(machine) or [hardware.free_memory(machine)]
    return plan_chat(base, machine, [first + held, *others], quantization, trained)


def is_open(base: Base, quantization: str = "auto", trained: str = "none") -> bool:
    """Whether open_model() would return at once. Raises what plan_opening() raises."""
    if _find_open(base, quantization, trained):
        return True
    return (str(base.path), plan_opening(base, quantization, trained).quantization) in _open


def is_any_open() -> bool:
    """Whether open_model() has opened a model, which it would let go for another one."""
    return bool(_open)


def _find_open(base: Base, quantization: str, trained: str) -> LoadedModel | None:
    """The open model that was opened for the same request, or one that came out the same."""
    folder = str(base.path)
    return _open.get((folder, _planned.get((folder, quantization, trained), "")))


def open_model(base: Base, quantization: str = "auto", trained: str = "none") -> LoadedModel:
    """The base in memory; the last one is kept, an earlier one, or this one in another quantization, let go first.

    quantization, trained: as for plan_chat(). Raises what it raises, and BaseError where the base does not fit.
    """
    with _opening:
        if model := _find_open(base, quantization, trained):
            return model
        plan = plan_opening(base, quantization, trained)
        key = str(base.path), plan.quantization
        if key not in _open:
            plan.require_room()
            _open.clear()
            gc.collect()  # a model refers to itself
            _open[key] = LoadedModel(base, plan.quantization, plan.placement)
        _planned[str(base.path), quantization, trained] = plan.quantization
        return _open[key]


def base_of(
    adapter: Adapter, override: str = "", progress: ProgressCallback = progress_callback.ignore_progress
) -> Base:
    """The base that an adapter was trained on. Raises AdapterError when its folder names none."""
    if not (override or adapter.base_id):
        raise AdapterError(
            "{adapter}: does not say which base it was trained on. Name it with --base.", adapter=adapter.path.name
        )
    if not override and not bases.is_portable_base_name(adapter.base_id):
        raise AdapterError(
            "{adapter}: names the base {base}, a path on a disk and not a model's name. Name the base with --base.",
            adapter=adapter.path.name,
            base=f"{adapter.base_id!r:.120}",
        )
    return bases.resolve_base(override or adapter.base_id, progress, "" if override else adapter.base_revision)


def renderer_of(adapter: Adapter, tokenizer: Any, system: str | None = None) -> Renderer:
    """The renderer of the adapter's own training: same template, and its system prompt unless `system` is given.

    With the persona's own prompt goes what its card adds to it, as the persona has it now.
    """
    if system is not None:
        return Renderer(tokenizer, adapter.template, system, adapter.max_length)
    character = CharacterPrompt.of(present_card(adapter.path, adapter.card))
    return Renderer(tokenizer, adapter.template, adapter.card.system, adapter.max_length, character=character)


def stream_replies(
    model: LoadedModel, columns: Sequence[Column], sampling: Sampling | Sequence[Sampling], stop_id: int | None = None,
    halted: Container[int] = frozenset(),
) -> Generator[list[Generation]]:  # fmt: skip
    """Yield the replies of all columns after every token, until each has ended or reached the limit.

    sampling: one for all columns, or one a column. stop_id: of the columns that name none of their own. halted: numbers
    of columns (from 0) to stop; the caller may add to it at any time, the others go on. All stop when the iterator is
    closed. A column that cannot be answered has the reason in its reply's `error`, the others go on. Within a turn in
    MODEL_QUEUE that shares a batch, the columns join that of the model; else they are a batch of their own, in the
    caller's turn or a new one.
    """
    with MODEL_QUEUE.turn() as turn:
        eos = model.tokenizer.eos_token_id if stop_id is None else stop_id
        samplings = [sampling] * len(columns) if isinstance(sampling, Sampling) else sampling
        replies, rows = [Generation() for _ in columns], {}
        for n, column in enumerate(columns):
            try:
                _require_room(column, samplings[n], model.context_tokens)
                mix = model.adapter_weights(column.adapter, column.strength)
                stop = eos if column.stop_id is None else column.stop_id
                rows[n] = Row(column.prompt.ids, samplings[n], stop, mix, partial(halted.__contains__, n),
                              column.prompt.thinking)  # fmt: skip
            except PersonaError as e:
                replies[n] = Generation(error=e.message)
        if not rows:
            yield replies
            return
        together = [*rows.values()]
        shared = turn.batch_key is not None
        stream = model.batch.stream(together) if shared else answer_rows(model.model, model.tokenizer, together)
        with closing(stream):
            for generations in stream:
                for n, reply in zip(rows, generations, strict=True):
                    if n not in halted:  # a shared batch hears of it a few tokens later
                        replies[n] = reply
                yield list(replies)


def _require_room(column: Column, sampling: Sampling, context: int) -> None:
    """Raises InputError when this column cannot be answered."""
    if column.error:
        raise InputError(Message.of(column.error))
    length = len(column.prompt.ids)
    if length + sampling.max_new_tokens > context:
        raise InputError(
            "The conversation has {length:,} tokens, and with a reply of up to {reply:,} more than the {context:,} "
            "that fit. Shorten the message, or allow shorter replies.",
            length=length, reply=sampling.max_new_tokens, context=context,
        )  # fmt: skip


def default_voices(
    model: LoadedModel, adapter: Adapter, strength: float = 1.0, system: str | None = None
) -> list[Voice]:
    """The two that are always compared: the base, given the persona's very prompt, and the persona.

    system: instead of the persona's own prompt.
    """
    renderer = renderer_of(adapter, model.tokenizer, system)
    name = model.attach(adapter)
    return [Voice("base", NO_ADAPTER, renderer), Voice("persona", name, renderer, strength)]
