"""Step 4, tab A list of questions: put to all voices in one go, with the table of their answers."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from persona.compare import question_list
from persona.errors import PersonaError
from persona.ui import voice_picker
from persona.ui.buttons import cancel_then, run_with_stop
from persona.ui.i18n import localized, t
from persona.ui.model_queue import ModelTurn, model_work, wait_in_queue
from persona.ui.page import QUIET, Page, download_path, show_errors
from persona.ui.steps.compare.controls import NO_UNSEEN_QUESTIONS, SamplingSettings
from persona.ui.steps.compare.loading import report_loading
from persona.ui.widgets import format_duration

MAX_QUESTIONS = 200  # of one list: about half an hour on two cores
MAX_OFFERED = 20  # probes and held-out questions


class AnswersView(NamedTuple):
    """The answers: the components, or the values for them; by default they stay as they are."""

    table: Any = gr.skip()
    status: Any = gr.skip()
    csv: Any = gr.skip()  # files, in the order of question_list.TABLE_FORMATS
    md: Any = gr.skip()
    html: Any = gr.skip()


def held_out_questions(adapter_id: str) -> str:
    """The first MAX_OFFERED questions that the adapter was not trained on, one per line."""
    questions = voice_picker.unseen_questions(adapter_id)[:MAX_OFFERED]
    if not questions:
        raise PersonaError(NO_UNSEEN_QUESTIONS)
    return "\n".join(questions)


def answer_questions(
    text: str, slug: str, adapter_id: str, other_voices: Sequence[str], *settings: Any
) -> Iterator[AnswersView | ModelTurn]:
    """Stream the table of answers, and save it in every format after each batch. settings: the SamplingSettings.

    Every batch of questions takes a turn of its own, so that a list keeps nobody waiting for long.
    """
    questions = _read_questions(text)
    sampling_settings = SamplingSettings(*settings)
    sampling_settings.to_sampling()  # a value out of range is refused first
    if voice_picker.is_remote(adapter_id):
        raise PersonaError("A list of questions needs an adapter on this page. Choose one here, not on another server.")
    labels = [
        voice_picker.voice_label(voice, adapter_id) for voice in voice_picker.column_order(adapter_id, other_voices)
    ]
    rows: list[question_list.AnswerRow] = []
    paths = [download_path(f"{voice_picker.file_stem(adapter_id)}-answers{s}") for s in question_list.TABLE_FORMATS]
    none_yet = t("{n} of {all} questions answered", n=0, all=len(questions))
    for text in report_loading(adapter_id, sampling_settings.quantization):
        yield empty_answers()._replace(table=answers_html(labels, [], questions), status=f"{text} {none_yet}")
    start = time.monotonic()

    def show_row(row: question_list.AnswerRow) -> AnswersView:
        rows.append(row)
        left = (time.monotonic() - start) / len(rows) * (len(questions) - len(rows))
        status = t("{n} of {all} questions answered, about {time} left", n=len(rows), all=len(questions),
                   time=format_duration(left))  # fmt: skip
        return AnswersView(answers_html(labels, rows, questions[len(rows) :]), status)

    at_once = question_list.questions_at_once(len(labels))
    batch_key = voice_picker.batch_key(adapter_id, sampling_settings.quantization)
    for first in range(0, len(questions), at_once):
        asked = questions[first : first + at_once]
        work = (asked, slug, adapter_id, other_voices, *settings)
        yield ModelTurn(ask_batch, work, show_row, batch_key=batch_key, rows=len(asked) * len(labels))
        for path in paths:
            question_list.save_table(path, labels, rows)
        csv, md, html = (gr.DownloadButton(value=str(path), interactive=True) for path in paths)
        yield AnswersView(csv=csv, md=md, html=html)
    yield AnswersView(status=t("{n} question(s), {m} voice(s)", n=len(rows), m=len(labels)))


def empty_answers() -> AnswersView:
    """No table and nothing to save."""
    return AnswersView("", "", *(gr.DownloadButton(value=None, interactive=False) for _ in question_list.TABLE_FORMATS))


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


def answers_html(labels: Sequence[str], rows: Sequence[question_list.AnswerRow], waiting: Sequence[str] = ()) -> str:
    """A row for each question, a column for each voice. waiting: the questions that have no answer yet."""
    table = [[t("Question"), *map(localized, labels)]]
    for row in rows:
        cells = [localized(r.error) or r.text.strip() + ("" if r.ended else " …") for r in row.replies]
        table.append([row.question, *cells])
    table += [[question, *["…"] * len(labels)] for question in waiting]
    return f"<div class='answers'>{question_list.render_table_html(table)}</div>"


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
        stop = gr.Button(t("Stop"), variant="stop", min_width=90, interactive=False, elem_id="stop-list")
    status = gr.HTML(elem_classes="quiet status", elem_id="ask-status")
    table = gr.HTML(elem_id="answers")
    with gr.Row():
        csv, md, html = (
            gr.DownloadButton(t("Save as {form}", form=suffix[1:].upper()), size="sm", min_width=120,
                              interactive=False, elem_id=f"save-{suffix[1:]}")
            for suffix in question_list.TABLE_FORMATS
        )  # fmt: skip
    view = AnswersView(table, status, csv, md, html)
    fill.click(show_errors(held_out_questions), page.adapter, text, **QUIET)
    running = run_with_stop(
        [ask.click], stop, wait_in_queue(answer_questions, view, status),
        [text, page.slug, page.adapter, other_voices, *settings], view, concurrency_limit=None,
    )  # fmt: skip
    cancel_then(stop.click, [running], lambda: t("Stopped. What was written so far is kept."), status)
    cancel_then(page.adapter.change, [running], empty_answers, view)
