"""Write, tab Import: drop a file or paste text, see a preview, correct what was guessed, then add the pairs."""

import contextlib
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gradio as gr

from persona.errors import InputError
from persona.store import kept_card, persona_folder
from persona.store.pairs import Pair
from persona.ui.i18n import localized, t
from persona.ui.page import SHOWING, WAITING_EVENT, Page, open_current_persona, run_one_at_a_time, show_errors
from persona.ui.steps.write import preferences_import
from persona.ui.steps.write.pairs_status import replies_text
from persona.ui.steps.write.row_choice import RowChoice, build_row_choice, open_given_source
from persona.ui.widgets import problems_html
from persona.write.importers import (
    ImportOptions,
    ImportReport,
    SkippedRow,
    SourceSurvey,
    packed_file,
    registry,
    text_source,
)
from persona.write.importers.row_selection import RowSelection
from persona.write.importers.text_source import SourceFile

COLUMN_FIELDS = ("instruction", "output", "input", "history")
COLUMN_LABELS = ("Column with what someone says", "Column with the persona's answer", "Column added to it (input)",
          "Column with earlier turns")  # fmt: skip
NO_COLUMN = "(none)"
INPUT_JOINS = {
    "line": "on a new line", "paragraph": "after an empty line", "none": "directly", "alpaca-zh": "under ### 输入:",
    "alpaca-en": "under ### Input:",
}  # fmt: skip
MAX_SPEAKERS = 200  # to choose from, the most frequent first
MAX_MEMBERS = 1_000  # files of an archive to choose from
SPEAKER_COLUMNS = ("speaker", "character", "persona", "name", "说话人", "角色", "人物", "姓名")  # of a table


class SurveyView(NamedTuple):
    """What the tab shows of a source: the components, or the values for them."""

    found: Any
    member: Any
    format: Any
    speakers: Any
    actions: Any
    history_turns: Any
    instruction: Any  # columns of a table, in the order of COLUMN_FIELDS
    output: Any
    input: Any
    history: Any
    join_input: Any
    card: Any
    take_card: Any
    preview: Any
    add: Any

    def options(self) -> list[Any]:
        """The components that correct the guess: inputs of update_preview and add_imported_pairs."""
        return [*self[self._fields.index("speakers") : self._fields.index("card")]]


def import_options(
    speakers: list[str] | None, actions: str, history_turns: float, columns: tuple[str | None, ...],
    selection: RowSelection, join_input: str = "line",
) -> ImportOptions:  # fmt: skip
    mapping = {f: c for f, c in zip(COLUMN_FIELDS, columns, strict=True) if c and c != NO_COLUMN}
    turns = int(history_turns or 0) or None
    keep: Literal["drop", "keep"] = "keep" if actions == "keep" else "drop"
    return ImportOptions(mapping, tuple(speakers or ()), keep, turns, join_input, selection)


def _read_options(
    speakers: list[str] | None, actions: str, history_turns: float, choices: tuple[Any, ...]
) -> tuple[ImportOptions, str]:
    """The options, and the file of an archive.

    choices: the columns in the order of COLUMN_FIELDS, how an input is joined, and a RowChoice's values.
    """
    columns, (join_input, *rows) = choices[: len(COLUMN_FIELDS)], choices[len(COLUMN_FIELDS) :] or ("line",)
    chosen = RowChoice(*rows)
    options = import_options(speakers, actions, history_turns, columns, chosen.selection(), join_input)
    return options, chosen.member or ""


