"""The page on 127.0.0.1:7860, and the API beside it (docs/api.md).

HOST and PORT, or Gradio's own variables on a Space, say otherwise.
"""

import os

from persona import space  # noqa: F401  (first of all: on ZeroGPU it imports spaces, which must come before torch)
from persona.hardware import few_arenas, spin_less

spin_less()
few_arenas()
# Gradio works out figures of all events that it remembers, 10,000 of them, after each event: for a page of its own
# that is not shown here
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")

from persona.serve import beside_page  # noqa: E402
from persona.ui import LAUNCH, build, warm_up  # noqa: E402  (Gradio may import torch)
from persona.ui.guests import open_house  # noqa: E402
from persona.ui.hosts import middleware  # noqa: E402

demo = build()

if __name__ == "__main__":
    open_house()
    warm_up()
    host = os.environ.get("GRADIO_SERVER_NAME") or os.environ.get("HOST") or "127.0.0.1"
    port = int(os.environ.get("GRADIO_SERVER_PORT") or os.environ.get("PORT") or 7860)
    demo.queue(default_concurrency_limit=8).launch(
        server_name=host, server_port=port, app_kwargs={**beside_page(host), "middleware": middleware(host)}, **LAUNCH
    )
