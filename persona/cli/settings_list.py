"""Every setting of a run, as the page's expert form describes it, with its other names.

At the end of `persona train --help`, and alone for `persona train --settings`.
"""

import shutil
import textwrap
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

MAX_WIDTH = 100
FIRST_GROUP = "Base and template"  # of the settings that the page has in step 2


class HelpWithSettings(TyperCommand):
    """A command whose help ends with the list of settings."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)  # prints: Typer's own help passes the formatter by
        typer.echo(_list_settings())


def print_settings(wanted: bool) -> None:
    """Print the list and exit; for an option that is read before all else."""
    if wanted:
        typer.echo(_list_settings())
        raise typer.Exit


def _list_settings() -> str:
    from persona.train.aliases import FIXED, SAME_AS
    from persona.train.config import RunConfig

    width = min(MAX_WIDTH, shutil.get_terminal_size().columns)
    lines, last = [], ""
    for name, field in RunConfig.model_fields.items():
        metadata: Any = field.json_schema_extra or {}
        if (group := metadata.get("group", FIRST_GROUP)) != last:
            lines += ["", typer.style(group, bold=True)]
            last = group
        lines += _describe(name, field, metadata.get("when", ""), width)
    taken = ", ".join([*FIXED, *SAME_AS])
    lines += ["", *textwrap.wrap(f"Taken with the one value that holds here, refused with any other: {taken}.", width)]
    intro = "Settings: NAME=VALUE for --set, or a line of a file for --config. The value shown is the default."
    return "\n".join([*textwrap.wrap(intro, width), *lines])


def _describe(name: str, field: Any, when: str, width: int) -> list[str]:
    from persona.train.aliases import list_aliases

    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    texts = [f"{field.description}. {when}".strip()]
    if get_origin(field.annotation) is Literal:
        texts.append(f"One of {', '.join(get_args(field.annotation))}.")
    if aliases := list_aliases(name):
        texts.append(f"Also: {', '.join(aliases)}.")
    wrapped = textwrap.wrap(" ".join(texts), width, initial_indent="    ", subsequent_indent="    ")
    return [f"  {typer.style(name, fg='green')}={default}", *wrapped]
