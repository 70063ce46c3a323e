"""Write, tab Check, Review: pairs one by one, each kept, edited or dropped with one key."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from persona.errors import InputError, Message, PersonaError
from persona.models import zerogpu
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.ui.background import StoppableWork, Stopped
from persona.ui.buttons import run_with_stop
from persona.ui.i18n import localized, t
from persona.ui.notices import show_warning
from persona.ui.page import (
    ORDERED_EVENT,
    QUIET,
    SHOWING,
    Page,
    RenderSettings,
    open_current_persona,
    open_page_renderer,
    run_in_order,
    show_errors,
    visitor_key,
)
from persona.ui.steps.write import pairs_table
from persona.ui.steps.write.one_at_a_time import earlier_turns_html, read_scripts
from persona.ui.steps.write.pairs_status import refusal_text
from persona.ui.steps.write.pairs_table import PAIR_FILTERS, TableView, normalize_line_breaks, translate_choices
from persona.ui.widgets import format_duration, progress_bar_html
from persona.write import review
from persona.write.lint.finding import Finding
from persona.write.review import ReviewItem

REVIEW_JS = read_scripts("one_at_a_time.js", "review.js")
ANSWERED_JS = "() => document.querySelector('#review')?.answered?.()"


def open_review() -> list[Any]:
    """The tabs and, in one of them, this section, opened."""
    return [gr.Tabs(selected="check"), gr.Accordion(open=True)]


def draw_review(slug: str) -> str:
    """The first pair that is not decided; "" while no persona is open."""
    return _draw(open_current_persona(slug)) if slug else ""


def act(slug: str, event: gr.EventData) -> tuple[Any, str]:
    """Carry out an action of the tab. Returns its HTML, and why the action was refused, "" if it was not."""
    data: dict[str, Any] = dict(event._data or {})
    try:
        persona = open_current_persona(str(data.get("persona") or slug))
        shown, dropped = _carry_out(persona, data)
        return _draw(persona, shown, dropped), ""
    except PersonaError as e:
        show_warning(refusal := refusal_text(e))
        return gr.skip(), refusal


def _carry_out(persona: Persona, data: Mapping[str, Any]) -> tuple[int, bool]:
    """The id of the item to show now (0: the first undecided one), and whether among the dropped ones."""
    do, number, dropped = data.get("do"), int(data.get("item") or 0), bool(data.get("dropped"))
    if do in review.DECISIONS:
        items = review.read_review(persona)
        edited = next((_edited(i.pair, data) for i in items if i.id == number), None)
        review.decide(persona, number, do, edited)
        return _neighbour(items, number, 1, dropped), dropped
    if do == "undo":
        return review.undo_decision(persona).id, False
    if do in ("next", "previous"):
        step = 1 if do == "next" else -1
        return _neighbour(review.read_review(persona), number, step, dropped) or number, dropped
    if do in ("dropped", "waiting"):
        return 0, do == "dropped"
    if do == "empty":
        review.empty_review(persona)
        return 0, False
    raise InputError("The page sent something that is not an answer. Press Reload.")


def _edited(pair: Pair, data: Mapping[str, Any]) -> Pair:
    """The pair with the texts that the page sent; a browser's line breaks are no edit."""

    def text(old: str, new: Any) -> str:
        return new if isinstance(new, str) and new != normalize_line_breaks(old) else old

    question, answer = text(pair.instruction, data.get("question")), text(pair.output, data.get("answer"))
    return replace(pair, instruction=question, output=answer)


def _listed(items: Sequence[ReviewItem], dropped: bool) -> list[ReviewItem]:
    return [i for i in items if i.decision == ("drop" if dropped else "")]


def _neighbour(items: Sequence[ReviewItem], number: int, step: int, dropped: bool) -> int:
    """The id of the listed item after (1) or before (-1) this one, 0 for none."""
    ids = [i.id for i in _listed(items, dropped)]
    after = [i for i in ids if i > number] if step > 0 else [i for i in ids if i < number]
    return (after[0] if step > 0 else after[-1]) if after else 0


def start_review(slug: str, row_filter: str, findings: Sequence[Finding]) -> str:
    """Put the pairs of the set that a filter shows on the list. Raises InputError if there are none."""
    persona = open_current_persona(slug)
    pairs, _ = persona.scan()
    rows = pairs_table.select_rows(TableView(row_filter=row_filter), pairs, findings)
    if not rows:
        raise InputError("No such pair is there to review.")
    review.add_to_review(persona, [(pairs[n], _reason(n + 1, row_filter, findings)) for n in rows], in_set=True)
    return _draw(persona)


