"""Write, tab Who it is: the fields and lists of the card; delete and restore the persona."""

from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import InputError, PersonaError
from persona.store import files, persona_folder, workspace
from persona.ui.chosen import persona_dropdown
from persona.ui.i18n import t
from persona.ui.notices import show_info
from persona.ui.page import Page, open_current_persona
from persona.ui.steps.write.book_editor import BOOK, BookSettings, build_book, load_settings
from persona.ui.steps.write.card_lists import CardList, ListView, show_list
from persona.ui.steps.write.greetings_editor import GREETINGS, build_greetings
from persona.ui.steps.write.picture_editor import build_picture, picture_html
from persona.ui.steps.write.probes_editor import PROBES, build_probes

# field of the card → its label
CARD_FIELDS = {
    "name": "Name", "language": "Its language", "author": "Author", "system": "System prompt", "greeting": "Greeting",
    "post_history_instructions": "After the conversation", "source": "Source", "rights": "Rights",
}  # fmt: skip
IN_ONE_ROW = ("name", "language", "author")


def save_card(slug: str, loaded: tuple[str, ...], *fields: str) -> tuple[str, gr.Dropdown, tuple[str, ...]]:
    """Save what was changed in this window. Returns a notice, the list of personas, and the fields as loaded now.

    loaded: the fields as this window got them; fields: as it shows them now.
    Raises InputError rather than overwrite what another window has saved meanwhile.
    """
    persona = open_current_persona(slug)
    fields = (fields[0].strip(), *fields[1:])
    if not fields[0]:
        raise InputError("A persona needs a name.")
    changed = [(n, old, new) for n, old, new in zip(CARD_FIELDS, loaded, fields, strict=True) if new != old]

    def changes(card: persona_folder.PersonaCard) -> dict[str, str]:
        for name, old, new in changed:
            if getattr(card, name) not in (old, new):
                raise InputError(
                    "This was changed elsewhere (another window, or on disk) since you saw it here: "
                    "{field}. Copy what you just typed, press Reload, and type it again.",
                    field=t(CARD_FIELDS[name]),
                )
        return {name: new for name, _, new in changed}

    persona_folder.update_card(persona, changes)
    return t("Saved {name}.", name=escape(fields[0])), persona_dropdown(slug), fields


def delete_persona(slug: str) -> tuple[str, str]:
    """Move the persona to the trash. Returns the slug that is open now (none), and what restore_persona needs."""
    trash_path = persona_folder.trash_persona(open_current_persona(slug))
    show_info(t("Moved to the trash. Undo brings it back."))
    return "", trash_path.name


def restore_persona(trashed: str) -> str:
    if not trashed:
        raise PersonaError("Nothing was deleted in this window.")
    return persona_folder.restore_persona(files.safe_join(workspace.current_workspace() / "trash", trashed)).slug


class CardTab(NamedTuple):
    """The components of the tab. fields: of the card, by name; probe_taken: event, after which a pair may be gone."""

    fields: dict[str, gr.Textbox]
    notice: gr.HTML
    lists: list[ListView]
    book_settings: BookSettings
    picture: gr.HTML
    probe_taken: Any
    delete: gr.Button

    def flat_lists(self) -> list[Any]:
        return [*(component for view in self.lists for component in view.flat()), *self.book_settings, self.picture]


LISTS: tuple[CardList, ...] = (GREETINGS, BOOK, PROBES)


def load_lists(slug: str) -> list[Any]:
    """The values of CardTab.flat_lists: every list as it is on disk, with nothing in its form."""
    return [*(value for of in LISTS for value in show_list(of, slug)), *load_settings(slug), picture_html(slug)]


def build_card_tab(page: Page) -> CardTab:
    about = {
        "system": t("Part of every training row and every chat. Keep it short."),
        "greeting": t("Said before the first question."),
        "language": t("zh, en, …"),
        "post_history_instructions": t("Post-history instructions: what the model reads last, before it answers."),
        "source": t("Where the text comes from."),
        "rights": t("Whose text it is, and under which licence. Needed to publish."),
    }
    fields = {
        name: gr.Textbox(
            label=t(label), info=about.get(name), lines=2 if name == "system" else 1, elem_id=f"card-{name}",
            min_width=120, scale=3 if name == "name" else 1, render=False,
        )
        for name, label in CARD_FIELDS.items()
    }  # fmt: skip
    with gr.Row():
        for name in IN_ONE_ROW:
            fields[name].render()
    for name in CARD_FIELDS:
        if name not in IN_ONE_ROW:
            fields[name].render()
    notice = gr.HTML(elem_classes="status")
    with gr.Accordion(t("Picture"), open=False, elem_id="picture-section"):
        picture = build_picture(page)
    with gr.Accordion(t("More greetings"), open=False, elem_id="greetings-section"):
        greetings = build_greetings(page)
    with gr.Accordion(t("Character book (lorebook)"), open=False, elem_id="book-section"):
        book, settings = build_book(page)
    with gr.Accordion(t("Questions that test it (probes)"), open=False, elem_id="probes-section"):
        probes, probe_taken = build_probes(page)
    delete = gr.Button(t("Delete this persona"), size="sm", variant="stop", scale=0)
    return CardTab(fields, notice, [greetings, book, probes], settings, picture, probe_taken, delete)
