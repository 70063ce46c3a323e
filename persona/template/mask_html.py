"""A rendered pair as HTML, each token marked as learned or masked: for page and notebooks. All text is escaped."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from persona.errors import Message
from persona.template.render import PreviewToken, Renderer, TrainingExample

LEARNED = Message("<b>learned</b>: the model is trained to write this")
VISIBLE_SPACES = {" ": "space", "\u3000": "wide", "\u00a0": "hard", "\t": "tab", "\r": "return"}


@dataclass(frozen=True)
class RenderedPair:
    """A pair as the model reads it, with its label mask; coloured in a notebook."""

    renderer: Renderer
    example: TrainingExample

    @property
    def tokens(self) -> list[PreviewToken]:
        return self.renderer.tokens(self.example)

    def _repr_html_(self) -> str:
        mask = render_mask_html(self.renderer, self.example)
        # the rules reach nothing else in the notebook
        return f'<div class="persona-mask"><style>@scope (.persona-mask) {{\n{mask_css()}}}</style>{mask}</div>'


@cache
def mask_css() -> str:
    """The style sheet of the mask."""
    return Path(__file__).with_name("mask.css").read_text(encoding="utf-8")


def render_mask_html(
    renderer: Renderer, example: TrainingExample, say: Callable[[str], str] = str, meaning: str = LEARNED
) -> str:
    """The mask with its legend, counts and problems. say: translates each text.

    meaning: of a learned token, as HTML.
    """
    if not example.input_ids:
        return render_problems_html(example.problems, say)
    pieces = []
    for n, token in enumerate(renderer.tokens(example)):
        kind = "learned" if token.learned else "masked"
        kind += " special" if token.special else ""
        kind += " cut" if n >= renderer.max_length else ""
        size = len(token.text.encode())
        if token.learned:
            title = say(Message("id {id}, {bytes} bytes, learned", id=token.id, bytes=size))
        else:
            title = say(Message("id {id}, {bytes} bytes, masked", id=token.id, bytes=size))
        pieces.append(f'<span class="{kind}" title="{title}">{_visible_white_space(token.text)}</span>')
    return (
        f"{_legend_html(say, meaning)}<div class='mask' data-testid='mask'>{''.join(pieces)}</div>"
        f"<div class='quiet'>{say(_count_tokens(renderer, example))}</div>{render_problems_html(example.problems, say)}"
    )


def render_problems_html(problems: Iterable[str], say: Callable[[str], str] = str) -> str:
    return "".join(f'<div class="problem">{escape(say(p))}</div>' for p in problems)


def _count_tokens(renderer: Renderer, example: TrainingExample) -> Message:
    count = len(example.input_ids)
    n, learned, masked = f"{count:,}", f"{example.learned:,}", f"{count - example.learned:,}"
    if count <= renderer.max_length:
        return Message("{n} tokens: <b>{learned} learned</b>, {masked} masked", n=n, learned=learned, masked=masked)
    return Message(
        "{n} tokens: <b>{learned} learned</b>, {masked} masked, <b>{over} too many</b>",
        n=n,
        learned=learned,
        masked=masked,
        over=f"{count - renderer.max_length:,}",
    )


def _legend_html(say: Callable[[str], str], meaning: str) -> str:
    masked = say(Message("<b>masked</b>: it reads this, nothing is learned from it"))
    return (
        f'<div class="legend"><span><i class="learned"></i>{say(meaning)}</span>'
        f'<span><i class="masked"></i>{masked}</span></div>'
    )


def _visible_white_space(text: str) -> str:
    """Escaped text with visible white space: the style sheet draws the signs, so that copied text stays unchanged."""
    signs = {
        "\n": '<span aria-hidden="true">↵</span>\n',
        **{c: f'<i class="{k}">{c}</i>' for c, k in VISIBLE_SPACES.items()},
    }
    return "".join(signs.get(c) or escape(c) for c in text)
