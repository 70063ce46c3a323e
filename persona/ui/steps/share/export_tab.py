"""Step 5, for other programs: a whole model, GGUF, a character card, data sets."""

import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from persona.share.exports import formats
from persona.share.exports.formats import ExportFormat, ExportOptions
from persona.store.files import slugify
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.page import QUIET, Page, download_path, show_errors

EXPORT_CHOICES = {
    "llama.cpp, Ollama, LM Studio: adapter as GGUF, with a Modelfile": (ExportFormat.gguf, ExportOptions(), ""),
    "llama.cpp, Ollama, LM Studio: whole model as GGUF": (ExportFormat.gguf, ExportOptions(merge=True), ""),
    "Any program that reads Hugging Face folders: merged model, 16 bits": (ExportFormat.merged, ExportOptions(), ""),
    "SillyTavern and others: character card, PNG": (ExportFormat.card, ExportOptions(), ".png"),
    "SillyTavern and others: character card, JSON": (ExportFormat.card, ExportOptions(), ".json"),
    "LLaMA-Factory, Axolotl, Unsloth: pairs and settings": (ExportFormat.dataset, ExportOptions(), ""),
}


def make_export(chosen: str, what: str, picture: str | None, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:
    """Write the form that was chosen. Returns a file to save (folders as a zip) and what to know about it."""
    adapter = voice_picker.find_adapter(chosen)
    form, wishes, ending = EXPORT_CHOICES[what]
    if picture and form is ExportFormat.card:
        wishes = ExportOptions(picture=Path(picture))
    out = download_path(slugify(adapter.card.name) + (ending or f"-{form}"))
    # of a run, the run's folder: its pairs go into cards and data sets
    inside = adapter.path.parent if adapter.path.name == "adapter" else adapter.path
    made = formats.write_export(
        inside if form in (ExportFormat.card, ExportFormat.dataset) else adapter.path,
        out,
        form,
        wishes,
        lambda text: progress(None, desc=localized(text)),
    )
    if out.is_dir():
        progress(None, desc=t("Packing …"))
        out = Path(shutil.make_archive(str(out), "zip", out.parent, out.name))
    return str(out), " ".join([*map(localized, made.get("notes", [])), *_difference_note(made)])


def _difference_note(made: dict[str, Any]) -> list[str]:
    found = made.get("difference")
    return (
        [t("The likeliest token is the same as on this page in {share} of the cases.", share=f"{found['same']:.1%}")]
        if found
        else []
    )


def build(page: Page) -> None:
    gr.Markdown(t("**For other programs**\n\nThe adapter or the pairs, in formats that other programs read."))
    what = gr.Dropdown(
        [(t(form), form) for form in EXPORT_CHOICES],
        value=next(iter(EXPORT_CHOICES)),
        label=t("Export as"),
        elem_id="export-form",
    )
    picture = gr.File(label=t("Picture for the card (if empty, one is drawn)"), file_types=["image"], height=110,
                      visible=False, elem_id="export-picture")  # fmt: skip
    begin = gr.Button(t("Make the export"), elem_id="export")
    file = gr.File(label=t("Ready to save"), interactive=False, visible=False, elem_id="export-file")
    status = gr.HTML(elem_classes="quiet", elem_id="export-status")
    what.change(lambda w: gr.File(visible=EXPORT_CHOICES[w][2] == ".png"), what, picture, **QUIET)
    begin.click(
        show_errors(make_export), [page.adapter, what, picture], [file, status], api_visibility="private",
        concurrency_id="export", concurrency_limit=1, show_progress_on=what,
    ).success(lambda: gr.File(visible=True), None, file, **QUIET)  # fmt: skip
