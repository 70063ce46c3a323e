"""Notices that fade: Gradio's own titles are English, and its texts are HTML."""

from html import escape

import gradio as gr

from persona.ui.i18n import t


def show_info(text: str, duration: float | None = 10) -> None:
    """Show plain text as a notice. duration: seconds; None: until it is closed."""
    gr.Info(escape(text), duration=duration, title=t("Note"))


def show_warning(text: str) -> None:
    """Show plain text as a warning."""
    gr.Warning(escape(text), title=t("Please note"))