def _reason(row: int, row_filter: str, findings: Sequence[Finding]) -> str:
    """The first finding about the pair that the filter asks for."""
    named = (f for f in findings if row in f.pairs and row_filter in (f.rule, "With findings"))
    return next((f.message for f in named), "")


def _draw(persona: Persona, shown: int = 0, dropped: bool = False) -> str:
    items = review.read_review(persona)
    listed = _listed(items, dropped)
    if dropped and not listed:
        dropped, listed = False, _listed(items, False)
    item = next((i for i in listed if i.id == shown), listed[0] if listed else None)
    main = _item_html(item, listed, dropped) if item else _end_html(items)
    # with a new number, review.js forgets what the boxes held before
    return (
        f'<div class="interview review" data-persona="{escape(persona.slug)}" data-item="{item.id if item else 0}" '
        f'data-dropped="{"1" if dropped else ""}" data-drawing="{time.time_ns()}">'
        f"<section>{_progress_html(items, dropped)}{main}</section></div>"
    )


def _progress_html(items: Sequence[ReviewItem], dropped: bool) -> str:
    if not items:
        return ""
    kept, gone = (sum(i.decision == d for i in items) for d in review.DECISIONS)
    counts = {"done": kept + gone, "all": len(items), "kept": kept, "dropped": gone}
    words = t("{done} of {all} looked at · {kept} kept · {dropped} dropped", **counts)
    other = t("Back to the review") if dropped else t("See the dropped")
    button = f'<button class="tool" data-do="{"waiting" if dropped else "dropped"}">{other}</button>' if gone else ""
    return f"<div class='topic'>{words} {button}</div>{progress_bar_html((kept + gone) / len(items))}"


def _item_html(item: ReviewItem, listed: Sequence[ReviewItem], dropped: bool) -> str:
    pair = item.pair
    place = t("{n} of {all}", n=listed.index(item) + 1, all=len(listed))
    place += f" · {t('a draft, not among the pairs yet')}" if not item.in_set else ""
    place += f" · {escape(pair.source)}" if pair.source else ""
    why = f"<div class='hint'>{escape(localized(item.why))}</div>" if item.why else ""
    earlier = earlier_turns_html(pair.history)
    keys = t(
        "<kbd>K</kbd> keep · <kbd>E</kbd> edit · <kbd>D</kbd> drop · <kbd>J</kbd> <kbd>↓</kbd> next · <kbd>↑</kbd> "
        "previous · <kbd>U</kbd> undo; while editing <kbd>Ctrl</kbd>+<kbd>Enter</kbd> keep, <kbd>Esc</kbd> leave it"
    )
    return (
        f"<div class='topic'>{place}</div>{why}{earlier}"
        f'<textarea class="asked" rows="1" readonly aria-label="{t("Someone says")}" spellcheck="false">\n'
        f"{escape(pair.instruction)}</textarea>"
        f'<textarea class="reply" rows="3" readonly aria-label="{t("The persona answers")}" spellcheck="false">\n'
        f"{escape(pair.output)}</textarea>{_actions_html(dropped)}<div class='quiet keys'>{keys}</div>"
    )


def _actions_html(dropped: bool) -> str:
    buttons = [("keep", t("Keep after all") if dropped else t("Keep")), ("edit", t("Edit")), ("drop", t("Drop"))]
    buttons += [("previous", "←"), ("next", "→"), ("undo", t("Undo"))]
    names = {"previous": t("Previous pair"), "next": t("Next pair")}
    return "<div class='actions'>{}</div>".format(
        "".join(
            f'<button class="tool{" primary" if do == "keep" else ""}" data-do="{do}" '
            f'aria-label="{names.get(do, label)}"{" disabled" if dropped and do == "drop" else ""}>{label}</button>'
            for do, label in buttons
        )
    )


def _end_html(items: Sequence[ReviewItem]) -> str:
    if not items:
        empty = t("Nothing is under review. Choose above which pairs to look at, then press “Review these”.")
        return f"<div class='empty'><p>{empty}</p></div>"
    return (
        f"<div class='empty'><p>{t('Everything has been looked at.')}</p>"
        f'<button class="tool wide" data-do="undo">{t("Undo")}</button> '
        f'<button class="tool wide" data-do="empty">{t("Empty the list")}</button></div>'
    )


