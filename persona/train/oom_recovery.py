"""A run that ran out of memory → the same run with less of what takes it, one step at a time."""

from typing import Any

from persona.errors import Message
from persona.models.hardware import is_gpu_out_of_memory, is_out_of_memory
from persona.train.config import MAX_ACCUMULATION, RunConfig

# changing these changes how a step is computed and not what it computes: a run can go on with them
RESUMABLE_SETTINGS = {"batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}


def propose_smaller_config(config: RunConfig, error: BaseException) -> RunConfig | None:
    """The next smaller settings after `error`, or None: it has another cause, or nothing smaller is left.

    First fewer rows at a time, a step's rows the same; then gradient checkpointing; then, on a GPU, the base in 4 bits
    (on a CPU that saves no peak memory, measured). max_length is no help: it cuts nothing, longer rows are refused.
    """
    if not is_out_of_memory(error):
        return None
    factor = next((n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0), 1)
    accumulation = config.gradient_accumulation_steps * factor
    changes: dict[str, Any] = {}
    if factor > 1 and accumulation <= MAX_ACCUMULATION:
        changes = {"batch_size": config.batch_size // factor, "gradient_accumulation_steps": accumulation}
    elif not config.gradient_checkpointing:
        changes = {"gradient_checkpointing": True}
    elif (
        is_gpu_out_of_memory(error)
        and config.quantization != "nf4"
        and not config.init_lora_weights.startswith("pissa")
    ):
        changes = {"quantization": "nf4"}
    return config.model_copy(update=changes) if changes else None


def propose_changes(config: RunConfig, error: BaseException) -> dict[str, Any]:
    """What `remedy` changes, as an event of the run says it; {} for nothing."""
    better = propose_smaller_config(config, error)
    old = config.model_dump()
    return {k: v for k, v in better.model_dump().items() if v != old[k]} if better else {}


def can_resume_with(changed: dict[str, Any]) -> bool:
    """Whether a run with these changes can be resumed: else it is another training, and starts anew."""
    return set(changed) <= RESUMABLE_SETTINGS


def describe_changes(changed: dict[str, Any]) -> str:
    """The changes as an order: for a button, and for the message of the failure. "" for none."""
    if not changed:
        return ""
    if "batch_size" in changed:
        return Message("Lower batch size to {count} and resume", count=changed["batch_size"])
    if "gradient_checkpointing" in changed:
        return Message("Turn on gradient checkpointing and resume")
    return Message("Start again with the base in 4 bits (quantization nf4)")


def make_memory_advice(changed: dict[str, Any]) -> str:
    """The sentence after "Out of memory."."""
    if not changed:
        return Message("Nothing smaller is left in the settings: choose a smaller base, or shorten the longest rows.")
    values = ", ".join(f"{name}={str(value).lower()}" for name, value in changed.items())
    return Message("{order} ({values}).", order=describe_changes(changed), values=values)
