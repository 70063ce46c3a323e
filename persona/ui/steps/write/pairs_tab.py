"""Write, tab Pairs: the table with search, order, pages and undo, what was found in it, and the mask of one pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from persona.errors import InputError, PersonaError
from persona.store import edit_history, pairs
from persona.store.pairs import Pair
from persona.ui.i18n import localized, t
from persona.ui.page import ORDERED_EVENT, QUIET, Page, open_current_persona, renderer_for, run_in_order, show_errors
from persona.ui.steps.write import lint_tab, pairs_table
from persona.ui.steps.write.pairs_table import PAIR_FILTERS, ROWS_PER_PAGE, SORT_ORDERS, TableView
from persona.ui.widgets import FORWARD_CLICKS_JS, mask_html
from persona.write import lint
from persona.write.lint import summary
from persona.write.lint.finding import Finding

PAINT_MARKS_JS = "(marks) => document.querySelector('#pairs')?.paint?.(marks)"
SAVED_JS = "() => document.querySelector('#pairs')?.saved?.()"
REFUSED_JS = "() => document.querySelector('#pairs')?.refused?.()"


@dataclass(frozen=True)
class PairsTab:
    """The components that every tab of the step redraws after it has changed pairs."""

    grid: gr.HTML
    query: gr.Textbox
    order: gr.Dropdown
    only: gr.Dropdown
    number: gr.State  # page of the table, from 0
    findings: gr.State
    marks: gr.JSON
    status: gr.HTML
    undo: gr.Button
    redo: gr.Button
    mask: gr.HTML
    panel: gr.HTML  # of the tab Check

    def view(self) -> list[Any]:
        return [self.query, self.order, self.only, self.number]

    def drawn(self, page: Page) -> list[Any]:
        """What `draw` returns."""
        return [self.grid, self.query, self.only, self.number, page.pair, self.status, self.undo, self.redo]


def draw_table(
    slug: str, query: str, order: str, only: str | None, number: int, chosen: int, findings: list[Finding],
    focus: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """The table as the visitor wants to see it. chosen: number of the pair looked at; focus: show it whatever it takes.

    A page that is not there any more becomes the last one.
    """
    if not slug:
        return "", "", PAIR_FILTERS[0], 0, 1, "", _undo_button(""), _redo_button("")
    persona = open_current_persona(slug)
    items, bad = persona.scan()
    view = TableView(query or "", order, only or PAIR_FILTERS[0], int(number or 0))
    rows = pairs_table.select_rows(view, items, findings)
    if focus and chosen - 1 not in rows:
        view = TableView(order=order)
        rows = pairs_table.select_rows(view, items, findings)
    page_no = rows.index(chosen - 1) // ROWS_PER_PAGE if focus and chosen - 1 in rows else view.page
    view = TableView(view.query, order, view.only, max(0, min(page_no, (len(rows) - 1) // ROWS_PER_PAGE)))
    chosen = max(1, min(chosen, len(items)))
    back, forth = edit_history.undo_redo_labels(persona)
    return (
        pairs_table.table_html(items, rows, view, chosen, focus), view.query, view.only, view.page, chosen,
        pairs_status_html(items) + rejected_html(bad), _undo_button(back), _redo_button(forth),
    )  # fmt: skip


def _undo_button(label: str) -> Any:
    return _edit_button(t("Undo: {edit}", edit=localized(label)) if label else t("Undo"), label)


def _redo_button(label: str) -> Any:
    return _edit_button(t("Redo: {edit}", edit=localized(label)) if label else t("Redo"), label)


def _edit_button(text: str, label: str) -> Any:
    return gr.Button(text if len(text) <= 34 else text[:33] + "…", interactive=bool(label))


def pairs_status_html(items: Sequence[Pair]) -> str:
    """How many pairs there are, whether that is enough, and what is unfinished."""
    count = len(items)
    if not count:
        return f'<div class="hint">{t("No pairs yet.")}</div>'
    missing = pairs.find_unfinished(items)
    # table.js says that it saves, in the words that are given here
    saved = t("saved.")
    state = f'<span class="saving" role="status" data-saving="{t("Saving …")}" data-saved="{saved}">{saved}</span>'
    lines = [t("<b>{n} pairs</b>, {state}", n=f"{count:,}", state=state)]
    if count == 1:
        lines = [t("<b>1 pair</b>, {state}", state=state)]
    if missing:
        rows = ", ".join(f"#{row}: {escape(localized(why))}" for row, why in missing[:5])
        words = t("Not ready to train: {rows}.", rows=rows)
        if len(missing) > 5:
            words = t("Not ready to train: {rows} and {n} more.", rows=rows, n=len(missing) - 5)
        lines.append(f'<div class="problem">{words}</div>')
    if count < 100:
        enough = t("A persona begins to show from about 100 pairs; 200 to 500 are better.")
        lines.append(f'<div class="hint">{enough}</div>')
    return " ".join(lines)


def rejected_html(bad: list[pairs.BadLine]) -> str:
    """Lines of pairs.jsonl that are no pairs: shown, and kept aside on the next save."""
    if not bad:
        return ""
    told = [t("pairs.jsonl line {line}: {why}", line=b.line, why=escape(localized(b.why))) for b in bad[:5]]
    more = [t("… and {n} more", n=len(bad) - 5)] if len(bad) > 5 else []
    lines = "".join(f'<div class="problem">{line}</div>' for line in told + more)
    aside = t("The next save moves such lines to pairs.rejected.txt; nothing is lost.")
    return f"{lines}<div class='quiet'>{aside}</div>"


def save_edit(
    slug: str, query: str, order: str, only: str, number: int, findings: list[Finding], event: gr.EventData
) -> tuple[Any, ...]:
    """One thing done in the table: saved first, then shown."""
    persona = open_current_persona(slug)
    done: dict[str, Any] = dict(event._data or {})
    do = done.get("do")
    if do == "fix":
        lint_tab.apply_fix(persona, findings, str(done.get("key")))
        chosen = int(done.get("row") or 1)
    elif do == "ignore":
        lint.ignore_finding(persona, str(done.get("key")))
        return (gr.skip(),) * 8
    else:
        chosen = pairs_table.apply_edit(persona, done)
    if do == "edit":  # the cells show it already: drawing them anew would take the cursor away
        items, bad = persona.scan()
        back, forth = edit_history.undo_redo_labels(persona)
        status = pairs_status_html(items) + rejected_html(bad)
        return gr.skip(), gr.skip(), gr.skip(), gr.skip(), chosen, status, _undo_button(back), _redo_button(forth)
    return draw_table(
        slug, query, order, only, number, chosen, findings, focus=do in ("add", "duplicate", "split", "join")
    )


def turn_page(
    slug: str, query: str, order: str, only: str, chosen: int, findings: list[Finding], event: gr.EventData
) -> tuple[Any, ...]:
    """Another page of the table."""
    return draw_table(slug, query, order, only, int(event.page), chosen, findings)


def undo_edit(slug: str, *view: Any) -> tuple[Any, ...]:
    gr.Info(escape(t("Undone: {edit}", edit=localized(edit_history.undo(open_current_persona(slug))))), duration=4)
    return draw_table(slug, *view)


def redo_edit(slug: str, *view: Any) -> tuple[Any, ...]:
    gr.Info(escape(t("Redone: {edit}", edit=localized(edit_history.redo(open_current_persona(slug))))), duration=4)
    return draw_table(slug, *view)


def reset_view() -> tuple[str, str, int, list[Finding]]:
    """Search, filter, page and findings of a persona that was just opened."""
    return "", PAIR_FILTERS[0], 0, []


def update_findings(slug: str, findings: list[Finding], only: str, always: bool, *settings: Any) -> tuple[Any, ...]:
    """(findings, marks for the rows, the panel, choices of the filter). A large set is checked when asked.

    only: the filter in use; it stays among the choices when its last finding is mended.
    """
    if not slug:
        return [], {}, "", gr.Dropdown(_translated_choices(PAIR_FILTERS))
    persona = open_current_persona(slug)
    items, _ = persona.scan()
    if len(items) > lint_tab.AUTO_LINT_MAX_PAIRS and not always:
        ask = t("{n} pairs: press Check again.", n=f"{len(items):,}")
        return findings, gr.skip(), f"<div class='hint'>{ask}</div>", gr.skip()
    findings = lint_tab.lint_persona(persona, settings)
    panel = lint_tab.findings_html(
        items, findings, summary.summarize_dataset(items, persona.card(), findings), len(lint.read_ignored(persona))
    )
    rules = sorted({f.rule for f in findings} | {only or PAIR_FILTERS[0]} - {*PAIR_FILTERS})
    return (
        findings,
        lint_tab.marks_html(findings),
        panel,
        gr.Dropdown([*_translated_choices(PAIR_FILTERS), *((lint_tab.rule_title(rule), rule) for rule in rules)]),
    )


def _translated_choices(names: Sequence[str]) -> list[tuple[str, str]]:
    """Kinds or orders, to choose from."""
    return [(t(name), name) for name in names]


def handle_finding_click(
    slug: str, order: str, chosen: int, findings: list[Finding], event: gr.EventData
) -> tuple[Any, ...]:
    """From the tab Check: the rows of a rule or of one finding, in the table; or a fix; or ignoring it."""
    persona = open_current_persona(slug)
    key = str(event.key)
    if event.do == "show":
        found = sorted(row for f in findings if key in (f.rule, f.key) for row in f.pairs)
        rule = next((f.rule for f in findings if key in (f.rule, f.key)), PAIR_FILTERS[0])
        first = found[0] if found else chosen
        return *draw_table(slug, "", order, rule, 0, first, findings, focus=True), gr.Tabs(selected="pairs")
    if event.do == "fix":
        lint_tab.apply_fix(persona, findings, key)
    elif event.do == "see-again":
        lint_tab.unignore_all(persona)
    else:
        lint.ignore_finding(persona, key)
    return *draw_table(slug, "", order, PAIR_FILTERS[0], 0, chosen, findings), gr.skip()


def preview_mask(slug: str, number: int, *settings: Any) -> str:
    """The chosen pair as the model will see it; settings: base, template, max_length, learn_history."""
    items = open_current_persona(slug).scan()[0] if slug else []
    if not items:
        return ""
    number = min(max(1, number), len(items))
    return mask_card(slug, items[number - 1], number, settings)


def mask_card(slug: str, pair: Pair, number: int, settings: Sequence[Any]) -> str:
    try:
        _, renderer = renderer_for(slug, *settings)
    except PersonaError as e:
        return f"<div class='hint'>{escape(localized(e.message))}</div>"
    head = f"<div class='quiet'>{t('Pair {n}, as the model sees it', n=number)}</div>"
    return f"<div class='card'>{head}{mask_html(renderer, renderer.render_example(pair))}</div>"


def preview_typed(
    slug: str, base: str, template: str, max_length: float, learn_history: bool, event: gr.EventData
) -> str:
    """The mask of what is typed so far, before it is saved."""
    texts = {str(k): str(v) for k, v in dict(event.texts).items()}
    turns = sum(k.startswith("history.") for k in texts) // 2
    history = tuple((texts[f"history.{n}.0"], texts[f"history.{n}.1"]) for n in range(turns))
    return mask_card(slug, Pair(texts["instruction"], texts["output"], history), int(event.row),
                   (base, template, max_length, learn_history))  # fmt: skip


def selected_pair(event: gr.EventData) -> int:
    row = int(event.row)
    if row < 1:
        raise InputError("There is no such pair.")
    return row


def make_pairs_tab() -> PairsTab:
    """Everything above, made before the tabs because several of them redraw it."""
    return PairsTab(
        grid=gr.HTML(elem_id="pairs", js_on_load=pairs_table.TABLE_JS, render=False),
        query=gr.Textbox(
            label=t("Search"),
            placeholder=t("in questions, answers and sources"),
            scale=3,
            max_lines=1,
            elem_id="search",
            render=False,
        ),
        order=gr.Dropdown(
            _translated_choices(SORT_ORDERS),
            value=SORT_ORDERS[0],
            label=t("Order"),
            scale=2,
            elem_id="order",
            render=False,
        ),
        only=gr.Dropdown(
            _translated_choices(PAIR_FILTERS),
            value=PAIR_FILTERS[0],
            label=t("Show"),
            scale=2,
            elem_id="only",
            render=False,
        ),
        number=gr.State(0),
        findings=gr.State([]),
        marks=gr.JSON(visible=False),
        status=gr.HTML(elem_classes="status", elem_id="pairs-status", render=False),
        undo=gr.Button(
            t("Undo"), interactive=False, elem_id="undo-edit", size="sm", scale=0, min_width=250, render=False
        ),
        redo=gr.Button(
            t("Redo"), interactive=False, elem_id="redo-edit", size="sm", scale=0, min_width=90, render=False
        ),
        mask=gr.HTML(elem_id="write-mask", render=False),
        panel=gr.HTML(elem_id="findings", js_on_load=FORWARD_CLICKS_JS, render=False),
    )


def build(desk: PairsTab) -> None:
    """The tab Pairs."""
    with gr.Row(elem_classes="slim"):
        for part in (desk.query, desk.order, desk.only):
            part.render()
    desk.grid.render()
    keys = t(
        "<kbd>Tab</kbd> next cell · <kbd>Ctrl</kbd>+<kbd>Enter</kbd> new pair · <kbd>Alt</kbd>+<kbd>↑</kbd> "
        "<kbd>↓</kbd> up, down · <kbd>Ctrl</kbd>+<kbd>Z</kbd> undo, outside a cell"
    )
    gr.HTML(f"<div class='quiet keys'>{keys}</div>")
    desk.mask.render()


def redraw_event(desk: PairsTab, page: Page) -> dict[str, Any]:
    """The event that shows the pairs anew after something else has changed them."""
    return {"fn": show_errors(draw_table), "inputs": [page.slug, *desk.view(), page.pair, desk.findings],
            "outputs": desk.drawn(page), **QUIET}  # fmt: skip


def follow_change(event: Any, desk: PairsTab, page: Page) -> Any:
    """What comes after every change: the mask of the chosen pair, the check, and its marks in the rows."""
    settings = [page.base, page.template, page.max_length, page.learn_history]
    last: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
    return (
        event.then(show_errors(preview_mask), [page.slug, page.pair, *settings], desk.mask, **last)
        .then(show_errors(update_findings), [page.slug, desk.findings, desk.only, gr.State(False), *settings],
              [desk.findings, desk.marks, desk.panel, desk.only], **last)
        .then(None, desk.marks, None, js=PAINT_MARKS_JS, **last)
    )  # fmt: skip


def connect_events(desk: PairsTab, page: Page, tabs: gr.Tabs, again: gr.Button) -> None:
    settings = [page.base, page.template, page.max_length, page.learn_history]
    drawn = desk.drawn(page)
    # edits reach the disk in the order in which they were made
    done = desk.grid.input(
        run_in_order(show_errors(save_edit)), [page.slug, *desk.view(), desk.findings], drawn, **ORDERED_EVENT, **QUIET
    )
    done.failure(None, None, None, js=REFUSED_JS, trigger_mode="multiple", **QUIET)
    follow_change(done.success(None, None, None, js=SAVED_JS, trigger_mode="multiple", **QUIET), desk, page)
    desk.grid.key_up(show_errors(preview_typed), [page.slug, *settings], desk.mask, trigger_mode="always_last", **QUIET)
    turned = desk.grid.click(
        show_errors(turn_page), [page.slug, desk.query, desk.order, desk.only, page.pair, desk.findings], drawn, **QUIET
    )
    seen = gr.on(
        [desk.query.change, desk.order.input, desk.only.input], trigger_mode="always_last", **redraw_event(desk, page)
    )
    for event in (turned, seen):
        event.then(None, desk.marks, None, js=PAINT_MARKS_JS, **QUIET)
    desk.grid.select(selected_pair, None, page.pair, **QUIET).then(
        show_errors(preview_mask), [page.slug, page.pair, *settings], desk.mask, **QUIET
    )
    for button, fn in ((desk.undo, undo_edit), (desk.redo, redo_edit)):
        follow_change(
            button.click(show_errors(fn), [page.slug, *desk.view(), page.pair, desk.findings], drawn, **QUIET),
            desk,
            page,
        )
    follow_change(
        desk.panel.click(
            show_errors(handle_finding_click),
            [page.slug, desk.order, page.pair, desk.findings],
            [*drawn, tabs],
            **QUIET,
        ),
        desk,
        page,
    )
    again.click(
        show_errors(update_findings), [page.slug, desk.findings, desk.only, gr.State(True), *settings],
        [desk.findings, desk.marks, desk.panel, desk.only], api_visibility="private", show_progress_on=desk.panel,
    ).then(None, desk.marks, None, js=PAINT_MARKS_JS, **QUIET)  # fmt: skip
