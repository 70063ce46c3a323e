"""Step 5, for other programs: merged model, GGUF, character card, data sets."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from persona.errors import PersonaError
from persona.models import base as bases
from persona.share.exports import formats
from persona.share.exports.formats import ExportFormat, ExportOptions, Quantization
from persona.store.files import slugify
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.model_queue import ModelTurn, wait_in_queue
from persona.ui.page import QUIET, WAITING_EVENT, download_path, show_errors

EXPORT_CHOICES = {
    "llama.cpp, Ollama, LM Studio: adapter as GGUF, with a Modelfile": (ExportFormat.gguf, ExportOptions(), ""),
    "llama.cpp, Ollama, LM Studio: whole model as GGUF": (ExportFormat.gguf, ExportOptions(merge=True), ""),
    "Any program that reads Hugging Face folders: merged model, 16 bits": (ExportFormat.merged, ExportOptions(), ""),
    "SillyTavern and others: character card, PNG": (ExportFormat.card, ExportOptions(), ".png"),
    "SillyTavern and others: character card, JSON": (ExportFormat.card, ExportOptions(), ".json"),
    "LLaMA-Factory, TRL and others: pairs and settings": (ExportFormat.dataset, ExportOptions(), ""),
}
QUANTIZATIONS = {
    Quantization.none: "16 bits, as this page answers",
    Quantization.q8_0: "8 bits (q8_0), hardly a difference",
    Quantization.q6_k: "6 bits (q6_k)",
    Quantization.q5_k_m: "5 bits (q5_k_m)",
    Quantization.q4_k_m: "4 bits (q4_k_m), the usual choice for large models",
}


def make_export(
    adapter_id: str, choice: str, picture: str | None, quantize: str, progress: gr.Progress = gr.Progress()
) -> Iterator[ModelTurn]:
    """Write one of EXPORT_CHOICES when its turn has come: one at a time, since a merge takes a model's memory."""
    yield ModelTurn(_write_export, (adapter_id, choice, picture, quantize, progress), of_export=True)


@show_errors
def _write_export(
    adapter_id: str, choice: str, picture: str | None, quantize: str, progress: gr.Progress
) -> Iterator[tuple[str | None, str]]:
    """Yields the path of a file (of a folder, its zip), and notes on it."""
    yield None, ""  # in place of what the page said while it waited
    adapter = voice_picker.find_adapter(adapter_id)
    format, options, suffix = EXPORT_CHOICES[choice]
    if picture and format is ExportFormat.card:
        options = ExportOptions(picture=Path(picture))
    if options.merge:
        options = replace(options, quantize=Quantization(quantize))
    out = download_path(slugify(adapter.card.name) + (suffix or f"-{format}"))
    result = formats.write_export(adapter.path, out, format, options, lambda text: progress(None, desc=localized(text)))
    if out.is_dir():
        progress(None, desc=t("Packing …"))
        out = Path(shutil.make_archive(str(out), "zip", out.parent, out.name))
    yield str(out), " ".join([*map(localized, result.get("notes", [])), *_difference_note(result)])


def _difference_note(result: dict[str, Any]) -> list[str]:
    """How much the export differs from the adapter on this page, where that was measured."""
    if not (difference := result.get("difference")):
        return []
    share = f"{difference['same']:.1%}"
    return [t("The likeliest token is the same as on this page in {share} of the cases.", share=share)]


def offer_options(adapter_id: str, choice: str) -> tuple[gr.File, gr.Dropdown]:
    """What can be chosen for this form: a picture for a card, the bits of a whole model."""
    return gr.File(visible=EXPORT_CHOICES[choice][2] == ".png"), offer_quantizations(adapter_id, choice)


def offer_quantizations(adapter_id: str, choice: str) -> gr.Dropdown:
    """The bits of a whole model, each with the size of its file where the base is on this machine."""
    if not EXPORT_CHOICES[choice][1].merge:
        return gr.Dropdown(visible=False)
    return gr.Dropdown(
        [(_with_size(t(name), adapter_id, q), q.value) for q, name in QUANTIZATIONS.items()], visible=True
    )


def _with_size(name: str, adapter_id: str, quantization: Quantization) -> str:
    from persona.share.exports import gguf_files

    try:
        adapter = voice_picker.find_adapter(adapter_id)
        base = bases.find_local_base(adapter.base_id, adapter.base_revision)
        size = gguf_files.estimate_model_gguf(base, quantization) if base else 0
    except PersonaError:  # no adapter yet, or an architecture that the export refuses with its reason
        return name
    return t("{name}: {size} MB", name=name, size=f"{size / 1e6:,.0f}") if size else name


def build(offered: gr.State) -> tuple[gr.Button, gr.File, gr.HTML]:
    """The card. offered: the adapter to export. Returns the button, the file it makes, and the notes on that."""
    gr.Markdown(t("**For other programs**\n\nThe adapter or the pairs, in formats that other programs read."))
    choice = gr.Dropdown(
        [(t(choice), choice) for choice in EXPORT_CHOICES],
        value=next(iter(EXPORT_CHOICES)),
        label=t("Export as"),
        elem_id="export-form",
    )
    picture = gr.File(label=t("Picture for the card (if empty, one is drawn)"), file_types=["image"], height=110,
                      visible=False, elem_id="export-picture")  # fmt: skip
    quantize = gr.Dropdown(
        [(t(name), q.value) for q, name in QUANTIZATIONS.items()],
        value=Quantization.none.value,
        label=t("Bits of the weights"),
        info=t("Fewer bits make a smaller file that answers faster, and somewhat worse. The export says how much."),
        visible=False,
        elem_id="export-quantize",
    )
    export = gr.Button(t("Make the export"), interactive=False, elem_id="export")
    file = gr.File(label=t("Ready to save"), interactive=False, visible=False, elem_id="share-export-file")
    status = gr.HTML(elem_classes="quiet", elem_id="export-status")
    choice.change(show_errors(offer_options), [offered, choice], [picture, quantize], **QUIET)
    export.click(
        wait_in_queue(make_export, [file, status], status), [offered, choice, picture, quantize], [file, status],
        api_visibility="private", show_progress_on=status, **WAITING_EVENT,
    ).success(lambda: gr.File(visible=True), None, file, **QUIET)  # fmt: skip
    return export, file, status
