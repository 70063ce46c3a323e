"""Write, tab Import: drop a file or paste, see what becomes of it, correct the guess, then add the pairs."""

import contextlib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona.errors import InputError
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.ui.i18n import localized, t
from persona.ui.page import QUIET, Page, open_current_persona, show_errors
from persona.write.importers import ImportOptions, ImportReport, SkippedRow, hub_dataset, registry, text_source
from persona.write.importers.text_source import SourceFile

COLUMN_FIELDS = ("instruction", "output", "input", "history")
COLUMN_LABELS = ("Column with what someone says", "Column with the persona's answer", "Column added to it (input)",
          "Column with earlier turns")  # fmt: skip
NO_COLUMN = "(none)"


@contextlib.contextmanager
def open_given_source(file: str | None, pasted: str, dataset: str) -> Iterator[SourceFile]:
    """The one source that the visitor gave. Raises InputError when there is none."""
    if file:
        yield text_source.open_source(Path(file))
    elif pasted.strip():
        with text_source.save_pasted(pasted) as path:
            yield text_source.open_source(path)
    elif dataset.strip():
        yield text_source.open_source(hub_dataset.download_dataset(dataset.strip()))
    else:
        raise InputError("Drop a file, paste some text, or name a Hub dataset first.")


def import_options(
    speakers: list[str] | None, actions: str, turns: float, columns: tuple[str | None, ...]
) -> ImportOptions:
    mapping = {f: c for f, c in zip(COLUMN_FIELDS, columns, strict=True) if c and c != NO_COLUMN}
    return ImportOptions(mapping, tuple(speakers or ()), "keep" if actions == "keep" else "drop", int(turns or 0))


def survey_source(file: str | None, pasted: str, dataset: str, chosen: str = "") -> tuple[Any, ...]:
    """A new source: its format, what can be chosen for it, and the first pairs."""
    if not (file or pasted.strip() or dataset.strip()):
        return _empty_survey()
    with open_given_source(file, pasted, dataset) as source:
        format = chosen or registry.detect_format(source)
        survey = registry.get_importer(format).survey(source)
        title = registry.get_importer(format).TITLE
        speakers = [(f"{name} ({count})", name) for name, count in list(survey.speakers.items())[:200]]
        guess = [survey.mapping.get(f) for f in COLUMN_FIELDS]
        found = t("<b>{file}</b>: {format}, {encoding}", file=escape(source.name), format=escape(t(title)),
                  encoding=escape(source.encoding))  # fmt: skip
        card = ""
        if survey.card:
            card = f"<div class='card'><b>{escape(survey.card.name)}</b><br>{escape(survey.card.system[:400])}</div>"
        first = (
            preview_html(source, format, import_options([], "drop", 0, tuple(guess)))
            if not speakers
            else _choose_speaker_hint()
        )
    columns = [(t(NO_COLUMN), NO_COLUMN), *((name, name) for name in survey.columns)]
    return (
        found, gr.Dropdown(value=format, visible=True), gr.Dropdown(speakers, value=[], visible=bool(speakers)),
        gr.Radio(visible=bool(speakers)), gr.Slider(visible=bool(speakers)),
        *(gr.Dropdown(columns, value=g or NO_COLUMN, visible=len(columns) > 1) for g in guess),
        card, gr.Checkbox(value=bool(survey.card), visible=bool(survey.card)), first,
        gr.Button(interactive=not speakers),
    )  # fmt: skip


def _choose_speaker_hint() -> str:
    return f"<div class='hint'>{t('Choose who the persona is.')}</div>"


def _empty_survey() -> tuple[Any, ...]:
    hidden = [gr.Dropdown(visible=False) for _ in COLUMN_FIELDS]
    return ("", gr.Dropdown(value=None, visible=False), gr.Dropdown(visible=False), gr.Radio(visible=False),
            gr.Slider(visible=False), *hidden, "", gr.Checkbox(visible=False), "",
            gr.Button(interactive=False))  # fmt: skip


def update_preview(
    file: str | None, pasted: str, dataset: str, format: str, speakers: list[str], actions: str, turns: float,
    *columns: str,
) -> tuple[str, Any]:  # fmt: skip
    """The first pairs, after a choice was corrected."""
    with open_given_source(file, pasted, dataset) as source:
        if registry.get_importer(format).survey(source).speakers and not speakers:
            return _choose_speaker_hint(), gr.Button(interactive=False)
        first = preview_html(source, format, import_options(speakers, actions, turns, columns))
    return first, gr.Button(interactive=True)


def preview_html(source: SourceFile, format: str, options: ImportOptions) -> str:
    """The first pairs and the first skipped rows as HTML; a refusal is shown in their place."""
    try:
        seen = registry.preview_import(source, format, options)
    except InputError as e:
        return f"<div class='problem'>{escape(localized(e.message))}</div>"
    rows = "".join(_pair_html(p) for p in seen.pairs)
    more = f"<div class='quiet'>{t('… and more')}</div>" if seen.more else ""
    skipped = skipped_html(seen.skipped[:5], len(seen.skipped))
    if not seen.pairs:
        return f"{more}<div class='problem'>{t('This gives no pairs. Try another format.')}</div>{skipped}"
    head = t("The first {n} pairs:", n=len(seen.pairs))
    return f"<div class='quiet'>{head}</div><div class='preview'>{rows}</div>{more}{skipped}"


