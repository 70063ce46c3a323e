"""Write, tab Import, export: the pairs as a file."""

import gradio as gr

from persona.ui.i18n import t
from persona.ui.page import QUIET, Page, download_path, open_current_persona, show_errors
from persona.write.importers import registry


def export_pairs(slug: str, format: str) -> gr.File:
    """The pairs as a file of the chosen format, to download."""
    persona = open_current_persona(slug)
    out = download_path(f"{persona.slug}-{format}{registry.get_importer(format).SUFFIX}")
    return gr.File(str(registry.write_pairs_as(persona.pairs(), format, out)), visible=True)


def build_export_tab(page: Page) -> None:
    gr.Markdown(
        t("The pairs as a file for another tool. An exported file can be imported again."), elem_classes="quiet"
    )
    with gr.Row(elem_classes="slim"):
        formats = [(t(m.TITLE), name) for name, m in registry.import_formats().items() if hasattr(m, "dump")]
        format = gr.Dropdown(formats, value=formats[0][1], label=t("Format"), elem_id="export-format")
        make = gr.Button(t("Make the file"), scale=0, min_width=200, elem_id="export-pairs")
    file = gr.File(label=t("Ready"), visible=False, interactive=False, elem_id="export-file")
    make.click(show_errors(export_pairs), [page.slug, format], file, **QUIET)
