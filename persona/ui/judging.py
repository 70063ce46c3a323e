"""Step 4, did it learn? One report, with a verdict in plain words."""

from typing import Any

import gradio as gr

from persona import runs, space, suggest
from persona.files import slug as slugify
from persona.ui import voices
from persona.ui.common import QUIET, Page, duration, shown, to_save
from persona.ui.words import localized, t


def empty() -> str:
    words = t(
        "Not measured yet. It takes a few minutes: base and persona answer held-out questions, probes and general "
        "questions, and one paragraph says what that means."
    )
    return f"<div class='quiet'>{words}</div>"


def measure(chosen: str, judge: bool, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:
    """Evaluate the adapter; returns the report for the page and as a file."""
    from persona import evaluate  # with it comes torch

    def tell(p: evaluate.Progress) -> None:
        words = localized(p.doing)
        if p.seconds_left is not None:
            words = t("{doing}, {time} left", doing=localized(p.doing), time=duration(p.seconds_left))
        progress(p.share, desc=words)

    adapter = voices.find(chosen)
    report = evaluate.evaluate(adapter, judge=judge, progress=tell)
    if run := evaluate.run_of(adapter):
        evaluate.save(report, run)
    return evaluate.reports.fragment(report, localized), _file(report)


def last(chosen: str) -> tuple[str, Any]:
    """The report that was made before, if there is one for this very adapter."""
    if not (chosen or "").startswith("run/"):
        return empty(), gr.skip()
    file = voices.find(chosen).path.parent / "report.json"
    if "@" in chosen or not file.is_file() or not (file.parent / "run.json").is_file():
        return empty(), gr.skip()
    from persona import evaluate

    report = evaluate.load(file)
    chosen_at = runs.Run(file.parent).progress().chosen
    note = ""
    if (file.parent / "adapter").stat().st_mtime > file.stat().st_mtime:
        old = t("Measured before step {step} became the adapter: measure again.", step=chosen_at)
        note = f"<div class='hint'>{old}</div>"
    return note + evaluate.reports.fragment(report, localized), _file(report)


def _file(report: Any) -> str:
    from persona import evaluate

    path = to_save(f"{slugify(report.persona)}-report.html")
    path.write_text(evaluate.reports.html(report), encoding="utf-8")
    return str(path)


def build(page: Page, opened: list[Any]) -> None:
    """opened: events on which the last report is shown."""
    gr.Markdown(t("Measured on what it was never trained on: did it learn, did it forget, does it stop?"))
    with gr.Row(elem_classes="slim"):
        begin = gr.Button(t("Measure"), variant="primary", scale=0, min_width=130, elem_id="measure")
        halt = gr.Button(t("Stop"), variant="stop", scale=0, min_width=90)
        judge = gr.Checkbox(label=t("Ask another model to judge too (blindly)"), visible=suggest.endpoint() is not None,
                            scale=2, min_width=220)  # fmt: skip
        save = gr.DownloadButton(t("Save the report"), scale=0, min_width=190, elem_id="save-report")
    report = gr.HTML(empty(), elem_id="report")
    running = begin.click(
        space.gpu(300)(shown(measure)), [page.adapter, judge], [report, save], concurrency_id="measure",
        concurrency_limit=1, api_visibility="private", show_progress_on=report,
    )  # fmt: skip
    halt.click(None, cancels=[running])
    gr.on(opened, shown(last), page.adapter, [report, save], **QUIET)
