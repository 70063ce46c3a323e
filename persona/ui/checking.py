"""Write, tab Check: what lint found in the pairs, in plain words; show, fix or ignore with one click."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from persona import edits, journal, lint
from persona.errors import InputError, PersonaError
from persona.folder import Persona
from persona.lint import Finding
from persona.pairs import Pair
from persona.ui.common import renderer_for

LISTED = 40  # findings of one rule on the page; the table shows the rows of all of them
AUTOMATIC = 20_000  # pairs; larger sets are checked when asked
SCRIPT = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) trigger("click", { do: button.dataset.do, key: button.dataset.key });
});
"""


def find(persona: Persona, settings: Sequence[Any]) -> list[Finding]:
    """Every finding that is not ignored. settings: base, template, max_length, learn_history of the page."""
    items, _ = persona.scan()
    max_length = int(settings[2] or 512)
    return lint.lint(items, persona.card(), _length(persona, settings), max_length, lint.read_ignored(persona))


def _length(persona: Persona, settings: Sequence[Any]) -> Callable[[Pair], int] | None:
    """Tokens of a rendered pair; None while no base can be opened, which the step Template explains."""
    try:
        _, renderer = renderer_for(persona.slug, *settings)
    except PersonaError:
        return None
    return lambda pair: len(renderer.example(pair).input_ids) if renderer.may_be_too_long(pair) else 0


def fix(persona: Persona, findings: Sequence[Finding], which: str) -> None:
    """Carry out the fix of one finding (its key), or of all of a rule (its name), as one edit that undo takes back."""
    found = [f for f in findings if which in (f.key, f.rule) and f.fix]
    if not found:
        raise InputError("That finding is not there any more. Press Check again.")
    items, _ = persona.scan()
    after = lint.fix_all(items, found, persona.card())
    if after == items:
        raise InputError("These pairs were changed since they were checked. Press Check again.")
    label = found[0].fix if len(found) == 1 else f"fix of {len(found):,} findings ({found[0].rule})"
    journal.commit(persona, label, edits.difference(items, after))


def see_again(persona: Persona) -> None:
    """Findings that were put aside are shown again."""
    for key in lint.read_ignored(persona):
        lint.unignore(persona, key)


def panel_html(pairs: Sequence[Pair], findings: Sequence[Finding], summary: lint.Summary, ignored: int) -> str:
    """Summary in words, coverage by kind of question, and the findings grouped by rule."""
    counts = lint.counts(list(findings))
    groups = "".join(_group(rule, rows, [f for f in findings if f.rule == rule]) for rule, rows in counts.items())
    if not findings:
        groups = "<div class='good'>Nothing to mend." + ("" if pairs else " There are no pairs yet.") + "</div>"
    again = '<button class="tool" data-do="see-again" data-key="">Show them again</button>'
    aside = f"<div class='quiet'>{ignored:,} put aside. {again}</div>" if ignored else ""
    return f"<div class='card'><p>{escape(summary.text)}</p>{coverage_html(summary.kinds)}</div>{groups}{aside}"


def coverage_html(kinds: Mapping[str, int]) -> str:
    most = max([*kinds.values(), 1])
    bars = "".join(
        f"<div><span>{escape(kind)}</span><div class='bar'><div style='width:{100 * n / most:.0f}%'></div></div>"
        f"<b>{n:,}</b></div>"
        for kind, n in kinds.items()
    )
    return f"<div class='coverage'>{bars}</div>"


def _group(rule: str, rows: int, found: Sequence[Finding]) -> str:
    lines = "".join(_finding(f) for f in found[:LISTED])
    more = f"<div class='quiet'>… and {len(found) - LISTED:,} more</div>" if len(found) > LISTED else ""
    show = f'<button class="tool wide" data-do="show" data-key="{escape(rule)}">Show all in the table</button>'
    fixable = sum(bool(f.fix) for f in found)
    if fixable > 1:
        show += f' <button class="tool" data-do="fix" data-key="{escape(rule)}">Fix all {fixable:,}</button>'
    words = f"{rows:,} pair{'s' * (rows != 1)}"
    title = escape(rule.replace("-", " ").capitalize())
    return f"<details class='finding'><summary><b>{title}</b> {words} {show}</summary>{lines}{more}</details>"


def _finding(finding: Finding) -> str:
    key = escape(finding.key)
    fixing = (
        f'<button class="tool" data-do="fix" data-key="{key}">{escape(finding.fix)}</button>' if finding.fix else ""
    )
    return (
        f"<div class='mark {finding.severity}'><span>{escape(finding.message)}</span>"
        f'<button class="tool" data-do="show" data-key="{key}">Show</button>{fixing}'
        f'<button class="tool" data-do="ignore" data-key="{key}">Ignore</button></div>'
    )
