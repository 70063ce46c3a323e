"""Step 1, Write: open or start a persona, edit her pairs in a table that saves itself."""

from html import escape
from typing import Any

import gradio as gr

from persona import folder, pairs
from persona.errors import InputError, PersonaError
from persona.pairs import Pair
from persona.ui.common import QUIET, TEMPLATE, Page, mask_html, open_current, renderer_for, shown

CARD_FIELDS = ("name", "system", "greeting", "source", "rights")
HEADERS = ["#", "Someone says", "The persona answers", "Before"]
Rows = list[list[Any]]


def to_rows(items: list[Pair]) -> Rows:
    """Pairs → table. '#' is what ties a row to its pair, so that earlier turns survive sorting and deleting."""
    return [[n, p.instruction, p.output, _before(p)] for n, p in enumerate(items, 1)] or [["", "", "", ""]]


def _before(pair: Pair) -> str:
    return f"{len(pair.history)} turn{'s' * (len(pair.history) > 1)}" if pair.history else ""


def from_rows(rows: Rows, known: list[Pair]) -> list[Pair]:
    """Table → pairs. A row without '#' is new; an empty new row is none yet."""
    result = []
    for number, says, answers, *_ in rows:
        says, answers = str(says or ""), str(answers or "")
        index = int(number) - 1 if str(number or "").strip().isdigit() else -1
        if 0 <= index < len(known):
            result.append(Pair(says, answers, known[index].history, known[index].source))
        elif says.strip() or answers.strip():
            result.append(Pair(says, answers))
    for n, pair in enumerate(result, 1):
        try:
            pairs.check(pair.to_dict())
        except InputError as e:
            raise InputError(f"Pair {n}: {e}. It is not saved yet.") from e
    return result


def open_example(name: str) -> str:
    return folder.copy_example(name).slug


def start_persona(name: str) -> str:
    if not name.strip():
        raise InputError("Give the persona a name first, then press Start.")
    name = name.strip()
    chinese = any("\u4e00" <= c <= "\u9fff" for c in name)
    card = folder.Card(
        name=name,
        system=f"你是{name}，以她的身份与口吻作答。" if chinese else f"You are {name}. Answer as {name} would.",
        language="zh" if chinese else "en",
    )
    return folder.create(folder.free_path(name), card).slug


def load(slug: str) -> tuple:
    """Everything the step shows of a persona: card, table, what is known of each row, the file's state."""
    if not slug:
        return gr.Column(visible=True), gr.Column(visible=False), "", "", "", "", "", [], [], "", ""
    persona = open_current(slug)
    card = persona.card()
    items, bad = persona.scan()
    return (
        gr.Column(visible=False), gr.Column(visible=True), card.name, card.system, card.greeting,
        card.source, card.rights, to_rows(items), items, pairs.sha256(items), status(items) + rejected(bad),
    )  # fmt: skip


def status(items: list[Pair]) -> str:
    """How many pairs there are, whether that is enough, and what is unfinished."""
    count = len(items)
    if not count:
        return '<div class="hint">No pairs yet. Add a row with the + under the table, or open an example.</div>'
    missing = pairs.unfinished(items)
    lines = [f"<b>{count} pair{'s' * (count > 1)}</b>, saved."]
    if missing:
        shown_rows = ", ".join(f"#{row}: {escape(why)}" for row, why in missing[:5])
        lines.append(f'<div class="problem">Not ready to train: {shown_rows}.</div>')
    if count < 100:
        lines.append('<div class="hint">A persona begins to show from about 100 pairs; 200 to 500 are better.</div>')
    return " ".join(lines)


