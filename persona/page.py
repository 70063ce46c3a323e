"""The page's server, with the API beside it (docs/api.md): what `persona page` and app.py start."""

import os

from persona import space  # noqa: F401  (first of all: on ZeroGPU it imports spaces, which must come before torch)
from persona.hardware import few_arenas, spin_less

spin_less()
few_arenas()
# Gradio works out figures of all events that it remembers, 10,000 of them, after each event: for a page of its own
# that is not shown here
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")

from persona import files  # noqa: E402
from persona.errors import InputError  # noqa: E402
from persona.serve import beside_page  # noqa: E402
from persona.ui import LAUNCH, build, warm_up  # noqa: E402  (Gradio may import torch)
from persona.ui.guests import open_house  # noqa: E402
from persona.ui.hosts import middleware  # noqa: E402

__all__ = ["build", "serve"]


def serve(host: str, port: int) -> None:
    """Build the page and serve it until the process is told to stop."""
    demo = build()
    open_house()
    warm_up()
    own = {**beside_page(host), "middleware": middleware(host)}
    try:
        demo.queue(default_concurrency_limit=8).launch(
            server_name=host, server_port=port, share=files.public_link(), app_kwargs=own, **LAUNCH
        )
    except OSError as e:
        raise InputError(
            "{host}:{port}: cannot listen there. Choose another --host or --port.", host=host, port=port
        ) from e
