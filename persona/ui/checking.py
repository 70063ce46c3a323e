"""Write, tab Check: what lint found in the pairs, in plain words; show, fix or ignore with one click."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from persona import edits, journal, lint
from persona.errors import InputError, Message, PersonaError
from persona.folder import Persona
from persona.lint import Finding
from persona.pairs import Pair
from persona.render import MAX_LENGTH
from persona.ui.common import bars_html, renderer_for
from persona.ui.words import localized, t

LISTED = 40  # findings of one rule on the page; the table shows the rows of all of them
RULES = {"duplicate": "Exact duplicate", "ai-leak": "AI leak"}  # the others are called as they are named
AUTOMATIC = 20_000  # pairs; larger sets are checked when asked


def find(persona: Persona, settings: Sequence[Any]) -> list[Finding]:
    """Every finding that is not ignored. settings: base, template, max_length, learn_history of the page."""
    items, _ = persona.scan()
    max_length = int(settings[2] or MAX_LENGTH)
    return lint.lint(items, persona.card(), _length(persona, settings), max_length, lint.read_ignored(persona))


def _length(persona: Persona, settings: Sequence[Any]) -> Callable[[Pair], int] | None:
    """Tokens of a rendered pair; None while no base can be opened, which the step Template explains."""
    try:
        _, renderer = renderer_for(persona.slug, *settings)
    except PersonaError:
        return None
    return renderer.length


def fix(persona: Persona, findings: Sequence[Finding], which: str) -> None:
    """Carry out the fix of one finding (its key), or of all of a rule (its name), as one edit that undo takes back."""
    found = [f for f in findings if which in (f.key, f.rule) and f.fix]
    if not found:
        raise InputError("That finding is not there any more. Press Check again.")
    items, _ = persona.scan()
    after = lint.fix_all(items, found, persona.card())
    if after == items:
        raise InputError("These pairs were changed since they were checked. Press Check again.")
    label = found[0].fix
    if len(found) > 1:
        label = Message("fix of {n} findings ({rule})", n=f"{len(found):,}", rule=found[0].rule)
    journal.commit(persona, label, edits.difference(items, after))


def see_again(persona: Persona) -> None:
    """Findings that were put aside are shown again."""
    lint.unignore(persona, *lint.read_ignored(persona))


def panel_html(pairs: Sequence[Pair], findings: Sequence[Finding], summary: lint.Summary, ignored: int) -> str:
    """Summary in words, coverage by kind of question, and the findings grouped by rule."""
    counts = lint.counts(list(findings))
    groups = "".join(_group(rule, rows, [f for f in findings if f.rule == rule]) for rule, rows in counts.items())
    if not findings:
        fine = t("Nothing to mend.") if pairs else t("Nothing to mend. There are no pairs yet.")
        groups = f"<div class='good'>{fine}</div>"
    again = f'<button class="tool" data-do="see-again" data-key="">{t("Show them again")}</button>'
    aside = f"<div class='quiet'>{t('{n} put aside.', n=f'{ignored:,}')} {again}</div>" if ignored else ""
    bars = bars_html([(localized(kind), n, f"{n:,}") for kind, n in summary.kinds.items()])
    return f"<div class='card'><p>{escape(localized(summary.text))}</p>{bars}</div>{groups}{aside}"


def _group(rule: str, rows: int, found: Sequence[Finding]) -> str:
    lines = "".join(_mark(f, show=True) for f in found[:LISTED])
    more = f"<div class='quiet'>{t('… and {n} more', n=f'{len(found) - LISTED:,}')}</div>" if found[LISTED:] else ""
    show = f'<button class="tool wide" data-do="show" data-key="{escape(rule)}">{t("Show all in the table")}</button>'
    fixable = sum(bool(f.fix) for f in found)
    if fixable > 1:
        every = t("Fix all {n}", n=f"{fixable:,}")
        show += f' <button class="tool" data-do="fix" data-key="{escape(rule)}">{every}</button>'
    words = t("1 pair") if rows == 1 else t("{n} pairs", n=f"{rows:,}")
    head = f"<summary><b>{escape(title(rule))}</b> {words} {show}</summary>"
    return f"<details class='finding'>{head}{lines}{more}</details>"


def title(rule: str) -> str:
    """A rule of lint as the visitor reads it."""
    return t(RULES.get(rule) or rule.replace("-", " ").capitalize())


def marks_html(findings: Sequence[Finding]) -> dict[str, str]:
    """What lint found, by the number of the pair, as the HTML that table.js puts into its row."""
    marks: dict[str, str] = {}
    for finding in findings:
        for row in finding.pairs:
            marks[str(row)] = marks.get(str(row), "") + _mark(finding, show=False)
    return marks


def _mark(finding: Finding, show: bool) -> str:
    """A finding with its buttons. show: with the one that leads to its rows."""
    key = escape(finding.key)
    words = (
        [("show", t("Show"))] * show + [("fix", localized(finding.fix))] * bool(finding.fix) + [("ignore", t("Ignore"))]
    )
    buttons = "".join(
        f'<button class="tool" data-do="{do}" data-key="{key}">{escape(word)}</button>' for do, word in words
    )
    return f'<div class="mark {finding.severity}"><span>{escape(localized(finding.message))}</span>{buttons}</div>'
