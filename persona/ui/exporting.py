"""Step 5, for other programs: a whole model, GGUF, a character card, data sets."""

import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from persona.exports import forms
from persona.exports.forms import Form, Wishes
from persona.files import slug as slugify
from persona.ui import voices
from persona.ui.common import QUIET, Page, shown, to_save
from persona.ui.words import localized, t

FORMS = {
    "llama.cpp, Ollama, LM Studio: adapter as GGUF, with a Modelfile": (Form.gguf, Wishes(), ""),
    "llama.cpp, Ollama, LM Studio: whole model as GGUF": (Form.gguf, Wishes(merge=True), ""),
    "Any program that reads Hugging Face folders: merged model, 16 bits": (Form.merged, Wishes(), ""),
    "SillyTavern and others: character card, PNG": (Form.card, Wishes(), ".png"),
    "SillyTavern and others: character card, JSON": (Form.card, Wishes(), ".json"),
    "LLaMA-Factory, Axolotl, Unsloth: pairs and settings": (Form.dataset, Wishes(), ""),
}


def make(chosen: str, what: str, picture: str | None, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:
    """Write the form that was chosen. Returns a file to save (folders as a zip) and what to know about it."""
    adapter = voices.find(chosen)
    form, wishes, ending = FORMS[what]
    if picture and form is Form.card:
        wishes = Wishes(picture=Path(picture))
    out = to_save(slugify(adapter.card.name) + (ending or f"-{form}"))
    # of a run, the run's folder: its pairs go into cards and data sets
    inside = adapter.path.parent if adapter.path.name == "adapter" else adapter.path
    made = forms.write(inside if form in (Form.card, Form.dataset) else adapter.path, out, form, wishes,
                       lambda text: progress(None, desc=localized(text)))  # fmt: skip
    if out.is_dir():
        progress(None, desc=t("Packing …"))
        out = Path(shutil.make_archive(str(out), "zip", out.parent, out.name))
    return str(out), " ".join([*map(localized, made.get("notes", [])), *_difference(made)])


def _difference(made: dict[str, Any]) -> list[str]:
    found = made.get("difference")
    return [t("Same likeliest token as here {share} of the time.", share=f"{found['same']:.1%}")] if found else []


def build(page: Page) -> None:
    gr.Markdown(t("**For other programs**\n\nThe voice goes along; the label mask and the comparison stay here."))
    what = gr.Dropdown(
        [(t(form), form) for form in FORMS], value=next(iter(FORMS)), label=t("As"), elem_id="export-form"
    )
    picture = gr.File(label=t("Picture for the card (else one is drawn)"), file_types=["image"], height=110,
                      visible=False, elem_id="export-picture")  # fmt: skip
    begin = gr.Button(t("Make it"), elem_id="export")
    file = gr.File(label=t("Ready to save"), interactive=False, visible=False, elem_id="export-file")
    status = gr.HTML(elem_classes="quiet", elem_id="export-status")
    what.change(lambda w: gr.File(visible=FORMS[w][2] == ".png"), what, picture, **QUIET)
    begin.click(
        shown(make), [page.adapter, what, picture], [file, status], api_visibility="private",
        concurrency_id="export", concurrency_limit=1, show_progress_on=what,
    ).success(lambda: gr.File(visible=True), None, file, **QUIET)  # fmt: skip
