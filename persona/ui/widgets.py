"""Small pieces of HTML that several steps show: mask, problems, bars, figures, durations."""

import json
import time
from collections.abc import Iterable
from html import escape

import markupsafe
from markupsafe import Markup

from persona.template.mask_html import LEARNED, render_mask_html, render_problems_html
from persona.template.render import Renderer, TrainingExample
from persona.ui.i18n import localized, t


def markdown_text(text: str) -> str:
    """Markdown that shows `text` as it is, without links, pictures or formulas: for what Gradio renders as Markdown."""
    lines = (line.strip() for line in text.strip().splitlines())
    return "<br>".join("".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in line) for line in lines)


def mask_html(renderer: Renderer, example: TrainingExample, meaning: str = LEARNED) -> str:
    """The rendered example with every token marked as learned or masked, in the visitor's language.

    meaning: of a learned token, as HTML.
    """
    return render_mask_html(renderer, example, localized, meaning)


def problems_html(problems: Iterable[str]) -> str:
    return render_problems_html(problems, localized)


def format_duration(seconds: float | None) -> str:
    """90 → '1 min 30 s', None (not known) → '…'."""
    if seconds is None:
        return "…"
    s = max(0, round(seconds))
    if s < 60:
        return t("{s} s", s=s)
    if s < 3600:
        return t("{min} min {s} s", min=s // 60, s=s % 60)
    return t("{h} h {min} min", h=s // 3600, min=s % 3600 // 60)


def countdown_html(run: str, ends: float | None) -> Markup:
    """The time until `ends` (seconds since 1970), counted down by COUNTDOWN_JS. All of one `run` show the newest.

    In minutes, since the estimate knows no seconds. "…" once it has passed: what takes longer than was estimated is
    not known to end now.
    """
    now = time.time()
    if ends is None:
        return Markup("…")
    forms = [t("under a minute"), t("{min} min", min="{min}"), t("{h} h {min} min", h="{h}", min="{min}")]
    minutes = round((ends - now) / 60)
    form = forms[0 if ends - now < 60 else 1 if minutes < 60 else 2]
    left = form.format(h=minutes // 60, min=minutes % 60) if ends > now else "…"
    return Markup(
        f'<span class="countdown" data-run="{escape(run)}" data-ends="{ends:.0f}" data-now="{now:.1f}" '
        f'data-forms="{escape(json.dumps(forms, ensure_ascii=False))}">{left}</span>'
    )


# The clock of the browser may differ from the server's: the smallest difference seen is the true one. The text node is
# changed and not the element, so that observers of the page's elements sleep
COUNTDOWN_JS = """
let clockAhead = Infinity;
setInterval(() => {
  const shown = [...document.querySelectorAll(".countdown")];
  const newest = {};
  for (const node of shown) {
    clockAhead = Math.min(clockAhead, Date.now() / 1000 - Number(node.dataset.now));
    if (!(Number(newest[node.dataset.run]?.dataset.now) >= Number(node.dataset.now))) newest[node.dataset.run] = node;
  }
  for (const node of shown) {
    const ends = Number(newest[node.dataset.run].dataset.ends);
    const seconds = Math.max(0, Math.round(ends + clockAhead - Date.now() / 1000));
    const minutes = Math.round(seconds / 60);
    const form = JSON.parse(node.dataset.forms)[seconds < 60 ? 0 : minutes < 60 ? 1 : 2];
    const text = !seconds ? "…" : form.replace("{h}", Math.floor(minutes / 60)).replace("{min}", minutes % 60);
    if (node.firstChild && node.firstChild.data !== text) node.firstChild.data = text;
  }
}, 1000);
"""

# for a gr.HTML with buttons: a click on one sends its data-… attributes as the event's data
FORWARD_CLICKS_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) trigger("click", { ...button.dataset });
});
"""


def bars_html(rows: list[tuple[str, float, str]], full: float = 0) -> str:
    """(name, value, value as text) as bars. full: the value at full width; 0: the largest."""
    most = full or max((value for _, value, _ in rows), default=0) or 1
    bars = "".join(
        f"<div><span>{escape(name)}</span><div class='bar'><div style='width:{100 * value / most:.0f}%'></div></div>"
        f"<b>{escape(text)}</b></div>"
        for name, value, text in rows
    )
    return f"<div class='coverage'>{bars}</div>"


def progress_bar_html(share: float) -> str:
    """share: 0 … 1."""
    return (
        f'<div class="bar" role="progressbar" aria-label="{t("Progress")}" aria-valuenow="{share * 100:.0f}">'
        f'<div style="width:{share:.1%}"></div></div>'
    )


def facts_html(facts: list[tuple[str, str]]) -> str:
    """(name, value) as figures with their names below. value: a text, or Markup."""
    cells = (f"<div><b>{markupsafe.escape(v)}</b><span>{escape(k)}</span></div>" for k, v in facts)
    return f'<div class="facts">{"".join(cells)}</div>'
