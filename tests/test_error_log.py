"""Errors of handlers in the server's log."""

import gradio as gr
import httpx
from gradio import queueing

from persona.ui import error_log


def test_what_a_visitor_sent_is_not_in_the_log(monkeypatch, capsys):
    """A choice that a dropdown does not know, for which Gradio raises an error that quotes it."""
    monkeypatch.setattr(queueing, "traceback", queueing.traceback)  # put back after the test
    error_log.shorten_tracebacks()
    with gr.Blocks() as demo:
        choice = gr.Dropdown(["a"], value="a")
        choice.input(lambda x: x, choice, None)
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        with httpx.Client(base_url=url) as http:
            body = {"data": ["secret " * 10_000], "fn_index": 0, "session_hash": "tab"}
            assert http.post("gradio_api/queue/join", json=body).status_code == 200
            assert (
                "process_completed"
                in http.get("gradio_api/queue/data", params={"session_hash": "tab"}, timeout=60).text
            )
    finally:
        demo.close()
    log = capsys.readouterr().err
    assert "\nError: " in log and "Value: secret secret" in log and "in preprocess" in log, "kind, beginning and place"
    assert len(log) < 10_000 and log.count("secret") < 40
