"""Step 2: the templates to choose from, and a template of one's own in the persona's folder."""

from pathlib import Path
from typing import Any

import gradio as gr

from persona.errors import PersonaError, TemplateError, join
from persona.store import persona_folder
from persona.store.files import write_atomic
from persona.template import chat_template, compatibility, sandbox
from persona.ui.i18n import t
from persona.ui.page import RenderSettings, open_current_persona, open_page_renderer

OWN_TEMPLATE_FILE = "template.jinja"  # in the persona's folder


def adopt_template(slug: str, text: str, *inputs: Any) -> tuple[gr.Dropdown, str]:
    """Check the user's own template against the base, save it with the persona, and select it.

    inputs: the RenderSettings. Raises TemplateError, with nothing saved.
    """
    settings = RenderSettings(*inputs)
    persona = open_current_persona(slug)
    if not text.strip():
        raise PersonaError("Paste a template first, or start from the chosen one.")
    _, renderer = open_page_renderer(slug, settings._replace(template="auto", thinking="none"))
    template = chat_template.ChatTemplate("your own", text)
    if problems := compatibility.find_incompatibilities(renderer.tokenizer, template):
        raise TemplateError(join("\n", problems))
    write_atomic(persona.path / OWN_TEMPLATE_FILE, text)
    good = t("It fits this base. It is saved with the persona, and selected.")
    return template_dropdown(slug, "own"), f"<div class='good'>{good}</div>"


def chosen_template_text(slug: str, *inputs: Any) -> str:
    """The source of the chosen template. inputs: the RenderSettings."""
    return open_page_renderer(slug, RenderSettings(*inputs))[1].template.text


def read_template_upload(file: str) -> str:
    """The text of an uploaded template. Raises TemplateError when the file is far too large for one."""
    path = Path(file)
    if path.stat().st_size > 4 * sandbox.MAX_TEMPLATE:
        raise TemplateError("{name}: too large for a chat template.", name=path.name)
    return path.read_text(encoding="utf-8", errors="replace")


def list_templates(slug: str) -> list[tuple[str, str]]:
    """(label, value) of the templates to choose from; the persona's own is a path."""
    choices = [("auto", "auto"), *((name, name) for name in chat_template.shipped_templates())]
    own = persona_folder.find_persona(slug).path / OWN_TEMPLATE_FILE if slug else None
    if own and own.is_file():
        choices.insert(1, (t("your own"), str(own)))
    return choices


def find_template(slug: str, chosen: str) -> str:
    """`chosen` if it can be chosen for this persona, else "auto"; "own" is the persona's own template."""
    own = str(persona_folder.find_persona(slug).path / OWN_TEMPLATE_FILE) if slug else ""
    value = own if chosen == "own" else chosen
    return value if value in [v for _, v in list_templates(slug)] else "auto"


def template_dropdown(slug: str, chosen: str) -> gr.Dropdown:
    """The templates to choose from, `chosen` selected ("own": the persona's own template)."""
    return gr.Dropdown(list_templates(slug), value=find_template(slug, chosen))


def build_own_template() -> tuple[gr.Code, gr.Button, gr.UploadButton, gr.Button, gr.HTML]:
    """Text, button to start from the chosen one, upload, button to use it, and what came of that."""
    with gr.Accordion(t("Your own template"), open=False):
        gr.Markdown(
            t(  # the browser takes the first closing brace for the end of the text
                "Jinja, as in `tokenizer_config.json`, with <code>&#123;% generation %&#125;</code> … "
                "<code>&#123;% endgeneration %&#125;</code> around the reply and its stop token. It is checked before "
                "it is used, and runs in a sandbox."
            ),
            elem_classes="quiet",
        )
        text = gr.Code(
            language="jinja2", label=t("Template"), lines=8, max_lines=24, wrap_lines=True, elem_id="own-template"
        )
        with gr.Row():
            start_from_chosen = gr.Button(t("Start from the chosen one"))
            upload = gr.UploadButton(t("Upload a .jinja file"), file_types=[".jinja", ".j2", ".txt"])
            use = gr.Button(t("Check and use it"), variant="primary", elem_id="use-template")
        return text, start_from_chosen, upload, use, gr.HTML()
