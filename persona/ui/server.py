"""The page's server, with the API beside it (docs/api.md): what `persona page` and app.py start."""

import os

from persona.models import zerogpu  # noqa: F401  (first of all: on ZeroGPU it imports spaces, which must come before torch)
from persona.models.malloc import limit_malloc_arenas, limit_openmp_spin

limit_openmp_spin()
limit_malloc_arenas()
# Gradio works out figures of all events that it remembers, 10,000 of them, after each event: for a page of its own
# that is not shown here
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")

from persona.errors import InputError  # noqa: E402
from persona.serve.http import page_api_kwargs  # noqa: E402
from persona.store.deployment import has_public_link  # noqa: E402
from persona.ui.app import LAUNCH_OPTIONS, build_app, warm_up  # noqa: E402  (Gradio may import torch)
from persona.ui.middleware.stack import build_middleware  # noqa: E402
from persona.ui.middleware.workspaces import start_retention_sweep  # noqa: E402

__all__ = ["build_app", "serve_page"]


def serve_page(host: str, port: int) -> None:
    """Build the page and serve it until the process is told to stop."""
    demo = build_app()
    start_retention_sweep()
    warm_up()
    own = {**page_api_kwargs(host), "middleware": build_middleware(host)}
    try:
        demo.queue(default_concurrency_limit=8).launch(
            server_name=host, server_port=port, share=has_public_link(), app_kwargs=own, **LAUNCH_OPTIONS
        )
    except OSError as e:
        raise InputError(
            "{host}:{port}: cannot listen there. Choose another --host or --port.", host=host, port=port
        ) from e
