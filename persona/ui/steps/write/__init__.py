"""Step 1, Write: open or start a persona; its pairs in a table that saves itself, with import, checks and undo."""

from typing import Any, NamedTuple

import gradio as gr

from persona.ui import navigation
from persona.ui.chosen import persona_dropdown
from persona.ui.i18n import t
from persona.ui.navigation import TEMPLATE, WRITE
from persona.ui.page import QUIET, SHOWING, WAITING_EVENT, Page, open_current_persona, run_one_at_a_time, show_errors
from persona.ui.steps.write import import_tab, interview_tab, pairs_tab, review_tab, suggest_tab
from persona.ui.steps.write.card_tab import (
    CARD_FIELDS,
    CardTab,
    build_card_tab,
    delete_persona,
    load_lists,
    restore_persona,
    save_card,
)
from persona.ui.steps.write.export_tab import build_export_tab
from persona.ui.steps.write.length_tab import build_length_tab
from persona.ui.steps.write.pairs_tab import PairsTab
from persona.ui.steps.write.replace_tab import build_replace_tab
from persona.ui.steps.write.welcome import Welcome, build_welcome, open_example, start_persona

# another persona is not opened on the last one's tab
FIRST_TAB_JS = "() => ({ selected: 'pairs', __type__: 'update' })"


class PersonaView(NamedTuple):
    """What the step shows of a persona beside its pairs: the components, or the values of load_persona for them."""

    welcome: Any
    editor: Any
    name: Any  # the fields of the card, in the order of CARD_FIELDS
    language: Any
    author: Any
    system: Any
    greeting: Any
    post_history_instructions: Any
    source: Any
    rights: Any
    loaded_card: Any  # the fields as this window got them, see save_card

    def card_fields(self) -> list[Any]:
        return [getattr(self, name) for name in CARD_FIELDS]


class _Editor(NamedTuple):
    """The components of the editor that the step connects."""

    view: PersonaView
    reload: gr.Button
    tabs: gr.Tabs
    card: CardTab
    import_file: gr.File
    imported: Any  # event of pairs that were added
    interview: gr.HTML
    interview_answered: Any  # event
    review: gr.HTML
    reviewed: Any  # event


def load_persona(slug: str) -> PersonaView:
    """The welcome screen when no persona is open, else the editor with its card."""
    if not slug:
        empty = dict.fromkeys(CARD_FIELDS, "")
        return PersonaView(gr.Column(visible=True), gr.Column(visible=False), **empty, loaded_card=())
    card = open_current_persona(slug).card()
    fields = {name: getattr(card, name) for name in CARD_FIELDS}
    return PersonaView(gr.Column(visible=False), gr.Column(visible=True), **fields, loaded_card=tuple(fields.values()))


def build(page: Page) -> PairsTab:
    """The step. Returns the components of the pairs, which the navigation follows."""
    welcome = build_welcome()
    pairs = pairs_tab.make_pairs_tab()
    editor = _build_editor(page, welcome, pairs)
    _connect_start(page, welcome, editor)
    _connect_editor(page, pairs, editor)
    return pairs


def _build_editor(page: Page, welcome: Welcome, pairs: PairsTab) -> _Editor:
    with gr.Column(visible=False) as column:
        with gr.Row(elem_classes="slim top"):
            pairs.status.render()
            pairs.undo.render()
            pairs.redo.render()
            reload = gr.Button(t("Reload"), size="sm", scale=0, min_width=90, elem_id="reload")
        with gr.Tabs(selected="pairs", overflow_behavior="wrap", elem_id="write-tabs") as tabs:
            with gr.Tab(t("Pairs"), id="pairs"):
                with gr.Accordion(t("Find & replace, filter by length"), open=False, elem_id="many-pairs"):
                    build_replace_tab(page, pairs)
                    build_length_tab(page, pairs)
                pairs_tab.build(pairs)
            with gr.Tab(t("Interview"), id="interview") as interview_page:
                interview, interview_answered = interview_tab.build(page, interview_page)
                with gr.Accordion(t("Suggest: a model writes drafts"), open=False, elem_id="suggest-section") as drafts:
                    look = suggest_tab.build(page, drafts.expand)
            with gr.Tab(t("Who it is"), id="who"):
                card = build_card_tab(page)
            with gr.Tab(t("Import"), id="import") as import_page:
                import_file, imported = import_tab.build(page, import_page)
                with gr.Accordion(t("Export: the pairs as a file"), open=False, elem_id="export-section"):
                    build_export_tab(page)
            with gr.Tab(t("Check"), id="check"):
                with gr.Accordion(
                    t("Review: pairs one by one"), open=False, elem_id="review-section"
                ) as review_section:
                    review, reviewed = review_tab.build(page, review_section.expand, pairs.findings)
                pairs.lint_panel.render()
                check_again = gr.Button(t("Check again"), size="sm", scale=0, min_width=150, elem_id="check-again")
        navigation.build_next_button(t("Next: Template →"), TEMPLATE, page)
    view = PersonaView(welcome.column, column, **card.fields, loaded_card=gr.State(()))
    opened_review = [tabs, review_section]
    look.click(review_tab.open_review, None, opened_review, **QUIET).then(
        show_errors(review_tab.draw_review), page.slug, review, **QUIET
    )
    pairs_tab.connect_events(pairs, page, opened_review, review, check_again)
    return _Editor(view, reload, tabs, card, import_file, imported, interview, interview_answered, review, reviewed)


