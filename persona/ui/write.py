"""Step 1, Write: open or start a persona; her pairs in a table that saves itself, with import, checks and undo."""

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from persona import edits, files, folder, importers, journal
from persona.errors import InputError, Message, PersonaError
from persona.ui import desk, importing, suggesting, way
from persona.ui.common import QUIET, TEMPLATE, Page, mine, open_current, shown, to_save
from persona.ui.words import t

FIRST = "zhen-huan"  # the example that is offered first
# of the card → its label
CARD_FIELDS = {
    "name": "Name", "system": "System prompt", "greeting": "Greeting", "source": "Source", "rights": "Rights",
}  # fmt: skip


def open_example(name: str) -> str:
    return folder.copy_example(name).slug


def start_persona(name: str) -> str:
    if not name.strip():
        raise InputError("Give the persona a name first, then press Start.")
    return folder.create_named(name, folder.named(name.strip())).slug


def load(slug: str) -> tuple:
    """What the step shows of a persona beside her pairs: welcome or editor, the card, and what was shown of it."""
    if not slug:
        return gr.Column(visible=True), gr.Column(visible=False), "", "", "", "", "", ()
    card = open_current(slug).card()
    fields = tuple(getattr(card, name) for name in CARD_FIELDS)
    return gr.Column(visible=False), gr.Column(visible=True), *fields, fields


def save_card(slug: str, seen: tuple[str, ...], *fields: str) -> tuple[str, Any, tuple[str, ...]]:
    """seen: what the window was given; fields: what it shows now. Returns a notice, the list of personas, and `seen`.

    Only what was changed in this window is written, and nothing over what another one has saved meanwhile.
    """
    persona = open_current(slug)
    fields = (fields[0].strip(), *fields[1:])
    if not fields[0]:
        raise InputError("A persona needs a name.")
    typed = [(n, old, new) for n, old, new in zip(CARD_FIELDS, seen, fields, strict=True) if new != old]

    def changes(card: folder.Card) -> dict[str, str]:
        for name, old, new in typed:
            if getattr(card, name) not in (old, new):
                raise InputError(
                    "This was changed elsewhere (another window, or on disk) since you saw it here: "
                    "{field}. Copy what you just typed, press Reload, and type it again.",
                    field=t(CARD_FIELDS[name]),
                )
        return {name: new for name, _, new in typed}

    folder.edit_card(persona, changes)
    return t("Saved {name}.", name=escape(fields[0])), mine(slug), fields


def remove(slug: str) -> tuple[str, str]:
    trashed = folder.delete(open_current(slug))
    gr.Info(t("Moved to the trash. Undo brings it back."))
    return "", trashed.name


def undo_remove(trashed: str) -> str:
    if not trashed:
        raise PersonaError("Nothing was deleted in this window.")
    return folder.restore(files.inside(files.home() / "trash", trashed)).slug


def look_for(slug: str, find: str, put: str, case: bool) -> tuple[str, Any]:
    """What a find-and-replace would change, before it does."""
    if not find:
        return "", gr.Button(t("Replace"), interactive=False)
    changes = edits.replacements(open_current(slug).scan()[0], find, put, case)
    shown_rows = "".join(
        f"<div><span class='no'>{c.at + 1}</span><span>{suggesting.difference(before, after)}</span></div>"
        for c in changes[:20]
        for before, after in _texts(c)
    )
    more = ""
    if len(changes) > 20:
        more = f"<div class='quiet'>{t('… and {n} more pairs', n=f'{len(changes) - 20:,}')}</div>"
    return f"<div class='preview'>{shown_rows}</div>{more}", gr.Button(
        _to_replace(len(changes)), interactive=bool(changes)
    )


def _to_replace(count: int) -> str:
    if not count:
        return t("Nothing found")
    return t("Replace in 1 pair") if count == 1 else t("Replace in {n} pairs", n=f"{count:,}")


def _texts(change: edits.Change) -> list[tuple[str, str]]:
    """The texts of a pair that differ, before and after."""
    assert change.old and change.new
    sides = [
        [p.instruction, p.output, *(text for turn in p.history for text in turn)] for p in (change.old, change.new)
    ]
    return [(a, b) for a, b in zip(*sides, strict=True) if a != b]


