"""What the commands share: arguments, JSON or text, notes on stderr."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from persona.errors import InputError
from persona.models.progress_callback import ProgressUpdate
from persona.store.workspace import EXAMPLES_DIR

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
PersonaDir = Annotated[Path, typer.Argument(metavar="DIR", help="A persona folder, or an example: zhen-huan.")]


def print_result(value: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False) if as_json else text)


def print_note(text: str) -> None:
    """What happens meanwhile, on stderr. How far it is stands in one line, and in no log."""
    if not isinstance(text, ProgressUpdate):
        typer.secho(text, err=True, dim=True)
    elif sys.stderr.isatty():
        typer.secho(f"\x1b[A\x1b[2K{text}", err=True, dim=True)  # up a line, and over it


def open_persona(directory: Path) -> Any:
    """The persona in that folder; by the name of a shipped one, the user's own copy, which is made on first use."""
    from persona.store import persona_folder

    name = str(directory)
    if directory.exists() or name not in {p.name for p in EXAMPLES_DIR.iterdir()}:
        return persona_folder.open_persona(directory)
    persona = persona_folder.copy_example(name)
    print_note(f"{name}: your copy of the example, in {persona.path}")
    return persona


def split_key_value(text: str, option: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        example = "--set epochs=2" if option == "--set" else "--column instruction=Question"
        raise InputError(
            "{option} {text}: write it as name=value, e.g. {example}.", option=option, text=text, example=example
        )
    return key.strip(), value.strip()