def _connect_start(page: Page, welcome: Welcome, editor: _Editor) -> None:
    """The three ways to start, and deleting the persona."""
    for button in welcome.examples:
        name = gr.State(button.elem_id.removeprefix("open-"))
        button.click(show_errors(open_example), name, page.slug, **QUIET)
    gr.on(
        [welcome.start.click, welcome.name.submit],
        show_errors(start_persona),
        welcome.name,
        page.slug,
        **QUIET,
    )
    gr.on(
        [welcome.file.upload, welcome.file.clear],
        run_one_at_a_time(show_errors(import_tab.ask_whose_voice)),
        welcome.file,
        [welcome.voice, welcome.start_file],
        **QUIET,
        **WAITING_EVENT,
    )
    welcome.start_file.click(
        run_one_at_a_time(show_errors(import_tab.start_from_file)),
        [welcome.file, welcome.voice],
        [page.slug, editor.import_file, welcome.file, editor.tabs],
        **QUIET,
        **WAITING_EVENT,
    )
    undo, trash_name = gr.Button(t("Undo delete"), size="sm", visible=False), gr.State("")
    editor.card.delete.click(show_errors(delete_persona), page.slug, [page.slug, trash_name], **QUIET).success(
        lambda: gr.Button(visible=True), None, undo, **QUIET
    )
    undo.click(show_errors(restore_persona), trash_name, page.slug, **QUIET).success(
        lambda: gr.Button(visible=False), None, undo, **QUIET
    )


def _connect_editor(page: Page, pairs: PairsTab, editor: _Editor) -> None:
    view = editor.view
    load: dict[str, Any] = {"fn": show_errors(load_persona), "inputs": page.slug, "outputs": view, **SHOWING}
    opened = page.slug.change(**load).success(
        lambda: (*pairs_tab.reset_view(), ""),
        None,
        [pairs.view.query, pairs.view.row_filter, pairs.view.page, pairs.findings, editor.card.notice],
        **SHOWING,
    )
    opened.then(None, None, None, js=navigation.FOCUS_STEP_JS, **QUIET)
    page.persona_list.select(None, None, editor.tabs, js=FIRST_TAB_JS, **QUIET)
    page.next_steps["interview"].click(
        lambda: (gr.Walkthrough(selected=WRITE), WRITE, gr.Tabs(selected="interview")), None,
        [page.steps, page.shown_step, editor.tabs], **QUIET,
    )  # fmt: skip
    page.write_tab.change(
        None, page.write_tab, editor.tabs, js="(tab) => ({ selected: tab.split(' ')[0], __type__: 'update' })", **QUIET
    ).then(show_errors(interview_tab.draw_interview), page.slug, editor.interview, **SHOWING)
    renamed = editor.imported.success(**load).success(persona_dropdown, page.slug, page.persona_list, **QUIET)
    reloaded = editor.reload.click(**load)
    for event in (opened, reloaded, renamed):
        event.then(show_errors(load_lists), page.slug, editor.card.flat_lists(), **SHOWING)
    for event in (opened, reloaded, renamed, editor.interview_answered, editor.reviewed, editor.card.probe_taken):
        pairs_tab.redraw_after(event, pairs, page)
    for event in (opened, reloaded):
        event.success(show_errors(interview_tab.draw_interview), page.slug, editor.interview, **SHOWING)
        event.success(show_errors(review_tab.draw_review), page.slug, editor.review, **SHOWING)
    for field in view.card_fields():
        field.blur(
            show_errors(save_card),
            [page.slug, view.loaded_card, *view.card_fields()],
            [editor.card.notice, page.persona_list, view.loaded_card],
            **SHOWING,
            concurrency_id="card",  # one field after the other: each starts from what the one before has saved
            concurrency_limit=1,
        )
