"""A persona, its settings and this machine → how a run would go: fitted into memory; how long it takes is duration.py.

Nothing but headers is opened: the tokens of rows are estimated from their characters, the speed is that of the last
comparable run or of a short measurement.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from persona.errors import Message, join
from persona.models import base, hardware, memory
from persona.models.hardware import DevicePlan, Machine, plan_device
from persona.models.memory import MemoryEstimate, ModelShape, StepShape
from persona.store.pairs import Pair, own_exchanges
from persona.store.persona_folder import Persona
from persona.train import queue, run_folder, validate
from persona.train.config import RunConfig, count_rehearsal, count_steps
from persona.train.duration import (
    REHEARSAL_PROMPTS,
    TrainingWork,
    estimate_evaluation_seconds,
    estimate_seconds,
    estimate_speed,
)
from persona.train.engines import may_flatten
from persona.train.parent import Parent, repeat_new, split_since
from persona.train.row_tokens import estimate_row_tokens, estimate_shared_tokens, find_heaviest_step
from persona.train.run_folder import Run
from persona.train.target_modules import ends_with_name, split_names

# ---- memory: which batch, checkpointing, quantization and number format fit


@dataclass(frozen=True)
class TrainingPlan(DevicePlan):
    """How to run a training on a machine so that it fits. batch_size × accumulation is what the settings ask for."""

    quantization: str
    batch_size: int
    accumulation: int
    checkpointing: bool
    memory: MemoryEstimate
    limit: int  # bytes that the run may use
    fits: bool
    lower_dtype: bool  # bfloat16 only because float32 does not fit
    spread_layers: bool = False  # over the machine's GPUs; `memory` and `limit` are those of one


# Of all memory: the system needs some, a GPU's allocator leaves gaps, Apple lets a program have about 70 % (Metal's
# recommendedMaxWorkingSetSize). Not measured by us on a GPU.
USABLE_MEMORY_SHARE = {"cuda": 0.92, "mps": 0.7, "cpu": 0.9}
BITSANDBYTES_DEVICES = ("cuda", "cpu")  # where it can quantize
# a forward pass reads all weights once, which takes as long as computing so many tokens: why a batch of 1 is slow
WEIGHT_READ_TOKENS = 128


def plan_training(machine: Machine, shape: ModelShape, step: StepShape, accumulation: int = 1, dtype: str = "auto",
                  free: int | None = None) -> TrainingPlan:  # fmt: skip
    """The fastest way to compute `step` that fits into the machine; quantizing the base is the last resort.

    Before it, layers are spread over several GPUs, which is slower than a base that fits on each of them.

    step: as the settings ask; its checkpointing and quantization are kept when they are on, its dtype and device are
    not read. free: bytes that are free now, where known. Where nothing fits, the plan is the smallest way.
    """
    device_plan = plan_device(machine, dtype)
    limit = int(min(machine.memory * USABLE_MEMORY_SHARE[machine.device], machine.memory if free is None else free))
    dtypes = [device_plan.train_dtype]
    if dtype == "auto" and device_plan.train_dtype == "float32" and machine.bf16:
        dtypes.append("bfloat16")  # slower here, but half the size
    quantizations = [step.quantization]
    if step.quantization == shape.stored == "none" and machine.device in BITSANDBYTES_DEVICES:
        quantizations += ["int8", "nf4"]
    options = [
        (option, gpus, memory.estimate_memory(shape, option, gpus))
        for quantization in quantizations
        for gpus in sorted({1, machine.gpus})
        for name in dtypes
        for option in _list_batch_options(replace(step, device=machine.device, dtype=name, quantization=quantization))
    ]
    fitting = next((option for option in options if option[2].total <= limit), None)
    chosen, gpus, need = fitting or min(options, key=lambda x: x[2].total)
    lower_dtype = chosen.dtype != dtypes[0]
    batches = step.batch * accumulation // chosen.batch
    device_plan = plan_device(machine, chosen.dtype if lower_dtype else dtype)
    reason = join(" ", [device_plan.reason, *_describe_plan_changes(step, chosen, batches, lower_dtype, gpus)])
    return TrainingPlan(machine.device, chosen.dtype, device_plan.chat_dtype, reason, chosen.quantization, chosen.batch,
                        batches, chosen.checkpointing, need, limit, fitting is not None, lower_dtype,
                        gpus > 1)  # fmt: skip


def _list_batch_options(step: StepShape) -> list[StepShape]:
    """The same rows a step in smaller batches, with and without checkpointing; the fastest first."""
    batches = [b for b in range(1, step.batch + 1) if step.batch % b == 0]
    options = [replace(step, batch=b, checkpointing=c) for b in batches for c in {step.checkpointing, True}]
    return sorted(options, key=_relative_cost)


def _relative_cost(step: StepShape) -> float:
    """Time per token, relative to that in an infinite batch."""
    recompute = 1.5 if step.checkpointing else 1  # as in memory.step_flops: 6 for 4
    return (1 + WEIGHT_READ_TOKENS / (step.batch * step.length)) * recompute


def _describe_plan_changes(
    asked: StepShape, chosen: StepShape, batches: int, lower_dtype: bool, gpus: int
) -> list[str]:
    notes: list[str] = []
    if lower_dtype:
        notes.append(Message("float32 would not fit."))
    if chosen.batch != asked.batch:
        notes.append(
            Message("To fit, each batch is split into {steps} of {batch} rows (gradient accumulation).", steps=batches,
                    batch=chosen.batch)
        )  # fmt: skip
    if chosen.checkpointing and not asked.checkpointing:
        notes.append(Message("To fit, activations are recomputed instead of kept (gradient checkpointing): slower."))
    if gpus > 1:
        notes.append(
            Message("It does not fit on one GPU: the base's layers are spread over {n}, which work one after the "
                    "other.", n=gpus)
        )  # fmt: skip
    if chosen.quantization != asked.quantization:
        bits = 4 if chosen.quantization == "nf4" else 8
        notes.append(Message("It fits only with the base's weights in {bits} bits.", bits=bits))
    return notes


def apply_plan(config: RunConfig, plan: TrainingPlan) -> RunConfig:
    """The settings with the plan's changes, so that the run fits; unchanged where only another base would fit.

    The quantization stays the user's, since it changes what is learned from.
    """
    if not plan.fits or plan.quantization != config.quantization:
        return config
    changes: dict[str, Any] = {"batch_size": plan.batch_size, "gradient_accumulation_steps": plan.accumulation,
               "gradient_checkpointing": plan.checkpointing}  # fmt: skip
    if plan.spread_layers:
        changes["spread_layers"] = True
    if config.dtype == "auto" and plan.lower_dtype:
        changes["dtype"] = plan.train_dtype
    return config.model_copy(update=changes)


def fit_config(config: RunConfig, plan: TrainingPlan, given: Collection[str] = ()) -> tuple[RunConfig, list[str]]:
    """apply_plan() but for the settings named in `given`, which stay; and notes on it for the user."""
    planned, current = apply_plan(config, plan).model_dump(), config.model_dump()
    changed = {name: value for name, value in planned.items() if value != current[name]}
    together = {"batch_size", "gradient_accumulation_steps"}  # one without the other would be another training
    kept = {n for n in changed if n in given or (n in together and together & set(given))}
    shown_changes = [f"{n}: {current[n]} → {changed[n]}".lower() for n in changed if n not in kept]
    notes: list[str] = []
    if shown_changes:
        changes = "; ".join(shown_changes)
        notes.append(
            Message("Changed so that it fits into memory: {changes}. {reason}", changes=changes, reason=plan.reason)
        )
    if kept:
        wanted = ", ".join(f"{n}={changed[n]}".lower() for n in changed if n in kept)
        notes.append(Message("Kept as given, but it may run out of memory; what would fit: {wanted}.", wanted=wanted))
    notes += _warn_of_memory(config, plan)
    return config.model_copy(update={n: v for n, v in changed.items() if n not in kept}), notes


def _warn_of_memory(config: RunConfig, plan: TrainingPlan) -> list[str]:
    need, limit = f"{plan.memory.total / 1e9:.1f} GB", f"{plan.limit / 1e9:.1f} GB"
    if not plan.fits:
        return [
            Message(
                "This may run out of memory: its smallest way needs about {need}, and {limit} can be used. A "
                "smaller base or shorter rows would do.",
                need=need,
                limit=limit,
            )
        ]
    if plan.quantization != config.quantization:
        return [
            Message(
                "This may run out of memory: the base does not fit into {limit} as it is. With "
                "quantization={quantization} it would.",
                limit=limit,
                quantization=plan.quantization,
            )
        ]
    return []


# ---- the whole estimate

BUSY_SPEED = 0.6  # of a machine's own speed: with less, other programs take the rest; a measurement alone varies less
MIN_STEADY_STEPS = 10  # the first few steps of a run are slow, so a shorter run says nothing about speed
MIN_NOTED_SECONDS = 60.0  # of evaluation: less is not worth a sentence
# a general prompt and the base's answer, as long as they are in English on the average
GENERAL = Pair("p" * 40, "a" * 160)
MAX_COMPARED_RUNS = 5  # the newest ones that are looked at for a comparable one


@dataclass(frozen=True)
class TrainingEstimate:
    """What the page says before Start."""

    plan: TrainingPlan
    shape: ModelShape
    steps: int
    train_rows: int
    held_out: int
    longest: int  # tokens of the longest row, about
    work: TrainingWork
    tokens_per_s: float | None  # of the training loop; None where the machine's speed is not known
    seconds: float | None  # until the adapter; None likewise
    from_run: str  # the run whose speed was taken, "" where none was
    evaluation_seconds: float | None = None  # of `seconds`
    is_slowed_down: bool = False  # other programs use the machine now
    idle_seconds: float | None = None  # `seconds` without them, where `seconds` counts them
    new_pairs: int = 0  # since the adapter that it goes on from
    rehearsal: int = 0  # general rows of an epoch, beside those of the pairs

    def warn_of_evaluation(self) -> list[str]:
        """A sentence for the user where evaluation takes more than a third of the time; none for a run of a minute."""
        evaluation, seconds = self.evaluation_seconds, self.seconds
        if not evaluation or not seconds or evaluation < MIN_NOTED_SECONDS or evaluation <= seconds / 3:
            return []
        return [
            Message(
                "Evaluation takes about {percent} % of the time: {n} times {held_out} held-out pairs and {samples} "
                "samples. To shorten it, raise eval_steps, or lower max_eval_rows or diary_probes.",
                percent=round(100 * evaluation / seconds),
                n=self.work.evaluations,
                held_out=self.held_out,
                samples=self.work.samples,
            )
        ]

    def expected_figures(self, config: RunConfig) -> dict[str, float]:
        """What to expect of a run with these settings, as far as known, by the names of Run.expected().

        Memory and speed only where the settings are the plan's own, which may be a smaller way than was chosen.
        """
        plan = self.plan
        as_planned = plan.fits and plan.quantization == config.quantization and apply_plan(config, plan) == config
        figures = {"seconds": self.seconds}
        if as_planned:
            figures |= {"memory": plan.memory.total, "tokens_per_s": self.tokens_per_s}
        return {name: value for name, value in figures.items() if value is not None}


def estimate_on_this_machine(
    persona: Persona, config: RunConfig, pairs: Sequence[Pair], parent: Parent | None = None
) -> TrainingEstimate | None:
    """estimate_training() on this machine, with the memory that is free now."""
    waits = queue.find_training_run() is not None  # it starts when that run has ended: only then is its speed known
    rates = () if waits else hardware.rates_now()
    machine = hardware.best_machine()
    estimate = estimate_training(persona, config, pairs, machine, hardware.free_memory(machine), parent)
    if estimate is None or not machine.rates:
        return estimate
    # a plan follows from what the machine can do, its time from what it does now beside all else
    dtype = estimate.plan.train_dtype
    is_slowed_down = dict(rates).get(dtype, math.inf) < BUSY_SPEED * dict(machine.rates).get(dtype, 0.0)
    estimate = replace(estimate, is_slowed_down=is_slowed_down)
    if not is_slowed_down or estimate.seconds is None or estimate.from_run:
        return estimate
    now = replace(machine, rates=rates), estimate.shape, estimate.plan, estimate.work
    return replace(
        estimate, seconds=estimate_seconds(*now), tokens_per_s=estimate_speed(*now), idle_seconds=estimate.seconds,
        evaluation_seconds=estimate_evaluation_seconds(*now),
    )  # fmt: skip


def fit_to_machine(
    persona: Persona, config: RunConfig, given: Collection[str] = (), parent: Parent | None = None
) -> tuple[RunConfig, TrainingEstimate | None, list[str]]:
    """The settings fitted to this machine's memory, the estimate of the run, and notes on what was changed.

    Settings named in `given` stay. No estimate where the base is not on this machine yet. Raises InputError for
    settings that do not go together or do not work on this machine.
    """
    machine = hardware.this_machine()
    validate.check_config(config, plan_device(machine, config.dtype), machine.gpus)
    estimate = estimate_on_this_machine(persona, config, persona.pairs(), parent)
    if estimate is None:
        return config, None, []
    fitted, notes = fit_config(config, estimate.plan, given)
    return fitted, estimate, notes + estimate.warn_of_evaluation()


def estimate_training(persona: Persona, config: RunConfig, pairs: Sequence[Pair], machine: Machine,
                      free: int | None = None, parent: Parent | None = None) -> TrainingEstimate | None:  # fmt: skip
    """None where the base is not on this disk yet, or its shape is not known. parent: the adapter to go on from."""
    local_base = base.find_local_base(config.base)
    shape = read_base_shape(local_base) if local_base else None
    if local_base is None or shape is None or not pairs:
        return None
    card = persona.card()
    elsewhere = own_exchanges(pairs) if config.learn_history else frozenset()
    rows = [estimate_row_tokens(card, p, config.learn_history, elsewhere, config.thinking) for p in pairs]
    general = estimate_row_tokens(card if config.rehearsal_system else card.model_copy(update={"system": ""}), GENERAL)
    heaviest = [*rows, general] if config.rehearsal_fraction else rows
    shared = estimate_shared_tokens(card, config, pairs) if shape.flat and may_flatten(config, machine.device) else None
    step = replace(find_heaviest_step(config, heaviest, shared), trained=count_whole_layers(local_base, config))
    plan = plan_training(machine, shape, step, config.gradient_accumulation_steps, config.dtype, free)
    rows_of_run = split_since(list(pairs), parent, config)
    held_out = sum(row.held_out for row in rows_of_run)
    epoch = [rows[n] for n in repeat_new(rows_of_run, config.new_pair_repeats)]
    if not epoch:
        return None
    steps, steps_between = count_steps(config, len(epoch))
    rehearsal = count_rehearsal(config, len(epoch))
    epoch += [general] * rehearsal
    mean_tokens, mean_learned = (sum(r[n] for r in epoch) / len(epoch) for n in (0, 1))
    steps_per_epoch = math.ceil(len(epoch) / (config.batch_size * config.gradient_accumulation_steps))
    rows_seen = len(epoch) * steps / max(1, steps_per_epoch)  # the last step of an epoch has fewer rows
    work = TrainingWork(
        tokens=rows_seen * mean_tokens,
        learned=rows_seen * mean_learned,
        evaluations=math.ceil(steps / steps_between) + 1 + (parent is not None) if held_out else 0,
        held_out=held_out * mean_tokens,
        samples=min(config.diary_probes, len(card.probes) or 1),
        steps=steps,
        rehearsal=min(rehearsal, REHEARSAL_PROMPTS),
        repeated=rows_seen * (shared or 0) * (1 - 1 / config.batch_size),
    )
    comparable = find_comparable_run(persona, config, plan)
    known = machine, shape, plan, work, comparable.progress() if comparable else None
    return TrainingEstimate(
        plan, shape, steps, len(rows) - held_out, held_out, longest=max(n for n, _ in rows), work=work,
        tokens_per_s=estimate_speed(*known), seconds=estimate_seconds(*known),
        from_run=comparable.name if comparable else "", evaluation_seconds=estimate_evaluation_seconds(*known),
        new_pairs=sum(row.is_new for row in rows_of_run), rehearsal=rehearsal,
    )  # fmt: skip


@lru_cache(maxsize=8)
def read_base_shape(local_base: base.Base) -> ModelShape | None:
    """The shape of a base on this disk; None where it is not a decoder of a known kind."""
    try:
        return memory.infer_model_shape(local_base.config(), local_base.tensors())
    except (KeyError, TypeError):
        return None


def count_whole_layers(local_base: base.Base, config: RunConfig) -> int:
    """Parameters of the layers of modules_to_save; an output layer that is tied to the embedding counts too."""
    tensors = local_base.tensors()
    count = 0
    for name in split_names(config.modules_to_save):
        sizes = [s for tensor, s in tensors.items() if ends_with_name(tensor.rpartition(".")[0], name)]
        tied = max(tensors.values(), key=math.prod) if not sizes and name.endswith("lm_head") else (0,)
        count += sum(map(math.prod, sizes or [tied]))
    return count


def find_comparable_run(persona: Persona, config: RunConfig, plan: TrainingPlan) -> Run | None:
    """The newest finished run that should be as fast as this one: same base, device, number format and batch."""
    for run in run_folder.list_runs(persona)[:MAX_COMPARED_RUNS]:
        p = run.progress()
        if p.status != "done" or p.result.get("steps", 0) < MIN_STEADY_STEPS or not p.result.get("tokens_per_s"):
            continue
        past = run.config()
        work = (p.plan.get("device"), p.plan.get("dtype"), past.base, past.batch_size, past.gradient_checkpointing)
        if work == (plan.device, plan.train_dtype, config.base, plan.batch_size, plan.checkpointing):
            return run
    return None
