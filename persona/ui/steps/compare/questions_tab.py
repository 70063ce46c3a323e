"""Step 4, a list of questions put to all voices in one go, and the table of their answers."""

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from persona.compare import question_list
from persona.errors import PersonaError
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store import persona_folder
from persona.store.files import slugify
from persona.train import run_folder
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.model_queue import wait_in_queue
from persona.ui.page import QUIET, Page, download_path, show_errors
from persona.ui.steps.compare.chat_tab import sampling_from_controls
from persona.ui.steps.compare.loading import report_loading
from persona.ui.widgets import format_duration

MAX_QUESTIONS = 200  # questions of one list: about half an hour on two cores


def held_out_questions(slug: str, chosen: str) -> str:
    """Questions that the adapter was never trained on: its probes, and the held-out pairs of its run."""
    found = list(voice_picker.find_adapter(chosen).card.probes)
    ref = AdapterRef.parse_id(chosen)
    if ref.kind is RefKind.RUN:
        run = next((r for r in run_folder.list_runs(persona_folder.find_persona(slug)) if r.name == ref.run), None)
        found += [r.pair.instruction for r in run.rows() if r.held_out and not r.pair.history][:20] if run else []
    return "\n".join(dict.fromkeys(" ".join(q.split()) for q in found))


def answer_questions(
    text: str, slug: str, chosen: str, others: Sequence[str], strength: float, *knobs: float
) -> Iterator[tuple]:
    """Yields (table as HTML, status, three files)."""
    asked = [line.strip() for line in text.splitlines() if line.strip()]
    if not asked:
        raise PersonaError("There are no questions yet. Write one per line, or use the held-out ones.")
    if len(asked) > MAX_QUESTIONS:
        raise PersonaError(
            "{n} questions are more than {most}. Leave some out, or use the command line.",
            n=f"{len(asked):,}",
            most=MAX_QUESTIONS,
        )
    for words in report_loading(chosen):
        yield gr.skip(), words, *[gr.skip()] * 3
    cast = voice_picker.open_comparison(slug, chosen, others, strength)
    if cast.model is None:
        raise PersonaError("A list of questions needs an adapter on this page. Choose one here, not on another server.")
    labels, rows, start = [v.label for v in cast.voices], [], time.monotonic()
    for row in question_list.ask_questions(cast.model, cast.speakers, asked, sampling_from_controls(knobs)):
        rows.append(row)
        left = (time.monotonic() - start) / len(rows) * (len(asked) - len(rows))
        status = t("{n} of {all}, {time} left", n=len(rows), all=len(asked), time=format_duration(left))
        yield answers_html(labels, rows), status, *[gr.skip()] * 3
    files = [download_path(f"{slugify(cast.card.name)}-answers{form}") for form in question_list.TABLE_FORMATS]
    for file in files:
        question_list.save_table(file, labels, rows)
    yield gr.skip(), t("{n} questions, {m} voices", n=len(rows), m=len(labels)), *map(str, files)


def answers_html(labels: Sequence[str], rows: Sequence[question_list.AnswerRow]) -> str:
    head = "".join(f"<th>{escape(x)}</th>" for x in [t("Question"), *map(localized, labels)])
    body = "".join(
        f"<tr><td>{escape(r.question)}</td>"
        + "".join(
            f"<td>{escape(localized(x.error) or x.text.strip())}{'' if x.ended or x.error else ' …'}</td>"
            for x in r.replies
        )
        + "</tr>"
        for r in rows
    )
    return f"<div class='answers'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def build(page: Page, others: gr.Dropdown, strength: gr.Slider, knobs: list[Any]) -> None:
    gr.Markdown(
        t(
            "All voices above answer every line, each as a separate conversation. The table of answers "
            "can be saved as a file."
        )
    )
    text = gr.Textbox(label=t("Questions, one per line"), lines=6, max_lines=14, elem_id="questions")
    with gr.Row():
        fill = gr.Button(t("Use the probes and held-out questions"), min_width=200)
        begin = gr.Button(t("Ask all"), variant="primary", min_width=120, elem_id="ask-all")
        halt = gr.Button(t("Stop"), variant="stop", min_width=90)
    status = gr.HTML(elem_classes="quiet status", elem_id="ask-status")
    table = gr.HTML(elem_id="answers")
    with gr.Row():
        files = [gr.DownloadButton(t("Save as {form}", form=form[1:].upper()), size="sm", min_width=120,
                                   elem_id=f"save-{form[1:]}") for form in question_list.TABLE_FORMATS]  # fmt: skip
    fill.click(show_errors(held_out_questions), [page.slug, page.adapter], text, **QUIET)
    output = [table, status, *files]
    running = begin.click(
        wait_in_queue(answer_questions, output, status), [text, page.slug, page.adapter, others, strength, *knobs],
        output, concurrency_limit=None, **QUIET,
    )  # fmt: skip
    halt.click(lambda: t("Stopped"), None, status, cancels=[running], **QUIET)
