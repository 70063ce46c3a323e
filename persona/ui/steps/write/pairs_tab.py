"""Write, tab Pairs: the table with search, order, filter and pages; every change of pairs and what follows from it."""

from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import InputError, PersonaError
from persona.store import edit_history
from persona.ui.i18n import localized, t
from persona.ui.notices import show_info, show_warning
from persona.ui.page import (
    ORDERED_EVENT,
    QUIET,
    SHOWING,
    Page,
    in_lane,
    open_current_persona,
    run_in_order,
    show_errors,
)
from persona.ui.steps.write import lint_tab, pairs_table, review_tab
from persona.ui.steps.write.lint_tab import LintUpdate
from persona.ui.steps.write.mask_preview import preview_mask, preview_typed
from persona.ui.steps.write.pairs_status import pairs_status_html, redo_button, refusal_text, undo_button
from persona.ui.steps.write.pairs_table import PAIR_FILTERS, ROWS_PER_PAGE, SORT_ORDERS, TableView, translate_choices
from persona.ui.widgets import FORWARD_CLICKS_JS
from persona.write import lint
from persona.write.lint.finding import Finding

PAINT_MARKS_JS = "(marks) => document.querySelector('#pairs')?.paint?.(marks)"
ANSWERED_JS = "(why) => document.querySelector('#pairs')?.answered?.(why)"
PREVIEWED_JS = "() => document.querySelector('#pairs')?.previewed?.()"


class TableUpdate(NamedTuple):
    """What a change of the pairs redraws: the components, or the values for them; by default they stay as they are."""

    table: Any = gr.skip()
    query: Any = gr.skip()
    row_filter: Any = gr.skip()
    page: Any = gr.skip()
    pair_number: Any = gr.skip()
    status: Any = gr.skip()
    undo: Any = gr.skip()
    redo: Any = gr.skip()
    refusal: Any = gr.skip()  # why the last edit of the table was not saved, "" if it was


@dataclass(frozen=True)
class PairsTab:
    """The components that every tab of the step redraws after it has changed pairs."""

    table: gr.HTML
    view: TableView  # search, order, filter; the page of the table, from 0, is a State
    findings: gr.State
    marks: gr.JSON
    status: gr.HTML
    undo: gr.Button
    redo: gr.Button
    refusal: gr.Textbox
    mask: gr.HTML
    lint_panel: gr.HTML  # of the tab Check

    def table_outputs(self, page: Page) -> TableUpdate:
        view = self.view
        return TableUpdate(
            self.table, view.query, view.row_filter, view.page, page.pair_number, self.status, self.undo, self.redo,
            self.refusal,
        )  # fmt: skip

    def lint_outputs(self) -> LintUpdate:
        return LintUpdate(self.findings, self.marks, self.lint_panel, self.view.row_filter)


def draw_table(slug: str, query: str, order: str, row_filter: str | None, *inputs: Any) -> TableUpdate:
    """draw_view of what the page shows. Search and filter are written only where the answer changes them.

    Another text may be searched for by the time that the answer comes.
    """
    drawn = draw_view(slug, query, order, row_filter, *inputs)
    kept_query = gr.skip() if drawn.query == (query or "") else drawn.query
    return drawn._replace(
        query=kept_query, row_filter=gr.skip() if drawn.row_filter == row_filter else drawn.row_filter
    )


