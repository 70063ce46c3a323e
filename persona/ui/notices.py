"""Notices that fade. Gradio takes their texts as HTML. Its own titles, in English, cannot be changed (theme.css)."""

from html import escape

import gradio as gr


def show_info(text: str, duration: float | None = 10) -> None:
    """Show plain text as a notice. duration: seconds; None: until it is closed."""
    gr.Info(escape(text), duration=duration)


def show_warning(text: str) -> None:
    """Show plain text as a warning."""
    gr.Warning(escape(text))
