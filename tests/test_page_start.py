"""The page starts on a machine that is busy, and behind a proxy."""

import gradio


def test_a_page_that_is_slow_to_answer_starts_all_the_same(monkeypatch):
    """Gradio looks at the page once itself, which fails there."""
    from persona.ui.app import LAUNCH_OPTIONS

    monkeypatch.setattr(gradio.networking, "url_ok", lambda url: False)
    with gradio.Blocks() as demo:
        pass
    try:
        assert demo.launch(prevent_thread_lock=True, quiet=True, _frontend=LAUNCH_OPTIONS["_frontend"])[1]
    finally:
        demo.close()
