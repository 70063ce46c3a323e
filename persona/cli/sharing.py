"""export, push: the adapter leaves the house."""

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.common import AsJson, put
from persona.errors import InputError


def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    kind: Annotated[str, typer.Option("--as", help="zip; more forms are not available yet.")] = "zip",
    as_json: AsJson = False,
) -> None:
    """Write the adapter as one file that the app opens again."""
    from persona import adapter as adapters
    from persona import modelcard, share

    if kind != "zip":
        raise InputError(f"--as {kind}: not available yet. Use --as zip.")
    found = adapters.locate(adapter.expanduser())
    modelcard.restate(found, modelcard.persona_of(found))
    made = share.pack(found, out.expanduser())
    put({"file": str(made), "bytes": made.stat().st_size}, f"{made}", as_json)


def push(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone; wants the rights field.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the adapter on the Hugging Face Hub, private unless --public. Token: `hf auth login` or HF_TOKEN."""
    from persona import adapter as adapters
    from persona import hub, modelcard

    found = adapters.locate(adapter.expanduser())
    modelcard.restate(found, modelcard.persona_of(found))
    done = hub.push(found, repo, public=public)
    put({"url": done["url"], "link": done["link"]}, f"{done['url']}\n{done['link']}", as_json)
