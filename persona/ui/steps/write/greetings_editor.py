"""Write, tab Who it is: greetings to choose from instead of the first one."""

from typing import Any

import gradio as gr

from persona.errors import InputError
from persona.store.persona_folder import MAX_GREETING, MAX_GREETINGS
from persona.ui.i18n import t
from persona.ui.page import Page
from persona.ui.steps.write.card_lists import CardList, ListView, build_list


def _parse(_: str | None, values: tuple[Any, ...]) -> str:
    text = str(values[0]).strip()
    if not text or len(text) > MAX_GREETING:
        raise InputError("A greeting has 1 to {limit:,} characters; this one has {count:,}.", limit=MAX_GREETING,
                         count=len(text))  # fmt: skip
    return text


def _write(_: Any, texts: Any) -> dict[str, Any]:
    if len(texts) > MAX_GREETINGS:
        raise InputError("A persona has {limit:,} greetings at most. Delete one first.", limit=MAX_GREETINGS)
    return {"alternate_greetings": tuple(texts)}


GREETINGS = CardList(
    "greetings-editor", lambda card: card.alternate_greetings, _write, lambda text: (text or "",), _parse,
    lambda text: (text, ""),
)  # fmt: skip


def build_greetings(page: Page) -> ListView:
    about = t("The chat offers these beside the greeting above. Macros of character cards can be used, such as char, "
              "user and random:a,b in double braces.")  # fmt: skip
    gr.Markdown(about, elem_classes="quiet")
    return build_list(
        GREETINGS, page, lambda: (gr.Textbox(label=t("Another greeting"), lines=2, elem_id="another-greeting"),)
    )
