"""Write, tab Persona: name, system prompt, greeting, probes; delete and restore."""

from html import escape
from typing import Any

import gradio as gr

from persona.errors import InputError, PersonaError
from persona.store import files, persona_folder, workspace
from persona.ui.i18n import t
from persona.ui.page import open_current_persona, persona_dropdown

# of the card → its label
CARD_FIELDS = {
    "name": "Name", "system": "System prompt", "greeting": "Greeting", "source": "Source", "rights": "Rights",
}  # fmt: skip


def save_card(slug: str, seen: tuple[str, ...], *fields: str) -> tuple[str, Any, tuple[str, ...]]:
    """seen: what the window was given; fields: what it shows now. Returns a notice, the list of personas, and `seen`.

    Only what was changed in this window is written, and nothing over what another one has saved meanwhile.
    """
    persona = open_current_persona(slug)
    fields = (fields[0].strip(), *fields[1:])
    if not fields[0]:
        raise InputError("A persona needs a name.")
    typed = [(n, old, new) for n, old, new in zip(CARD_FIELDS, seen, fields, strict=True) if new != old]

    def changes(card: persona_folder.PersonaCard) -> dict[str, str]:
        for name, old, new in typed:
            if getattr(card, name) not in (old, new):
                raise InputError(
                    "This was changed elsewhere (another window, or on disk) since you saw it here: "
                    "{field}. Copy what you just typed, press Reload, and type it again.",
                    field=t(CARD_FIELDS[name]),
                )
        return {name: new for name, _, new in typed}

    persona_folder.update_card(persona, changes)
    return t("Saved {name}.", name=escape(fields[0])), persona_dropdown(slug), fields


def delete_persona(slug: str) -> tuple[str, str]:
    trashed = persona_folder.trash_persona(open_current_persona(slug))
    gr.Info(t("Moved to the trash. Undo brings it back."))
    return "", trashed.name


def restore_persona(trashed: str) -> str:
    if not trashed:
        raise PersonaError("Nothing was deleted in this window.")
    return persona_folder.restore_persona(files.safe_join(workspace.current_workspace() / "trash", trashed)).slug


def build_card_tab() -> tuple[list[gr.Textbox], gr.HTML, gr.Button]:
    """The tab with the persona's card."""
    card = [
        gr.Textbox(label=t("Name"), elem_id="card-name"),
        gr.Textbox(label=t("System prompt"), info=t("Part of every training row and every chat. Keep it short."),
                   lines=2, elem_id="card-system"),
        gr.Textbox(label=t("Greeting"), info=t("Said before the first question."), elem_id="card-greeting"),
        gr.Textbox(label=t("Source"), info=t("Where the text comes from."), elem_id="card-source"),
        gr.Textbox(label=t("Rights"), elem_id="card-rights",
                   info=t("Whose text it is, and under which licence. Needed to publish.")),
    ]  # fmt: skip
    return card, gr.HTML(elem_classes="status"), gr.Button(t("Delete this persona"), size="sm", variant="stop", scale=0)
