"""`persona prefer`: a run that learns from votes, corrections, or a file of preferences."""

from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import AsJson, PersonaDir, open_persona, print_note, split_key_value
from persona.cli.train import follow_run, open_parent_of, print_outcome, reopen_run

PREFERENCE_KEYS = ("accuracy_before", "accuracy_after", "margin_before", "margin_after")


def prefer(
    directory: PersonaDir,
    parent: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="ADAPTER",
            help="The adapter that changes, as in `persona train --from`. Default: the newest of DIR.",
        ),
    ] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Preferences: rows like {"prompt", "chosen", "rejected"}, as TRL or LLaMA-Factory have them. Default: '
            "the blind votes and corrections of DIR.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of a run, e.g. beta=0.05. Repeat for more."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue this run, by its folder or name. Default: a new run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Learn from preferences (DPO): the chosen answers become likelier than the rejected ones."""
    from persona.train import launcher

    persona = open_persona(directory)
    given = dict(split_key_value(x, "--set") for x in changes or [])
    run = reopen_run(persona, resume, given) if resume else _create_run(persona, parent or str(directory), data, given)
    launcher.start_run(run)
    print_note(f"Run {run.path}")
    print_outcome(run, follow_run(run), as_json, PREFERENCE_KEYS)


def _create_run(persona: Any, parent: str, data: Path | None, given: dict[str, str]) -> Any:
    from persona.compare.preference_sources import collect_all
    from persona.store.preferences import read_preferences
    from persona.train import launcher, prepare

    found, adapter = read_preferences(data) if data else collect_all(persona), open_parent_of(persona, parent)
    config = launcher.make_preference_config(adapter, given)
    trainable = prepare.select_trainable(persona.card(), config, found.preferences, adapter)
    for text in (*found.left_out, *trainable.left_out):
        print_note(text)
    return launcher.create_preference_run(persona, trainable.preferences, adapter, given)
