"""Step 3, the ledger as HTML: the table of runs, what changed in the pairs, and two runs beside each other."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from persona.errors import PersonaError
from persona.judge import ledger
from persona.judge.compare_runs import RowChange, RunComparison
from persona.judge.ledger import LedgerRow, PairDifference, Share
from persona.judge.report_model import Interval
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store.pairs import Pair
from persona.train.progress import ACTIVE_STATUSES
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.steps.train import run_view, settings_form
from persona.ui.widgets import format_duration

MAX_DIFFERENCES = 200  # pairs that a difference lists
# what runs differ in beside the expert settings
OTHER_LABELS = {
    "base": "Base", "template": "Template", "max_length": "Longest row, in tokens (max_length)",
    "learn_history": "Learn the replies of earlier turns too", "thinking": "Thinking", "parent": "Go on from",
    "system": "System prompt",
}  # fmt: skip
LOSS_COLORS = ("#0284c7", "#d97706")


def table_html(rows: Sequence[LedgerRow], shown: str, picked: Sequence[str]) -> str:
    """shown: the run whose charts the step shows. picked: those to compare, at most two."""
    if not rows:
        return f'<div class="quiet">{t("No runs yet.")}</div>'
    heads = (
        t("Compare"), t("Run"), t("From"), t("Settings"), t("Pairs"), t("Held-out loss"), t("Probes"), t("Stops"),
        t("Time"), "",
    )  # fmt: skip
    names = {row.figures.name: _title(row) for row in rows}
    body = "".join(_row_html(row, names, heads, row.figures.name == shown, row.figures.name in picked) for row in rows)
    about = t("Tick two runs to compare them. Settings are those that differ from the preset Quick.")
    return (
        f"<p class='quiet'>{about}</p><div class='answers'><table class='ledger' data-testid='ledger'>"
        f"<thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _title(row: LedgerRow) -> str:
    return row.note.name or localized(voice_picker.format_run_time(row.figures.name))


def _row_html(row: LedgerRow, names: dict[str, str], heads: Sequence[str], is_shown: bool, is_picked: bool) -> str:
    """heads: of the columns; on a phone, where a run is a card, each stands beside its value."""
    f, name = row.figures, escape(row.figures.name)
    star = (t("Remove the star"), "★") if row.note.starred else (t("Give it a star"), "☆")
    pick = (
        f"<button class='tool' role='checkbox' aria-checked='{str(is_picked).lower()}' data-do='pick' "
        f"data-run='{name}' aria-label='{t('Compare {run}', run=escape(_title(row)))}'>"
        f"{'☑' if is_picked else '☐'}</button>"
    )
    run = (
        f"<button class='tool' data-do='star' data-run='{name}' aria-label='{star[0]}'>{star[1]}</button> "
        f"<button class='tool' data-do='open' data-run='{name}' title='{t('Show its charts and samples')}'>"
        f"{escape(_title(row))}</button><br><span class='quiet'>{t(run_view.STATUS_LABELS[f.status])}"
        f"{' · ' + t('shown above') if is_shown else ''}</span>"
    )
    if row.note.note:
        run += f"<br><i>{escape(row.note.note)}</i>"
    cells = [
        pick, run, _origin_html(row, names), escape(_settings_text(f.settings)), _pairs_html(row), _nll_text(f.nll),
        _share_text(f.probes), _share_text(f.stops), format_duration(60 * f.minutes), _menu_html(row),
    ]  # fmt: skip
    marked = " class='shown'" if is_shown else ""
    tds = "".join(f"<td data-head='{head}'><div>{cell}</div></td>" for head, cell in zip(heads, cells, strict=True))
    return f"<tr{marked} data-run='{name}'>{tds}</tr>"


def _origin_html(row: LedgerRow, names: dict[str, str]) -> str:
    base, parent = escape(row.figures.base), row.figures.parent
    if not parent:
        return base
    return f"{base}<br>{t('further from {adapter}', adapter=escape(_parent_text(parent, names)))}"


def _parent_text(parent: str, names: dict[str, str]) -> str:
    """The adapter that a run went on from, by the name that its run has in this table."""
    try:
        ref = AdapterRef.parse_id(parent)
    except PersonaError:
        return parent
    if ref.kind is not RefKind.RUN or ref.run not in names:
        return parent
    return names[ref.run] if ref.step is None else t("{when}, step {step}", when=names[ref.run], step=ref.step)


def _settings_text(settings: dict[str, Any]) -> str:
    shown = [f"{t(setting_label(name))}: {_value(name, value)}" for name, value in settings.items()]
    return "; ".join(shown) or t("as preset Quick")


def setting_label(name: str) -> str:
    """What a setting, or another thing in which runs differ, is called."""
    return OTHER_LABELS[name] if name in OTHER_LABELS else settings_form.setting_label(name)


def _pairs_html(row: LedgerRow) -> str:
    f = row.figures
    count = t("{n} + {held} held out", n=f"{f.pairs:,}", held=f.held_out)
    if f.learns_preferences:
        return t("{n} preference(s) + {held} held out", n=f.pairs, held=f.held_out)
    if f.new_pairs:
        count = t("{n} + {held} held out, {new} new", n=f"{f.pairs:,}", held=f.held_out, new=f.new_pairs)
    if row.since is None:
        changes = t("what changed since")
    else:
        counts = [(row.since.added, "+"), (row.since.removed, "−"), (row.since.changed, "~")]
        signs = " ".join(f"{sign}{n}" for n, sign in counts if n)
        if not signs:
            return count
        changes = t("since: {changes}", changes=signs)
    return f"{count}<br><button class='tool' data-do='diff' data-run='{escape(f.name)}'>{changes}</button>"


def _nll_text(nll: Interval | None) -> str:
    if nll is None:
        return "–"
    interval = f"<br><span class='quiet'>{nll.low:.2f} – {nll.high:.2f}</span>" if nll.low < nll.high else ""
    return f"{nll.value:.3f}{interval}"


def _share_text(share: Share | None) -> str:
    return "–" if share is None else f"{share.kept} / {share.of}"


def _menu_html(row: LedgerRow) -> str:
    """What can be done with a run that has ended."""
    if row.figures.status in ACTIVE_STATUSES:
        return ""
    name = escape(row.figures.name)
    actions = [("again", t("Same settings again"))]
    if row.figures.chosen is not None and not row.figures.learns_preferences:
        actions.append(("hard", t("Least likely pairs")))
    if row.figures.chosen is not None:
        actions += [
            ("further", t("Train further")),
            ("chat", t("Compare in chat")),
            ("share", t("Share or download")),
        ]
    buttons = "".join(
        f"<button class='tool' data-do='{do}' data-run='{name}'>{label}</button>" for do, label in actions
    )
    return (
        f"<details class='menu'><summary aria-label='{t('What to do with it')}'>⋯</summary>{buttons}"
        f"<details><summary>{t('Delete')}</summary><button class='tool' data-do='delete' data-run='{name}'>"
        f"{t('Move it to the trash')}</button></details></details>"
    )


def difference_html(before: Sequence[Pair], after: Sequence[Pair], title: str) -> str:
    return f"<div class='card'><h4>{escape(title)}</h4>{_differences_html(ledger.diff_pairs(before, after))}</div>"


def _differences_html(differences: Sequence[PairDifference]) -> str:
    rows = "".join(
        f"<tr><td>{escape(d.question)}</td><td>{escape(d.before) or '–'}</td><td>{escape(d.after) or '–'}</td></tr>"
        for d in differences[:MAX_DIFFERENCES]
    )
    more = len(differences) - MAX_DIFFERENCES
    note = f"<p class='quiet'>{t('… and {n} more', n=more)}</p>" if more > 0 else ""
    if not rows:
        return f"<p class='quiet'>{t('The same pairs.')}</p>"
    heads = f"<th>{t('Question')}</th><th>{t('Answer before')}</th><th>{t('Answer after')}</th>"
    return f"<div class='answers'><table><tr>{heads}</tr>{rows}</table></div>{note}"


# ---- two runs


def comparison_html(found: RunComparison, titles: Sequence[str]) -> str:
    """titles: of the first run and the second."""
    one, other = map(escape, titles)
    settings = [(t(setting_label(name)), _value(name, a), _value(name, b)) for name, (a, b) in found.settings.items()]
    parts = [
        f"<h4>{t('{first} and {second}', first=one, second=other)}</h4><p>{escape(localized(found.describe()))}</p>",
        _table([t("Setting"), one, other], settings)
        if settings else f"<p class='quiet'>{t('The same settings.')}</p>",
        f"<details><summary>{t('Pairs that differ: {n}', n=len(found.pairs))}</summary>"
        f"{_differences_html(found.pairs)}</details>"
        if found.pairs is not None
        else "",
        _rows_html(t("Held-out pairs that became worse"), found.worse, one, other),
        _rows_html(t("Held-out pairs that became better"), found.better, one, other),
    ]  # fmt: skip
    if found.probes:
        rows = [(p.probe, p.first or "–", p.second or "–") for p in found.probes]
        parts.append(f"<h4>{t('The same questions')}</h4>{_table([t('Question'), one, other], rows)}")
    return f"<div class='card' data-testid='comparison'>{''.join(parts)}</div>"


def _value(name: str, value: Any) -> str:
    """A setting as it is shown."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return t("yes") if value else t("no")
    return voice_picker.adapter_label(value) if name == "parent" else str(value)


