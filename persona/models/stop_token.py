"""Has the base ever learned the token that is to end a reply? Asked of its weights on disk, before anything is loaded.

The rows of tokens that never occurred in a base's training were only ever pushed away, all in one direction, and stay
alike: with a thousand twins, whatever raises the stop token raises some junk token as much, and no reply ends. LoRA on
the layers before cannot tell such rows apart.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona.errors import Message
from persona.models.base import Base
from persona.template.chat_template import shipped_templates
from persona.template.compatibility import find_incompatibilities, find_stop_token
from persona.template.render import Renderer

UNTRAINED_TWINS = 1000  # twins; Gemma 3 270M: 6,211 for <end_of_turn>, none for <eos>
_ROWS = 16_384  # read at once: all of Gemma's rows in float32 would be 0.7 GB
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")  # the last two: GPT-NeoX, InternLM2
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "tok_embeddings.weight",
               "word_embeddings.weight", "embedding.word_embeddings.weight")  # fmt: skip


def count_similar_rows(weight: Any, token_id: int) -> int:
    """How many other rows of the output weights, a tensor (vocabulary, hidden), point where this token's does (cosine
    above 0.95).
    """
    return _count_similar(weight[token_id], weight.split(_ROWS))


def _count_similar(row: Any, parts: Iterable[Any]) -> int:
    import torch

    row, alike = torch.nn.functional.normalize(row.float(), dim=0), 0
    with torch.no_grad():
        for part in parts:
            part = part.float()
            alike += int(((part @ row) > 0.95 * part.norm(dim=-1)).sum())
    return max(0, alike - 1)  # itself


@lru_cache(maxsize=64)
def count_similar_rows_on_disk(base: Base, token_id: int) -> int | None:
    """count_twins of the output weights in the base's files, read in slices: a second for Gemma 3 270M. None where they
    have a name that is not known here, or no such row.
    """
    from safetensors import SafetensorError, safe_open

    found = _output_weights(base)
    if found is None:
        return None
    file, key = found
    try:
        with safe_open(file, framework="pt") as tensors:
            rows = tensors.get_slice(key)
            size = rows.get_shape()[0]
            if token_id >= size:
                return None
            parts = (rows[start : min(start + _ROWS, size)] for start in range(0, size, _ROWS))
            return _count_similar(rows[token_id : token_id + 1][0], parts)
    except (SafetensorError, OSError):  # opening the model says it better
        return None


def _output_weights(base: Base) -> tuple[Path, str] | None:
    """File and name of the output layer's weights; with tied weights these are the embedding's."""
    from safetensors import SafetensorError, safe_open

    names: dict[str, Path] = {}
    for file in sorted(base.path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                names.update(dict.fromkeys(tensors.keys(), file))
        except (SafetensorError, OSError):
            return None
    for endings in (_HEADS, _EMBEDDINGS):
        for name, file in names.items():
            top = name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")
            if top.removeprefix("transformer.").removeprefix("gpt_neox.") in endings:
                return file, name
    return None


def find_templates_with_trained_stop(base: Base, tokenizer: Any) -> list[str]:
    """The shipped templates that fit this tokenizer and end a reply in a token that the base knows.

    Not those of another family whose markers would be letters here.
    """
    names = []
    for name, template in shipped_templates().items():
        if template.plain or find_incompatibilities(tokenizer, template):
            continue
        stop = find_stop_token(tokenizer, template)
        if stop is not None and (count_similar_rows_on_disk(base, stop) or 0) < UNTRAINED_TWINS:
            names.append(name)
    return names


def explain_untrained_stop(base: Base, renderer: Renderer) -> str:
    """Why this base cannot learn to end its replies with this template, and the ways out; "" when it can."""
    twins = count_similar_rows_on_disk(base, renderer.stop_id)
    if twins is None or twins < UNTRAINED_TWINS:
        return ""
    token = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_id)
    known = find_templates_with_trained_stop(base, renderer.tokenizer)
    other = (
        Message("Choose a template whose end it knows ({known})", known=", ".join(known))
        if known
        else Message("Choose another template")
    )
    return Message(
        "{base} with template {template}: this base never learned its stop token {token}, whose output row "
        "is like those of {twins:,} other unused tokens. A LoRA cannot teach it, so replies would not end. "
        "{other}, or the base's instruct version; or have that row trained as well: train_stop_token=true.",
        base=base.id,
        template=renderer.template.name,
        token=token,
        twins=twins,
        other=other,
    )