def draw_view(
    slug: str, query: str, order: str, row_filter: str | None, page: int, pair_number: int, findings: list[Finding],
    focus: bool = False,
) -> TableUpdate:  # fmt: skip
    """The table by a TableView. pair_number: of the selected pair; focus: show it, whatever view that takes.

    A page that no longer exists becomes the last one.
    """
    if not slug:
        return TableUpdate("", "", PAIR_FILTERS[0], 0, 1, "", undo_button(""), redo_button(""))
    persona = open_current_persona(slug)
    items, bad_lines = persona.scan()
    view = TableView(query or "", order, row_filter or PAIR_FILTERS[0], int(page or 0))
    rows = pairs_table.select_rows(view, items, findings)
    if focus and pair_number - 1 not in rows:
        view = TableView(order=order)
        rows = pairs_table.select_rows(view, items, findings)
    page = rows.index(pair_number - 1) // ROWS_PER_PAGE if focus and pair_number - 1 in rows else view.page
    view = view._replace(page=max(0, min(page, (len(rows) - 1) // ROWS_PER_PAGE)))
    pair_number = max(1, min(pair_number, len(items)))
    undo, redo = edit_history.undo_redo_labels(persona)
    table = pairs_table.table_html(items, rows, view, pair_number, focus)
    return TableUpdate(
        f"<div data-persona='{escape(slug)}'>{table}</div>", view.query, view.row_filter, view.page,
        pair_number, pairs_status_html(items, bad_lines), undo_button(undo), redo_button(redo),
    )  # fmt: skip


def save_edit(
    slug: str, query: str, order: str, row_filter: str, page: int, findings: list[Finding], event: gr.EventData
) -> TableUpdate:
    """Carry out one action of the table; it is on disk when this returns, or the reason is in `refusal`.

    The action is of the persona whose table it was made in: another one may have been opened since.
    """
    data: dict[str, Any] = dict(event._data or {})
    edited = str(data.get("persona") or slug)
    try:
        update = _carry_out(edited, query, order, row_filter, page, findings, data)
    except PersonaError as e:
        show_warning(refusal := refusal_text(e))
        return TableUpdate(refusal=refusal)
    return (update if edited == slug else TableUpdate())._replace(refusal="")


def _carry_out(
    slug: str, query: str, order: str, row_filter: str, page: int, findings: list[Finding], data: dict[str, Any]
) -> TableUpdate:
    persona = open_current_persona(slug)
    action = data.get("do")
    if action == "fix":
        lint_tab.apply_fix(persona, findings, str(data.get("key")))
        pair_number = int(data.get("row") or 1)
    elif action == "ignore":
        lint.ignore_finding(persona, str(data.get("key")))
        return TableUpdate()
    else:
        pair_number = pairs_table.apply_edit(persona, data)
    if action == "edit" or data.get("shown"):  # the table shows it; drawn again, it would lose what is typed meanwhile
        undo, redo = edit_history.undo_redo_labels(persona)
        return TableUpdate(
            pair_number=pair_number,
            status=pairs_status_html(*persona.scan()),
            undo=undo_button(undo),
            redo=redo_button(redo),
        )
    focus = action in ("add", "starter", "duplicate", "split", "join")
    return draw_table(slug, query, order, row_filter, page, pair_number, findings, focus)


def turn_page(
    slug: str, query: str, order: str, row_filter: str, pair_number: int, findings: list[Finding], event: gr.EventData
) -> TableUpdate:
    """Another page of the table."""
    return draw_table(slug, query, order, row_filter, int(event.page), pair_number, findings)


def undo_edit(slug: str, *inputs: Any) -> TableUpdate:
    """inputs: those of draw_table."""
    show_info(t("Undone: {edit}", edit=localized(edit_history.undo(open_current_persona(slug)))), duration=4)
    return draw_table(slug, *inputs)


def redo_edit(slug: str, *inputs: Any) -> TableUpdate:
    show_info(t("Redone: {edit}", edit=localized(edit_history.redo(open_current_persona(slug)))), duration=4)
    return draw_table(slug, *inputs)


def reset_view() -> tuple[str, str, int, list[Finding]]:
    """Query, filter, page and findings for a persona that was just opened."""
    return "", PAIR_FILTERS[0], 0, []


def handle_finding_click(
    slug: str, order: str, pair_number: int, findings: list[Finding], event: gr.EventData
) -> list[Any]:
    """A click in the tab Check: show, review or fix the rows of a rule or of one finding, ignore it, or end ignoring.

    Returns a TableUpdate, the tabs and the section Review.
    """
    persona = open_current_persona(slug)
    key = str(event.key)
    if event.do == "show":
        matching = [f for f in findings if key in (f.rule, f.key)]
        rows = sorted(row for f in matching for row in f.pairs)
        rule = matching[0].rule if matching else PAIR_FILTERS[0]
        pair_number = rows[0] if rows else pair_number
        return [
            *draw_view(slug, "", order, rule, 0, pair_number, findings, focus=True),
            gr.Tabs(selected="pairs"),
            gr.skip(),
        ]
    if event.do == "review":
        review_tab.start_review(slug, key, findings)
        return [*TableUpdate(), *review_tab.open_review()]
    if event.do == "fix":
        lint_tab.apply_fix(persona, findings, key)
    elif event.do == "see-again":
        lint_tab.unignore_all(persona)
    else:
        lint.ignore_finding(persona, key)
    return [*draw_view(slug, "", order, PAIR_FILTERS[0], 0, pair_number, findings), gr.skip(), gr.skip()]


def selected_pair(event: gr.EventData) -> int:
    row = int(event.row)
    if row < 1:
        raise InputError("There is no such pair.")
    return row


def make_pairs_tab() -> PairsTab:
    """The components, made before the tabs because several of them redraw these."""
    view = TableView(
        query=gr.Textbox(label=t("Search"), placeholder=t("in questions, answers and sources"), scale=3, max_lines=1,
                         elem_id="search", render=False),
        order=gr.Dropdown(translate_choices(SORT_ORDERS), value=SORT_ORDERS[0], label=t("Order"), scale=2,
                          elem_id="order", render=False),
        row_filter=gr.Dropdown(translate_choices(PAIR_FILTERS), value=PAIR_FILTERS[0], label=t("Show"), scale=2,
                               elem_id="row-filter", render=False),
        page=gr.State(0),
    )  # fmt: skip
    buttons: dict[str, Any] = {"interactive": False, "size": "sm", "scale": 0, "render": False}
    return PairsTab(
        table=gr.HTML(elem_id="pairs", js_on_load=pairs_table.TABLE_JS, render=False),
        view=view,
        findings=gr.State([]),
        marks=gr.JSON(visible=False),
        status=gr.HTML(elem_classes="status", elem_id="pairs-status", render=False),
        undo=gr.Button(t("Undo"), elem_id="undo-edit", min_width=250, **buttons),
        redo=gr.Button(t("Redo"), elem_id="redo-edit", min_width=90, **buttons),
        refusal=gr.Textbox(visible=False),
        mask=gr.HTML(elem_id="write-mask", render=False),
        lint_panel=gr.HTML(elem_id="findings", js_on_load=FORWARD_CLICKS_JS, render=False),
    )


def build(tab: PairsTab) -> None:
    """The tab Pairs."""
    with gr.Row(elem_classes="slim"):
        for component in (tab.view.query, tab.view.order, tab.view.row_filter):
            component.render()
    tab.table.render()
    keys = t(
        "<kbd>Tab</kbd> next cell · <kbd>Ctrl</kbd>+<kbd>Enter</kbd> new pair · <kbd>Alt</kbd>+<kbd>↑</kbd> "
        "<kbd>↓</kbd> up, down · <kbd>Ctrl</kbd>+<kbd>Z</kbd> undo, outside a cell"
    )
    gr.HTML(f"<div class='quiet keys'>{keys}</div>")
    tab.mask.render()


def redraw_event(tab: PairsTab, page: Page) -> dict[str, Any]:
    """The event that redraws the pairs after something else has changed them."""
    inputs = [page.slug, *tab.view, page.pair_number, tab.findings]
    return {"fn": run_in_order(show_errors(draw_table)), "inputs": inputs, "outputs": tab.table_outputs(page),
            **SHOWING, **in_lane("pairs")}  # fmt: skip


def redraw_after(event: Any, tab: PairsTab, page: Page) -> Any:
    """Redraw the pairs, and what depends on them, once `event` has succeeded."""
    return follow_change(event.success(**redraw_event(tab, page)), tab, page)


def follow_change(event: Any, tab: PairsTab, page: Page) -> Any:
    """What comes after every change of pairs: the mask of the selected pair, the check, and its marks in the rows."""
    settings = page.render_settings
    return (
        event.then(show_errors(preview_mask), [page.slug, page.pair_number, *settings], tab.mask, **SHOWING)
        .then(show_errors(lint_tab.update_findings), _lint_inputs(tab, page, False), tab.lint_outputs(), **SHOWING)
        .then(None, tab.marks, None, js=PAINT_MARKS_JS, **SHOWING)
    )


def _lint_inputs(tab: PairsTab, page: Page, always: bool) -> list[Any]:
    return [page.slug, tab.findings, tab.view.row_filter, gr.State(always), *page.render_settings]


def connect_events(
    tab: PairsTab, page: Page, opened_review: list[Any], review: gr.HTML, check_again: gr.Button
) -> None:
    """opened_review: the tabs and the section in which `review` is."""
    settings, view, outputs = page.render_settings, tab.view, tab.table_outputs(page)
    # edits reach the disk in the order in which they were made
    edited = tab.table.input(
        run_in_order(show_errors(save_edit)), [page.slug, *view, tab.findings], outputs, **ORDERED_EVENT, **QUIET
    )
    edited.failure(None, None, None, js=ANSWERED_JS, trigger_mode="multiple", **QUIET)
    answered = edited.success(None, tab.refusal, None, js=ANSWERED_JS, trigger_mode="multiple", **QUIET)
    follow_change(answered, tab, page)
    typed = tab.table.key_up(  # pairs_table.js sends one at a time
        show_errors(preview_typed), [page.slug, *settings], tab.mask, trigger_mode="multiple", **QUIET
    )
    for end in (typed.success, typed.failure):
        end(None, None, None, js=PREVIEWED_JS, **QUIET)
    turned = tab.table.click(
        run_in_order(show_errors(turn_page)),
        [page.slug, view.query, view.order, view.row_filter, page.pair_number, tab.findings],
        outputs,
        **ORDERED_EVENT,
        **QUIET,
    )
    view_changed = gr.on([view.query.change, view.order.input, view.row_filter.input], **redraw_event(tab, page))
    for event in (turned, view_changed):
        event.then(None, tab.marks, None, js=PAINT_MARKS_JS, **QUIET)
    tab.table.select(run_in_order(selected_pair), None, page.pair_number, **ORDERED_EVENT, **QUIET).then(
        show_errors(preview_mask), [page.slug, page.pair_number, *settings], tab.mask, **SHOWING
    )
    _connect_undo(tab, page)
    _connect_check(tab, page, opened_review, review, check_again)


def _connect_undo(tab: PairsTab, page: Page) -> None:
    inputs = [page.slug, *tab.view, page.pair_number, tab.findings]
    for button, handler in ((tab.undo, undo_edit), (tab.redo, redo_edit)):
        clicked = button.click(
            run_in_order(show_errors(handler)), inputs, tab.table_outputs(page), **ORDERED_EVENT, **QUIET
        )
        follow_change(clicked, tab, page)


def _connect_check(
    tab: PairsTab, page: Page, opened_review: list[Any], review: gr.HTML, check_again: gr.Button
) -> None:
    clicked = tab.lint_panel.click(
        run_in_order(show_errors(handle_finding_click)),
        [page.slug, tab.view.order, page.pair_number, tab.findings],
        [*tab.table_outputs(page), *opened_review],
        **ORDERED_EVENT,
        **QUIET,
    )
    clicked.success(show_errors(review_tab.draw_review), page.slug, review, **QUIET)
    follow_change(clicked, tab, page)
    check_again.click(
        show_errors(lint_tab.update_findings),
        _lint_inputs(tab, page, True),
        tab.lint_outputs(),
        api_visibility="private",
        show_progress_on=tab.lint_panel,
    ).then(None, tab.marks, None, js=PAINT_MARKS_JS, **QUIET)
