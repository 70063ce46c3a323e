"""Step 4, did it learn? One report, with a verdict in plain words."""

from typing import Any

import gradio as gr

from persona.models import zerogpu
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store.files import slugify
from persona.train import run_folder
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.model_queue import visitor_key
from persona.ui.page import QUIET, Page, download_path, show_errors
from persona.ui.widgets import format_duration
from persona.write import llm_client


def not_measured_html() -> str:
    words = t(
        "Not measured yet. It takes a few minutes: base and persona answer held-out questions, "
        "probes and general questions, and one paragraph sums up the result."
    )
    return f"<div class='quiet'>{words}</div>"


def measure_adapter(chosen: str, judge: bool, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:
    """Evaluate the adapter; returns the report for the page and as a file."""
    from persona.judge import evaluate, report_html, scoring  # with it comes torch

    def tell(p: scoring.EvalProgress) -> None:
        words = localized(p.doing)
        if p.seconds_left is not None:
            words = t("{doing}, {time} left", doing=localized(p.doing), time=format_duration(p.seconds_left))
        progress(p.share, desc=words)

    adapter = voice_picker.find_adapter(chosen)
    report = evaluate.evaluate_adapter(adapter, judge=judge, visitor=visitor_key(), progress=tell)
    if run := evaluate.run_of(adapter):
        evaluate.save_report(report, run)
    return report_html.render_fragment(report, localized), _report_file(report)


def last_report(chosen: str) -> tuple[str, Any]:
    """The report that was made before, if there is one for this very adapter."""
    ref = AdapterRef.parse_id(chosen) if chosen else None
    if ref is None or ref.kind is not RefKind.RUN or ref.step is not None:
        return not_measured_html(), gr.skip()
    file = voice_picker.find_adapter(chosen).path.parent / "report.json"
    if not file.is_file() or not (file.parent / "run.json").is_file():
        return not_measured_html(), gr.skip()
    from persona.judge import evaluate, report_html

    report = evaluate.load_report(file)
    chosen_at = run_folder.Run(file.parent).progress().chosen
    note = ""
    if (file.parent / "adapter").stat().st_mtime > file.stat().st_mtime:
        old = t("Measured before step {step} became the adapter: measure again.", step=chosen_at)
        note = f"<div class='hint'>{old}</div>"
    return note + report_html.render_fragment(report, localized), _report_file(report)


def _report_file(report: Any) -> str:
    from persona.judge import report_html

    path = download_path(f"{slugify(report.persona)}-report.html")
    path.write_text(report_html.render_html(report), encoding="utf-8")
    return str(path)


def build(page: Page, opened: list[Any]) -> None:
    """opened: events on which the last report is shown."""
    gr.Markdown(t("Measured on what was left out of the training: did it learn, did it forget, does it stop?"))
    with gr.Row(elem_classes="slim"):
        begin = gr.Button(t("Measure"), variant="primary", scale=0, min_width=130, elem_id="measure")
        halt = gr.Button(t("Stop"), variant="stop", scale=0, min_width=90)
        judge = gr.Checkbox(
            label=t("Ask another model to judge too (blindly)"),
            visible=llm_client.endpoint_from_env() is not None,
            scale=2,
            min_width=220,
        )
        save = gr.DownloadButton(t("Save the report"), scale=0, min_width=190, elem_id="save-report")
    report = gr.HTML(not_measured_html(), elem_id="report")
    running = begin.click(
        zerogpu.request_gpu(300)(show_errors(measure_adapter)),
        [page.adapter, judge],
        [report, save],
        concurrency_id="measure",
        concurrency_limit=1,
        api_visibility="private",
        show_progress_on=report,
    )
    halt.click(None, cancels=[running])
    gr.on(opened, show_errors(last_report), page.adapter, [report, save], **QUIET)
