"""Buttons that Gradio lacks: one that makes a file and saves it, and a Stop that is enabled while something runs."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from persona.ui.page import QUIET, SHOWING, show_errors


def download_on_click(button: gr.Button, make: Callable[..., str], inputs: Any) -> None:
    """Make a click on the button save the file whose path make(*inputs) returns. The button needs an id of its own.

    A gr.DownloadButton alone saves what it held before the click. Errors are shown on the page.
    """
    file = gr.DownloadButton(str(button.value), visible="hidden", elem_id=f"{button.elem_id}-file")
    button.click(show_errors(make), inputs, file, **QUIET).success(
        None, None, None, js=f"() => document.getElementById('{file.elem_id}').click()", **QUIET
    )


def run_with_stop(
    triggers: Sequence[Any], stop: gr.Button, handler: Callable, inputs: Any, outputs: Any, **options: Any
) -> Any:
    """Run the handler on the triggers, with `stop` enabled until it has ended, failed or was cancelled.

    Returns the handler's event, which the click on `stop` can cancel.
    """
    started = gr.on(triggers, lambda: gr.Button(interactive=True), None, stop, **QUIET)
    running = started.then(handler, inputs, outputs, **QUIET, **options)
    disable_after(running, stop)
    return running


def cancel_then(cancel: Callable, running: Sequence[Any], show: Callable, outputs: Any) -> None:
    """On an event listener, such as stop.click, cancel what runs, then set the outputs to show().

    In two steps, since a frame that was under way when it was cancelled is still shown.
    """
    cancel(lambda: None, None, None, cancels=running, trigger_mode="multiple", **QUIET).then(
        show, None, outputs, **SHOWING
    )


def disable_after(running: Any, stop: gr.Button) -> None:
    """Disable the button when the event has ended, failed or was cancelled."""
    for ended in (running.then, running.failure):  # Gradio calls the first only where nothing failed
        ended(lambda: gr.Button(interactive=False), None, stop, **QUIET)
