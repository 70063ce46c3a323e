"""Write, tab Interview: the page asks, the author answers as the persona; every answer is a pair at once."""

import time
from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from persona.errors import InputError, PersonaError
from persona.store.persona_folder import PersonaCard
from persona.ui.i18n import localized, t
from persona.ui.notices import show_warning
from persona.ui.page import ORDERED_EVENT, QUIET, SHOWING, Page, open_current_persona, run_in_order, show_errors
from persona.ui.steps.write.one_at_a_time import earlier_turns_html, read_scripts
from persona.ui.steps.write.pairs_status import refusal_text
from persona.ui.widgets import bars_html
from persona.write import interview
from persona.write.interview import Interview, Question
from persona.write.lint.summary import TARGET_COUNTS, count_kinds

INTERVIEW_JS = read_scripts("one_at_a_time.js", "interview.js")
ANSWERED_JS = "(why) => document.querySelector('#interview')?.answered?.(why)"
KEPT_JS = "() => document.querySelector('#interview')?.kept?.()"
TOPIC_TITLES = {
    "identity": "Who you are", "past": "The past", "family": "Family and friends", "home": "Home", "work": "Work",
    "day": "The day", "taste": "Tastes", "opinion": "Opinions", "feeling": "Feelings",
    "beyond": "Beyond the persona's world", "smalltalk": "Small talk", "pressure": "Under pressure",
    "request": "Requests", "greeting": "Greetings", "farewell": "Farewells",
}  # fmt: skip
ACTIONS = {
    "answer": interview.answer_question, "skip": interview.skip_question, "more": interview.stay_on_topic,
}  # fmt: skip


def draw_interview(slug: str) -> str:
    """The question to answer, and the coverage beside it; "" while no persona is open."""
    if not slug:
        return ""
    persona = open_current_persona(slug)
    return interview_html(slug, interview.open_interview(persona), persona.card(), count_kinds(persona.scan()[0]))


def act(slug: str, event: gr.EventData) -> tuple[Any, str]:
    """Carry out an action of the tab: (the tab's HTML, why it was refused).

    It belongs to the persona whose question it answers: another one may have been opened since.
    """
    data: dict[str, Any] = dict(event._data or {})
    try:
        _carry_out(str(data.get("persona") or slug), data)
    except PersonaError as e:
        show_warning(refusal := refusal_text(e))
        return gr.skip(), refusal
    return draw_interview(slug), ""


def _carry_out(slug: str, data: Mapping[str, Any]) -> None:
    persona, do, number = open_current_persona(slug), data.get("do"), int(data.get("number") or 0)
    if do == "back":
        interview.go_back(persona, number)
    elif do == "again":
        interview.ask_skipped_again(persona, number)
    elif do in ACTIONS:
        ACTIONS[do](persona, number, str(data.get("answer") or ""), str(data.get("question") or ""))
    else:
        raise InputError("The page sent something that is not an answer. Press Reload.")


def keep_draft(slug: str, event: gr.EventData) -> None:
    """Write what was typed to the disk, before the page says that it is kept."""
    data: dict[str, Any] = dict(event._data or {})
    persona = open_current_persona(str(data.get("persona") or slug))
    interview.save_draft(persona, int(data["number"]), str(data["answer"]), str(data["question"]))


def interview_html(slug: str, state: Interview, card: PersonaCard, kinds: Mapping[str, int]) -> str:
    answered = sum(q.answered for q in state.done)
    rows = [(localized(kind), min(1.0, kinds[kind] / n), f"{kinds[kind]} / {n}") for kind, n in TARGET_COUNTS.items()]
    count = t("{n} answer(s) so far", n=answered)
    main = _question_html(state.question, state, card) if state.question else _end_html(state)
    # with a new number, interview.js forgets what the boxes held before
    return (
        f'<div class="interview" data-persona="{escape(slug)}" data-number="{state.number}" '
        f'data-drawing="{time.time_ns()}">{main}<aside><b>{count}</b>{bars_html(rows, 1)}</aside></div>'
    )


