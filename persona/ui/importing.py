"""Write, tab Import: drop a file or paste, see what becomes of it, correct the guess, then add the pairs."""

import contextlib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona import folder, importers
from persona.errors import InputError
from persona.importers import Options, Report, Skipped, hub, text
from persona.importers.text import Source
from persona.pairs import Pair
from persona.ui.common import QUIET, Page, open_current, shown
from persona.ui.words import localized, t

FIELDS = ("instruction", "output", "input", "history")
LABELS = ("Column with what someone says", "Column with the persona's answer", "Column added to it (input)",
          "Column with earlier turns")  # fmt: skip
NONE = "(none)"


@contextlib.contextmanager
def opened(file: str | None, pasted: str, dataset: str) -> Iterator[Source]:
    """The one source that the visitor gave. Raises InputError when there is none."""
    if file:
        yield text.open_source(Path(file))
    elif pasted.strip():
        with text.pasted(pasted) as path:
            yield text.open_source(path)
    elif dataset.strip():
        yield text.open_source(hub.download(dataset.strip()))
    else:
        raise InputError("Drop a file, paste some text, or name a Hub dataset first.")


def options_of(speakers: list[str] | None, actions: str, turns: float, columns: tuple[str | None, ...]) -> Options:
    mapping = {f: c for f, c in zip(FIELDS, columns, strict=True) if c and c != NONE}
    return Options(mapping, tuple(speakers or ()), "keep" if actions == "keep" else "drop", int(turns or 0))


def look(file: str | None, pasted: str, dataset: str, chosen: str = "") -> tuple[Any, ...]:
    """A new source: its format, what can be chosen for it, and the first pairs."""
    if not (file or pasted.strip() or dataset.strip()):
        return _nothing()
    with opened(file, pasted, dataset) as source:
        format = chosen or importers.detect(source)
        survey = importers.importer(format).survey(source)
        title = importers.importer(format).TITLE
        speakers = [(f"{name} ({count})", name) for name, count in list(survey.speakers.items())[:200]]
        guess = [survey.mapping.get(f) for f in FIELDS]
        found = t("<b>{file}</b>: {format}, {encoding}", file=escape(source.name), format=escape(t(title)),
                  encoding=escape(source.encoding))  # fmt: skip
        card = ""
        if survey.card:
            card = f"<div class='card'><b>{escape(survey.card.name)}</b><br>{escape(survey.card.system[:400])}</div>"
        first = shown_pairs(source, format, options_of([], "drop", 0, tuple(guess))) if not speakers else _ask_who()
    columns = [(t(NONE), NONE), *((name, name) for name in survey.columns)]
    return (
        found, gr.Dropdown(value=format, visible=True), gr.Dropdown(speakers, value=[], visible=bool(speakers)),
        gr.Radio(visible=bool(speakers)), gr.Slider(visible=bool(speakers)),
        *(gr.Dropdown(columns, value=g or NONE, visible=len(columns) > 1) for g in guess),
        card, gr.Checkbox(value=bool(survey.card), visible=bool(survey.card)), first,
        gr.Button(interactive=not speakers),
    )  # fmt: skip


def _ask_who() -> str:
    return f"<div class='hint'>{t('Choose who the persona is.')}</div>"


def _nothing() -> tuple[Any, ...]:
    hidden = [gr.Dropdown(visible=False) for _ in FIELDS]
    return ("", gr.Dropdown(value=None, visible=False), gr.Dropdown(visible=False), gr.Radio(visible=False),
            gr.Slider(visible=False), *hidden, "", gr.Checkbox(visible=False), "",
            gr.Button(interactive=False))  # fmt: skip


def look_again(
    file: str | None, pasted: str, dataset: str, format: str, speakers: list[str], actions: str, turns: float,
    *columns: str,
) -> tuple[str, Any]:  # fmt: skip
    """The first pairs, after a choice was corrected."""
    with opened(file, pasted, dataset) as source:
        if importers.importer(format).survey(source).speakers and not speakers:
            return _ask_who(), gr.Button(interactive=False)
        first = shown_pairs(source, format, options_of(speakers, actions, turns, columns))
    return first, gr.Button(interactive=True)


def shown_pairs(source: Source, format: str, options: Options) -> str:
    """The first pairs and the first skipped rows as HTML; a refusal is shown in their place."""
    try:
        seen = importers.preview(source, format, options)
    except InputError as e:
        return f"<div class='problem'>{escape(localized(e.message))}</div>"
    rows = "".join(_pair(p) for p in seen.pairs)
    more = f"<div class='quiet'>{t('… and more')}</div>" if seen.more else ""
    skipped = skipped_html(seen.skipped[:5], len(seen.skipped))
    if not seen.pairs:
        return f"{more}<div class='problem'>{t('No pairs would come of this. Try another format.')}</div>{skipped}"
    head = t("The first {n} pairs:", n=len(seen.pairs))
    return f"<div class='quiet'>{head}</div><div class='preview'>{rows}</div>{more}{skipped}"


def _pair(pair: Pair) -> str:
    turns = t("1 earlier turn") if len(pair.history) == 1 else t("{n} earlier turns", n=len(pair.history))
    before = f"<i>{turns}</i> " if pair.history else ""
    return (
        f"<div><span class='them'>{before}{escape(pair.instruction[:300])}</span>"
        f"<span class='her'>{escape(pair.output[:300])}</span></div>"
    )


