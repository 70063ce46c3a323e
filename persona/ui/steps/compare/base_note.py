"""Step 4: what a base is, so that nobody takes a pretrained base's babble for a mistake, and how to get a chat base."""

from html import escape
from typing import Any

import gradio as gr

from persona.models.adapter import Adapter
from persona.models.catalogue import KnownModel, find_known_model, is_instruction_tuned, load_catalogue
from persona.ui.chosen import Chosen
from persona.ui.i18n import language, localized, t
from persona.ui.navigation import TEMPLATE, open_step

MAX_DOWNLOAD_GB = 2.1  # of the chat bases that are offered: what trains on a machine without a GPU

CHOOSE_BASE_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-base]");
  if (button) trigger("click", { base: button.dataset.base });
});
"""


def is_chat_base(adapter: Adapter) -> bool:
    """Whether the adapter's base was tuned to answer."""
    return is_instruction_tuned(adapter.base_id, adapter.template.name)


def list_small_chat_bases() -> list[KnownModel]:
    """The catalogue's chat models of up to MAX_DOWNLOAD_GB, the smallest download first."""
    found = [m for m in load_catalogue() if m.kind == "instruct" and m.download_gb <= MAX_DOWNLOAD_GB and not m.needs]
    return sorted(found, key=lambda m: m.download_gb)


def base_note_html(adapter: Adapter) -> str:
    """A sentence on what the base is; of a pretrained one, with the chat bases there are behind a click."""
    if is_chat_base(adapter):
        return f"<div class='quiet'>{t('The base: a chat model that has not met the persona.')}</div>"
    about = t("The base: it has only learned to continue text, not to answer, so it rambles. This is no mistake.")
    return f"<div class='quiet base-note'>{about}{_chat_bases_html()}</div>"


def _chat_bases_html() -> str:
    rows = "".join(
        f"<li><button class='tool' data-base='{escape(m.id)}'>{escape(m.id)}</button> "
        f"{escape(m.zh if language() == 'zh' else m.en)} ({escape(localized(m.about))})</li>"
        for m in list_small_chat_bases()
    )
    how = t("Choose one: step 2 opens with it. It is downloaded once; then train on it.")
    return (
        f"<details><summary>{t('Get a base that can chat')}</summary><div><p>{how}</p><ul>{rows}</ul></div></details>"
    )


def choose_base(chosen: Chosen, event: gr.EventData) -> tuple[Any, Any, Any]:
    """Select a chat base of the list in step 2, and open that step."""
    known = find_known_model(str(event.base))
    base = gr.Dropdown(value=known.id, allow_custom_value=True) if known else gr.skip()
    return base, *open_step(TEMPLATE, chosen)
