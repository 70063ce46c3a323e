"""Write, while no persona is open: start from an example, from a file, or from scratch."""

from typing import NamedTuple

import gradio as gr

from persona.errors import InputError
from persona.store import persona_folder
from persona.ui.i18n import t


def open_example(name: str) -> str:
    return persona_folder.copy_example(name).slug


def start_persona(name: str) -> str:
    if not name.strip():
        raise InputError("Give the persona a name first, then press Start.")
    return persona_folder.create_persona(name, persona_folder.default_card(name.strip())).slug


class Welcome(NamedTuple):
    """The components of the first screen."""

    column: gr.Column
    examples: list[gr.Button]
    file: gr.File
    voice: gr.Dropdown  # whose voice is in the file
    start_file: gr.Button
    name: gr.Textbox
    start: gr.Button


def build_welcome() -> Welcome:
    """The first screen: three ways to start, the quickest first."""
    with gr.Column(visible=True, elem_id="welcome") as column:
        gr.Markdown(
            t(
                "### How it works\nWrite what people say and what your persona answers. Train a small adapter "
                "on these pairs, right here. Then ask base and persona the same question, and compare the "
                "answers side by side."
            )
        )
        with gr.Row(elem_classes="ways-to-start"):
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(t("#### 1. Open an example\nReady to train: about ten minutes to the first answer."))
                with gr.Column(elem_classes="examples"):
                    examples = _build_example_buttons()
                gr.Markdown(t("You get your own copy."), elem_classes="quiet")
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(
                    t(
                        "#### 2. Import your own text\nA screenplay, novel, chat log, table or character card. You "
                        "see a preview before any pair is added."
                    )
                )
                file = gr.File(label=t("A file"), type="filepath", height=130, elem_id="start-file")
                voice = gr.Dropdown(
                    [], label=t("Whose voice is in it?"), info=t("The persona's name: choose one, or type it."),
                    allow_custom_value=True, visible=False, elem_id="start-voice",
                )  # fmt: skip
                start_file = gr.Button(t("Start with this file"), variant="primary", visible=False,
                                       elem_id="start-with-file")  # fmt: skip
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(
                    t("#### 3. Start from scratch\nA name is enough. The persona begins to show from about 100 pairs.")
                )
                name = gr.Textbox(label=t("Name of the persona"), placeholder=t("A name"), elem_id="new-name")
                start = gr.Button(t("Start"), elem_id="start")
    return Welcome(column, examples, file, voice, start_file, name, start)


def _build_example_buttons() -> list[gr.Button]:
    buttons = []
    for example in persona_folder.list_examples():
        card, count = example.card(), len(example.scan()[0])
        label = t("Open {name} ({n} pair(s), {language})", name=card.name, n=count, language=card.language)
        # which is green and first depends on the visitor's language (theme.css), not known while the page is built
        classes = f"example-{card.language[:2]}"
        buttons.append(gr.Button(label, variant="primary", elem_id=f"open-{example.slug}", elem_classes=classes))
    return buttons
