"""How long a run takes: the speed of its steps, and what its evaluations and its start cost."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona.models import memory
from persona.models.hardware import Machine
from persona.models.memory import ModelShape
from persona.train.config import SAMPLE_TOKENS
from persona.train.progress import RunProgress

if TYPE_CHECKING:
    from persona.train.plan import TrainingPlan

# Besides its matmuls a step has norms, attention, activations and the optimizer, in float32 and bound by memory. On a
# CPU they cost 0.6 of what the matmuls would in float32, whatever the matmuls' own format: three runs in the tests
# took 9.5 ms a token in float32, 3.8 in bfloat16 and 5.3 with checkpointing; this gives 8.9, 3.9 and 5.0.
CPU_OVERHEAD = 0.6
GPU_EFFICIENCY = 0.3  # the part of a GPU's matmul rate that training reaches; a usual figure, not measured by us
# what launching the kernels of a layer takes on a GPU, forward and backward with LoRA, where computing takes less: an
# H200 took 0.24 to 0.33 s a batch with the 34 layers of Gemma 3 4B and the 36 of Qwen3 4B (docs/gpu.md)
GPU_LAYER_SECONDS = 0.008
STARTUP_SECONDS = 12.0  # of an idle machine until the base is measured: imports, tokenizer, weights
STARTUP_FLOPS = 2e11  # what a CPU could compute meanwhile: with other programs beside it, the start is slower too
SAVE_SECONDS = 1.0  # of an evaluation: the snapshot and the checkpoint
REHEARSAL_PROMPTS = 320  # that are shipped
REHEARSAL_TOKENS = 64  # of an answer to a general prompt, at most
REHEARSAL_BATCH = 16  # prompts that are answered together
PASS_SECONDS = 0.02  # the least that one token of a batch of samples takes, on a GPU too


@dataclass(frozen=True)
class TrainingWork:
    """What a run computes. Tokens are those of all steps, or of one evaluation."""

    tokens: float
    learned: float
    evaluations: int  # with that of the base
    held_out: float  # tokens of the held-out rows
    samples: int  # questions that are answered at each evaluation
    steps: int = 0  # of the optimizer
    rehearsal: int = 0  # general prompts that the base answers first, as if it had answered none before
    repeated: float = 0.0  # of `tokens`: what rows begin with alike, and a batch computes once (models/flat_batch.py)

    @property
    def computed(self) -> float:
        return self.tokens - self.repeated


def estimate_speed(machine: Machine, shape: ModelShape, plan: "TrainingPlan", work: TrainingWork,
                   last: RunProgress | None = None) -> float | None:  # fmt: skip
    """Tokens/s of the training loop; None where the machine's rate is not known.

    last: a comparable run on this machine, which says more than the measured matmuls.
    """
    if last:
        return last.result["tokens_per_s"]
    rates = dict(machine.rates)
    if plan.train_dtype not in rates or "float32" not in rates:
        return None
    rate = rates[plan.train_dtype] * GPU_EFFICIENCY
    if machine.device == "cpu":
        rate = 1 / (1 / rates[plan.train_dtype] + CPU_OVERHEAD / rates["float32"])
    seconds = memory.step_flops(shape, work.computed, work.learned, plan.checkpointing) / rate
    if machine.device == "cuda":
        seconds = max(seconds, work.steps * plan.accumulation * shape.layers * GPU_LAYER_SECONDS)
    return work.tokens / seconds


def estimate_evaluation_seconds(machine: Machine, shape: ModelShape, plan: "TrainingPlan", work: TrainingWork,
                                last: RunProgress | None = None) -> float | None:  # fmt: skip
    """Seconds of all evaluations of a run; None where the speed is not known. last: a comparable run."""
    speed = estimate_speed(machine, shape, plan, work, last)
    if speed is None:
        return None
    if last and last.evaluation_seconds:
        return work.evaluations * last.evaluation_seconds
    sampled = work.samples * SAMPLE_TOKENS
    forward = memory.step_flops(shape, work.held_out, work.held_out * work.learned / max(work.tokens, 1)) / 2
    forward += memory.step_flops(shape, sampled, sampled) / 2
    seconds = forward * _seconds_per_flop(shape, plan, work, speed)
    return work.evaluations * (seconds + SAVE_SECONDS + (SAMPLE_TOKENS * PASS_SECONDS if work.samples else 0.0))


def estimate_seconds(machine: Machine, shape: ModelShape, plan: "TrainingPlan", work: TrainingWork,
                     last: RunProgress | None = None) -> float | None:  # fmt: skip
    """Seconds from the first sign of life to the adapter; None where the speed is not known. last: a comparable run."""
    speed = estimate_speed(machine, shape, plan, work, last)
    evaluations = estimate_evaluation_seconds(machine, shape, plan, work, last)
    if speed is None or evaluations is None:
        return None
    startup = STARTUP_SECONDS
    if machine.device == "cpu" and not last:
        startup += STARTUP_FLOPS * _seconds_per_flop(shape, plan, work, speed)
    return startup + work.tokens / speed + evaluations + _rehearsal_seconds(shape, plan, work, speed)


def _rehearsal_seconds(shape: ModelShape, plan: "TrainingPlan", work: TrainingWork, speed: float) -> float:
    """Seconds in which the base answers the general prompts. A pass costs at least as much as reading the weights."""
    passes = math.ceil(work.rehearsal / REHEARSAL_BATCH) * REHEARSAL_TOKENS
    flops = memory.step_flops(shape, REHEARSAL_BATCH, REHEARSAL_BATCH) / 2
    return passes * max(PASS_SECONDS, flops * _seconds_per_flop(shape, plan, work, speed))


def _seconds_per_flop(shape: ModelShape, plan: "TrainingPlan", work: TrainingWork, speed: float) -> float:
    return work.tokens / speed / memory.step_flops(shape, work.computed, work.learned, plan.checkpointing)
