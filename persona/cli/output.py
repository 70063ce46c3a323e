"""What the commands share: arguments, results as text or JSON, notes on stderr."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from persona.errors import InputError
from persona.models.bundled import DEFAULT_BASE
from persona.models.progress_callback import ProgressUpdate

_BASE_HELP = "Base model: name, Hub id, folder or .gguf file. Default: "
BASE_HELP = f"{_BASE_HELP}{DEFAULT_BASE}."
ADAPTER_BASE_HELP = f"{_BASE_HELP}the adapter's own."
ADAPTER_HELP = (
    "The adapter: a persona's name, a folder (adapter, run or persona: its newest run), RUN@STEP for a snapshot, "
    "a zip, or USER/NAME@REVISION on the Hub."
)
Thinking = Annotated[
    Literal["none", "keep", "train"],
    typer.Option(help="What becomes of the pairs' <think> blocks, as the setting of that name. Default: none."),
]
Quantization = Annotated[
    str,
    typer.Option(
        help="Of the base in memory: auto (as the adapter was trained; without a GPU in full precision if that fits), "
        "none (full precision), nf4 or int8."
    ),
]
AdapterTemplate = Annotated[
    str,
    typer.Option(
        "--template",
        help="Chat template that the adapter was trained with, where it brings none: a name from templates/chat, or a "
        ".jinja file. A copy of the adapter keeps it. Default: the adapter's own.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, the last line. Default: text.")
]
PersonaDir = Annotated[
    Path, typer.Argument(metavar="DIR", help="A persona's folder, or the name of a persona or example: zhen-huan.")
]


def print_result(value: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False) if as_json else text)


def print_note(text: str) -> None:
    """Print progress to stderr; a ProgressUpdate replaces the line before, and is left out of logs."""
    if not isinstance(text, ProgressUpdate):
        typer.secho(text, err=True, dim=True)
    elif sys.stderr.isatty():
        typer.secho(f"\x1b[A\x1b[2K{text}", err=True, dim=True)  # up a line, and over it


def open_persona(name: Path) -> Any:
    """The persona in that folder, or the user's persona of that name; see open_by_name(). Raises InputError."""
    from persona.store import persona_folder

    return persona_folder.open_by_name(name, print_note)


def split_key_value(text: str, option: str) -> tuple[str, str]:
    """NAME=VALUE of a repeated option, as a pair. Raises InputError."""
    key, sign, value = text.partition("=")
    if not sign:
        example = "--set epochs=2" if option == "--set" else "--column instruction=Question"
        raise InputError(
            "{option} {text}: write it as name=value, e.g. {example}.", option=option, text=text, example=example
        )
    return key.strip(), value.strip()