def survey_source(
    file: str | None, pasted: str, dataset: str, format: str = "", *rows: Any, slug: str = ""
) -> SurveyView:
    """A new source: its format ("": detected), what can be chosen for it, and the first pairs.

    rows: the values of a RowChoice. slug: the open persona, who is chosen as the speaker where the source names them.
    """
    if not (file or pasted.strip() or dataset.strip()):
        return _empty_survey()
    chosen_rows = RowChoice(*rows)
    selection = chosen_rows.selection()
    members = packed_file.list_members(Path(file)) if file else []
    member = chosen_rows.member if chosen_rows.member in members else ""
    members_choice = gr.Dropdown(members[:MAX_MEMBERS], value=member or None, visible=bool(members))
    if file and members and not member:
        several = t("<b>{file}</b> holds {n} files. Choose one.", file=escape(Path(file).name), n=f"{len(members):,}")
        return _empty_survey()._replace(found=several, member=members_choice)
    with open_given_source(file, pasted, dataset, selection, member) as source:
        try:
            format = format or registry.detect_format(source)
        except InputError as e:  # the choice is the reader's now
            return _empty_survey()._replace(
                found=problems_html([e.message]), member=members_choice, format=gr.Dropdown(value=None, visible=True)
            )
        importer = registry.get_importer(format)
        survey = importer.survey(source)
        guess = tuple(survey.mapping.get(f) for f in COLUMN_FIELDS)
        found = t("<b>{file}</b>: {format}, {encoding}", file=escape(source.name), format=escape(t(importer.TITLE)),
                  encoding=escape(source.encoding))  # fmt: skip
        has_speakers = bool(survey.speakers)
        name = open_current_persona(slug).card().name if slug else ""
        chosen = [name] if name in survey.speakers else []
        ready = bool(chosen) or not has_speakers
        preview = _choose_speaker_hint()
        if ready:
            preview = preview_html(source, format, import_options(chosen, "drop", 0, guess, selection))
    speakers = [(f"{name} ({count})", name) for name, count in list(survey.speakers.items())[:MAX_SPEAKERS]]
    columns = [(t(NO_COLUMN), NO_COLUMN), *((name, name) for name in survey.columns)]
    instruction, output, input, history = (
        gr.Dropdown(columns, value=g or NO_COLUMN, visible=len(columns) > 1) for g in guess
    )
    card = ""
    if survey.card:
        card = f"<div class='card'><b>{escape(survey.card.name)}</b><br>{escape(survey.card.system[:400])}</div>"
    return SurveyView(
        found, members_choice, gr.Dropdown(value=format, visible=True),
        gr.Dropdown(speakers, value=chosen, visible=has_speakers), gr.Radio(visible=has_speakers),
        gr.Slider(visible=has_speakers), instruction, output, input, history,
        gr.Dropdown(value="line", visible=len(columns) > 1), card,
        gr.Checkbox(value=bool(survey.card), visible=bool(survey.card)), preview,
        gr.Button(interactive=ready),
    )  # fmt: skip


def survey_for_persona(slug: str, file: str | None, pasted: str, dataset: str, *rows: Any) -> SurveyView:
    """A new source for the open persona."""
    return survey_source(file, pasted, dataset, "", *rows, slug=slug)


def _choose_speaker_hint() -> str:
    return f"<div class='hint'>{t('Choose who the persona is.')}</div>"


def _empty_survey() -> SurveyView:
    instruction, output, input, history = (gr.Dropdown(visible=False) for _ in COLUMN_FIELDS)
    return SurveyView(
        "", gr.Dropdown(value=None, visible=False), gr.Dropdown(value=None, visible=False),
        gr.Dropdown(visible=False), gr.Radio(visible=False), gr.Slider(visible=False),
        instruction, output, input, history, gr.Dropdown(visible=False), "",
        gr.Checkbox(visible=False), "", gr.Button(interactive=False),
    )  # fmt: skip


def update_preview(
    file: str | None, pasted: str, dataset: str, format: str, speakers: list[str], actions: str, history_turns: float,
    *choices: Any,
) -> tuple[str, gr.Button]:  # fmt: skip
    """The first pairs after a choice was changed, and the button that adds them. choices: see _read_options()."""
    if not format:  # rows are chosen before there is a file
        return "", gr.Button(interactive=False)
    options, member = _read_options(speakers, actions, history_turns, choices)
    with open_given_source(file, pasted, dataset, options.selection, member) as source:
        if registry.get_importer(format).survey(source).speakers and not speakers:
            return _choose_speaker_hint(), gr.Button(interactive=False)
        preview = preview_html(source, format, options)
    return preview, gr.Button(interactive=True)


def preview_html(source: SourceFile, format: str, options: ImportOptions) -> str:
    """The first pairs and the first skipped rows; the reason in their place when the source is refused."""
    try:
        preview = registry.preview_import(source, format, options)
        count = registry.count_pairs(source, format, options)
    except InputError as e:
        return problems_html([e.message])
    rows = "".join(_pair_html(p) for p in preview.pairs)
    more = f"<div class='quiet'>{t('… and more')}</div>" if preview.more else ""
    skipped = skipped_html(preview.skipped[:5], len(preview.skipped))
    if not preview.pairs:
        return f"{more}<div class='problem'>{t('This gives no pairs. Try another format.')}</div>{skipped}"
    counts = {"n": f"{count.replies:,}", "shown": len(preview.pairs)}
    head = t("More than {n} pairs. The first {shown}:", **counts) if count.more else t(
        "Pairs in all: {n}. The first {shown}:", **counts)  # fmt: skip
    head = f"{replies_text(count.replies, count.conversations)}{head}"
    return f"<div class='quiet'>{head}</div><div class='preview'>{rows}</div>{more}{skipped}"