def replace_all(slug: str, find: str, put: str, case: bool) -> tuple[str, Any]:
    persona = open_current(slug)
    changes = edits.replacements(persona.scan()[0], find, put, case)
    journal.commit(persona, Message("replacement in {n} pairs", n=len(changes)), changes)
    done = t("Replaced in {n} pairs. Undo takes it back.", n=f"{len(changes):,}")
    return f"<div class='good'>{done}</div>", gr.Button(t("Replace"), interactive=False)


def export(slug: str, format: str) -> Any:
    """The pairs as a file of the chosen format, in a temporary folder that the page may serve from."""
    persona = open_current(slug)
    out = to_save(f"{persona.slug}-{format}{importers.importer(format).SUFFIX}")
    return gr.File(str(importers.write(persona.pairs(), format, out)), visible=True)


def welcome() -> tuple[gr.Column, list[gr.Button], gr.Textbox, gr.Button, gr.File]:
    """The first screen: three ways in, the quickest first."""
    with gr.Column(visible=True, elem_id="welcome") as column:
        gr.Markdown(
            t(
                "### Make a language model be someone\n"
                "Write what people say and what your persona answers. Train a small adapter on it, right here. Then "
                "ask base and persona the same question, side by side, and hear the difference."
            )
        )
        with gr.Row(elem_classes="ways"):
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(t("#### 1. Open the example\nReady to train: about ten minutes to her first answer."))
                examples = [
                    gr.Button(t("Open {name}  ({n} pairs, {language})", name=e.card().name, n=len(e.scan()[0]),
                                language=e.card().language),
                              variant="secondary" if n else "primary", elem_id=f"open-{e.slug}")
                    for n, e in enumerate(sorted(folder.list_examples(), key=lambda e: e.slug != FIRST))
                ]  # fmt: skip
                gr.Markdown(t("You get a copy of your own."), elem_classes="quiet")
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(
                    t(
                        "#### 2. Bring my own text\nScreenplay, novel, chat log, table or character card. You see what "
                        "becomes of it before anything is saved."
                    )
                )
                dropped = gr.File(label=t("A file"), type="filepath", height=130, elem_id="start-file")
            with gr.Column(elem_classes="card", min_width=280):
                gr.Markdown(t("#### 3. Start from nothing\nA name is enough. She begins to show from about 100 pairs."))
                name = gr.Textbox(label=t("Her name"), placeholder=t("A name"), elem_id="new-name")
                start = gr.Button(t("Start"), elem_id="start")
    return column, examples, name, start, dropped


def who() -> tuple[list[gr.Textbox], gr.HTML, gr.Button]:
    """The tab with the persona's card."""
    card = [
        gr.Textbox(label=t("Name"), elem_id="card-name"),
        gr.Textbox(label=t("System prompt"), info=t("Part of every training row and of every chat. Short is good."),
                   lines=2, elem_id="card-system"),
        gr.Textbox(label=t("Greeting"), info=t("Said before anyone has asked."), elem_id="card-greeting"),
        gr.Textbox(label=t("Source"), info=t("Where the text comes from."), elem_id="card-source"),
        gr.Textbox(label=t("Rights"), elem_id="card-rights",
                   info=t("Whose text it is, and under which licence. Needed to publish.")),
    ]  # fmt: skip
    return card, gr.HTML(elem_classes="status"), gr.Button(t("Delete this persona"), size="sm", variant="stop", scale=0)


def replacing(page: Page, parts: desk.Desk) -> None:
    with gr.Row(elem_classes="slim"):
        find = gr.Textbox(label=t("Find"), elem_id="find")
        put = gr.Textbox(label=t("Replace by"), elem_id="replace-by")
        case = gr.Checkbox(True, label=t("Match case"), scale=0, min_width=140)
        button = gr.Button(t("Replace"), interactive=False, scale=0, min_width=200, elem_id="replace-all")
    found = gr.HTML(elem_id="replace-preview")
    asked = [page.slug, find, put, case]
    # not .input: that one is silent when text is pasted or comes from an input method
    gr.on(
        [find.change, put.change, case.input],
        shown(look_for),
        asked,
        [found, button],
        trigger_mode="always_last",
        **QUIET,
    )
    done = button.click(shown(replace_all), asked, [found, button], api_visibility="private")
    desk.follow(done.success(**desk.redraw(parts, page)), parts, page)