def _pair_html(pair: Pair) -> str:
    turns = t("1 earlier turn") if len(pair.history) == 1 else t("{n} earlier turns", n=len(pair.history))
    before = f"<i>{turns}</i> " if pair.history else ""
    return (
        f"<div><span class='them'>{before}{escape(pair.instruction[:300])}</span>"
        f"<span class='her'>{escape(pair.output[:300])}</span></div>"
    )


def skipped_html(skipped: list[SkippedRow], total: int) -> str:
    if not total:
        return ""
    lines = "".join(
        f"<li>{t('line {line}: {why}', line=s.line, why=escape(localized(s.why)))}"
        f"{f' <q>{escape(s.text[:80])}</q>' if s.text else ''}</li>"
        for s in skipped
    )
    more = f"<li>{t('… and {n} more', n=f'{total - len(skipped):,}')}</li>" if total > len(skipped) else ""
    return f"<div class='hint'>{t('{n} skipped:', n=f'{total:,}')}<ul>{lines}{more}</ul></div>"


def add_imported_pairs(
    slug: str, file: str | None, pasted: str, dataset: str, format: str, take_card: bool, speakers: list[str],
    actions: str, turns: float, *columns: str,
) -> tuple[str, Any]:  # fmt: skip
    """Add the pairs to the open persona. Returns what was done as HTML, and the button."""
    persona = open_current_persona(slug)
    old = persona.card()
    with open_given_source(file, pasted, dataset) as source:
        card = registry.get_importer(format).survey(source).card if take_card else None
        if speakers and old == card_named_after(source):  # now that she is chosen, she has a name
            card = persona_folder.default_card(speakers[0])
        done = registry.import_into(persona, source, format, import_options(speakers, actions, turns, columns))
    if card:
        news = {k: v for k, v in card.model_dump().items() if v and k != "probes"}
        persona_folder.update_card(persona, lambda _: news, "the file's card")
    return import_report_html(done), gr.Button(interactive=False)


def import_report_html(done: ImportReport) -> str:
    lines = [t("<b>{n} pairs added</b> of {read} read. Undo takes them back.", n=f"{done.added:,}",
               read=f"{done.read:,}")]  # fmt: skip
    if done.known:
        lines.append(t("{n} were already there.", n=f"{done.known:,}"))
    lines += [
        t("{what}: {n} times.", what=escape(localized(what)), n=f"{count:,}") for what, count in done.notes.items()
    ]
    return f"<div class='good'>{' '.join(lines)}</div>{skipped_html(done.skipped[:50], done.left_out)}"


def card_named_after(source: SourceFile) -> persona_folder.PersonaCard:
    """The card of a persona of whom only a file is known."""
    return persona_folder.PersonaCard(name=Path(source.name).stem[:80] or "Persona")


def start_from_file(file: str) -> tuple[str, str, None, Any]:
    """A dropped file starts a persona, named by its card, else by the file; the tab Import then shows the file.

    Returns folder name, file, the emptied drop zone, the tabs.
    """
    source = text_source.open_source(Path(file))
    card = registry.get_importer(registry.detect_format(source)).survey(source).card
    card = card or card_named_after(source)
    return persona_folder.create_persona(card.name, card).slug, file, None, gr.Tabs(selected="import")


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
        known = [(t(module.TITLE), name) for name, module in registry.import_formats().items()]
        format = gr.Dropdown(known, label=t("Format"), visible=False, elem_id="import-format")
        speakers = gr.Dropdown([], label=t("Who is the persona?"), multiselect=True, visible=False,
                               info=t("Choose every name that the persona goes by."),
                               elem_id="import-speaker")  # fmt: skip
        actions = gr.Radio(
            [(t("Leave out"), "drop"), (t("Keep as *action*"), "keep")], value="drop", label=t("Stage directions"),
            visible=False,
        )  # fmt: skip
        turns = gr.Slider(0, 5, value=0, step=1, label=t("Earlier exchanges kept with each pair"), visible=False)
    with gr.Row(elem_classes="slim"):
        columns = [
            gr.Dropdown([(t(NO_COLUMN), NO_COLUMN)], value=NO_COLUMN, label=t(label), visible=False)
            for label in COLUMN_LABELS
        ]
    card = gr.HTML()
    take_card = gr.Checkbox(label=t("Take name, system prompt and greeting from the file"), visible=False)
    preview = gr.HTML(elem_id="import-preview")
    add = gr.Button(t("Add these pairs"), variant="primary", interactive=False, elem_id="import-add")
    report = gr.HTML(elem_id="import-report")

    where = [file, pasted, dataset]
    choices = [speakers, actions, turns, *columns]
    seen = [found, format, speakers, actions, turns, *columns, card, take_card, preview, add]
    busy: dict[str, Any] = {**QUIET, "show_progress": "minimal", "show_progress_on": preview}
    gr.on([file.change, pasted.blur, dataset.submit], show_errors(survey_source), where, seen, **busy)
    format.input(show_errors(survey_source), [*where, format], seen, **busy)
    gr.on([c.input for c in choices], show_errors(update_preview), [*where, format, *choices], [preview, add], **busy)
    added = add.click(
        show_errors(add_imported_pairs), [page.slug, *where, format, take_card, *choices], [report, add],
        show_progress_on=report, api_visibility="private",
    )  # fmt: skip
    return file, added
