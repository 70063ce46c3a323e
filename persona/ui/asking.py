"""Step 4, a list of questions put to all voices in one go, and the table of their answers."""

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from persona import questions, runs
from persona.errors import PersonaError
from persona.files import slug as slugify
from persona.ui import voices
from persona.ui.common import QUIET, Page, duration, shown, to_save
from persona.ui.line import in_line
from persona.ui.opening import opening
from persona.ui.talking import sampling_of
from persona.ui.words import localized, t

MOST = 200  # questions of one list: about half an hour on two cores


def held_out(slug: str, chosen: str) -> str:
    """Questions that the adapter was never trained on: its probes, and the held-out pairs of its run."""
    found = list(voices.find(chosen).card.probes)
    if chosen.startswith("run/"):
        name = chosen.split("/")[2].partition("@")[0]
        run = next((r for r in runs.list_runs(voices.folder.by_slug(slug)) if r.name == name), None)
        found += [r.pair.instruction for r in run.rows() if r.held_out and not r.pair.history][:20] if run else []
    return "\n".join(dict.fromkeys(" ".join(q.split()) for q in found))


def ask(text: str, slug: str, chosen: str, others: Sequence[str], strength: float, *knobs: float) -> Iterator[tuple]:
    """Yields (table as HTML, status, three files)."""
    asked = [line.strip() for line in text.splitlines() if line.strip()]
    if not asked:
        raise PersonaError("There is no question yet. Write one a line, or take the held-out ones.")
    if len(asked) > MOST:
        raise PersonaError(
            "{n} questions are more than {most}. Leave some out, or use the command line.",
            n=f"{len(asked):,}",
            most=MOST,
        )
    for words in opening(chosen):
        yield gr.skip(), words, *[gr.skip()] * 3
    cast = voices.cast(slug, chosen, others, strength)
    if cast.model is None:
        raise PersonaError("A list is asked of voices of this page. Choose an adapter that is here.")
    labels, rows, start = [v.label for v in cast.voices], [], time.monotonic()
    for row in questions.ask_all(cast.model, cast.speakers, asked, sampling_of(knobs)):
        rows.append(row)
        left = (time.monotonic() - start) / len(rows) * (len(asked) - len(rows))
        status = t("{n} of {all}, {time} left", n=len(rows), all=len(asked), time=duration(left))
        yield table_html(labels, rows), status, *[gr.skip()] * 3
    files = [to_save(f"{slugify(cast.card.name)}-answers{form}") for form in questions.FORMS]
    for file in files:
        questions.save(file, labels, rows)
    yield gr.skip(), t("{n} questions, {m} voices", n=len(rows), m=len(labels)), *map(str, files)


def table_html(labels: Sequence[str], rows: Sequence[questions.Asked]) -> str:
    head = "".join(f"<th>{escape(x)}</th>" for x in [t("Question"), *map(voices.spoken, labels)])
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
        t("All voices above answer every line, each a conversation of its own. Save the table, print it, show it.")
    )
    text = gr.Textbox(label=t("Questions, one a line"), lines=6, max_lines=14, elem_id="questions")
    with gr.Row():
        fill = gr.Button(t("Take the probes and held-out questions"), min_width=200)
        begin = gr.Button(t("Ask all"), variant="primary", min_width=120, elem_id="ask-all")
        halt = gr.Button(t("Stop"), variant="stop", min_width=90)
    status = gr.HTML(elem_classes="quiet status", elem_id="ask-status")
    table = gr.HTML(elem_id="answers")
    with gr.Row():
        files = [gr.DownloadButton(t("Save as {form}", form=form[1:].upper()), size="sm", min_width=120,
                                   elem_id=f"save-{form[1:]}") for form in questions.FORMS]  # fmt: skip
    fill.click(shown(held_out), [page.slug, page.adapter], text, **QUIET)
    output = [table, status, *files]
    running = begin.click(
        in_line(ask, output, status), [text, page.slug, page.adapter, others, strength, *knobs],
        output, concurrency_limit=None, **QUIET,
    )  # fmt: skip
    halt.click(lambda: t("Stopped"), None, status, cancels=[running], **QUIET)
