"""The weights to merge into where a base is stored in 4 or 8 bits: an update of a LoRA would be lost in their rounding.

The same model in full precision is taken where it can be opened: a base called …-bnb-4bit was made from the one without
that ending. Otherwise the stored weights are dequantized.
"""

import re
from typing import Any

from persona.errors import BaseError, Message
from persona.models import base as bases
from persona.models import download, quantization
from persona.models.base import Base
from persona.models.progress_callback import ProgressCallback

QUANTIZED_ENDING = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
SAME_SETTINGS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


def load_full_precision(base: Base, dtype: str, progress: ProgressCallback) -> tuple[Any, Base, list[str]]:
    """The model, the base that its weights are from, and notes for the user. Raises BaseError."""
    if not base.config().get("quantization_config"):
        return bases.load_base_model(base, dtype), base, []
    if full := find_full_precision(base, progress):
        note = Message("Merged into {full}, which {base} is a quantized copy of.", full=full.id, base=base.id)
        return bases.load_base_model(full, dtype), full, [note]
    model = quantization.dequantize_model(bases.load_base_model(base, dtype), dtype)
    note = Message(
        "{base} is stored in 4 or 8 bits, and was dequantized for the merge. For the model in full precision, export "
        "again with the base that it was made from.",
        base=base.id,
    )
    return model, base, [note]


def find_full_precision(base: Base, progress: ProgressCallback) -> Base | None:
    """The model that a quantized base was made from, by its name; None where it cannot be opened, or is another."""
    name = QUANTIZED_ENDING.sub("", base.id)
    if name == base.id or not download.is_hub_id(name):
        return None
    try:
        full = bases.resolve_base(name, progress)
        configs = [b.config().get("text_config", b.config()) for b in (base, full)]
    except BaseError:
        return None
    same = all(configs[0].get(k) == configs[1].get(k) for k in SAME_SETTINGS)
    return full if same and not full.config().get("quantization_config") else None
