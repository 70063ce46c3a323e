"""The page on 127.0.0.1:7860, and the API beside it (docs/api.md).

    python app.py [--host H] [--port P] [--share] [--home DIR]

An option beats its variable: GRADIO_SERVER_NAME or HOST, GRADIO_SERVER_PORT or PORT, GRADIO_SHARE, PERSONA_HOME. On a
Space there are no options, and Gradio's variables say the rest.
"""

import argparse
import os
from pathlib import Path


def read_options() -> argparse.Namespace:
    """The options, else their variables. Exits with status 2 where one is unknown or wrong."""
    env = os.environ
    parser = argparse.ArgumentParser(prog="python app.py", description="Open the page.", allow_abbrev=False)
    parser.add_argument("--host", default=env.get("GRADIO_SERVER_NAME") or env.get("HOST") or "127.0.0.1",
                        help="where to listen; whoever reaches another address than 127.0.0.1 can do all that you can, "
                        "unless PERSONA_SHARED=1 (default: %(default)s)")  # fmt: skip
    parser.add_argument("--port", type=port_number, help="(default: %(default)s)",
                        default=env.get("GRADIO_SERVER_PORT") or env.get("PORT") or "7860")  # fmt: skip
    parser.add_argument("--share", action="store_true", default=env.get("GRADIO_SHARE", "").lower() == "true",
                        help="a public https address by Gradio; each visitor has a workspace of their own, "
                        "with limits, as on a Space (SECURITY.md)")  # fmt: skip
    parser.add_argument(
        "--home",
        type=folder_path,
        metavar="DIR",
        help="where personas and bases are kept (default: PERSONA_HOME, else the system's data folder)",
    )
    return parser.parse_args()


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def folder_path(text: str) -> str:
    path = Path(text).expanduser().resolve()
    if not text.strip() or (path.exists() and not path.is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return str(path)


if __name__ == "__main__":  # before what follows is imported: that takes seconds, and reads the variables
    options = read_options()
    if options.share:
        os.environ["GRADIO_SHARE"] = "True"  # files.public_link reads it, and so do the processes that train
    if options.home:
        os.environ["PERSONA_HOME"] = options.home

from persona import space  # noqa: E402, F401  (first of all: on ZeroGPU it imports spaces, which must come before torch)
from persona.hardware import few_arenas, spin_less  # noqa: E402

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
    demo.queue(default_concurrency_limit=8).launch(
        server_name=options.host, server_port=options.port, share=options.share,
        app_kwargs={**beside_page(options.host), "middleware": middleware(options.host)}, **LAUNCH,
    )  # fmt: skip