def _rows_html(title: str, rows: Sequence[RowChange], one: str, other: str) -> str:
    if not rows:
        return ""
    lines = [
        (
            row.question,
            row.reference,
            f"{row.first_nll:.2f} {row.first_answer}",
            f"{row.second_nll:.2f} {row.second_answer}",
        )
        for row in rows
    ]
    return f"<h4>{title}</h4>{_table([t('Question'), t('The pair'), one, other], lines)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """heads: as HTML; rows: as text."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='answers'><table><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>{body}</table></div>"


def losses_plot(found: RunComparison, titles: Sequence[str]) -> gr.LinePlot:
    """The held-out losses of both runs, one over the other, and their training losses, smoothed."""
    held, train = t("{run}, held-out"), t("{run}, train")
    labels = [form.format(run=title) for form in (held, train) for title in titles]
    curves = [found.losses["first_held_out"], found.losses["second_held_out"],
              run_view.smooth(found.losses["first_train"]), run_view.smooth(found.losses["second_train"])]  # fmt: skip
    rows = [(step, loss, label) for label, curve in zip(labels, curves, strict=True) for step, loss in curve]
    colors = dict(zip(labels, (*LOSS_COLORS, "#93c5fd", "#fcd34d"), strict=True))
    return gr.LinePlot(
        pd.DataFrame(rows, columns=run_view.LOSS_COLUMNS), visible=bool(rows), title=t("Loss: lower is better"),
        x_title=t("step"), x_axis_format=run_view.STEP_FORMAT, y_title=t("loss (nats per token)"), color_title=" ",
        color_map=colors,
    )  # fmt: skip
