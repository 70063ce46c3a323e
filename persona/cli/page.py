"""page: the page, with the API beside it."""

import os
from contextvars import Context
from pathlib import Path
from typing import Annotated

import typer


def _folder(text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not text.strip() or (path.exists() and not path.is_dir()):
        raise typer.BadParameter(f"{text!r} is not a folder.")
    return path


def page(
    host: Annotated[
        str,
        typer.Option(
            envvar=["GRADIO_SERVER_NAME", "HOST"],
            help="Where to listen. Whoever reaches another address than 127.0.0.1 can do all that you can, unless "
            "PERSONA_SHARED=1.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar=["GRADIO_SERVER_PORT", "PORT"], min=1, max=65535)] = 7860,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="A public https address by Gradio; each visitor has a workspace of their own, with limits, as on a "
            "Space (SECURITY.md).",
        ),
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            envvar="PERSONA_HOME", metavar="DIR", parser=_folder, help="Where personas, runs and bases are kept."
        ),
    ] = None,
) -> None:
    """Open the page: write, train, compare and share a persona in the browser. An option beats its variable."""
    if share:
        os.environ["GRADIO_SHARE"] = "True"  # files.public_link reads it, and so do the processes that train
    if home:
        os.environ["PERSONA_HOME"] = str(home)
    from persona.ui import server as pages

    Context().run(pages.serve_page, host, port)  # who asks is told by each request: not the owner, as in other commands
