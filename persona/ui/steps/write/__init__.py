"""Step 1, Write: open or start a persona; her pairs in a table that saves itself, with import, checks and undo."""

from functools import partial

import gradio as gr

from persona.ui import navigation
from persona.ui.i18n import t
from persona.ui.page import QUIET, TEMPLATE, Page, open_current_persona, persona_dropdown, show_errors
from persona.ui.steps.write import import_tab, pairs_tab, suggest_tab
from persona.ui.steps.write.card_tab import CARD_FIELDS, build_card_tab, delete_persona, restore_persona, save_card
from persona.ui.steps.write.export_tab import build_export_tab
from persona.ui.steps.write.replace_tab import build_replace_tab
from persona.ui.steps.write.welcome import build_welcome, open_example, start_persona


def load_persona(slug: str) -> tuple:
    """What the step shows of a persona beside her pairs: welcome or editor, the card, and what was shown of it."""
    if not slug:
        return gr.Column(visible=True), gr.Column(visible=False), "", "", "", "", "", ()
    card = open_current_persona(slug).card()
    fields = tuple(getattr(card, name) for name in CARD_FIELDS)
    return gr.Column(visible=False), gr.Column(visible=True), *fields, fields


def build(page: Page) -> pairs_tab.PairsTab:
    """The step. Returns what tells how the pairs are."""
    first, examples, name, start, dropped = build_welcome()
    parts = pairs_tab.make_pairs_tab()
    with gr.Column(visible=False) as editor:
        with gr.Row(elem_classes="slim top"):
            parts.status.render()
            parts.undo.render()
            parts.redo.render()
            reload = gr.Button(t("Reload"), size="sm", scale=0, min_width=90, elem_id="reload")
        with gr.Tabs(selected="pairs", overflow_behavior="wrap") as tabs:
            with gr.Tab(t("Pairs"), id="pairs"):
                pairs_tab.build(parts)
            with gr.Tab(t("Who it is"), id="who"):
                card, saved, delete = build_card_tab()
            with gr.Tab(t("Import"), id="import"):
                imported, added = import_tab.build(page)
            with gr.Tab(t("Check"), id="check"):
                parts.panel.render()
                again = gr.Button(t("Check again"), size="sm", scale=0, min_width=150, elem_id="check-again")
            with gr.Tab(t("Find & replace"), id="replace"):
                build_replace_tab(page, parts)
            with gr.Tab(t("Suggest"), id="suggest"):
                taken = suggest_tab.build(page)
            with gr.Tab(t("Export"), id="export"):
                build_export_tab(page)
        go = gr.Button(t("Next: Template →"), variant="primary", scale=0, min_width=190, elem_id="to-template")
    undo = gr.Button(t("Undo delete"), size="sm", visible=False)
    seen = gr.State(())  # the card as this window was given it
    trashed = gr.State("")

    for button in examples:
        button.click(
            show_errors(open_example),
            gr.State(button.elem_id.removeprefix("open-")),
            page.slug,
            api_visibility="private",
        )
    gr.on([start.click, name.submit], show_errors(start_persona), name, page.slug, api_visibility="private")
    dropped.upload(
        show_errors(import_tab.start_from_file), dropped, [page.slug, imported, dropped, tabs], api_visibility="private"
    )
    loading = {"fn": show_errors(load_persona), "inputs": page.slug, "outputs": [first, editor, *card, seen], **QUIET}
    opened = page.slug.change(**loading).success(
        pairs_tab.reset_view, None, [parts.query, parts.only, parts.number, parts.findings], **QUIET
    )
    opened.then(None, None, None, js=navigation.FOCUS_STEP_JS, **QUIET)
    for event in (opened, reload.click(**loading)):
        pairs_tab.follow_change(event.success(**pairs_tab.redraw_event(parts, page)), parts, page)
    pairs_tab.connect_events(parts, page, tabs, again)
    pairs_tab.follow_change(taken.success(**pairs_tab.redraw_event(parts, page)), parts, page)
    named = added.success(show_errors(load_persona), page.slug, [first, editor, *card, seen], **QUIET).success(
        persona_dropdown, page.slug, page.which, **QUIET
    )
    pairs_tab.follow_change(named.success(**pairs_tab.redraw_event(parts, page)), parts, page)
    for box in card:
        box.blur(show_errors(save_card), [page.slug, seen, *card], [saved, page.which, seen], **QUIET)
    delete.click(show_errors(delete_persona), page.slug, [page.slug, trashed], api_visibility="private").success(
        lambda: gr.Button(visible=True), None, undo, **QUIET
    )
    undo.click(show_errors(restore_persona), trashed, page.slug, api_visibility="private").success(
        lambda: gr.Button(visible=False), None, undo, **QUIET
    )
    go.click(show_errors(partial(navigation.open_step, TEMPLATE)), page.slug, page.steps, **QUIET)
    return parts
