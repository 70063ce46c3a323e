"""Step 1, Write: open or start a persona; her pairs in a table that saves itself, with import, checks and undo."""

from html import escape
from typing import Any

import gradio as gr

from persona import edits, files, folder, importers, journal, lines
from persona.errors import InputError, PersonaError
from persona.ui import desk, importing, suggesting
from persona.ui.common import QUIET, TEMPLATE, Page, mine, open_current, shown, to_save

CARD_FIELDS = ("name", "system", "greeting", "source", "rights")


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
    changes = [(n, old, new) for n, old, new in zip(CARD_FIELDS, seen, fields, strict=True) if new != old]
    with lines.lock(persona.path / "undo"):  # where pairs are locked too
        card = persona.card()
        for name, old, new in changes:
            if getattr(card, name) not in (old, new):
                raise InputError(
                    f"The {name} was changed elsewhere (another window, or on disk) since you saw it here. Copy what "
                    "you just typed, press Reload, and type it again."
                )
        news = {name: new for name, _, new in changes}
        if news:
            persona.save_card(folder.parse_card({**card.model_dump(), **news}, "persona.json"))
    return f"Saved {escape(fields[0])}.", mine(slug), fields


def remove(slug: str) -> tuple[str, str]:
    trashed = folder.delete(open_current(slug))
    gr.Info("Moved to the trash. Undo brings it back.")
    return "", trashed.name


def undo_remove(trashed: str) -> str:
    if not trashed:
        raise PersonaError("Nothing was deleted in this window.")
    return folder.restore(files.inside(files.home() / "trash", trashed)).slug


def look_for(slug: str, find: str, put: str, case: bool) -> tuple[str, Any]:
    """What a find-and-replace would change, before it does."""
    if not find:
        return "", gr.Button("Replace", interactive=False)
    changes = edits.replacements(open_current(slug).scan()[0], find, put, case)
    shown_rows = "".join(
        f"<div><span class='no'>{c.at + 1}</span><span>{suggesting.difference(before, after)}</span></div>"
        for c in changes[:20]
        for before, after in _texts(c)
    )
    more = f"<div class='quiet'>… and {len(changes) - 20:,} more pairs</div>" if len(changes) > 20 else ""
    words = f"Replace in {len(changes):,} pair{'s' * (len(changes) != 1)}" if changes else "Nothing found"
    return f"<div class='preview'>{shown_rows}</div>{more}", gr.Button(words, interactive=bool(changes))


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
    journal.commit(persona, f"replacement in {len(changes)} pairs", changes)
    done = f"<div class='good'>Replaced in {len(changes):,} pairs. Undo takes it back.</div>"
    return done, gr.Button("Replace", interactive=False)


def export(slug: str, format: str) -> Any:
    """The pairs as a file of the chosen format, in a temporary folder that the page may serve from."""
    persona = open_current(slug)
    out = to_save(f"{persona.slug}-{format}{importers.importer(format).SUFFIX}")
    return gr.File(str(importers.write(persona.pairs(), format, out)), visible=True)


def welcome() -> tuple[gr.Column, list[gr.Button], gr.Textbox, gr.Button, gr.File]:
    """The first screen: an example, a name, or a file."""
    with gr.Column(visible=True) as column:
        gr.Markdown(
            "### Make a language model be someone\n"
            "Write what people say and what your persona answers. Train a small adapter on it, right here. Then ask "
            "base and persona the same question, side by side, and hear the difference."
        )
        with gr.Row():
            examples = [
                gr.Button(f"Open {e.card().name}  ({len(e.scan()[0])} pairs, {e.card().language})",
                          variant="primary", elem_id=f"open-{e.slug}")
                for e in folder.list_examples()
            ]  # fmt: skip
        with gr.Row(equal_height=True):
            with gr.Column():
                name = gr.Textbox(label="or start your own", placeholder="A name", elem_id="new-name")
                start = gr.Button("Start", elem_id="start")
            dropped = gr.File(label="or start from a file: screenplay, chat log, table, character card, …",
                              type="filepath", height=150, elem_id="start-file")  # fmt: skip
    return column, examples, name, start, dropped


