"""Small pieces of HTML that several steps show: mask, problems, bars, figures, durations."""

import json
import time
from html import escape
from typing import Any

import markupsafe
from markupsafe import Markup

from persona.template.render import Renderer, TrainingExample
from persona.ui.i18n import localized, t


def markdown_text(text: str) -> str:
    """Markdown that shows `text` as it is, without links, pictures or formulas: for what Gradio renders as Markdown."""
    lines = (line.strip() for line in text.strip().splitlines())
    return "<br>".join("".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in line) for line in lines)


def legend_html() -> str:
    learned = t("<b>learned</b>: the model is trained to write this")
    masked = t("<b>masked</b>: it reads this, nothing is learned from it")
    return (
        f'<div class="legend"><span><i class="learned"></i>{learned}</span>'
        f'<span><i class="masked"></i>{masked}</span></div>'
    )


def mask_html(renderer: Renderer, example: TrainingExample) -> str:
    """The rendered example with every token marked as learned or masked. All text is escaped."""
    if not example.input_ids:
        return problems_html(example.problems)
    pieces = []
    titles = {True: t("id {id}, {bytes} bytes, learned"), False: t("id {id}, {bytes} bytes, masked")}
    for n, token in enumerate(renderer.tokens(example)):
        kind = "learned" if token.learned else "masked"
        kind += " special" if token.special else ""
        kind += " cut" if n >= renderer.max_length else ""
        text = _white_space(token.text)
        title = titles[token.learned].format(id=token.id, bytes=len(token.text.encode()))
        pieces.append(f'<span class="{kind}" title="{title}">{text}</span>')
    count = len(example.input_ids)
    counts = {"n": f"{count:,}", "learned": f"{example.learned:,}", "masked": f"{count - example.learned:,}"}
    totals = t("{n} tokens: <b>{learned} learned</b>, {masked} masked", **counts)
    if count > renderer.max_length:
        over = f"{count - renderer.max_length:,}"
        totals = t("{n} tokens: <b>{learned} learned</b>, {masked} masked, <b>{over} too many</b>", **counts, over=over)
    return (
        f"{legend_html()}<div class='mask' data-testid='mask'>{''.join(pieces)}</div>"
        f"<div class='quiet'>{totals}</div>{problems_html(example.problems)}"
    )


VISIBLE_SPACES = {" ": "space", "\u3000": "wide", "\u00a0": "hard", "\t": "tab", "\r": "return"}


def _white_space(text: str) -> str:
    """Escaped text with visible white space: the style sheet draws the signs, so that copied text stays unchanged."""
    signs = {
        "\n": '<span aria-hidden="true">↵</span>\n',
        **{c: f'<i class="{k}">{c}</i>' for c, k in VISIBLE_SPACES.items()},
    }
    return "".join(signs.get(c) or escape(c) for c in text)


def problems_html(problems: Any) -> str:
    return "".join(f'<div class="problem">{escape(localized(p))}</div>' for p in problems)


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

    "…" once it has passed: what takes longer than was estimated is not known to end now.
    """
    now = time.time()
    if ends is None:
        return Markup("…")
    forms = [
        t("{s} s", s="{s}"),
        t("{min} min {s} s", min="{min}", s="{s}"),
        t("{h} h {min} min", h="{h}", min="{min}"),
    ]
    left = format_duration(ends - now if ends > now else None)
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
    const [s, min, h] = [seconds % 60, Math.floor(seconds / 60), Math.floor(seconds / 3600)];
    const form = JSON.parse(node.dataset.forms)[seconds < 60 ? 0 : seconds < 3600 ? 1 : 2];
    const text = !seconds ? "…" : form.replace("{s}", s).replace("{h}", h).replace("{min}", h ? min % 60 : min);
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
