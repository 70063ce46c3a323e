"""An adapter merged into its base: a plain checkpoint for any program that opens Hugging Face models."""

import gc
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from persona.compare import session
from persona.errors import InputError, Message
from persona.models import attach, hardware, progress_callback, trained_modules
from persona.models import base as bases
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.models.progress_callback import ProgressCallback
from persona.models.quiet import quiet_transformers
from persona.models.sampling import Sampling
from persona.share.exports import full_precision, new_output
from persona.share.exports.probe_answers import ProbeAnswers, answer_probes
from persona.store.files import write_atomic
from persona.template.chat_template import ChatTemplate
from persona.template.render import Renderer

ADAPTER_NAME = "persona"  # of the adapter inside the model


@dataclass
class MergedModel:
    """A merged model in memory, its renderer, and the answers of base + adapter before the merge.

    base: whose weights it has; notes: what the user must know of them.
    """

    model: Any
    renderer: Renderer
    answers: ProbeAnswers
    base: Base
    notes: list[str]


def export_merged_model(
    adapter: Adapter,
    base: Base,
    out: Path,
    strength: float = 1.0,
    progress: ProgressCallback = progress_callback.ignore_progress,
) -> dict[str, Any]:
    """Write the adapter, merged into the full-precision base, as the new folder `out`.

    The folder holds weights in the base's dtype, tokenizer with the chat template, generation config and card.
    strength: 0 is the base, 1 as trained, at most session.MAX_STRENGTH. Returns folder, bytes, the measured difference,
    and notes where there are any.
    """
    with new_output.create_output(out) as folder:
        merged = merge_adapter(adapter, base, strength, progress)
        progress(Message("Writing …"))
        dtype, stored = merged.model.dtype, stored_dtype(merged.base)
        save_checkpoint(merged.model.to(getattr(torch, stored)), merged.renderer, base, folder)
        merged.model = None
        gc.collect()
        progress(Message("Opening what was written, and comparing …"))
        again = bases.load_base_model(Base(base.id, folder), str(dtype).removeprefix("torch."))
        facts: dict[str, Any] = {"strength": strength, "difference": asdict(merged.answers.compare(again))}
        write_atomic(folder / "README.md", _card(adapter, base, facts | {"notes": merged.notes}, stored))
        size = sum(f.stat().st_size for f in folder.iterdir())
    return {"folder": str(out), "bytes": size, **facts, **({"notes": merged.notes} if merged.notes else {})}


def merge_adapter(
    adapter: Adapter, base: Base, strength: float = 1.0, progress: ProgressCallback = progress_callback.ignore_progress
) -> MergedModel:
    """Merge the adapter at `strength`, in the dtype of this machine's chats, or else the base's own.

    Raises InputError for a strength out of range, AdapterError when the adapter does not fit the base.
    """
    session.check_strength(strength)
    if strength != 1 and adapter.settings.get("use_dora"):
        raise InputError(
            "strength={strength}: the adapter was trained with use_dora=True, which is all or nothing.",
            strength=strength,
        )
    stored, usual = stored_dtype(base), hardware.plan_device(hardware.this_machine()).chat_dtype
    progress(Message("Opening {base} …", base=base.id))
    dtype = usual if usual in ("float32", stored) else stored
    model, weights_of, notes = full_precision.load_full_precision(base, dtype, progress)
    model = attach.attach_adapter(model, adapter, ADAPTER_NAME)
    attach.set_adapter_strength(model, ADAPTER_NAME, strength)
    trained_modules.blend_trained_layers(model, ADAPTER_NAME, strength)
    renderer = session.renderer_of(adapter, bases.load_tokenizer(base))
    progress(Message("Asking base and adapter the probes …"))
    answers = answer_probes(model, renderer, adapter.card.probes)
    progress(Message("Merging …"))
    return MergedModel(_merge_layers(model), renderer, answers, weights_of, notes)


def _merge_layers(model: Any) -> Any:
    """The base of a PeftModel with the adapter added to its weights, each layer in float32, and without PEFT."""
    from peft.tuners.lora import LoraLayer

    inner = model.get_base_model()
    head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
    for layer in [m for m in inner.modules() if isinstance(m, LoraLayer)]:
        plain = layer.get_base_layer()
        if layer is head and _tied(head, embedding):
            if isinstance(embedding, LoraLayer):  # trained rows of tokens: the embedding's are these, and merged
                continue
            plain.weight = torch.nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
            inner.config.tie_word_embeddings = inner.config.get_text_config().tie_word_embeddings = False
        dtype = plain.weight.dtype
        plain.weight.data = plain.weight.data.float()
        layer.merge()
        plain.weight.data = plain.weight.data.to(dtype)
    plain_model = model.unload()
    untie_trained_layers(plain_model)
    return plain_model


def untie_trained_layers(model: Any) -> None:
    """Say in the config of a merged model that output layer and embedding differ, where one of them was trained."""
    text, head, embedding = model.config.get_text_config(), model.get_output_embeddings(), model.get_input_embeddings()
    if text.tie_word_embeddings and head is not None and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = text.tie_word_embeddings = False


def _tied(head: Any, embedding: Any) -> bool:
    return head is not None and head.weight is embedding.weight


def stored_dtype(base: Base) -> str:
    """The dtype of the base's weights."""
    config = base.config()
    inner = config.get("text_config")
    stored = [c.get("dtype") or c.get("torch_dtype") for c in (config, inner) if isinstance(c, dict)]
    return str(next(filter(None, stored), "bfloat16"))


def save_checkpoint(model: Any, renderer: Renderer, base: Base, folder: Path) -> None:
    """Write checkpoint, tokenizer and generation config as programs for Hugging Face models expect them."""
    from transformers import AutoTokenizer

    # a copy of its own, since it is changed
    tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
    tokenizer.chat_template = strip_generation_tags(renderer.template).text
    ends = dict.fromkeys([renderer.stop_id, tokenizer.eos_token_id])
    usual = Sampling()
    model.generation_config.update(
        eos_token_id=[e for e in ends if e is not None], do_sample=True, temperature=usual.temperature,
        top_p=usual.top_p, max_new_tokens=usual.max_new_tokens,
    )  # fmt: skip
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def strip_generation_tags(template: ChatTemplate) -> ChatTemplate:
    """The template without {% generation %}, unknown to others; `if true` in its place keeps the white space."""
    opened = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template.text)
    return ChatTemplate(template.name, re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", opened))


def _card(adapter: Adapter, base: Base, facts: dict[str, Any], dtype: str) -> str:
    return new_output.render_template_file(
        "merged-card.md.jinja", card=adapter.card, base=base, dtype=dtype, trained=adapter.quantization, **facts
    )