def rejected(bad: list[pairs.BadLine]) -> str:
    """Lines of pairs.jsonl that are no pairs: shown, and kept aside on the next save."""
    lines = "".join(f'<div class="problem">pairs.jsonl line {b.line}: {escape(b.why)}</div>' for b in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    aside = "The next save moves such lines to pairs.rejected.txt; nothing is lost."
    return f"{lines}<div class='quiet'>{aside}{more}</div>" if bad else ""


def save(slug: str, rows: Rows, known: list[Pair], stamp: str) -> tuple[str, str, list[Pair], Any]:
    """Write the table to disk. What another window saved meanwhile is never overwritten."""
    persona = open_current(slug)
    items = from_rows(rows, known)
    on_disk, bad = persona.scan()
    if pairs.sha256(on_disk) not in (stamp, pairs.sha256(items)):
        raise InputError(
            "These pairs were changed elsewhere (another window, or on disk) since you opened them here. Copy what you "
            "just typed, press Reload, and type it again."
        )
    if pairs.sha256(items) == stamp and not bad:
        return gr.skip(), stamp, gr.skip(), gr.skip()
    persona.save_pairs(items)
    # a new row got a number by being saved: the table shows it only where it is missing
    numbered = to_rows(items) if any(not str(r[0] or "").strip() for r in rows) else gr.skip()
    kept = items if numbered is not gr.skip() else known
    return status(items), pairs.sha256(items), kept, numbered


def save_card(slug: str, *fields: str) -> str:
    """fields: name, system prompt, greeting, source, rights."""
    persona = open_current(slug)
    name = fields[0].strip()
    if not name:
        raise InputError("A persona needs a name.")
    changes = dict(zip(CARD_FIELDS, (name, *fields[1:]), strict=True))
    persona.save_card(folder.parse_card({**persona.card().model_dump(), **changes}, "persona.json"))
    return f"Saved {escape(name)}."


def remove(slug: str) -> tuple[str, str]:
    trashed = folder.delete(open_current(slug))
    gr.Info("Moved to the trash. Undo brings it back.")
    return "", trashed.name


def undo_remove(trashed: str) -> str:
    from persona.files import home, inside

    if not trashed:
        raise PersonaError("Nothing was deleted in this window.")
    return folder.restore(inside(home() / "trash", trashed)).slug


def selected(rows: Rows, event: gr.SelectData) -> int:
    """The '#' of the row clicked."""
    return int(event.index[0]) + 1 if isinstance(event.index, list | tuple) else 1


def preview(slug: str, rows: Rows, known: list[Pair], number: int, *settings: Any) -> str:
    """The chosen pair as the model will see it; settings: base, template, max_length, learn_history."""
    items = from_rows(rows, known) if slug else []
    if not items:
        return ""
    number = min(max(1, number), len(items))
    _, renderer = renderer_for(slug, *settings)
    head = f"<div class='quiet'>Pair {number}, as the model sees it</div>"
    return f"<div class='card'>{head}{mask_html(renderer, renderer.example(items[number - 1]))}</div>"


def build(page: Page) -> None:
    with gr.Column(visible=True) as welcome:
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
            name = gr.Textbox(label="or start your own", placeholder="A name", scale=3, elem_id="new-name")
            start = gr.Button("Start", scale=1, elem_id="start")
    with gr.Column(visible=False) as editor:
        with gr.Accordion("Who it is: name, system prompt, greeting, rights", open=False):
            card = [
                gr.Textbox(label="Name", elem_id="card-name"),
                gr.Textbox(label="System prompt", info="Part of every training row and of every chat. Short is good.",
                           lines=2, elem_id="card-system"),
                gr.Textbox(label="Greeting", info="Said before anyone has asked.", elem_id="card-greeting"),
                gr.Textbox(label="Source", info="Where the text comes from.", elem_id="card-source"),
                gr.Textbox(label="Rights", info="Whose text it is, and under which licence. Needed to publish.",
                           elem_id="card-rights"),
            ]  # fmt: skip
            saved = gr.HTML(elem_classes="status")
            delete = gr.Button("Delete this persona", size="sm", variant="stop")
        count = gr.HTML(elem_classes="status", elem_id="pairs-status")
        table = gr.Dataframe(
            headers=HEADERS, datatype=["number", "str", "str", "str"], column_count=4, column_limits=(4, 4),
            column_widths=["60px", "35%", "50%", "80px"], static_columns=[0, 3], type="array", interactive=True,
            wrap=True, max_height=460, show_search="search", elem_id="pairs",
            label="Pairs: double-click a cell to edit, right-click for rows",
        )  # fmt: skip
        mask = gr.HTML(elem_id="write-mask")
        with gr.Row():
            reload = gr.Button("Reload from disk", scale=0, min_width=190)
            go = gr.Button("Next: Template →", variant="primary", scale=0, min_width=190, elem_id="to-template")
    undo = gr.Button("Undo delete", size="sm", visible=False)
    known, stamp, trashed = gr.State([]), gr.State(""), gr.State("")

    settings = [page.base, page.template, page.max_length, page.learn_history]
    looking = [page.slug, table, known, page.pair, *settings]
    loading = [welcome, editor, *card, table, known, stamp, count]
    for button, example in zip(examples, folder.list_examples(), strict=True):
        button.click(shown(open_example), gr.State(example.slug), page.slug, api_visibility="private")
    gr.on([start.click, name.submit], shown(start_persona), name, page.slug, api_visibility="private")
    gr.on([page.slug.change, reload.click], shown(load), page.slug, loading, **QUIET).then(
        shown(preview), looking, mask, **QUIET
    )
    table.input(shown(save), [page.slug, table, known, stamp], [count, stamp, known, table], **QUIET).success(
        shown(preview), looking, mask, **QUIET
    )
    table.select(selected, table, page.pair, **QUIET).then(shown(preview), looking, mask, **QUIET)
    for box in card:
        box.blur(shown(save_card), [page.slug, *card], saved, **QUIET)
    delete.click(shown(remove), page.slug, [page.slug, trashed], api_visibility="private").success(
        lambda: gr.Button(visible=True), None, undo, **QUIET
    )
    undo.click(shown(undo_remove), trashed, page.slug, api_visibility="private").success(
        lambda: gr.Button(visible=False), None, undo, **QUIET
    )
    go.click(lambda: gr.Walkthrough(selected=TEMPLATE), None, page.steps, **QUIET)