def exporting(page: Page) -> None:
    gr.Markdown(
        t("The pairs as a file for another tool. What is exported here can be imported again."), elem_classes="quiet"
    )
    with gr.Row(elem_classes="slim"):
        forms = [(t(m.TITLE), name) for name, m in importers.formats().items() if hasattr(m, "dump")]
        form = gr.Dropdown(forms, value=forms[0][1], label=t("Format"), elem_id="export-format")
        make = gr.Button(t("Make the file"), scale=0, min_width=200, elem_id="export-pairs")
    made = gr.File(label=t("Ready"), visible=False, interactive=False, elem_id="export-file")
    make.click(shown(export), [page.slug, form], made, api_visibility="private", show_progress_on=form)


def build(page: Page) -> desk.Desk:
    """The step. Returns what tells how the pairs are."""
    first, examples, name, start, dropped = welcome()
    parts = desk.components()
    with gr.Column(visible=False) as editor:
        with gr.Row(elem_classes="slim top"):
            parts.status.render()
            parts.undo.render()
            parts.redo.render()
            reload = gr.Button(t("Reload"), size="sm", scale=0, min_width=90, elem_id="reload")
        with gr.Tabs(selected="pairs", overflow_behavior="wrap") as tabs:
            with gr.Tab(t("Pairs"), id="pairs"):
                desk.build(parts)
            with gr.Tab(t("Who it is"), id="who"):
                card, saved, delete = who()
            with gr.Tab(t("Import"), id="import"):
                imported, added = importing.build(page)
            with gr.Tab(t("Check"), id="check"):
                parts.panel.render()
                again = gr.Button(t("Check again"), size="sm", scale=0, min_width=150, elem_id="check-again")
            with gr.Tab(t("Find & replace"), id="replace"):
                replacing(page, parts)
            with gr.Tab(t("Suggest"), id="suggest"):
                taken = suggesting.build(page)
            with gr.Tab(t("Export"), id="export"):
                exporting(page)
        go = gr.Button(t("Next: Template →"), variant="primary", scale=0, min_width=190, elem_id="to-template")
    undo = gr.Button(t("Undo delete"), size="sm", visible=False)
    seen = gr.State(())  # the card as this window was given it
    trashed = gr.State("")

    for button in examples:
        button.click(
            shown(open_example), gr.State(button.elem_id.removeprefix("open-")), page.slug, api_visibility="private"
        )
    gr.on([start.click, name.submit], shown(start_persona), name, page.slug, api_visibility="private")
    dropped.upload(shown(importing.start_from), dropped, [page.slug, imported, dropped, tabs], api_visibility="private")
    loading = {"fn": shown(load), "inputs": page.slug, "outputs": [first, editor, *card, seen], **QUIET}
    opened = page.slug.change(**loading).success(
        desk.fresh, None, [parts.query, parts.only, parts.number, parts.findings], **QUIET
    )
    opened.then(None, None, None, js=way.TOP, **QUIET)
    for event in (opened, reload.click(**loading)):
        desk.follow(event.success(**desk.redraw(parts, page)), parts, page)
    desk.listen(parts, page, tabs, again)
    desk.follow(taken.success(**desk.redraw(parts, page)), parts, page)
    named = added.success(shown(load), page.slug, [first, editor, *card, seen], **QUIET).success(
        mine, page.slug, page.which, **QUIET
    )
    desk.follow(named.success(**desk.redraw(parts, page)), parts, page)
    for box in card:
        box.blur(shown(save_card), [page.slug, seen, *card], [saved, page.which, seen], **QUIET)
    delete.click(shown(remove), page.slug, [page.slug, trashed], api_visibility="private").success(
        lambda: gr.Button(visible=True), None, undo, **QUIET
    )
    undo.click(shown(undo_remove), trashed, page.slug, api_visibility="private").success(
        lambda: gr.Button(visible=False), None, undo, **QUIET
    )
    go.click(shown(partial(way.open_step, TEMPLATE)), page.slug, page.steps, **QUIET)
    return parts
