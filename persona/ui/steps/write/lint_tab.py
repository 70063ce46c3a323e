"""Write, tab Check: what lint found in the pairs, in plain words; show, fix or ignore with one click."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from persona.errors import InputError, Message, PersonaError
from persona.store import edit_history, edits
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.template.render import MAX_LENGTH
from persona.ui.i18n import localized, t
from persona.ui.page import renderer_for
from persona.ui.widgets import bars_html
from persona.write import lint
from persona.write.lint import finding as write_lint_finding
from persona.write.lint import fixes
from persona.write.lint import summary as write_lint_summary
from persona.write.lint.finding import Finding

MAX_LISTED = 40  # findings of one rule on the page; the table shows the rows of all of them
RULE_TITLES = {"duplicate": "Exact duplicate", "ai-leak": "AI leak"}  # the others are called as they are named
AUTO_LINT_MAX_PAIRS = 20_000  # pairs; larger sets are checked when asked


def lint_persona(persona: Persona, settings: Sequence[Any]) -> list[Finding]:
    """Every finding that is not ignored. settings: base, template, max_length, learn_history of the page."""
    items, _ = persona.scan()
    max_length = int(settings[2] or MAX_LENGTH)
    return lint.lint_pairs(
        items, persona.card(), _token_counter(persona, settings), max_length, lint.read_ignored(persona)
    )


def _token_counter(persona: Persona, settings: Sequence[Any]) -> Callable[[Pair], int] | None:
    """Tokens of a rendered pair; None while no base can be opened, which the step Template explains."""
    try:
        _, renderer = renderer_for(persona.slug, *settings)
    except PersonaError:
        return None
    return renderer.length


def apply_fix(persona: Persona, findings: Sequence[Finding], which: str) -> None:
    """Carry out the fix of one finding (its key), or of all of a rule (its name), as one edit that undo takes back."""
    found = [f for f in findings if which in (f.key, f.rule) and f.fix]
    if not found:
        raise InputError("That finding is gone. Press Check again.")
    items, _ = persona.scan()
    after = fixes.fix_findings(items, found, persona.card())
    if after == items:
        raise InputError("These pairs were changed since they were checked. Press Check again.")
    label = found[0].fix
    if len(found) > 1:
        label = Message("fix of {n} findings ({rule})", n=f"{len(found):,}", rule=found[0].rule)
    edit_history.commit(persona, label, edits.diff_pairs(items, after))


def unignore_all(persona: Persona) -> None:
    """Findings that were put aside are shown again."""
    lint.unignore_findings(persona, *lint.read_ignored(persona))


def findings_html(
    pairs: Sequence[Pair], findings: Sequence[Finding], summary: write_lint_summary.DatasetSummary, ignored: int
) -> str:
    """Summary in words, coverage by kind of question, and the findings grouped by rule."""
    counts = write_lint_finding.count_by_rule(list(findings))
    groups = "".join(_rule_html(rule, rows, [f for f in findings if f.rule == rule]) for rule, rows in counts.items())
    if not findings:
        fine = t("Nothing to fix.") if pairs else t("Nothing to fix: there are no pairs yet.")
        groups = f"<div class='good'>{fine}</div>"
    again = f'<button class="tool" data-do="see-again" data-key="">{t("Show them again")}</button>'
    aside = f"<div class='quiet'>{t('{n} ignored.', n=f'{ignored:,}')} {again}</div>" if ignored else ""
    bars = bars_html([(localized(kind), n, f"{n:,}") for kind, n in summary.kinds.items()])
    return f"<div class='card'><p>{escape(localized(summary.text))}</p>{bars}</div>{groups}{aside}"


def _rule_html(rule: str, rows: int, found: Sequence[Finding]) -> str:
    lines = "".join(_finding_html(f, show=True) for f in found[:MAX_LISTED])
    more = (
        f"<div class='quiet'>{t('… and {n} more', n=f'{len(found) - MAX_LISTED:,}')}</div>"
        if found[MAX_LISTED:]
        else ""
    )
    show = f'<button class="tool wide" data-do="show" data-key="{escape(rule)}">{t("Show all in the table")}</button>'
    fixable = sum(bool(f.fix) for f in found)
    if fixable > 1:
        every = t("Fix all {n}", n=f"{fixable:,}")
        show += f' <button class="tool" data-do="fix" data-key="{escape(rule)}">{every}</button>'
    words = t("1 pair") if rows == 1 else t("{n} pairs", n=f"{rows:,}")
    head = f"<summary><b>{escape(rule_title(rule))}</b> {words} {show}</summary>"
    return f"<details class='finding'>{head}{lines}{more}</details>"


def rule_title(rule: str) -> str:
    """A rule of lint as the visitor reads it."""
    return t(RULE_TITLES.get(rule) or rule.replace("-", " ").capitalize())


def marks_html(findings: Sequence[Finding]) -> dict[str, str]:
    """What lint found, by the number of the pair, as the HTML that table.js puts into its row."""
    marks: dict[str, str] = {}
    for finding in findings:
        for row in finding.pairs:
            marks[str(row)] = marks.get(str(row), "") + _finding_html(finding, show=False)
    return marks


def _finding_html(finding: Finding, show: bool) -> str:
    """A finding with its buttons. show: with the one that leads to its rows."""
    key = escape(finding.key)
    words = (
        [("show", t("Show"))] * show + [("fix", localized(finding.fix))] * bool(finding.fix) + [("ignore", t("Ignore"))]
    )
    buttons = "".join(
        f'<button class="tool" data-do="{do}" data-key="{key}">{escape(word)}</button>' for do, word in words
    )
    return f'<div class="mark {finding.severity}"><span>{escape(localized(finding.message))}</span>{buttons}</div>'
