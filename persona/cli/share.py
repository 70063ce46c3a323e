"""export, push: the persona leaves the house."""

from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import AsJson, print_note, print_result
from persona.share.exports import formats
from persona.share.exports.formats import ExportFormat


def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    out: Annotated[Path, typer.Argument(help="The file (zip, card) or folder to write.")],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--as",
            help="zip: for this app. merged: a whole model. gguf: for llama.cpp and "
            "Ollama. card: a character card (.json, .png). dataset: for other trainers.",
            show_choices=True,
        ),
    ] = ExportFormat.zip,
    base: Annotated[str, typer.Option(help="merged, gguf: the base, if not the adapter's own.")] = "",
    strength: Annotated[float, typer.Option(help="merged, gguf --merge: 0: the base, 1: as trained.")] = 1.0,
    merge: Annotated[bool, typer.Option("--merge", help="gguf: one whole model in place of an adapter.")] = False,
    version: Annotated[int, typer.Option(help="card, .json: version 2 or 3.")] = 3,
    picture: Annotated[Path | None, typer.Option(help="card, .png: its picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the persona for this app or for other programs."""
    wishes = formats.ExportOptions(base, strength, merge, version, picture)
    made = formats.write_export(adapter.expanduser(), out.expanduser(), form, wishes, print_note)
    print_result(
        made,
        "\n".join([str(made.get("file") if "folder" not in made else made["folder"]), *_format_notes(made)]),
        as_json,
    )


def _format_notes(made: dict[str, Any]) -> list[str]:
    lines = list(made.get("notes", []))
    if d := made.get("difference"):
        lines.append(
            f"Measured over {d['tokens']} tokens: the same likeliest token {100 * d['same']:.1f} % of the time, KL "
            f"{d['kl']:.2g} nats per token, largest difference of a logit {d['largest']:.3g}"
        )
    return lines


def push(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone; wants the rights field.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the adapter on the Hugging Face Hub, private unless --public. Token: `hf auth login` or HF_TOKEN."""
    from persona.models import adapter as adapters
    from persona.share import hub, refresh_card

    found = adapters.locate_adapter(adapter.expanduser())
    refresh_card.refresh_model_card(found, refresh_card.find_persona_card(found))
    done = hub.push_adapter(found, repo, public=public)
    print_result({"url": done["url"], "link": done["link"]}, f"{done['url']}\n{done['link']}", as_json)
