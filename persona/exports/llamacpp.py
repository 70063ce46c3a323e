"""A folder for llama.cpp, Ollama and LM Studio: GGUF file, Modelfile, README."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from persona import base as bases
from persona import chat
from persona.adapter import Adapter
from persona.base import Base, Progress
from persona.errors import BaseError, Message
from persona.exports import ggufs, merged, ollama, place
from persona.files import slug, write_atomic
from persona.render import Renderer


def export_adapter(
    adapter: Adapter, base: Base, out: Path, base_name: str = "", progress: Progress = bases.quiet
) -> dict[str, Any]:
    """Write the LoRA alone as GGUF into the new folder `out`, with the file that the base came from where it is a GGUF.

    base_name: as the user has named the base, if not by the adapter's own. Returns folder, file, bytes and notes.
    """
    with place.new(out) as folder:
        folder.mkdir()
        file = f"{slug(out.name)}.gguf"
        progress(Message("Writing the adapter …"))
        ggufs.write_adapter(adapter, base, folder / file)
        model = f"{slug(base.id.rpartition('/')[2])}.gguf"
        model = f"base-{model}" if model == file else model
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = ggufs.source_of(base, base_name or adapter.base_id, Path(scratch))
            if source:
                progress(Message("Copying {base} …", base=base.id))
                shutil.copyfile(source, folder / model)
        notes: list[str] = []
        if not source:
            notes.append(Message(
                "{model} is not there yet: {base} did not come as a GGUF file. Put one of the very same model there, "
                "made with llama.cpp's converter: python convert_hf_to_gguf.py FOLDER_OF_THE_BASE --outfile {model} "
                "({converter}).", model=model, base=base.id, converter=ggufs.CONVERTER,
            ))  # fmt: skip
        renderer = chat.renderer_of(adapter, bases.load_tokenizer(base))
        return _finish(adapter, base, renderer, out, folder, model, file, notes)


def export_merged(
    adapter: Adapter,
    base: Base,
    out: Path,
    base_name: str = "",
    strength: float = 1.0,
    progress: Progress = bases.quiet,
) -> dict[str, Any]:
    """Write the merged model as a 16-bit GGUF into the new folder `out`. The base must have come as a GGUF file, whose
    tokenizer and sizes are kept. Returns folder, file, bytes, notes, strength and the measured difference.
    """
    with place.new(out) as folder:
        folder.mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = ggufs.source_of(base, base_name or adapter.base_id, Path(scratch))
            if source is None:
                raise BaseError(
                    "{base}: did not come as a GGUF file, so its tokenizer has no form for llama.cpp here. "
                    "Export with --as merged, then use llama.cpp's own converter: python "
                    "convert_hf_to_gguf.py FOLDER ({converter}).",
                    base=base.id,
                    converter=ggufs.CONVERTER,
                )
            ggufs.Names(base)
            made = merged.merge(adapter, base, strength, progress)
            arithmetic = made.model.dtype
            # three bits more than bfloat16, and llama.cpp rounds activations to the format of the weights
            small = all(p.abs().max() < torch.finfo(torch.float16).max for p in made.model.parameters())
            made.model.to(torch.float16 if small else torch.bfloat16)
            progress(Message("Writing …"))
            file = f"{slug(out.name)}.gguf"
            template = merged.plain(made.renderer.template).text
            ggufs.write_model(source, made.model.state_dict(), base, folder / file, adapter.card.name, template,
                              made.renderer.stop_id)  # fmt: skip
        progress(Message("Comparing …"))
        facts = {"strength": strength, "difference": asdict(made.difference(made.model.to(arithmetic)))}
        return _finish(adapter, base, made.renderer, out, folder, file, "", []) | facts


def _finish(
    adapter: Adapter, base: Base, renderer: Renderer, out: Path, folder: Path, model: str, lora: str, notes: list[str]
) -> dict[str, Any]:
    """Modelfile and README beside the GGUF files."""
    said = f"Base model: {base.id}, licence: {base.licence or 'see its page'} {base.licence_url}".strip()
    said += f"\nText: {adapter.card.source or 'source not stated'}\nRights: {adapter.card.rights or 'not stated'}"
    text, why = ollama.modelfile(adapter.card, renderer, model, lora, said)
    architecture = ggufs.Names(base).architecture
    if architecture not in ggufs.VERIFIED:
        notes = [
            *notes,
            Message(
                "Not verified: no {architecture} model has been run in llama.cpp with a file written here.",
                architecture=architecture,
            ),
        ]
    notes = [*notes, *([why] if why else [])]
    write_atomic(folder / "Modelfile", text)
    write_atomic(folder / "chat_template.jinja", merged.plain(renderer.template).text)
    write_atomic(folder / "README.md", place.rendered("gguf-card.md.jinja", card=adapter.card, base=base, model=model,
                                                      lora=lora, said=said, notes=notes))  # fmt: skip
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return {"folder": str(out), "file": lora or model, "bytes": size, "notes": notes}
