"""Write, below the table: the selected pair as the model will see it, also while it is typed."""

import contextlib
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from persona.errors import PersonaError
from persona.store.pairs import Pair, parse_pair
from persona.ui.i18n import localized, t
from persona.ui.page import RenderSettings, open_current_persona, open_page_renderer
from persona.ui.widgets import mask_html
from persona.write.lint.pair_rules import is_blank

_opened: set[str] = set()  # the bases that a preview was made with; to convert or download another takes minutes


def preview_mask(slug: str, number: int, *inputs: Any) -> Iterator[str]:
    """The mask of a saved pair; number: from 1, the nearest that exists. inputs: the RenderSettings."""
    settings = RenderSettings(*inputs)
    if slug and settings.base not in _opened:
        opening = t(
            "Preparing the base model, once: about a minute if it is installed, longer if it has to be downloaded …"
        )
        yield f"<div class='hint'>{opening}</div>"
        with contextlib.suppress(PersonaError):  # the card below shows the error
            open_page_renderer(slug, settings)
            _opened.add(settings.base)
    items = open_current_persona(slug).scan()[0] if slug else []  # not before: the pair may have been edited meanwhile
    if not items:
        yield ""
        return
    number = min(max(1, number), len(items))
    yield mask_card(slug, items[number - 1], number, settings)


def preview_typed(
    slug: str, base: str, template: str, max_length: float, learn_history: bool, thinking: str,
    event: gr.EventData,
) -> Any:  # fmt: skip
    """The mask of what is typed so far, before it is saved. Until the base is open, preview_mask alone draws it."""
    if base not in _opened:
        return gr.skip()
    texts = {str(k): str(v) for k, v in dict(event.texts).items()}
    turns = sum(k.startswith("history.") for k in texts) // 2
    history = tuple((texts[f"history.{n}.0"], texts[f"history.{n}.1"]) for n in range(turns))
    try:
        typed = Pair(texts["instruction"], texts["output"], history, system=texts.get("system", ""))
        pair = parse_pair(typed.weigh(dict(event._data).get("weights") or ()).to_dict())
    except PersonaError as e:  # too long, for instance, to be tokenized; the edit itself is refused with a notice
        return f"<div class='hint'>{escape(localized(e.message))}</div>"
    return mask_card(slug, pair, int(event.row), RenderSettings(base, template, max_length, learn_history, thinking))


def mask_card(slug: str, pair: Pair, number: int, settings: RenderSettings) -> str:
    if is_blank(pair):  # the line above the table says so
        return ""
    try:
        _, renderer = open_page_renderer(slug, settings)
    except PersonaError as e:
        return f"<div class='hint'>{escape(localized(e.message))}</div>"
    head = f"<div class='quiet'>{t('Pair {n}, as the model sees it', n=number)}</div>"
    return f"<div class='card'>{head}{mask_html(renderer, renderer.render_example(pair))}</div>"