def who() -> tuple[list[gr.Textbox], gr.HTML, gr.Button]:
    """The tab with the persona's card."""
    card = [
        gr.Textbox(label="Name", elem_id="card-name"),
        gr.Textbox(label="System prompt", info="Part of every training row and of every chat. Short is good.",
                   lines=2, elem_id="card-system"),
        gr.Textbox(label="Greeting", info="Said before anyone has asked.", elem_id="card-greeting"),
        gr.Textbox(label="Source", info="Where the text comes from.", elem_id="card-source"),
        gr.Textbox(label="Rights", info="Whose text it is, and under which licence. Needed to publish.",
                   elem_id="card-rights"),
    ]  # fmt: skip
    return card, gr.HTML(elem_classes="status"), gr.Button("Delete this persona", size="sm", variant="stop", scale=0)


def replacing(page: Page, parts: desk.Desk) -> None:
    with gr.Row(elem_classes="slim"):
        find = gr.Textbox(label="Find", elem_id="find")
        put = gr.Textbox(label="Replace by", elem_id="replace-by")
        case = gr.Checkbox(True, label="Match case", scale=0, min_width=140)
        button = gr.Button("Replace", interactive=False, scale=0, min_width=200, elem_id="replace-all")
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
        "The pairs as a file for another tool. What is exported here can be imported again.", elem_classes="quiet"
    )
    with gr.Row(elem_classes="slim"):
        forms = [(m.TITLE, name) for name, m in importers.formats().items() if hasattr(m, "dump")]
        form = gr.Dropdown(forms, value=forms[0][1], label="Format", elem_id="export-format")
        make = gr.Button("Make the file", scale=0, min_width=200, elem_id="export-pairs")
    made = gr.File(label="Ready", visible=False, interactive=False, elem_id="export-file")
    make.click(shown(export), [page.slug, form], made, api_visibility="private")


def build(page: Page) -> None:
    first, examples, name, start, dropped = welcome()
    parts = desk.components()
    with gr.Column(visible=False) as editor:
        with gr.Row(elem_classes="slim top"):
            parts.status.render()
            parts.undo.render()
            parts.redo.render()
            reload = gr.Button("Reload", size="sm", scale=0, min_width=90, elem_id="reload")
        with gr.Tabs(selected="pairs") as tabs:
            with gr.Tab("Pairs", id="pairs"):
                desk.build(parts)
            with gr.Tab("Who it is", id="who"):
                card, saved, delete = who()
            with gr.Tab("Import", id="import"):
                imported, added = importing.build(page)
            with gr.Tab("Check", id="check"):
                parts.panel.render()
                again = gr.Button("Check again", size="sm", scale=0, min_width=150, elem_id="check-again")
            with gr.Tab("Find & replace", id="replace"):
                replacing(page, parts)
            with gr.Tab("Suggest", id="suggest"):
                taken = suggesting.build(page)
            with gr.Tab("Export", id="export"):
                exporting(page)
        go = gr.Button("Next: Template →", variant="primary", scale=0, min_width=190, elem_id="to-template")
    undo = gr.Button("Undo delete", size="sm", visible=False)
    seen = gr.State(())  # the card as this window was given it
    trashed = gr.State("")

    for button, example in zip(examples, folder.list_examples(), strict=True):
        button.click(shown(open_example), gr.State(example.slug), page.slug, api_visibility="private")
    gr.on([start.click, name.submit], shown(start_persona), name, page.slug, api_visibility="private")
    dropped.upload(shown(importing.start_from), dropped, [page.slug, imported, dropped, tabs], api_visibility="private")
    loading = {"fn": shown(load), "inputs": page.slug, "outputs": [first, editor, *card, seen], **QUIET}
    opened = page.slug.change(**loading).success(
        desk.fresh, None, [parts.query, parts.only, parts.number, parts.findings], **QUIET
    )
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
    go.click(lambda: gr.Walkthrough(selected=TEMPLATE), None, page.steps, **QUIET)
