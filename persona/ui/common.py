"""What every step of the page shares: the current persona, errors as notices, small pieces of HTML."""

import functools
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona import base, files, folder, limits
from persona.errors import PersonaError
from persona.render import MAX_LENGTH, Example, Renderer
from persona.ui import guests
from persona.ui.words import localized, t

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # how most events of the page behave
WRITE, TEMPLATE, TRAIN, COMPARE, SHARE = range(5)


@dataclass(frozen=True)
class Page:
    """The components that more than one step reads."""

    slug: gr.State  # folder name of the open persona, "" for none
    which: gr.Dropdown  # the user's personas
    steps: gr.Walkthrough
    pair: gr.State  # number of the pair looked at, from 1
    base: gr.Dropdown
    template: gr.Dropdown
    max_length: gr.Number
    learn_history: gr.Checkbox
    adapter: gr.Dropdown  # see compare.py for its values


def shown(handler: Callable) -> Callable:
    """The handler, with its PersonaErrors shown as notices on the page."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any) -> Any:
            try:
                yield from handler(*args)
            except PersonaError as e:
                raise notice(e) from e

        return stream

    @functools.wraps(handler)
    def call(*args: Any) -> Any:
        try:
            return handler(*args)
        except PersonaError as e:
            raise notice(e) from e

    return call


def notice(e: PersonaError) -> gr.Error:
    text = escape(localized(e.message)).replace("\n", "<br>")
    return gr.Error(text, duration=None, title=t("That did not work"), print_exception=False)


def open_current(slug: str) -> folder.Persona:
    """The persona of this visitor's page. Raises InputError when none is open."""
    if not slug:
        raise PersonaError("No persona is open. Open an example or start one in the first step, Write.")
    return folder.by_slug(slug)


def mine(slug: str) -> gr.Dropdown:
    """The user's personas, by name."""
    named = []
    for persona in folder.list_personas():
        try:
            named.append((persona.card().name, persona.slug))
        except PersonaError:  # a damaged card: opening it says where
            named.append((persona.slug, persona.slug))
    return gr.Dropdown([(t("New or example …"), ""), *named], value=slug)


def renderer_for(slug: str, base_name: str, template: str, max_length: float, learn_history: bool,
                 *, progress: gr.Progress | None = None) -> Any:  # fmt: skip
    """(Base, Renderer) of the page's settings."""

    def tell(text: str) -> None:
        if progress:
            progress(None, desc=localized(text))

    card = open_current(slug).card()
    return base.open_renderer(
        card, base_name, template or "auto", int(max_length or MAX_LENGTH), bool(learn_history), tell
    )


def legend_html() -> str:
    learned = t("<b>learned</b>: the model is trained to write this")
    masked = t("<b>masked</b>: it reads this, nothing is learned from it")
    return (
        f'<div class="legend"><span><i class="learned"></i>{learned}</span>'
        f'<span><i class="masked"></i>{masked}</span></div>'
    )


def mask_html(renderer: Renderer, example: Example) -> str:
    """The rendered example with every token coloured. All text in it is escaped."""
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


WHITE = {" ": "space", "\u3000": "wide", "\u00a0": "hard", "\t": "tab", "\r": "return"}


def _white_space(text: str) -> str:
    """Escaped, with white space that can be seen: the style sheet draws the signs, copied text stays as it is."""
    signs = {"\n": '<span aria-hidden="true">↵</span>\n', **{c: f'<i class="{k}">{c}</i>' for c, k in WHITE.items()}}
    return "".join(signs.get(c) or escape(c) for c in text)


def problems_html(problems: Any) -> str:
    return "".join(f'<div class="problem">{escape(localized(p))}</div>' for p in problems)


def to_save(name: str) -> Path:
    """A place for a file called `name`, in a temporary folder of its own that the page may serve from."""
    within = guests.handed() if files.shared() else None
    if within:
        limits.require_room(within)
    return Path(tempfile.mkdtemp(prefix="persona-", dir=within)) / name


def duration(seconds: float | None) -> str:
    """90 → '1 min 30 s'."""
    if seconds is None:
        return "…"
    s = max(0, round(seconds))
    if s < 60:
        return t("{s} s", s=s)
    if s < 3600:
        return t("{min} min {s} s", min=s // 60, s=s % 60)
    return t("{h} h {min} min", h=s // 3600, min=s % 3600 // 60)


# for a gr.HTML whose buttons say what they do: the click event carries their data
CLICKS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) trigger("click", { ...button.dataset });
});
"""


def bars_html(rows: list[tuple[str, float, str]]) -> str:
    """(name, value, value in words) as bars, the largest value at full width."""
    most = max((value for _, value, _ in rows), default=0) or 1
    bars = "".join(
        f"<div><span>{escape(name)}</span><div class='bar'><div style='width:{100 * value / most:.0f}%'></div></div>"
        f"<b>{escape(words)}</b></div>"
        for name, value, words in rows
    )
    return f"<div class='coverage'>{bars}</div>"


def facts_html(facts: list[tuple[str, str]]) -> str:
    cells = (f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in facts)
    return f'<div class="facts">{"".join(cells)}</div>'
