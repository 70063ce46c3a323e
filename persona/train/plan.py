"""A persona, her settings and this machine → how the run would go: fitted into memory, and about how long.

Nothing is opened but headers: rows are measured by their characters, and by the last run's count where there is one.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from persona.errors import Message, join
from persona.models import base, hardware, memory
from persona.models.hardware import DevicePlan, Machine, plan_device
from persona.models.memory import MemoryEstimate, ModelShape, StepShape
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona, PersonaCard
from persona.train import run_folder, split
from persona.train.config import RunConfig, count_steps
from persona.train.run_folder import Run


@dataclass(frozen=True)
class TrainingPlan(DevicePlan):
    """A Plan for one base and its rows. batch_size × accumulation is what the settings ask for."""

    quantization: str
    batch_size: int
    accumulation: int
    checkpointing: bool
    memory: MemoryEstimate
    limit: int  # bytes that the run may use
    fits: bool
    lower_dtype: bool  # bfloat16 only because float32 does not fit


# Of the memory there is: the system wants some, a GPU's allocator leaves gaps, Apple's lets a program have about 70 %
# (Metal's recommendedMaxWorkingSetSize). Not measured by us on a GPU.
USABLE_MEMORY_SHARE = {"cuda": 0.92, "mps": 0.7, "cpu": 0.9}
BITSANDBYTES_DEVICES = ("cuda", "cpu")  # where it can quantize
WEIGHT_READ_TOKENS = (
    128  # reading all weights for a forward pass is counted like so many tokens: why a batch of 1 is slow
)


def plan_training(machine: Machine, shape: ModelShape, work: StepShape, accumulation: int = 1, dtype: str = "auto",
                  free: int | None = None) -> TrainingPlan:  # fmt: skip
    """The fastest way to run `work` that fits into the machine, the base kept as it is as long as possible.

    work: the user's settings, whose checkpointing and quantization are kept when they are on; its dtype and device
    are not read. free: bytes now free, where that is known. Where nothing fits, the plan is the smallest way.
    """
    plan = plan_device(machine, dtype)
    limit = int(min(machine.memory * USABLE_MEMORY_SHARE[machine.device], machine.memory if free is None else free))
    dtypes = [plan.train_dtype]
    if dtype == "auto" and plan.train_dtype == "float32" and machine.bf16:
        dtypes.append("bfloat16")  # slower here, but half the size
    kinds = [work.quantization]
    if work.quantization == "none" and machine.device in BITSANDBYTES_DEVICES:
        kinds += ["int8", "nf4"]
    tried = []
    for kind in kinds:
        for name in dtypes:
            start = replace(work, device=machine.device, dtype=name, quantization=kind)
            tried += [
                (w, memory.estimate_memory(shape, w)) for w in sorted(_list_batch_options(start), key=_relative_cost)
            ]
    chosen = next(((w, m) for w, m in tried if m.total <= limit), None)
    w, need = chosen or min(tried, key=lambda x: x[1].total)
    steps = work.batch * accumulation // w.batch
    plan = plan_device(machine, w.dtype if w.dtype != plan.train_dtype else dtype)
    reason = join(" ", [plan.reason, *_describe_plan_changes(work, w, steps, w.dtype != dtypes[0])])
    return TrainingPlan(machine.device, w.dtype, plan.chat_dtype, reason, w.quantization, w.batch, steps,
                        w.checkpointing, need, limit, chosen is not None, w.dtype != dtypes[0])  # fmt: skip


def _list_batch_options(work: StepShape) -> list[StepShape]:
    """The same rows a step in smaller batches, with and without checkpointing."""
    batches = [b for b in range(1, work.batch + 1) if work.batch % b == 0]
    return [replace(work, batch=b, checkpointing=c) for b in batches for c in {work.checkpointing, True}]


def _relative_cost(work: StepShape) -> float:
    """How much longer a token takes than in an endless batch."""
    return (1 + WEIGHT_READ_TOKENS / (work.batch * work.length)) * (
        1.5 if work.checkpointing else 1
    )  # memory.step_flops: 6 for 4


def _describe_plan_changes(asked: StepShape, w: StepShape, steps: int, other_dtype: bool) -> list[str]:
    said: list[str] = []
    if other_dtype:
        said.append(Message("float32 would not fit."))
    if w.batch != asked.batch:
        said.append(
            Message("To fit, a step's rows go through {batch} at a time, {steps} times.", batch=w.batch, steps=steps)
        )
    if w.checkpointing and not asked.checkpointing:
        said.append(Message("To fit, activations are recomputed instead of kept (gradient checkpointing): slower."))
    if w.quantization != asked.quantization:
        bits = 4 if w.quantization == "nf4" else 8
        said.append(Message("It fits only with the base's weights in {bits} bits.", bits=bits))
    return said


# Besides its matmuls a step has norms, attention, activations and the optimizer, in float32 and bound by memory. On a
# CPU they cost 0.6 of what the matmuls would in float32, whatever the matmuls' own format: three runs in the tests
# took 9.5 ms a token in float32, 3.8 in bfloat16 and 5.3 with checkpointing; this gives 8.9, 3.9 and 5.0.
CPU_OVERHEAD = 0.6
GPU_EFFICIENCY = 0.3  # the part of a GPU's matmul rate that training reaches; a usual figure, not measured by us
STARTUP_SECONDS = 20.0  # seconds until the first step: imports, tokenizer, weights


def estimate_seconds(machine: Machine, shape: ModelShape, plan: TrainingPlan, tokens: float, learned: float,
                   evaluated: float, rate: float | None = None) -> float | None:  # fmt: skip
    """Seconds from Start to the adapter, or None where the machine's rate is not known.

    tokens, learned: of all steps; evaluated: tokens of all evaluations, which go forward only. rate: tokens/s of a
    finished run with this base on this machine, which knows better than the measured matmuls.
    """
    if rate:
        return STARTUP_SECONDS + tokens / rate + evaluated / rate / 2
    rates = dict(machine.rates)
    if plan.train_dtype not in rates or "float32" not in rates:
        return None
    work = memory.step_flops(shape, tokens, learned, plan.checkpointing)
    work += memory.step_flops(shape, evaluated, evaluated * learned / max(tokens, 1)) / 2
    if machine.device == "cpu":
        return STARTUP_SECONDS + work / rates[plan.train_dtype] + work * CPU_OVERHEAD / rates["float32"]
    return STARTUP_SECONDS + work / (rates[plan.train_dtype] * GPU_EFFICIENCY)


BYTES_PER_TOKEN = 3.6  # of UTF-8: 3.57 Chinese and 3.76 English in the shipped personas, by Gemma's tokenizer
TEMPLATE_TOKENS = 12  # a template's own around a turn
MIN_STEADY_STEPS = 10  # steps; the first few of a run are slow, so a shorter one says nothing about speed


@dataclass(frozen=True)
class TrainingEstimate:
    """What the page says before Start. seconds: None where the machine's speed is not known."""

    plan: TrainingPlan
    shape: ModelShape
    steps: int
    train_rows: int
    held_out: int
    longest: int  # tokens of the longest row, about
    seconds: float | None
    from_run: str  # the run whose speed was taken, "" where none was


