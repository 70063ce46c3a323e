"""The page's server, with the API beside it (docs/api.md): what `persona page` and app.py start."""

import os
from typing import TYPE_CHECKING

# at import, and first: on ZeroGPU it imports spaces, which patches torch and so must come before it. All else that is
# heavy or changes the process is imported and done in the functions
from persona.models import zerogpu  # noqa: F401

if TYPE_CHECKING:
    import gradio as gr

QUEUE_POLL_SECONDS = 0.01


def prepare_process() -> None:
    """Settings that only count before torch, Gradio and the first thread are there."""
    from persona.models.malloc import limit_malloc_arenas, limit_openmp_spin

    limit_openmp_spin()
    limit_malloc_arenas()
    # after each event Gradio computes statistics over all that it remembers, 10,000 events, for a page of its own that
    # is not shown here
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")


def build_page() -> "gr.Blocks":
    """The page, not launched."""
    prepare_process()
    from persona.ui.app import build_app

    return build_app()


def serve_page(host: str, port: int) -> None:
    """Build the page and serve it until the process is stopped. Raises InputError when it cannot listen there."""
    demo = build_page()
    from persona.errors import InputError
    from persona.serve.http import page_api_kwargs
    from persona.store.deployment import has_public_link
    from persona.ui.app import LAUNCH_OPTIONS, warm_up
    from persona.ui.error_log import shorten_tracebacks
    from persona.ui.middleware.stack import build_middleware
    from persona.ui.middleware.workspaces import start_retention_sweep

    shorten_tracebacks()
    start_retention_sweep()
    warm_up()
    app_kwargs = {**page_api_kwargs(host), "middleware": build_middleware(host)}
    demo.queue(default_concurrency_limit=8)
    # Gradio looks for waiting events a thousand times a second, which takes 5 % of a core from a training
    demo._queue.sleep_when_free = demo._queue.progress_update_sleep_when_free = QUEUE_POLL_SECONDS
    try:
        demo.launch(
            server_name=host, server_port=port, share=has_public_link(), app_kwargs=app_kwargs, **LAUNCH_OPTIONS
        )
    except OSError as e:
        raise InputError(
            "{host}:{port}: cannot listen there. Choose another --host or --port.", host=host, port=port
        ) from e
