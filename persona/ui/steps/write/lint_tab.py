"""Write, tab Check: the findings of lint; show, fix or ignore each with one click."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import InputError, Message, PersonaError
from persona.store import edit_history, edits
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.template.render import MAX_LENGTH
from persona.ui.i18n import localized, t
from persona.ui.page import RenderSettings, open_current_persona, open_page_renderer
from persona.ui.steps.write.pairs_status import replies_text
from persona.ui.steps.write.pairs_table import PAIR_FILTERS, translate_choices
from persona.ui.widgets import bars_html
from persona.write import lint
from persona.write.importers.registry import count_conversations
from persona.write.lint import fixes
from persona.write.lint.finding import Finding, count_by_rule
from persona.write.lint.summary import DatasetSummary, summarize_dataset

MAX_LISTED = 40  # findings of one rule on the page; the table shows the rows of all of them
RULE_TITLES = {"duplicate": "Exact duplicate", "ai-leak": "AI leak"}  # of other rules it is their name
AUTO_LINT_MAX_PAIRS = 20_000  # a larger set is checked on request only


class LintUpdate(NamedTuple):
    """What a check of the pairs shows: the components, or the values for them."""

    findings: Any
    marks: Any  # for the rows of the table
    lint_panel: Any
    row_filter: Any


def update_findings(slug: str, findings: list[Finding], row_filter: str, always: bool, *inputs: Any) -> LintUpdate:
    """Check the pairs. always: a large set too. inputs: the RenderSettings.

    row_filter: the filter in use, which stays among the choices when its last finding is fixed.
    """
    choices = translate_choices(PAIR_FILTERS)
    if not slug:
        return LintUpdate([], {}, "", gr.Dropdown(choices))
    persona = open_current_persona(slug)
    items, _ = persona.scan()
    if len(items) > AUTO_LINT_MAX_PAIRS and not always:
        hint = t("{n} pair(s): press Check again.", n=f"{len(items):,}")
        return LintUpdate(findings, gr.skip(), f"<div class='hint'>{hint}</div>", gr.skip())
    settings, card, ignored = RenderSettings(*inputs), persona.card(), lint.read_ignored(persona)
    max_length = int(settings.max_length or MAX_LENGTH)
    thinking = settings.thinking or "none"
    findings = lint.lint_pairs(items, card, _token_counter(persona, settings), max_length, ignored, thinking)
    panel = findings_html(items, findings, summarize_dataset(items, card, findings), len(ignored))
    rules = sorted({f.rule for f in findings} | {row_filter or PAIR_FILTERS[0]} - {*PAIR_FILTERS})
    choices += [(rule_title(rule), rule) for rule in rules]
    return LintUpdate(findings, marks_html(findings), panel, gr.Dropdown(choices))


def _token_counter(persona: Persona, settings: RenderSettings) -> Callable[[Pair], int] | None:
    """Tokens of a rendered pair; None while no base can be opened, which the step Template explains."""
    try:
        _, renderer = open_page_renderer(persona.slug, settings)
    except PersonaError:
        return None
    return renderer.length_if_near_limit


def apply_fix(persona: Persona, findings: Sequence[Finding], which: str) -> None:
    """Apply the fix of one finding (its key), or of all findings of a rule (its name), as one edit to undo."""
    fixable = [f for f in findings if which in (f.key, f.rule) and f.fix]
    if not fixable:
        raise InputError("That finding is gone. Press Check again.")
    items, _ = persona.scan()
    after = fixes.fix_findings(items, fixable, persona.card())
    if after == items:
        raise InputError("These pairs were changed since they were checked. Press Check again.")
    label = fixable[0].fix
    if len(fixable) > 1:
        label = Message("fix of {n} finding(s) ({rule})", n=f"{len(fixable):,}", rule=fixable[0].rule)
    edit_history.commit(persona, label, edits.diff_pairs(items, after))


def unignore_all(persona: Persona) -> None:
    """Show ignored findings again."""
    lint.unignore_findings(persona, *lint.read_ignored(persona))


def findings_html(pairs: Sequence[Pair], findings: Sequence[Finding], summary: DatasetSummary, ignored: int) -> str:
    """The summary, the number of questions by kind, and the findings grouped by rule. ignored: their number."""
    counts = count_by_rule(list(findings))
    groups = "".join(_rule_html(rule, rows, [f for f in findings if f.rule == rule]) for rule, rows in counts.items())
    if not findings:
        fine = t("Nothing to fix.") if pairs else t("Nothing to fix: there are no pairs yet.")
        groups = f"<div class='good'>{fine}</div>"
    again = f'<button class="tool" data-do="see-again" data-key="">{t("Show them again")}</button>'
    ignored_note = f"<div class='quiet'>{t('{n} ignored.', n=f'{ignored:,}')} {again}</div>" if ignored else ""
    bars = bars_html([(localized(kind), n, f"{n:,}") for kind, n in summary.kinds.items()])
    told = f"{replies_text(len(pairs), count_conversations(pairs))}{escape(localized(summary.text))}"
    return f"<div class='card'><p>{told}</p>{bars}</div>{groups}{ignored_note}"


def _rule_html(rule: str, rows: int, findings: Sequence[Finding]) -> str:
    lines = "".join(_finding_html(f, show=True) for f in findings[:MAX_LISTED])
    more = (
        f"<div class='quiet'>{t('… and {n} more', n=f'{len(findings) - MAX_LISTED:,}')}</div>"
        if findings[MAX_LISTED:]
        else ""
    )
    show = f'<button class="tool wide" data-do="show" data-key="{escape(rule)}">{t("Show all in the table")}</button>'
    show += f' <button class="tool" data-do="review" data-key="{escape(rule)}">{t("Review")}</button>'
    fixable = sum(bool(f.fix) for f in findings)
    if fixable > 1:
        every = t("Fix all {n}", n=f"{fixable:,}")
        show += f' <button class="tool" data-do="fix" data-key="{escape(rule)}">{every}</button>'
    words = t("{n} pair(s)", n=f"{rows:,}")
    head = f"<summary><b>{escape(rule_title(rule))}</b> {words} {show}</summary>"
    return f"<details class='finding'>{head}{lines}{more}</details>"


def rule_title(rule: str) -> str:
    """The name of a lint rule in the visitor's language."""
    return t(RULE_TITLES.get(rule) or rule.replace("-", " ").capitalize())


def marks_html(findings: Sequence[Finding]) -> dict[str, str]:
    """Number of a pair → the HTML of its findings, which pairs_table.js puts into its row."""
    marks: dict[str, str] = {}
    for finding in findings:
        if finding.rule == "unfinished":  # the row has a button that deletes it
            finding = replace(finding, fix="")
        for row in finding.pairs:
            marks[str(row)] = marks.get(str(row), "") + _finding_html(finding, show=False)
    return marks


def _finding_html(finding: Finding, show: bool) -> str:
    """A finding with its buttons. show: with the one that shows its rows."""
    key = escape(finding.key)
    actions = (
        [("show", t("Show"))] * show + [("fix", localized(finding.fix))] * bool(finding.fix) + [("ignore", t("Ignore"))]
    )
    buttons = "".join(
        f'<button class="tool" data-do="{do}" data-key="{key}">{escape(label)}</button>' for do, label in actions
    )
    return f'<div class="mark {finding.severity}"><span>{escape(localized(finding.message))}</span>{buttons}</div>'