@lru_cache(maxsize=8)
def read_base_shape(found: base.Base) -> ModelShape | None:
    """The shape of a base on this disk; None for one that is no decoder we know."""
    try:
        return memory.infer_model_shape(found.config(), found.tensors())
    except (KeyError, TypeError):
        return None


def estimate_row_tokens(card: PersonaCard, pair: Pair, learn_history: bool = False) -> tuple[int, int]:
    """(tokens, learned tokens) of a pair's row, about."""
    replies = [pair.output, *(reply for _, reply in pair.history if learn_history)]
    texts = [card.system, pair.instruction, pair.output, *(x for turn in pair.history for x in turn)]
    tokens = _estimate_tokens(texts) + TEMPLATE_TOKENS * (1 + len(pair.history))
    return tokens, _estimate_tokens(replies) + len(replies)


def _estimate_tokens(texts: Sequence[str]) -> int:
    return round(sum(len(t.encode()) for t in texts) / BYTES_PER_TOKEN)


def find_heaviest_step(config: RunConfig, rows: Sequence[tuple[int, int]]) -> StepShape:
    """The heaviest batch: the longest rows, which group_by_length puts together."""
    longest = sorted(rows, reverse=True)[: config.batch_size]
    length = min(config.max_length, memory.padded_length(longest[0][0]))
    learned = min(length, -(-sum(n for _, n in longest) // len(longest)))
    rank = config.lora_r * (2 if config.init_lora_weights.startswith("pissa") else 1)
    return StepShape(config.batch_size, length, learned, rank, quantization=config.quantization,
                checkpointing=config.gradient_checkpointing)  # fmt: skip


def estimate_training(persona: Persona, config: RunConfig, pairs: Sequence[Pair], machine: Machine,
            free: int | None = None) -> TrainingEstimate | None:  # fmt: skip
    """None where the base is not on this disk yet, or not of a kind we know."""
    found = base.find_local_base(config.base)
    size = read_base_shape(found) if found else None
    if size is None or not pairs:
        return None
    card = persona.card()
    rows = [estimate_row_tokens(card, p, config.learn_history) for p in pairs]
    plan = plan_training(machine, size, find_heaviest_step(config, rows), config.gradient_accumulation_steps,
                                  config.dtype, free)  # fmt: skip
    held = sum(row.held_out for row in split.split_held_out(list(pairs), config.eval_fraction, config.seed))
    kept = len(rows) - held
    steps, every = count_steps(config, kept)
    mean, learned = (sum(r[n] for r in rows) / len(rows) for n in (0, 1))
    past = find_comparable_run(persona, config, plan)
    rate = past.progress().result["tokens_per_s"] if past else None
    seen = min(steps * config.batch_size * config.gradient_accumulation_steps, kept * config.epochs)
    seen = seen if config.max_steps < 0 else steps * config.batch_size * config.gradient_accumulation_steps
    evaluated = (steps // every + 2) * held * mean
    seconds = estimate_seconds(machine, size, plan, seen * mean, seen * learned, evaluated, rate)
    return TrainingEstimate(plan, size, steps, kept, held, max(n for n, _ in rows), seconds, past.name if past else "")


def estimate_on_this_machine(persona: Persona, config: RunConfig, pairs: Sequence[Pair]) -> TrainingEstimate | None:
    """The outlook on this machine, with what is free of its memory now."""
    machine = hardware.this_machine()
    return estimate_training(persona, config, pairs, machine, hardware.free_memory(machine))


def find_comparable_run(persona: Persona, config: RunConfig, plan: TrainingPlan) -> Run | None:
    """The newest finished run whose speed tells that of this one: same base, device, number format and batch."""
    for run in run_folder.list_runs(persona)[:5]:
        p = run.progress()
        if p.status != "done" or p.result.get("steps", 0) < MIN_STEADY_STEPS or not p.result.get("tokens_per_s"):
            continue
        was = run.config()
        here = (p.plan.get("device"), p.plan.get("dtype"), was.base, was.batch_size, was.gradient_checkpointing)
        if here == (plan.device, plan.train_dtype, config.base, plan.batch_size, plan.checkpointing):
            return run
    return None


def apply_plan(config: RunConfig, plan: TrainingPlan) -> RunConfig:
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


def fit_config(config: RunConfig, plan: TrainingPlan, given: Collection[str] = ()) -> tuple[RunConfig, list[str]]:
    """`fitted`, but for the settings named in `given`, which stay; and what to say about it, in sentences."""
    wish, old = apply_plan(config, plan).model_dump(), config.model_dump()
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
