"""Step 4, tab Did it learn?: evaluate the adapter, and show the report with its verdict."""

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
    text = t(
        "Not measured yet. It takes a few minutes: base and persona answer held-out questions, "
        "probes and general questions, and one paragraph sums up the result."
    )
    return f"<div class='quiet'>{text}</div>"


def measure_adapter(adapter_id: str, judge: bool, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:
    """Evaluate the adapter. Returns the report as HTML, and the path of its file. judge: ask another model too."""
    from persona.judge import evaluate, report_html, scoring  # with it comes torch

    def show_progress(p: scoring.EvalProgress) -> None:
        text = localized(p.doing)
        if p.seconds_left is not None:
            text = t("{doing}, {time} left", doing=localized(p.doing), time=format_duration(p.seconds_left))
        progress(p.share, desc=text)

    adapter = voice_picker.find_adapter(adapter_id)
    report = evaluate.evaluate_adapter(adapter, judge=judge, visitor=visitor_key(), progress=show_progress)
    if run := evaluate.run_of(adapter):
        evaluate.save_report(report, run)
    return report_html.render_fragment(report, localized), _report_file(report)


def last_report(adapter_id: str) -> tuple[str, Any]:
    """The saved report of the adapter's run, or a note that there is none."""
    ref = AdapterRef.parse_id(adapter_id) if adapter_id else None
    if ref is None or ref.kind is not RefKind.RUN or ref.step is not None:
        return not_measured_html(), gr.skip()
    file = voice_picker.find_adapter(adapter_id).path.parent / "report.json"
    if not file.is_file() or not (file.parent / "run.json").is_file():
        return not_measured_html(), gr.skip()
    from persona.judge import evaluate, report_html

    report = evaluate.load_report(file)
    note = ""
    if (file.parent / "adapter").stat().st_mtime > file.stat().st_mtime:
        chosen_step = run_folder.Run(file.parent).progress().chosen
        outdated = t("Measured before step {step} became the adapter: measure again.", step=chosen_step)
        note = f"<div class='hint'>{outdated}</div>"
    return note + report_html.render_fragment(report, localized), _report_file(report)


def _report_file(report: Any) -> str:
    from persona.judge import report_html

    path = download_path(f"{slugify(report.persona)}-report.html")
    path.write_text(report_html.render_html(report), encoding="utf-8")
    return str(path)


def build(page: Page, opened: list[Any]) -> None:
    """The tab. opened: events on which the last report is shown."""
    gr.Markdown(t("Measured on what was left out of the training: did it learn, did it forget, does it stop?"))
    with gr.Row(elem_classes="slim"):
        measure = gr.Button(t("Measure"), variant="primary", scale=0, min_width=130, elem_id="measure")
        stop = gr.Button(t("Stop"), variant="stop", scale=0, min_width=90)
        judge = gr.Checkbox(
            label=t("Ask another model to judge too (blindly)"),
            visible=llm_client.endpoint_from_env() is not None,
            scale=2,
            min_width=220,
        )
        save = gr.DownloadButton(t("Save the report"), scale=0, min_width=190, elem_id="save-report")
    report = gr.HTML(not_measured_html(), elem_id="report")
    running = measure.click(
        zerogpu.request_gpu(300)(show_errors(measure_adapter)),
        [page.adapter, judge],
        [report, save],
        concurrency_id="measure",
        concurrency_limit=1,
        api_visibility="private",
        show_progress_on=report,
    )
    stop.click(None, cancels=[running])
    gr.on(opened, show_errors(last_report), page.adapter, [report, save], **QUIET)