CONTEXT_SEARCH = StoppableWork(Message("A search of yours is running. Wait until it has ended, or stop it."))
# nats per token that a question saves; below, the answer hardly depends on it. With the embedded base, of 16 pairs of
# each example: 4 and 0 lie below, and with the answers exchanged 7 and 1. Larger bases: not verified
MAX_GAIN = 0.05


def find_lacking_context(slug: str, *inputs: Any) -> Iterator[tuple[Any, str]]:
    """Put the pairs whose answer the base finds as likely without the question into the review, the worst first.

    Yields the tab's HTML and the progress. inputs: the RenderSettings.
    """
    persona, settings, visitor = open_current_persona(slug), RenderSettings(*inputs), visitor_key()
    pairs, _ = persona.scan()

    def measure(report: Callable[[Any], None], is_stopped: Callable[[], bool]) -> dict[int, float]:
        from persona.compare.session import open_model  # with it comes torch
        from persona.judge import context_fit, scoring

        base, renderer = open_page_renderer(slug, settings)
        work = scoring.EvalWork(report, visitor)
        return context_fit.measure_context_fit(open_model(base), renderer, pairs, work)

    with CONTEXT_SEARCH.running(visitor, measure) as (steps, measured):
        yield gr.skip(), progress_bar_html(0) + t("Opening the model …")
        for step in steps:
            yield gr.skip(), progress_bar_html(step.share) + format_duration(step.seconds_left)
    try:
        gains = measured.result()
    except Stopped:
        yield gr.skip(), ""
        return
    low = sorted((gain, n) for n, gain in gains.items() if gain < MAX_GAIN)
    review.add_to_review(persona, [(pairs[n], _likely_without(gain)) for gain, n in low], in_set=True)
    note = t("{n} of {all} pairs may lack context; they are under review.", n=len(low), all=len(gains))
    yield _draw(persona), f"<div class='good'>{note}</div>"


def _likely_without(gain: float) -> Message:
    return Message(
        "To the base this answer is as likely without its question ({gain:+.2f} nats per token). Is something missing?",
        gain=gain,
    )


def stop_search() -> None:
    CONTEXT_SEARCH.stop(visitor_key())


def _build_search(page: Page, board: gr.HTML) -> None:
    """The search for pairs that lack context."""
    with gr.Row(elem_classes="slim"):
        search = gr.Button(t("Find answers that lack context"), size="sm", elem_id="context-search")
        stop = gr.Button(t("Stop"), size="sm", interactive=False, scale=0, min_width=100, elem_id="context-stop")
    progress = gr.HTML(elem_id="context-progress")
    handler = zerogpu.request_gpu(zerogpu.GRANTED_SECONDS)(show_errors(find_lacking_context))
    running = run_with_stop([search.click], stop, handler, [page.slug, *page.render_settings], [board, progress])
    running.failure(lambda: "", None, progress, **QUIET)
    stop.click(stop_search, None, None, **QUIET)


def build(page: Page, opened: Any, findings: gr.State) -> tuple[gr.HTML, Any]:
    """The section; opened: the event of opening it. Returns its HTML, and the event of a decision."""
    with gr.Row(elem_classes="slim"):
        which = gr.Dropdown(
            translate_choices(PAIR_FILTERS),
            value="Imported",
            label=t("Pairs to review"),
            scale=2,
            elem_id="review-filter",
        )
        start = gr.Button(t("Review these"), scale=1, min_width=150, elem_id="review-start")
    board = gr.HTML(elem_id="review", js_on_load=REVIEW_JS, render=False)
    _build_search(page, board)
    board.render()
    refusal = gr.Textbox(visible=False)
    opened(show_errors(draw_review), page.slug, board, **SHOWING)
    start.click(show_errors(start_review), [page.slug, which, findings], board, **QUIET)
    acted = board.input(run_in_order(show_errors(act)), page.slug, [board, refusal], **ORDERED_EVENT, **QUIET)
    acted.failure(None, None, None, js=ANSWERED_JS, **QUIET)
    return board, acted.success(None, None, None, js=ANSWERED_JS, **QUIET)
