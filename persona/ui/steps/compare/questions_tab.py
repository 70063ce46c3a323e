"""Step 4, tab A list of questions: put to all voices in one go, with the table of their answers."""

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.compare import question_list
from persona.errors import PersonaError
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store import persona_folder
from persona.store.files import slugify
from persona.train import run_folder
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.model_queue import ModelTurn, model_work, wait_in_queue
from persona.ui.page import QUIET, Page, download_path, show_errors
from persona.ui.steps.compare.controls import SamplingSettings
from persona.ui.steps.compare.loading import report_loading
from persona.ui.widgets import format_duration

MAX_QUESTIONS = 200  # of one list: about half an hour on two cores
MAX_HELD_OUT = 20  # held-out questions that are offered


class AnswersView(NamedTuple):
    """The answers: the components, or the values for them; by default they stay as they are."""

    table: Any = gr.skip()
    status: Any = gr.skip()
    csv: Any = gr.skip()  # files, in the order of question_list.TABLE_FORMATS
    md: Any = gr.skip()
    html: Any = gr.skip()


def held_out_questions(slug: str, adapter_id: str) -> str:
    """Questions that the adapter was not trained on: its probes, and held-out pairs of its run. One per line."""
    questions = list(voice_picker.find_adapter(adapter_id).card.probes)
    ref = AdapterRef.parse_id(adapter_id)
    if ref.kind is RefKind.RUN:
        run = next((r for r in run_folder.list_runs(persona_folder.find_persona(slug)) if r.name == ref.run), None)
        rows = [row for row in run.rows() if row.held_out and not row.pair.history] if run else []
        questions += [row.pair.instruction for row in rows[:MAX_HELD_OUT]]
    return "\n".join(dict.fromkeys(" ".join(question.split()) for question in questions))


def answer_questions(
    text: str, slug: str, adapter_id: str, other_voices: Sequence[str], *settings: Any
) -> Iterator[AnswersView | ModelTurn]:
    """Stream the table of answers, then save it in every format. settings: the SamplingSettings.

    Every batch of questions takes a turn of its own, so that a list keeps nobody waiting for long.
    """
    questions = _read_questions(text)
    sampling_settings = SamplingSettings(*settings)
    sampling_settings.to_sampling()  # a value out of range is refused first
    for loading in report_loading(adapter_id, sampling_settings.quantization):
        yield AnswersView(status=loading)
    if voice_picker.is_remote(adapter_id):
        raise PersonaError("A list of questions needs an adapter on this page. Choose one here, not on another server.")
    labels = [
        voice_picker.voice_label(voice, adapter_id) for voice in voice_picker.column_order(adapter_id, other_voices)
    ]
    rows: list[question_list.AnswerRow] = []
    start = time.monotonic()

    def show_row(row: question_list.AnswerRow) -> AnswersView:
        rows.append(row)
        left = (time.monotonic() - start) / len(rows) * (len(questions) - len(rows))
        status = t("{n} of {all}, {time} left", n=len(rows), all=len(questions), time=format_duration(left))
        return AnswersView(answers_html(labels, rows), status)

    at_once = question_list.questions_at_once(len(labels))
    for first in range(0, len(questions), at_once):
        yield ModelTurn(
            ask_batch, (questions[first : first + at_once], slug, adapter_id, other_voices, *settings), show_row
        )
    name = f"{slugify(voice_picker.find_adapter(adapter_id).card.name)}-answers"
    csv, md, html = (download_path(name + suffix) for suffix in question_list.TABLE_FORMATS)
    for path in (csv, md, html):
        question_list.save_table(path, labels, rows)
    status = t("{n} questions, {m} voices", n=len(rows), m=len(labels))
    yield AnswersView(status=status, csv=str(csv), md=str(md), html=str(html))


def _read_questions(text: str) -> list[str]:
    questions = [line.strip() for line in text.splitlines() if line.strip()]
    if not questions:
        raise PersonaError("There are no questions yet. Write one per line, or use the held-out ones.")
    if len(questions) > MAX_QUESTIONS:
        raise PersonaError(
            "{n} questions are more than {most}. Leave some out, or use the command line.",
            n=f"{len(questions):,}",
            most=MAX_QUESTIONS,
        )
    return questions


def _batch_seconds(
    questions: Sequence[str], _: Any, __: Any, other_voices: Sequence[str] | None, *settings: Any
) -> float:
    return SamplingSettings(*settings).gpu_seconds(len(questions) * (1 + len(other_voices or ())))


@model_work(_batch_seconds)
def ask_batch(
    questions: Sequence[str], slug: str, adapter_id: str, other_voices: Sequence[str], *settings: Any
) -> Iterator[question_list.AnswerRow]:
    """The answers of all voices to these questions."""
    sampling_settings = SamplingSettings(*settings)
    comparison = voice_picker.open_comparison(
        slug, adapter_id, other_voices, sampling_settings.strength, sampling_settings.quantization
    )
    assert comparison.model is not None  # answer_questions refuses another server's voices
    yield from question_list.ask_questions(
        comparison.model, comparison.voices, questions, sampling_settings.to_sampling()
    )


def answers_html(labels: Sequence[str], rows: Sequence[question_list.AnswerRow]) -> str:
    """A row for each question, a column for each voice."""
    heads = [t("Question"), *map(localized, labels)]
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><td>{escape(row.question)}</td>"
        + "".join(
            f"<td>{escape(localized(r.error) or r.text.strip())}{'' if r.ended or r.error else ' …'}</td>"
            for r in row.replies
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class='answers'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def build(page: Page, other_voices: gr.Dropdown, settings: SamplingSettings) -> None:
    gr.Markdown(
        t(
            "All voices above answer every line, each as a separate conversation. The table of answers "
            "can be saved as a file."
        )
    )
    text = gr.Textbox(label=t("Questions, one per line"), lines=6, max_lines=14, elem_id="questions")
    with gr.Row():
        fill = gr.Button(t("Use the probes and held-out questions"), min_width=200)
        ask = gr.Button(t("Ask all"), variant="primary", min_width=120, elem_id="ask-all")
        stop = gr.Button(t("Stop"), variant="stop", min_width=90)
    status = gr.HTML(elem_classes="quiet status", elem_id="ask-status")
    table = gr.HTML(elem_id="answers")
    with gr.Row():
        csv, md, html = (
            gr.DownloadButton(t("Save as {form}", form=suffix[1:].upper()), size="sm", min_width=120,
                              elem_id=f"save-{suffix[1:]}")
            for suffix in question_list.TABLE_FORMATS
        )  # fmt: skip
    view = AnswersView(table, status, csv, md, html)
    fill.click(show_errors(held_out_questions), [page.slug, page.adapter], text, **QUIET)
    running = ask.click(
        wait_in_queue(answer_questions, view, status), [text, page.slug, page.adapter, other_voices, *settings], view,
        concurrency_limit=None, **QUIET,
    )  # fmt: skip
    stop.click(lambda: t("Stopped"), None, status, cancels=[running], **QUIET)