def _pair_html(pair: Pair) -> str:
    turns = t("{n} earlier turn(s)", n=len(pair.history))
    before = f"<i>{turns}</i> " if pair.history else ""
    return (
        f"<div><span class='user'>{before}{escape(pair.instruction[:300])}</span>"
        f"<span class='persona'>{escape(pair.output[:300])}</span></div>"
    )


def skipped_html(skipped: list[SkippedRow], total: int) -> str:
    """Rows that were skipped, each with the reason. total: their number, of which `skipped` are the first."""
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
    actions: str, history_turns: float, *choices: Any,
) -> tuple[str, gr.Button, str]:  # fmt: skip
    """Add the pairs to the open persona. Returns the report as HTML, the button, and the preview, now empty."""
    persona = open_current_persona(slug)
    options, member = _read_options(speakers, actions, history_turns, choices)
    with open_given_source(file, pasted, dataset, options.selection, member) as source:
        survey = registry.get_importer(format).survey(source) if take_card else SourceSurvey()
        report = registry.import_into(persona, source, format, options)
    if survey.card:
        changes = {k: v for k, v in survey.card.model_dump().items() if v and k != "probes"}
        persona_folder.update_card(persona, lambda _: changes, "the file's card")
        kept_card.keep_card(persona, survey.original, survey.container)
    return import_report_html(report), gr.Button(interactive=False), ""


def import_report_html(report: ImportReport) -> str:
    lines = [t("<b>{n} pair(s) added</b>. Undo takes (it|them) back.", n=f"{report.added:,}")]
    lines += filter(None, [replies_text(report.replies, report.conversations).strip()])
    if report.known:
        lines.append(t("{n} were already there.", n=f"{report.known:,}"))
    lines += [
        t("{what}: {n} time(s).", what=escape(localized(what)), n=f"{count:,}") for what, count in report.notes.items()
    ]
    return f"<div class='good'>{' '.join(lines)}</div>{skipped_html(report.skipped[:50], report.left_out)}"


def ask_whose_voice(file: str | None) -> tuple[gr.Dropdown, gr.Button]:
    """The question that a dropped file raises: who of it the persona is. Nothing is made yet."""
    if not file:
        return gr.Dropdown(visible=False), gr.Button(visible=False)
    if members := packed_file.list_members(Path(file)):  # one is chosen in the tab Import
        info = t("The persona's name. Which of the {n} files is read, you choose next.", n=f"{len(members):,}")
        return gr.Dropdown([], value=None, info=info, visible=True), gr.Button(visible=True)
    source = text_source.open_source(Path(file))
    format = registry.detect_format(source)
    survey = registry.get_importer(format).survey(source)
    info, names = t("The persona's name: choose one, or type it."), list(survey.speakers)[:MAX_SPEAKERS]
    if survey.card:
        names = [survey.card.name]
    elif not names:
        with contextlib.suppress(InputError):  # its columns are chosen in the tab Import
            names = _name_in_table(source, format, survey)
            count = registry.count_pairs(source, format, ImportOptions(survey.mapping))
            n = f"{count.replies:,}"
            pairs = t("More than {n} pairs.", n=n) if count.more else t("Pairs in all: {n}.", n=n)
            info = f"{pairs} {info}"
    known = names[0] if names and not survey.speakers else None
    return gr.Dropdown(names, value=known, info=info, visible=True), gr.Button(visible=True)


def _name_in_table(source: SourceFile, format: str, survey: SourceSurvey) -> list[str]:
    """The name in a table's column of speakers, if it is one: every row becomes a pair, whoever speaks in it."""
    column = next((name for name in survey.columns if name.strip().lower() in SPEAKER_COLUMNS), None)
    if not column or "output" not in survey.mapping:
        return []
    columns = {"instruction": column, "output": survey.mapping["output"]}
    rows = registry.preview_import(source, format, ImportOptions(columns), MAX_SPEAKERS).pairs
    names = {row.instruction.strip() for row in rows}
    return list(names) if len(names) == 1 else []


def start_from_file(file: str, voice: str | None) -> tuple[str, str, None, Any]:
    """Start a persona called `voice`, with the file's own card where it has one; the tab Import then shows the file.

    Returns folder name, file, the emptied drop zone, the tabs.
    """
    if not (voice or "").strip():
        raise InputError("Whose voice is in the file? Choose a name or type one, then press Start.")
    survey = SourceSurvey()
    if not packed_file.list_members(Path(file)):
        source = text_source.open_source(Path(file))
        survey = registry.get_importer(registry.detect_format(source)).survey(source)
    name = str(voice).strip()
    card = survey.card.model_copy(update={"name": name}) if survey.card else persona_folder.default_card(name)
    persona = persona_folder.create_persona(card.name, card)
    kept_card.keep_card(persona, survey.original, survey.container)
    return persona.slug, file, None, gr.Tabs(selected="import")


