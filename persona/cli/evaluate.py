"""`persona eval`: measure an adapter against its base."""

from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import (
    ADAPTER_BASE_HELP,
    ADAPTER_HELP,
    AdapterTemplate,
    AsJson,
    Quantization,
    print_note,
    print_result,
)


def eval_(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help=ADAPTER_HELP)],
    data: Annotated[
        Path | None,
        typer.Option(help="Pairs to measure on, a pairs.jsonl. Default: those held out of the adapter's run."),
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Also let the model at PERSONA_LLM_URL compare the answers, blindly.")
    ] = False,
    base: Annotated[str, typer.Option(help=ADAPTER_BASE_HELP)] = "",
    template: AdapterTemplate = "",
    quantization: Quantization = "auto",
    as_json: AsJson = False,
) -> None:
    """Did it learn? Measure the adapter against its base. A run's folder gets report.json and report.html."""
    from persona.compare import blind_votes
    from persona.judge import evaluate
    from persona.share.adapter_ref import AdapterRef
    from persona.share.open_adapter import open_adapter, read_supplement

    opened = open_adapter(AdapterRef.parse(adapter), read_supplement(template))
    with _ProgressBar() as bar:
        run = evaluate.run_of(opened)
        votes = blind_votes.read_all_visitors(run.path.parent.parent) if run and judge else []
        report = evaluate.evaluate_adapter(
            opened, data=data, base=base, judge=judge, votes=votes, quantization=quantization, progress=bar.show
        )
    if run:
        print_note(f"Report: {evaluate.save_report(report, run)}")
    print_result(report.model_dump(mode="json"), _format_report(report), as_json)


class _ProgressBar:
    """A progress bar on stderr, where that is a terminal."""

    def __enter__(self) -> "_ProgressBar":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("Opening the base …", total=1.0, left="")
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def show(self, progress: Any) -> None:
        """progress: an EvalProgress."""
        left = "" if progress.seconds_left is None else f"{progress.seconds_left:.0f} s left"
        self.bar.update(self.task, completed=progress.share, description=progress.doing, left=left)


def _format_report(report: Any) -> str:
    verdict = report.verdict
    return "\n".join([verdict.paragraph, *(f"- {x}" for x in (*verdict.remarks, *report.notes)), report.sampling])
