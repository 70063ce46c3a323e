"""`persona page`: the page, with the API beside it."""

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
            help="Address to listen on. At any other than 127.0.0.1, visitors can do all that you can, unless "
            "PERSONA_SHARED=1.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar=["GRADIO_SERVER_PORT", "PORT"], min=1, max=65535, help="Port to listen on.")
    ] = 7860,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Also serve at a public https address of Gradio. Each visitor then has a separate workspace with "
            "limits, as on a Space (SECURITY.md).",
        ),
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            envvar="PERSONA_HOME",
            metavar="DIR",
            parser=_folder,
            help="Folder for personas, runs and bases. Default: this system's folder for application data.",
        ),
    ] = None,
) -> None:
    """Start the page: write, train, compare and share a persona in the browser. Options win over variables."""
    if share:
        os.environ["GRADIO_SHARE"] = "True"  # store/deployment.py reads it, and so do the processes that train
    if home:
        os.environ["PERSONA_HOME"] = str(home)
    from persona.ui import server as pages

    # in a context of its own: each request names its visitor, while other commands run as the owner
    Context().run(pages.serve_page, host, port)