def build(page: Page, tab: gr.Tab) -> tuple[gr.File, Any]:
    """The tab. Returns where a file is dropped, and the event of pairs that were added."""
    gr.Markdown(
        t("Screenplays, novels, subtitles and chats of any program; Alpaca, ShareGPT and OpenAI/TRL files; CSV, Excel "
          "and Parquet; character cards. Nothing is written before you press *Add*."),
        elem_classes="quiet",
    )  # fmt: skip
    with gr.Row(equal_height=True):
        file = gr.File(label=t("Drop a file"), type="filepath", height=150, elem_id="import-file")
        with gr.Column():
            pasted = gr.Textbox(label=t("or paste text"), lines=3, max_lines=8, elem_id="import-paste")
            dataset = gr.Textbox(label=t("or a Hub dataset"), placeholder="USER/NAME", elem_id="import-hub")
    member = gr.Dropdown([], label=t("File in the archive"), visible=False, elem_id="import-member")
    rows = build_row_choice(member)
    preferences = preferences_import.build()
    view = _build_survey(member)
    report = gr.HTML(elem_id="import-report")

    source, options = [file, pasted, dataset], [*view.options(), *rows]
    event: dict[str, Any] = {**SHOWING, "show_progress": "minimal", "show_progress_on": view.preview, **WAITING_EVENT}
    surveyed = gr.on(
        [file.change, pasted.blur, dataset.submit, member.input],
        run_one_at_a_time(show_errors(survey_for_persona)),
        [page.slug, *source, *rows],
        view,
        **event,
    )
    preferences_import.connect(page, tab, preferences, [*source, member], surveyed)
    view.format.input(run_one_at_a_time(show_errors(survey_source)), [*source, view.format, *rows], view, **event)
    typed = rows.typed()
    gr.on(
        [
            *(text.blur for text in typed),
            *(text.submit for text in typed),
            *(option.input for option in options if option not in (*typed, member)),
        ],
        run_one_at_a_time(show_errors(update_preview)),
        [*source, view.format, *options],
        [view.preview, view.add],
        **event,
    )
    added = view.add.click(
        run_one_at_a_time(show_errors(add_imported_pairs)),
        [page.slug, *source, view.format, view.take_card, *options],
        [report, view.add, view.preview],
        show_progress_on=report,
        api_visibility="private",
        **WAITING_EVENT,
    )
    return file, added


def _build_survey(member: gr.Dropdown) -> SurveyView:
    found = gr.HTML(elem_classes="status", elem_id="import-found")
    with gr.Row(elem_classes="slim"):
        formats = [(t(module.TITLE), name) for name, module in registry.import_formats().items()]
        format = gr.Dropdown(formats, label=t("Format"), visible=False, elem_id="import-format")
        speakers = gr.Dropdown([], label=t("Who is the persona?"), multiselect=True, visible=False,
                               info=t("Choose every name that the persona goes by."),
                               elem_id="import-speaker")  # fmt: skip
        actions = gr.Radio(
            [(t("Leave out"), "drop"), (t("Keep as *action*"), "keep")], value="drop", label=t("Stage directions"),
            visible=False,
        )  # fmt: skip
        history_turns = gr.Slider(
            0, 5, value=0, step=1, label=t("Earlier exchanges kept with each pair"), visible=False
        )
    with gr.Row(elem_classes="slim"):
        instruction, output, input, history = (
            gr.Dropdown([(t(NO_COLUMN), NO_COLUMN)], value=NO_COLUMN, label=t(label), visible=False)
            for label in COLUMN_LABELS
        )
        join_input = gr.Dropdown([(t(label), name) for name, label in INPUT_JOINS.items()], value="line", visible=False,
                                 label=t("The input is added"), elem_id="import-join")  # fmt: skip
    card = gr.HTML()
    take_card = gr.Checkbox(label=t("Take name, system prompt and greeting from the file"), visible=False)
    preview = gr.HTML(elem_id="import-preview")
    add = gr.Button(t("Add these pairs"), variant="primary", interactive=False, elem_id="import-add")
    return SurveyView(
        found, member, format, speakers, actions, history_turns, instruction, output, input, history, join_input, card,
        take_card, preview, add,
    )  # fmt: skip
