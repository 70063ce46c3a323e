"""A folder for llama.cpp, Ollama and LM Studio: GGUF file, Modelfile, README."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from persona.compare import session
from persona.errors import BaseError, Message
from persona.models import attach, hardware, progress_callback
from persona.models import base as bases
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.models.progress_callback import ProgressCallback
from persona.share.exports import gguf_check, gguf_files, merged_model, modelfile, new_output
from persona.share.exports.formats import Quantization
from persona.share.exports.gguf_types import require_quantizer
from persona.share.exports.probe_answers import ProbeAnswers, answer_probes
from persona.store.files import slugify, write_atomic
from persona.template.render import Renderer

CHECKING = Message("Opening what was written in llama.cpp, and comparing …")


def export_adapter_gguf(
    adapter: Adapter,
    base: Base,
    out: Path,
    base_name: str = "",
    progress: ProgressCallback = progress_callback.ignore_progress,
) -> dict[str, Any]:
    """Write the LoRA alone as GGUF into the new folder `out`, beside the base's own GGUF file if it has one.

    base_name: how the user named the base, "" for the adapter's own. Returns folder, file, bytes and notes; and where
    it could be made, the check in llama.cpp.
    """
    with new_output.create_output(out) as folder:
        folder.mkdir()
        file = f"{slugify(out.name)}.gguf"
        progress(Message("Writing the adapter …"))
        gguf_files.write_adapter_gguf(adapter, base, folder / file)
        model = f"{slugify(base.id.rpartition('/')[2])}.gguf"
        model = f"base-{model}" if model == file else model
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = gguf_files.find_source_gguf(base, base_name or adapter.base_id, Path(scratch))
            if source:
                progress(Message("Copying {base} …", base=base.id))
                shutil.copyfile(source, folder / model)
        notes: list[str] = []
        if not source:
            notes.append(Message(
                "{model} is not there yet: {base} did not come as a GGUF file. Put one of the very same model there, "
                "made with llama.cpp's converter: python convert_hf_to_gguf.py FOLDER_OF_THE_BASE --outfile {model} "
                "({converter}).", model=model, base=base.id, converter=gguf_files.CONVERTER_URL,
            ))  # fmt: skip
        renderer = session.renderer_of(adapter, bases.load_tokenizer(base))
        check = None
        if source:
            progress(Message("Asking base and adapter the probes …"))
            answers = _answer_probes(adapter, base, renderer)
            progress(CHECKING)
            template = merged_model.strip_generation_tags(renderer.template).text
            check = gguf_check.check_in_llama_cpp(folder / model, renderer, answers, folder / file, template)
            notes += gguf_check.describe_check(check)
        return _write_texts(adapter, base, renderer, out, folder, model, file, notes) | _check_facts(check)


def _answer_probes(adapter: Adapter, base: Base, renderer: Renderer) -> ProbeAnswers:
    dtype = hardware.plan_device(hardware.this_machine()).chat_dtype
    return answer_probes(attach.attach_adapter(bases.load_base_model(base, dtype), adapter, "persona"), renderer,
                         adapter.card.probes)  # fmt: skip


def _check_facts(check: gguf_check.EngineCheck | None) -> dict[str, Any]:
    return {"check": asdict(check)} if check else {}


def export_merged_gguf(
    adapter: Adapter,
    base: Base,
    out: Path,
    base_name: str = "",
    strength: float = 1.0,
    quantization: Quantization = Quantization.none,
    progress: ProgressCallback = progress_callback.ignore_progress,
) -> dict[str, Any]:
    """Write the merged model as GGUF, in 16 bits or quantized, into the new folder `out`.

    The base must have come as a GGUF file, whose tokenizer and sizes are copied. Returns folder, file, bytes, notes,
    strength, the measured difference in 16 bits, and the check in llama.cpp where it could be made.
    """
    require_quantizer(quantization)
    with new_output.create_output(out) as folder:
        folder.mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = gguf_files.find_source_gguf(base, base_name or adapter.base_id, Path(scratch))
            if source is None:
                raise BaseError(
                    "{base}: did not come as a GGUF file, so its tokenizer has no form for llama.cpp here. "
                    "Export with --as merged, then use llama.cpp's own converter: python "
                    "convert_hf_to_gguf.py FOLDER ({converter}).",
                    base=base.id,
                    converter=gguf_files.CONVERTER_URL,
                )
            size = gguf_files.estimate_model_gguf(base, quantization)
            merged = merged_model.merge_adapter(adapter, base, strength, progress)
            arithmetic = merged.model.dtype
            # three bits more than bfloat16, and llama.cpp rounds activations to the format of the weights
            fits_float16 = all(p.abs().max() < torch.finfo(torch.float16).max for p in merged.model.parameters())
            merged.model.to(torch.float16 if fits_float16 else torch.bfloat16)
            progress(Message("Writing {size:,.0f} MB …", size=size / 1e6))
            file = f"{slugify(out.name)}.gguf"
            template = merged_model.strip_generation_tags(merged.renderer.template).text
            gguf_files.write_model_gguf(
                source,
                merged.model.state_dict(),
                base,
                folder / file,
                adapter.card.name,
                template,
                merged.renderer.stop_id,
                quantization,
            )
        progress(Message("Comparing …"))
        difference = merged.answers.compare(merged.model.to(arithmetic))
        merged.model = None  # llama.cpp needs its memory
        progress(CHECKING)
        check = gguf_check.check_in_llama_cpp(folder / file, merged.renderer, merged.answers)
        notes = merged.notes + gguf_check.describe_check(check, quantization, difference.same)
        facts = {"strength": strength, "difference": asdict(difference), **_check_facts(check)}
        return _write_texts(adapter, base, merged.renderer, out, folder, file, "", notes, quantization) | facts


def _write_texts(
    adapter: Adapter,
    base: Base,
    renderer: Renderer,
    out: Path,
    folder: Path,
    model: str,
    lora: str,
    notes: list[str],
    quantization: Quantization = Quantization.none,
) -> dict[str, Any]:
    """Write Modelfile, chat template and README beside the GGUF files; returns what an export returns."""
    licence = f"Base model: {base.id}, licence: {base.licence or 'see its page'} {base.licence_url}".strip()
    licence += f"\nText: {adapter.card.source or 'source not stated'}\nRights: {adapter.card.rights or 'not stated'}"
    text, why = modelfile.render_modelfile(adapter.card, renderer, model, lora, licence)
    architecture = gguf_files.TensorNames(base).architecture
    if architecture not in gguf_files.VERIFIED_ARCHITECTURES:
        notes = [
            *notes,
            Message(
                "Not verified: no {architecture} model has been run in llama.cpp with a file written here.",
                architecture=architecture,
            ),
        ]
    notes = [*notes, *([why] if why else [])]
    write_atomic(folder / "Modelfile", text)
    write_atomic(folder / "chat_template.jinja", merged_model.strip_generation_tags(renderer.template).text)
    write_atomic(
        folder / "README.md",
        new_output.render_template_file(
            "gguf-card.md.jinja",
            card=adapter.card,
            base=base,
            model=model,
            lora=lora,
            licence=licence,
            notes=notes,
            quantization=quantization.value,
        ),
    )
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return {"folder": str(out), "file": lora or model, "bytes": size, "notes": notes}
