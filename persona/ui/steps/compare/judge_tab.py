"""Step 4, tab Did it learn?: evaluate the adapter, and show the report with its verdict."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona.compare import blind_votes
from persona.compare.blind_votes import BlindQuestion
from persona.errors import PersonaError
from persona.models import zerogpu
from persona.models.adapter import Adapter
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store import deployment, persona_folder
from persona.train import run_folder
from persona.ui import hard_pairs, next_steps, voice_picker
from persona.ui.background import start_in_thread
from persona.ui.buttons import run_with_stop
from persona.ui.i18n import localized, t
from persona.ui.model_queue import wait_in_queue
from persona.ui.navigation import TEMPLATE
from persona.ui.page import QUIET, SHOWING, Page, download_path, show_errors, visitor_key
from persona.ui.widgets import FORWARD_CLICKS_JS, format_duration, progress_bar_html
from persona.write import llm_client

MAX_MEASUREMENTS = 4  # of all visitors at once; their steps take turns on the model
SLICE_SECONDS = 80.0  # of a GPU of ZeroGPU, with the opening of the base; the rest of what it grants is a margin


def not_measured_html() -> str:
    text = t(
        "Not measured yet. It takes a few minutes: base and persona answer held-out questions, "
        "probes and general questions, and one paragraph sums up the result."
    )
    return f"<div class='quiet'>{text}</div>"


_stops: dict[str, threading.Event] = {}  # of the measurements that run, by visitor


def measure_adapter(
    adapter_id: str, judge: bool, quantization: str = "auto", slug: str = "", browser_key: str = ""
) -> Iterator[tuple[str, Any]]:
    """Evaluate the adapter. Yields the progress, then the report, as HTML, and the button that saves the report.

    judge: ask another model too, and compare it with this visitor's blind votes. quantization: of the base in memory,
    a ChatQuantization. A measurement that was stopped goes on. Raises PersonaError while another one of the same
    visitor runs.
    """
    from persona.judge import evaluate, scoring  # with it comes torch

    adapter, visitor, stop = voice_picker.find_adapter(adapter_id), visitor_key(), threading.Event()
    votes = _read_votes(slug, adapter_id, browser_key) if judge else []
    end = time.monotonic() + SLICE_SECONDS if deployment.has_zerogpu() else math.inf
    if _stops.setdefault(visitor, stop) is not stop:
        raise PersonaError("A measurement of yours is running. Wait until it has ended, or stop it.")

    def measure(report_step: Callable[[scoring.EvalProgress], None]) -> Any:
        def report_progress(step: scoring.EvalProgress) -> None:
            if stop.is_set() or time.monotonic() > end:
                raise evaluate.EvaluationStopped
            report_step(step)

        try:
            run, begun = evaluate.run_of(adapter), _stopped_report(adapter)
            report = evaluate.evaluate_adapter(
                adapter, judge=judge, votes=votes, visitor=visitor, quantization=quantization,
                progress=report_progress, begun=begun,
            )  # fmt: skip
            if run:
                evaluate.save_report(report, run)
            return report
        finally:
            del _stops[visitor]

    steps, measured = start_in_thread(measure)
    try:
        for step in steps:
            yield _progress_html(step), gr.skip()
    finally:  # also when the window is closed: the model's work ends with the step that is computed
        stop.set()
    try:
        report = measured.result()
    except evaluate.EvaluationStopped:
        yield last_report(adapter_id)
        return
    yield _report_html(report, adapter), _report_file(report, adapter_id)


_measure_slice = zerogpu.request_gpu(zerogpu.GRANTED_SECONDS)(show_errors(measure_adapter))


def measure_in_slices(adapter_id: str, judge: bool, *given: str) -> Iterator[tuple[str, Any]]:
    """measure_adapter with one GPU of ZeroGPU after the other, as long as each of them gets further."""
    missing = None
    while missing is None or missing:
        yield from _measure_slice(adapter_id, judge, *given)
        before, report = missing, _stopped_report(voice_picker.find_adapter(adapter_id))
        missing = report.missing if report else []
        if missing == before:
            return


def _read_votes(slug: str, adapter_id: str, browser_key: str) -> list[BlindQuestion]:
    if not browser_key:
        return []
    folder = voice_picker.conversation_dir(slug, adapter_id)
    return blind_votes.read_blind_questions(blind_votes.open_vote_log(folder, browser_key))


def stop_measuring() -> None:
    if stop := _stops.get(visitor_key()):
        stop.set()


def _progress_html(step: Any) -> str:
    """step: an EvalProgress."""
    text = localized(step.doing)
    if step.parts:
        text = t("Part {part} of {parts}: {doing}", part=step.part, parts=step.parts, doing=text)
    if step.seconds_left is not None and step.seconds_left >= 1:
        left = t("About {time} left for the whole measurement.", time=format_duration(step.seconds_left))
        text += f" · {left}"
    return f"{progress_bar_html(step.share)}<div class='quiet'>{escape(text)}</div>"


def _stopped_report(adapter: Adapter) -> Any:
    """The report of the adapter's last measurement if that was stopped and the adapter is still the same, else None."""
    from persona.judge import evaluate

    run = evaluate.run_of(adapter)
    file = run.path / "report.json" if run else None
    if run is None or file is None or not file.is_file() or run.progress().chosen_at > file.stat().st_mtime:
        return None
    report = evaluate.load_report(file)
    return report if report.missing else None


