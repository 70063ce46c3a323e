"""After an out-of-memory error: the next smaller settings that train the same, and how the page proposes them."""

from typing import Any

from persona.errors import Message
from persona.models.hardware import is_gpu_out_of_memory, is_out_of_memory
from persona.train.config import MAX_ACCUMULATION, RunConfig

# these change how a step is computed and not what it computes: a run can be resumed with them changed
RESUMABLE_SETTINGS = {"batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}


def propose_changes(config: RunConfig, error: BaseException) -> dict[str, Any]:
    """The settings to change after `error`, with their new values; {}: another cause, or nothing is left to lower.

    First smaller batches, with as many rows in a step as before; then gradient checkpointing; then, on a GPU, the base
    in 4 bits (on a CPU that saves no peak memory, measured). max_length does not help: it cuts no row.
    """
    if not is_out_of_memory(error):
        return {}
    factor = next((n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0), 1)
    accumulation = config.gradient_accumulation_steps * factor
    if factor > 1 and accumulation <= MAX_ACCUMULATION:
        return {"batch_size": config.batch_size // factor, "gradient_accumulation_steps": accumulation}
    if not config.gradient_checkpointing:
        return {"gradient_checkpointing": True}
    if is_gpu_out_of_memory(error) and config.quantization != "nf4" and not config.is_pissa:
        return {"quantization": "nf4"}
    return {}


def can_resume_with(changes: dict[str, Any]) -> bool:
    """Whether a run can be resumed with these changes; else the training is another one, and starts anew."""
    return set(changes) <= RESUMABLE_SETTINGS


def describe_changes(changes: dict[str, Any]) -> str:
    """The changes as the label of a button, and for the failure's message; "" for none."""
    if not changes:
        return ""
    if "batch_size" in changes:
        return Message("Lower batch size to {count} and resume", count=changes["batch_size"])
    if "gradient_checkpointing" in changes:
        return Message("Turn on gradient checkpointing and resume")
    return Message("Start again with the base in 4 bits (quantization nf4)")


def make_memory_advice(changes: dict[str, Any]) -> str:
    """What to do about "Out of memory.", as the sentence after it."""
    if not changes:
        return Message("Nothing smaller is left in the settings: choose a smaller base, or shorten the longest rows.")
    values = ", ".join(f"{name}={str(value).lower()}" for name, value in changes.items())
    return Message("{order} ({values}).", order=describe_changes(changes), values=values)
