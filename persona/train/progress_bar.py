"""The bar of a run: on a terminal, and in a notebook with ipywidgets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from persona.train.progress import RunProgress


@contextmanager
def show_progress_bar() -> Iterator[Callable[[RunProgress], None]]:
    """Yields the function that moves the bar; nothing is shown where there is neither a terminal nor a notebook."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter)) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda progress: bar.update(
            task, total=progress.steps or None, completed=progress.step, description=_describe(progress)
        )


def _describe(progress: RunProgress) -> str:
    losses = [f"loss {progress.train[-1][1]:.2f}"] if progress.train else []
    losses += [f"held-out {progress.held_out[-1][1]:.2f}"] if progress.held_out else []
    return "  ".join([progress.message or progress.status, *losses])