def last_report(adapter_id: str) -> tuple[str, Any]:
    """The saved report of the adapter's run, or a note that there is none."""
    file = _report_path(adapter_id)
    if file is None:
        return not_measured_html(), gr.DownloadButton(value=None, interactive=False)
    from persona.judge import evaluate

    report = evaluate.load_report(file)
    note = ""
    run = run_folder.Run(file.parent).progress()  # the adapter's folder changes with each renewed card
    if run.chosen_at > file.stat().st_mtime:
        outdated = t("Measured before step {step} became the adapter: measure again.", step=run.chosen)
        note = f"<div class='hint'>{outdated}</div>"
    return note + _report_html(report, voice_picker.find_adapter(adapter_id)), _report_file(report, adapter_id)


def _report_html(report: Any, adapter: Adapter) -> str:
    """The report, and where to write next: for the persona of the adapter's run, whose pairs can be rewritten."""
    from persona.judge import evaluate, report_html

    shown, run = report_html.render_fragment(report, localized), evaluate.run_of(adapter)
    if not report.hard or run is None:
        return shown
    persona = persona_folder.open_persona(run.path.parent.parent)
    return shown + hard_pairs.table_html(report.hard, persona, t("Least likely held-out pairs"))


def _report_path(adapter_id: str) -> Path | None:
    """The saved report of the adapter's run; None where there is none, or the adapter is not a run's."""
    ref = AdapterRef.parse_id(adapter_id) if adapter_id else None
    if ref is None or ref.kind is not RefKind.RUN or ref.step is not None:
        return None
    file = voice_picker.find_adapter(adapter_id).path.parent / "report.json"
    return file if file.is_file() and (file.parent / "run.json").is_file() else None


def offer_next_steps(adapter_id: str) -> list[gr.Button]:
    """The buttons of what the adapter's verdict proposes."""
    file = _report_path(adapter_id)
    if file is None:
        return next_steps.show_buttons([])
    from persona.judge import evaluate

    verdict = evaluate.load_report(file).verdict
    return next_steps.show_buttons(verdict.steps if verdict else [])


def _report_file(report: Any, adapter_id: str) -> gr.DownloadButton:
    """The button that saves the report."""
    from persona.judge import report_html

    path = download_path(f"{voice_picker.file_stem(adapter_id)}-report.html")
    path.write_text(report_html.render_html(report), encoding="utf-8")
    return gr.DownloadButton(value=str(path), interactive=True)


def build(page: Page, browser_key: gr.BrowserState, quantization: gr.Dropdown, opened: Any) -> None:
    """The tab. quantization: of the base in memory. opened: the event of opening the tab."""
    gr.Markdown(
        t(
            "Measured on what was left out of the training: did it learn, did it forget, does it stop? The model is "
            "opened as for the chat, so a loss may differ a little from the one above, which the training measured."
        )
    )
    with gr.Row(elem_classes="slim"):
        measure = gr.Button(t("Measure"), variant="primary", scale=0, min_width=130, elem_id="measure")
        stop = gr.Button(t("Stop"), variant="stop", scale=0, min_width=90, interactive=False, elem_id="stop-measure")
        judge = gr.Checkbox(
            label=t("Ask another model to judge too (blindly)"),
            visible=llm_client.endpoint_from_env() is not None,
            scale=2,
            min_width=220,
        )
        save = gr.DownloadButton(t("Save the report"), scale=0, min_width=190, interactive=False,
                                 elem_id="save-report")  # fmt: skip
    report = gr.HTML(not_measured_html(), elem_id="report", js_on_load=FORWARD_CLICKS_JS)
    hard_pairs.connect(page, report)
    with gr.Row(elem_classes="slim"):
        for button in page.next_steps.values():
            button.render()
    offer: dict[str, Any] = {"fn": show_errors(offer_next_steps), "inputs": page.adapter,
                             "outputs": list(page.next_steps.values()), **SHOWING}  # fmt: skip
    page.next_steps["base"].click(
        lambda: (gr.Walkthrough(selected=TEMPLATE), TEMPLATE), None, [page.steps, page.shown_step], **QUIET
    )
    outputs = [report, save]
    running = run_with_stop(
        [measure.click], stop,
        wait_in_queue(measure_in_slices if deployment.has_zerogpu() else measure_adapter, outputs, report),
        [page.adapter, judge, quantization, page.slug, browser_key], outputs, concurrency_limit=MAX_MEASUREMENTS,
    )  # fmt: skip
    # a process of ZeroGPU cannot be asked to stop
    stop.click(stop_measuring, None, None, cancels=[running] if deployment.has_zerogpu() else None, **QUIET)
    running.then(**offer)
    last: dict[str, Any] = {"fn": show_errors(last_report), "inputs": page.adapter, "outputs": outputs, **SHOWING}
    opened(**last).then(**offer)
    # what is measured of another adapter is kept, and not shown as this one's
    stopped = page.adapter.change(lambda: None, None, None, cancels=running, trigger_mode="multiple", **QUIET)
    stopped.then(**last).then(**offer)
