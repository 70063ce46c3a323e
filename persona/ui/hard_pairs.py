"""The held-out pairs that a persona finds least likely: where to write next, by a click. In steps 3 and 4."""

import time
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from persona.errors import InputError
from persona.judge.report_model import HardRow
from persona.store.persona_folder import Persona
from persona.ui.i18n import t
from persona.ui.navigation import WRITE
from persona.ui.page import QUIET, Page, open_current_persona, show_errors
from persona.write import interview


def table_html(rows: Sequence[HardRow], persona: Persona, title: str) -> str:
    """persona: whose pairs they are, as they are now. The buttons need FORWARD_CLICKS_JS and connect()."""
    numbers = {(p.instruction, p.output, p.history): n for n, p in enumerate(persona.scan()[0], 1)}
    lines = []
    for row in rows:
        number = numbers.get((row.question, row.reference, row.history))
        cells = [row.question, row.reference, row.answer or "–", f"{row.nll:.2f}"]
        labels = {"rewrite": t("Rewrite pair {n}", n=number), "ask": t("Ask it in the interview")}
        tools = " ".join(
            f"<button class='tool' data-do='{do}' data-row='{number}' data-persona='{escape(persona.slug)}'>{label}"
            "</button>"
            for do, label in labels.items()
        )
        lines.append(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}<td>{tools if number else t('changed since')}"
            "</td></tr>"
        )
    heads = (t("Question"), t("The pair"), t("Its own answer"), t("nats per token"), "")
    about = t("Where to write next: rewrite such a pair, or answer its question once more in the interview. Its own "
              "answers are there once step Compare has measured whether it learned.")  # fmt: skip
    return (
        f"<div class='card' data-testid='hard'><h4>{escape(title)}</h4><p class='quiet'>{about}</p>"
        f"<div class='answers'><table><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>{''.join(lines)}</table>"
        "</div></div>"
    )


def on_click(slug: str, event: gr.EventData) -> list[Any]:
    """Open step 1 at the pair that was pressed, or its interview with the pair's question.

    Returns the steps, the shown step, the pair's number and Page.write_tab. Raises InputError for another persona's.
    """
    number, is_asked, owner = int(event._data["row"]), event._data["do"] == "ask", str(event._data["persona"])
    if owner != slug:
        raise InputError("This pair is one of {persona}: open that persona first.", persona=f"{owner:.80}")
    if is_asked:
        persona = open_current_persona(slug)
        pairs = persona.scan()[0]
        if not 1 <= number <= len(pairs):
            raise InputError("This pair is no longer there. Reload the page.")
        interview.ask_next(persona, pairs[number - 1].instruction, pairs[number - 1].history)
    tab = f"{'interview' if is_asked else 'pairs'} {time.time_ns()}"  # of another value each time, which is a change
    return [gr.Walkthrough(selected=WRITE), WRITE, number, tab]


def connect(page: Page, html: gr.HTML) -> None:
    """html: where table_html is shown."""
    html.click(
        show_errors(on_click), page.slug, [page.steps, page.shown_step, page.pair_number, page.write_tab], **QUIET
    )