def skipped_html(skipped: list[Skipped], total: int) -> str:
    if not total:
        return ""
    lines = "".join(
        f"<li>{t('line {line}: {why}', line=s.line, why=escape(localized(s.why)))}"
        f"{f' <q>{escape(s.text[:80])}</q>' if s.text else ''}</li>"
        for s in skipped
    )
    more = f"<li>{t('… and {n} more', n=f'{total - len(skipped):,}')}</li>" if total > len(skipped) else ""
    return f"<div class='hint'>{t('{n} skipped:', n=f'{total:,}')}<ul>{lines}{more}</ul></div>"


def bring_in(
    slug: str, file: str | None, pasted: str, dataset: str, format: str, take_card: bool, speakers: list[str],
    actions: str, turns: float, *columns: str,
) -> tuple[str, Any]:  # fmt: skip
    """Add the pairs to the open persona. Returns what was done as HTML, and the button."""
    persona = open_current(slug)
    old = persona.card()
    with opened(file, pasted, dataset) as source:
        card = importers.importer(format).survey(source).card if take_card else None
        if speakers and old == named_after(source):  # now that she is chosen, she has a name
            card = folder.named(speakers[0])
        done = importers.bring_in(persona, source, format, options_of(speakers, actions, turns, columns))
    if card:
        news = {k: v for k, v in card.model_dump().items() if v and k != "probes"}
        folder.edit_card(persona, lambda _: news, "the file's card")
    return report_html(done), gr.Button(interactive=False)


def report_html(done: Report) -> str:
    lines = [t("<b>{n} pairs added</b> of {read} read. Undo takes them back.", n=f"{done.added:,}",
               read=f"{done.read:,}")]  # fmt: skip
    if done.known:
        lines.append(t("{n} were there already.", n=f"{done.known:,}"))
    lines += [
        t("{what}: {n} times.", what=escape(localized(what)), n=f"{count:,}") for what, count in done.notes.items()
    ]
    return f"<div class='good'>{' '.join(lines)}</div>{skipped_html(done.skipped[:50], done.left_out)}"


def named_after(source: Source) -> folder.Card:
    """The card of a persona of whom only a file is known."""
    return folder.Card(name=Path(source.name).stem[:80] or "Persona")


def start_from(file: str) -> tuple[str, str, None, Any]:
    """A dropped file starts a persona, named by its card, else by the file; the tab Import then shows the file.

    Returns folder name, file, the emptied drop zone, the tabs.
    """
    source = text.open_source(Path(file))
    card = importers.importer(importers.detect(source)).survey(source).card
    card = card or named_after(source)
    return folder.create_named(card.name, card).slug, file, None, gr.Tabs(selected="import")


def build(page: Page) -> tuple[gr.File, Any]:
    """The tab. Returns the place where a file is dropped, and the event after pairs were added."""
    gr.Markdown(
        t("Screenplays, novels and chat logs; Alpaca, ShareGPT and OpenAI/TRL files; CSV, Excel and Parquet; character "
          "cards. Nothing is written before you press *Add*."),
        elem_classes="quiet",
    )  # fmt: skip
    with gr.Row(equal_height=True):
        file = gr.File(label=t("Drop a file"), type="filepath", height=150, elem_id="import-file")
        with gr.Column():
            pasted = gr.Textbox(label=t("or paste text"), lines=3, max_lines=8, elem_id="import-paste")
            dataset = gr.Textbox(label=t("or a Hub dataset"), placeholder="USER/NAME", elem_id="import-hub")
    found = gr.HTML(elem_classes="status", elem_id="import-found")
    with gr.Row(elem_classes="slim"):
        known = [(t(module.TITLE), name) for name, module in importers.formats().items()]
        format = gr.Dropdown(known, label=t("Format"), visible=False, elem_id="import-format")
        speakers = gr.Dropdown([], label=t("Who is the persona?"), multiselect=True, visible=False,
                               info=t("Several names if she is called by several."),
                               elem_id="import-speaker")  # fmt: skip
        actions = gr.Radio(
            [(t("Leave out"), "drop"), (t("Keep as *action*"), "keep")], value="drop", label=t("Stage directions"),
            visible=False,
        )  # fmt: skip
        turns = gr.Slider(0, 5, value=0, step=1, label=t("Earlier exchanges kept with each pair"), visible=False)
    with gr.Row(elem_classes="slim"):
        columns = [gr.Dropdown([(t(NONE), NONE)], value=NONE, label=t(label), visible=False) for label in LABELS]
    card = gr.HTML()
    take_card = gr.Checkbox(label=t("Take name, system prompt and greeting from the file"), visible=False)
    preview = gr.HTML(elem_id="import-preview")
    add = gr.Button(t("Add these pairs"), variant="primary", interactive=False, elem_id="import-add")
    report = gr.HTML(elem_id="import-report")

    where = [file, pasted, dataset]
    choices = [speakers, actions, turns, *columns]
    seen = [found, format, speakers, actions, turns, *columns, card, take_card, preview, add]
    busy: dict[str, Any] = {**QUIET, "show_progress": "minimal", "show_progress_on": preview}
    gr.on([file.change, pasted.blur, dataset.submit], shown(look), where, seen, **busy)
    format.input(shown(look), [*where, format], seen, **busy)
    gr.on([c.input for c in choices], shown(look_again), [*where, format, *choices], [preview, add], **busy)
    added = add.click(
        shown(bring_in), [page.slug, *where, format, take_card, *choices], [report, add],
        show_progress_on=report, api_visibility="private",
    )  # fmt: skip
    return file, added
