"""A persona, her settings and this machine → how the run would go: fitted into memory, and about how long.

Nothing is opened but headers: rows are measured by their characters, and by the last run's count where there is one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from persona import base, hardware, memory, runs
from persona.config import RunConfig, steps_of
from persona.errors import Message
from persona.folder import Card, Persona
from persona.hardware import Machine, TrainingPlan
from persona.memory import Shape, Work
from persona.pairs import Pair
from persona.runs import Run

BYTES_A_TOKEN = 3.6  # of UTF-8: 3.57 Chinese and 3.76 English in the shipped personas, by Gemma's tokenizer
TEMPLATE_TOKENS = 12  # a template's own around a turn
STEADY = 10  # steps; the first few of a run are slow, so a shorter one says nothing about speed


@dataclass(frozen=True)
class Outlook:
    """What the page says before Start. seconds: None where the machine's speed is not known."""

    plan: TrainingPlan
    shape: Shape
    steps: int
    train_rows: int
    held_out: int
    longest: int  # tokens of the longest row, about
    seconds: float | None
    from_run: str  # the run whose speed was taken, "" where none was


@lru_cache(maxsize=8)
def shape(found: base.Base) -> Shape | None:
    """The shape of a base on this disk; None for one that is no decoder we know."""
    try:
        return memory.shape_of(found.config(), found.tensors())
    except (KeyError, TypeError):
        return None


def row_tokens(card: Card, pair: Pair, learn_history: bool = False) -> tuple[int, int]:
    """(tokens, learned tokens) of a pair's row, about."""
    replies = [pair.output, *(reply for _, reply in pair.history if learn_history)]
    texts = [card.system, pair.instruction, pair.output, *(x for turn in pair.history for x in turn)]
    tokens = _tokens(texts) + TEMPLATE_TOKENS * (1 + len(pair.history))
    return tokens, _tokens(replies) + len(replies)


def _tokens(texts: Sequence[str]) -> int:
    return round(sum(len(t.encode()) for t in texts) / BYTES_A_TOKEN)


def work_of(config: RunConfig, rows: Sequence[tuple[int, int]]) -> Work:
    """The heaviest batch: the longest rows, which group_by_length puts together."""
    longest = sorted(rows, reverse=True)[: config.batch_size]
    length = min(config.max_length, memory.padded_length(longest[0][0]))
    learned = min(length, -(-sum(n for _, n in longest) // len(longest)))
    rank = config.lora_r * (2 if config.init_lora_weights.startswith("pissa") else 1)
    return Work(config.batch_size, length, learned, rank, quantization=config.quantization,
                checkpointing=config.gradient_checkpointing)  # fmt: skip


def outlook(persona: Persona, config: RunConfig, pairs: Sequence[Pair], machine: Machine,
            free: int | None = None) -> Outlook | None:  # fmt: skip
    """None where the base is not on this disk yet, or not of a kind we know."""
    found = base.ready(config.base)
    size = shape(found) if found else None
    if size is None or not pairs:
        return None
    card = persona.card()
    rows = [row_tokens(card, p, config.learn_history) for p in pairs]
    plan = hardware.plan_training(machine, size, work_of(config, rows), config.gradient_accumulation_steps,
                                  config.dtype, free)  # fmt: skip
    held = sum(row.held_out for row in runs.split(list(pairs), config.eval_fraction, config.seed))
    kept = len(rows) - held
    steps, every = steps_of(config, kept)
    mean, learned = (sum(r[n] for r in rows) / len(rows) for n in (0, 1))
    past = last_run(persona, config, plan)
    rate = past.progress().result["tokens_per_s"] if past else None
    seen = min(steps * config.batch_size * config.gradient_accumulation_steps, kept * config.epochs)
    seen = seen if config.max_steps < 0 else steps * config.batch_size * config.gradient_accumulation_steps
    evaluated = (steps // every + 2) * held * mean
    seconds = hardware.seconds_needed(machine, size, plan, seen * mean, seen * learned, evaluated, rate)
    return Outlook(plan, size, steps, kept, held, max(n for n, _ in rows), seconds, past.name if past else "")


def here(persona: Persona, config: RunConfig, pairs: Sequence[Pair]) -> Outlook | None:
    """The outlook on this machine, with what is free of its memory now."""
    machine = hardware.this_machine()
    return outlook(persona, config, pairs, machine, hardware.free_memory(machine))


def last_run(persona: Persona, config: RunConfig, plan: TrainingPlan) -> Run | None:
    """The newest finished run whose speed tells that of this one: same base, device, number format and batch."""
    for run in runs.list_runs(persona)[:5]:
        p = run.progress()
        if p.status != "done" or p.result.get("steps", 0) < STEADY or not p.result.get("tokens_per_s"):
            continue
        was = run.config()
        here = (p.plan.get("device"), p.plan.get("dtype"), was.base, was.batch_size, was.gradient_checkpointing)
        if here == (plan.device, plan.train_dtype, config.base, plan.batch_size, plan.checkpointing):
            return run
    return None


def fitted(config: RunConfig, plan: TrainingPlan) -> RunConfig:
    """The settings with what the plan changes so that the run fits; as they are where only another base would do.

    The quantization stays the user's: it changes what is learned from.
    """
    if not plan.fits or plan.quantization != config.quantization:
        return config
    changes: dict[str, Any] = {"batch_size": plan.batch_size, "gradient_accumulation_steps": plan.accumulation,
               "gradient_checkpointing": plan.checkpointing}  # fmt: skip
    if config.dtype == "auto" and plan.lower_dtype:
        changes["dtype"] = plan.train_dtype
    return config.model_copy(update=changes)


def fit(config: RunConfig, plan: TrainingPlan, given: Collection[str] = ()) -> tuple[RunConfig, list[str]]:
    """`fitted`, but for the settings named in `given`, which stay; and what to say about it, in sentences."""
    wish, old = fitted(config, plan).model_dump(), config.model_dump()
    changed = {name: value for name, value in wish.items() if value != old[name]}
    together = {"batch_size", "gradient_accumulation_steps"}  # one without the other would be another training
    kept = {n for n in changed if n in given or (n in together and together & set(given))}
    said = [f"{n}: {old[n]} → {changed[n]}".lower() for n in changed if n not in kept]
    notes: list[str] = []
    if said:
        changes = "; ".join(said)
        notes.append(
            Message("Changed so that it fits into memory: {changes}. {reason}", changes=changes, reason=plan.reason)
        )
    if kept:
        wanted = ", ".join(f"{n}={changed[n]}".lower() for n in changed if n in kept)
        notes.append(Message("Kept as given, but it may run out of memory; what would fit: {wanted}.", wanted=wanted))
    need, limit = f"{plan.memory.total / 1e9:.1f} GB", f"{plan.limit / 1e9:.1f} GB"
    if not plan.fits:
        notes.append(
            Message(
                "This may run out of memory: its smallest way needs about {need}, and {limit} can be used. A "
                "smaller base or shorter rows would do.",
                need=need,
                limit=limit,
            )
        )
    elif plan.quantization != config.quantization:
        notes.append(
            Message(
                "This may run out of memory: the base does not fit into {limit} as it is. With "
                "quantization={quantization} it would.",
                limit=limit,
                quantization=plan.quantization,
            )
        )
    return config.model_copy(update={n: v for n, v in changed.items() if n not in kept}), notes
