"""Whether a base has learned the stop token of a template, judged by its weights on disk before it is loaded.

Training pushes the output rows of tokens that never occur away in one direction, so they stay alike. A stop token with
a thousand such similar rows cannot end a reply: whatever raises its score raises that of some unused token as much, and
a LoRA on the layers before the output cannot tell the rows apart.
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

UNTRAINED_TWINS = 1000  # similar rows of an untrained token; Gemma 3 270M: 6,211 for <end_of_turn>, 0 for <eos>
_ROWS = 16_384  # rows read at once: all of Gemma's would be 0.7 GB in float32
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")  # the last two: GPT-NeoX, InternLM2
_EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "tok_embeddings.weight",
               "word_embeddings.weight", "embedding.word_embeddings.weight")  # fmt: skip


def count_similar_rows(row: Any, parts: Iterable[Any]) -> int:
    """How many other rows of a matrix have a cosine similarity above 0.95 to one of its rows.

    row: (hidden,). parts: the matrix (vocabulary, hidden), in slices of rows.
    """
    import torch

    row, similar = torch.nn.functional.normalize(row.float(), dim=0), 0
    with torch.no_grad():
        for part in parts:
            part = part.float()
            similar += int(((part @ row) > 0.95 * part.norm(dim=-1)).sum())
    return max(0, similar - 1)  # without the row itself


@lru_cache(maxsize=64)
def count_similar_rows_on_disk(base: Base, token_id: int) -> int | None:
    """`count_similar_rows` for a token's output row in the base's files, in slices: a second for Gemma 3 270M.

    None where the output weights have an unknown name, or no such row.
    """
    from safetensors import SafetensorError, safe_open

    location = _output_weights(base)
    if location is None:
        return None
    file, key = location
    try:
        with safe_open(file, framework="pt") as tensors:
            rows = tensors.get_slice(key)
            size = rows.get_shape()[0]
            if token_id >= size:
                return None
            parts = (rows[start : min(start + _ROWS, size)] for start in range(0, size, _ROWS))
            return count_similar_rows(rows[token_id : token_id + 1][0], parts)
    except (SafetensorError, OSError):  # opening the model gives a better message
        return None


def _output_weights(base: Base) -> tuple[Path, str] | None:
    """File and name of the output layer's weights, or of the embedding's where they are tied; None: unknown."""
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
    """The shipped templates that fit this tokenizer and whose stop token the base has learned.

    Templates of other families, whose markers this tokenizer would split into letters, are left out.
    """
    names = []
    for name, template in shipped_templates().items():
        if template.plain_text_markers or find_incompatibilities(tokenizer, template):
            continue
        stop = find_stop_token(tokenizer, template)
        if stop is not None and (count_similar_rows_on_disk(base, stop) or 0) < UNTRAINED_TWINS:
            names.append(name)
    return names


def explain_untrained_stop(base: Base, renderer: Renderer) -> str:
    """Why this base cannot learn to end its replies with this template, and what to do; "" where it can."""
    twins = count_similar_rows_on_disk(base, renderer.stop_id)
    if twins is None or twins < UNTRAINED_TWINS:
        return ""
    token = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_id)
    names = find_templates_with_trained_stop(base, renderer.tokenizer)
    other = (
        Message("Choose a template whose end it knows ({known})", known=", ".join(names))
        if names
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