def _question_html(question: Question, state: Interview, card: PersonaCard) -> str:
    topic = t(TOPIC_TITLES[question.topic]) if question.topic in TOPIC_TITLES else t("Not answered yet")
    if question.history:
        topic = f"{topic} · {t('follow-up')}"
    earlier = earlier_turns_html(question.history)
    keys = t(
        "<kbd>Enter</kbd> save and go on · <kbd>Shift</kbd>+<kbd>Enter</kbd> new line · <kbd>Alt</kbd>+<kbd>↓</kbd> "
        "skip · <kbd>Alt</kbd>+<kbd>↑</kbd> back to the last answer · <kbd>Alt</kbd>+<kbd>M</kbd> more like this"
    )
    return (
        f"<section><div class='topic'>{topic}</div>{earlier}"
        f'<textarea class="asked" rows="1" aria-label="{t("Question, which can be reworded")}" spellcheck="false">\n'
        f"{escape(question.text)}</textarea>"
        f'<textarea class="reply" rows="3" aria-label="{t("Answer")}" enterkeyhint="send" spellcheck="false" '
        f'placeholder="{escape(t("Answer as {name} would", name=card.name))}">\n{escape(state.draft)}</textarea>'
        f"{_actions_html(question, state)}<div class='quiet keys'>{keys}</div></section>"
    )


def _actions_html(question: Question, state: Interview) -> str:
    staying = str(bool(state.topic) and state.topic == question.topic).lower()
    kept = t("Draft kept.")
    return (
        f'<div class="actions"><button class="tool primary" data-do="answer">{t("Save and go on")}</button>'
        f'<button class="tool" data-do="skip">{t("Skip")}</button>'
        f'<button class="tool" data-do="back"{"" if state.done else " disabled"}>{t("Back")}</button>'
        f'<button class="tool" data-do="more" aria-pressed="{staying}"{"" if question.topic else " disabled"}>'
        f"{t('More like this')}</button>"
        f'<span class="saving" role="status" data-typing="{t("Typing …")}" data-kept="{kept}" '
        f'data-saving="{t("Saving …")}" data-refused="{t("not saved.")}">{kept if state.draft else ""}</span></div>'
    )


def _end_html(state: Interview) -> str:
    buttons = ""
    if skipped := sum(not q.answered for q in state.done):
        label = t("Ask the {n} skipped again", n=skipped)
        buttons = f'<button class="tool wide" data-do="again">{label}</button> '
    if state.done:
        buttons += f'<button class="tool wide" data-do="back">{t("Back")}</button>'
    text = t("Every question of the interview has been asked.")
    return f"<section class='empty'><p>{text}</p>{buttons}</section>"


def build(page: Page, tab: gr.Tab) -> tuple[gr.HTML, Any]:
    """The tab. Returns its HTML, and the event of an answer that was saved or taken back."""
    gr.Markdown(t("The page asks, you answer as the persona. Each answer is saved as a pair."), elem_classes="quiet")
    board = gr.HTML(elem_id="interview", js_on_load=INTERVIEW_JS)
    refusal = gr.Textbox(visible=False)
    tab.select(show_errors(draw_interview), page.slug, board, **SHOWING)
    acted = board.input(run_in_order(show_errors(act)), page.slug, [board, refusal], **ORDERED_EVENT, **QUIET)
    acted.failure(None, None, None, js=ANSWERED_JS, **QUIET)
    answered = acted.success(None, refusal, None, js=ANSWERED_JS, **QUIET)
    kept = board.key_up(run_in_order(show_errors(keep_draft)), page.slug, None, **ORDERED_EVENT, **QUIET)
    kept.success(None, None, None, js=KEPT_JS, **QUIET)
    kept.failure(None, None, None, js=ANSWERED_JS, **QUIET)
    return board, answered
