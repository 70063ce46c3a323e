"""Step 3, the ledger: all runs of the persona, and what can be done with each: open, note, compare, repeat, delete."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import gradio as gr
import pandas as pd

from persona.errors import InputError
from persona.judge import compare_runs
from persona.judge import ledger as runs_ledger
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store import deployment
from persona.train import gpu_slices, launcher, run_notes
from persona.train.config import RunConfig
from persona.train.parent import reopen_parent
from persona.train.run_folder import Run, list_runs
from persona.ui import hard_pairs, voice_picker
from persona.ui.chosen import Chosen, ChosenView
from persona.ui.i18n import localized, t
from persona.ui.navigation import COMPARE, SHARE, TRAIN
from persona.ui.notices import show_info
from persona.ui.page import QUIET, SHOWING, Page, on_latest, open_current_persona, show_errors
from persona.ui.steps.train import further, ledger_view, run_view
from persona.ui.widgets import FORWARD_CLICKS_JS

MAX_PICKED = 2  # runs that are compared


class LedgerView(NamedTuple):
    """The components that a click in the ledger may change, or the values for them."""

    table: Any
    detail: Any
    losses: Any
    picked: Any  # names of the runs that are ticked
    shown: Any  # name of the run whose charts the step shows
    parent: Any  # the adapter to go on from
    repeated: Any  # name of the run that this click made; "" after any other click
    note_name: Any
    note: Any
    steps: Any
    shown_step: Any
    chosen: Any  # a ChosenView, and its fields
    slug: Any
    adapter: Any
    persona_list: Any
    adapter_list: Any

    @classmethod
    def changed(cls, **values: Any) -> Self:
        """Those given; the others stay."""
        values = {"repeated": "", **values}
        return cls(**{name: values.get(name, gr.skip()) for name in cls._fields})


def refresh(slug: str, shown: str, picked: list[str]) -> tuple[Any, list[str], str, str]:
    """The table, the ticked runs that are still there, and the name and note of the run that is shown."""
    rows = runs_ledger.read_ledger(open_current_persona(slug)) if slug else []
    names = [row.figures.name for row in rows]
    picked = [name for name in picked if name in names]
    note = next((row.note for row in rows if row.figures.name == (shown or (names or [""])[0])), run_notes.RunNote())
    return ledger_view.table_html(rows, shown, picked), picked, note.name, note.note


def on_click(slug: str, shown: str, picked: list[str], chosen: Chosen, event: gr.EventData) -> LedgerView:
    """What was pressed in the table. Raises PersonaError."""
    do, run = str(event._data.get("do")), find_run(slug, str(event._data.get("run")))
    if do == "pick":
        picked = [name for name in picked if name != run.name] if run.name in picked else [*picked, run.name]
        picked = picked[-MAX_PICKED:]
        return _with_table(slug, shown, picked, **show_comparison(slug, picked))
    if do == "star":
        run_notes.change_note(run, starred=not run_notes.read_note(run).starred)
        return _with_table(slug, shown, picked)
    if do == "open":
        return _with_table(slug, run.name, picked, shown=run.name)
    if do == "diff":
        title = t("Pairs: {run} and now", run=run_title(run))
        detail = ledger_view.difference_html([r.pair for r in run.rows()], open_current_persona(slug).scan()[0], title)
        return LedgerView.changed(detail=detail, losses=gr.LinePlot(visible=False))
    if do == "hard":
        title = t("Least likely held-out pairs: {run}", run=run_title(run))
        rows = compare_runs.list_hard_rows(run)
        detail = hard_pairs.table_html(rows, open_current_persona(slug), title)
        return LedgerView.changed(detail=detail, losses=gr.LinePlot(visible=False))
    if do == "again":
        again = repeat_run(slug, run)
        return _with_table(slug, again.name, picked, shown=again.name, repeated=again.name)
    if do == "delete":
        run_notes.trash_run(run)
        show_info(t("Moved to the trash."))
        shown = "" if shown == run.name else shown
        left = [name for name in picked if name != run.name]
        ended = {} if left == picked else show_comparison(slug, left)
        return _with_table(slug, shown, left, shown=shown, **ended)
    adapter_id = str(AdapterRef(RefKind.RUN, slug, run.name))
    if do == "further":
        steps, step, parent = further.go_on_from(slug, adapter_id)
        return LedgerView.changed(steps=steps, shown_step=step, parent=parent)
    step = {"chat": COMPARE, "share": SHARE}.get(do, TRAIN)
    view = ChosenView.showing(Chosen(chosen.persona, adapter_id, by_hand=True))
    return LedgerView.changed(steps=gr.Walkthrough(selected=step), shown_step=step, **view._asdict())


def _with_table(slug: str, shows: str, picked: list[str], **values: Any) -> LedgerView:
    table, picked, name, note = refresh(slug, shows, picked)
    return LedgerView.changed(**{"table": table, "picked": picked, "note_name": name, "note": note, **values})


def find_run(slug: str, name: str) -> Run:
    """A run of the persona by its name. Raises InputError where it is gone."""
    run = next((run for run in list_runs(open_current_persona(slug)) if run.name == name), None)
    if run is None:
        raise InputError("{run}: this run is no longer there.", run=f"{name:.80}")
    return run


def run_title(run: Run) -> str:
    return run_notes.read_note(run).name or localized(voice_picker.format_run_time(run.name))


def show_comparison(slug: str, picked: list[str]) -> dict[str, Any]:
    """The comparison of two ticked runs, the older one first; nothing while fewer are ticked."""
    if len(picked) < MAX_PICKED:
        return {"detail": "", "losses": gr.LinePlot(visible=False)}
    first, second = (find_run(slug, name) for name in sorted(picked))
    found, titles = compare_runs.compare_runs(first, second), [run_title(first), run_title(second)]
    if titles[0] == titles[1]:  # both were started within one minute
        titles = [f"{title} ({n})" for n, title in enumerate(titles, 1)]
    return {"detail": ledger_view.comparison_html(found, titles), "losses": ledger_view.losses_plot(found, titles)}


def repeat_run(slug: str, run: Run) -> Run:
    """Start a run with the same settings, from the same adapter, on the pairs of now or on the same preferences."""
    persona, config, parent = open_current_persona(slug), run.config(), reopen_parent(run)
    if preferences := launcher.read_preferences(run):
        again = launcher.create_run(persona, config, parent=parent, preferences=preferences)
    else:
        again, _ = launcher.create_fitted_run(persona, config, RunConfig.model_fields, parent)
    launcher.start_run(again)
    return again


def train_repeated(slug: str, name: str) -> Iterator[str]:
    """Train the run that "again" made, where no process can: on ZeroGPU this event trains, and the page watches."""
    if name:
        yield from gpu_slices.train_in_slices(find_run(slug, name))


def save_note(slug: str, shown: str, name: str, note: str, picked: list[str]) -> tuple[Any, Any]:
    """Keep the name and note of the run that is shown.

    Returns the comparison of the ticked runs by its new name, where it is one of them.
    """
    runs = list_runs(open_current_persona(slug))
    if not runs:
        return gr.skip(), gr.skip()
    run = find_run(slug, shown) if shown else runs[0]
    run_notes.change_note(run, name=name.strip(), note=note.strip())
    compared = show_comparison(slug, picked) if run.name in picked else {}
    return compared.get("detail", gr.skip()), compared.get("losses", gr.skip())


def build(page: Page, shown: gr.State, parent: gr.Dropdown) -> tuple[LedgerView, gr.Accordion, gr.Button]:
    """The ledger below the run. shown: name of the run whose charts the step shows."""
    with gr.Accordion(t("All runs"), open=False, elem_id="all-runs") as box:
        table = gr.HTML(elem_id="ledger", js_on_load=FORWARD_CLICKS_JS)
        with gr.Row(equal_height=True):
            note_name = gr.Textbox(label=t("Name of the run shown"), max_length=80, scale=1, min_width=180)
            note = gr.Textbox(label=t("Note"), max_length=2000, scale=3, min_width=240, elem_id="run-note")
            save = gr.Button(t("Save the note"), scale=0, min_width=140, elem_id="save-run-note")
        detail = gr.HTML(elem_id="ledger-detail", js_on_load=FORWARD_CLICKS_JS)
        losses = gr.LinePlot(pd.DataFrame(columns=run_view.LOSS_COLUMNS), x="step", y="loss", color="on", height=260,
                             visible=False, elem_id="ledger-losses")  # fmt: skip
    view = LedgerView(
        table, detail, losses, gr.State([]), shown, parent, gr.State(""), note_name, note, page.steps, page.shown_step,
        *page.chosen_view(),
    )  # fmt: skip
    return view, box, save


def connect(
    page: Page, view: LedgerView, box: gr.Accordion, save: gr.Button, training: gr.State, update: dict[str, Any]
) -> None:
    """training: changes when a run begins or ends. update: the event that shows the run called `view.shown`."""
    renew: dict[str, Any] = {
        "fn": show_errors(refresh), "inputs": [page.slug, view.shown, view.picked],
        "outputs": [view.table, view.picked, view.note_name, view.note], **SHOWING,
    }  # fmt: skip
    on_latest([box.expand, training.change, page.slug.change, view.shown.change], **renew)
    clicked = view.table.click(show_errors(on_click), [page.slug, view.shown, view.picked, page.chosen], view, **QUIET)
    clicked.success(**update)
    if deployment.has_zerogpu():
        clicked.success(show_errors(train_repeated), [page.slug, view.repeated], view.shown, **QUIET)
    hard_pairs.connect(page, view.detail)
    gr.on(
        [save.click, view.note.submit, view.note_name.submit], show_errors(save_note),
        [page.slug, view.shown, view.note_name, view.note, view.picked], [view.detail, view.losses], **QUIET,
    ).success(**renew)  # fmt: skip
