"""The command line, `persona …` or `python -m persona …`: the functions that the page calls, from a shell.

Prints text for people; with --json the last line of stdout is one JSON object. Exit status: 0 done, 1 refused or
failed (the message on stderr says place, value and next step), 2 wrong usage. It may import every other package. A new
command is a function in a module here, registered below; torch and gradio are imported inside functions, so that --help
is fast.
"""

from typing import Annotated

import typer

from persona import __version__
from persona.cli import chat, data, doctor, evaluate, page, prefer, runs, serve, settings_list, share, train
from persona.errors import PersonaError
from persona.models import malloc
from persona.store import workspace

app = typer.Typer(
    help="Turn question-answer pairs into a persona: write pairs, train a LoRA adapter, compare it with its base, "
    "share it. `persona page` does all of it in the browser.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"persona {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.command()(page.page)
app.command()(data.new)
app.command("import")(data.import_)
app.command("filter")(data.filter_)
app.command()(data.lint)
app.command()(data.render)
app.command(cls=settings_list.HelpWithSettings)(train.train)
app.command()(prefer.prefer)
app.command()(runs.runs)
app.command()(runs.compare)
app.command()(chat.chat)
app.command()(serve.serve)
app.command("eval")(evaluate.eval_)
app.command()(share.export)
app.command()(share.blend)
app.command()(share.push)
app.command()(doctor.doctor)


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit status. PersonaError becomes status 1 here and nowhere else.

    args: its arguments; default: those of this process.
    """
    malloc.limit_openmp_spin()
    try:
        with workspace.as_visitor(""):  # with a shell here one is the owner, not a visitor of the page
            return app(args, standalone_mode=False, prog_name="persona") or 0
    except PersonaError as e:
        typer.secho(str(e), err=True, fg="red")
        return 1
    except typer.Exit as e:
        return e.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as e:
        show = getattr(e, "show", None)  # click's usage errors print themselves
        if show is None:
            raise
        show()
        return getattr(e, "exit_code", 2)
