"""Write, tab Who it is: the lists of a card (probes, greetings, book entries), each edited one item at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import InputError
from persona.store import persona_folder
from persona.store.persona_folder import PersonaCard
from persona.ui.i18n import t
from persona.ui.page import QUIET, Page, open_current_persona, show_errors
from persona.ui.widgets import FORWARD_CLICKS_JS

MAX_SHOWN = 160  # characters of an item in the list


@dataclass(frozen=True)
class CardList:
    """A list of the card, and how the form shows one item of it.

    name: of the elements' ids. read: the items of a card. write: the card's fields for other items. to_form: the
    form's values for an item, None for a new one. parse: the item that the values make of the old one (None: of a new
    one); raises InputError. summary: (text, what is said beside it).
    """

    name: str
    read: Callable[[PersonaCard], Sequence[Any]]
    write: Callable[[PersonaCard, Sequence[Any]], dict[str, Any]]
    to_form: Callable[[Any], tuple[Any, ...]]
    parse: Callable[[Any, tuple[Any, ...]], Any]
    summary: Callable[[Any], tuple[str, str]]


class ChosenItem(NamedTuple):
    """The item in the form as this window got it. at: its place, from 0; -1 for a new one."""

    at: int = -1
    item: Any = None


class ListView(NamedTuple):
    """The components of a list, or the values for them."""

    listing: Any
    chosen: Any
    notice: Any
    fields: tuple[Any, ...]

    def flat(self) -> list[Any]:
        return [self.listing, self.chosen, self.notice, *self.fields]


def show_list(of: CardList, slug: str, chosen: ChosenItem = ChosenItem(), notice: str = "") -> list[Any]:
    """A ListView, flat: the items on disk, and the chosen one in the form."""
    items = of.read(open_current_persona(slug).card()) if slug else ()
    return ListView(_listing_html(of, items, chosen.at), chosen, notice, of.to_form(chosen.item)).flat()


def save_item(of: CardList, slug: str, chosen: ChosenItem, *values: Any) -> list[Any]:
    """Save the form: the chosen item, or a new one at the end. The form is then empty for the next one.

    Raises InputError for values that cannot be right, and rather than overwrite what another window has saved.
    """
    chosen = ChosenItem(*chosen)
    item = of.parse(chosen.item, values)
    change_items(of, slug, chosen, lambda items, at: [*items[:at], item, *items[at + 1 :]])
    return show_list(of, slug, notice=t("Saved."))


def do_with_item(of: CardList, slug: str, event: gr.EventData) -> list[Any]:
    """A click in the list: edit, delete or up."""
    items = of.read(open_current_persona(slug).card())
    at = int(event.at)
    if not 0 <= at < len(items):
        raise InputError("This entry is no longer there. Press Reload.")
    chosen = ChosenItem(at, items[at])
    if event.do == "edit":
        return show_list(of, slug, chosen)
    if event.do == "delete":
        change_items(of, slug, chosen, lambda items, at: [*items[:at], *items[at + 1 :]])
        return show_list(of, slug, notice=t("Deleted."))
    change_items(
        of, slug, chosen, lambda items, at: [*items[: max(at - 1, 0)], items[at], *items[max(at - 1, 0) : at],
                                             *items[at + 1 :]],
    )  # fmt: skip
    return show_list(of, slug)


def change_items(
    of: CardList, slug: str, chosen: ChosenItem, change: Callable[[Sequence[Any], int], Sequence[Any]]
) -> None:
    """Save the items that `change` makes of those on disk and the place of the chosen one, the end for a new one."""

    def changed(card: PersonaCard) -> dict[str, Any]:
        items = list(of.read(card))
        at = len(items) if chosen.at < 0 else chosen.at
        if chosen.at >= 0 and list(items[at : at + 1]) != [chosen.item]:
            raise InputError(
                "This entry was changed elsewhere (another window, or on disk) since you saw it here. Copy what you "
                "just typed, press Reload, and type it again."
            )
        return of.write(card, change(items, at))

    persona_folder.update_card(open_current_persona(slug), changed)


def _listing_html(of: CardList, items: Sequence[Any], chosen: int) -> str:
    rows = []
    for n, item in enumerate(items):
        text, about = of.summary(item)
        shown = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
        tools = [("edit", t("Edit"), t("Edit {n}", n=n + 1)), ("delete", t("Delete"), t("Delete {n}", n=n + 1))]
        if n:
            tools.insert(1, ("up", t("Up"), t("Move {n} up", n=n + 1)))
        buttons = "".join(
            f'<button class="tool" data-do="{do}" data-at="{n}" aria-label="{label}">{word}</button>'
            for do, word, label in tools
        )
        aside = f"<br><small>{escape(about)}</small>" if about else ""
        rows.append(
            f'<div class="mark item{" selected" if n == chosen else ""}" role="listitem">'
            f"<b>{n + 1}</b><span>{escape(shown)}{aside}</span>{buttons}</div>"
        )
    return f'<div role="list">{"".join(rows)}</div>' if rows else f'<div class="quiet">{t("None yet.")}</div>'


def build_list(of: CardList, page: Page, make_fields: Callable[[], tuple[Any, ...]]) -> ListView:
    """The list, the form under it, and their events. make_fields: the form's components, in the order of its values."""
    listing = gr.HTML(elem_id=f"{of.name}-list", js_on_load=FORWARD_CLICKS_JS)
    with gr.Column(elem_classes="form"):
        fields = make_fields()
        with gr.Row(elem_classes="slim"):
            save = gr.Button(t("Save"), size="sm", variant="primary", scale=0, min_width=110, elem_id=f"{of.name}-save")
            new = gr.Button(t("New"), size="sm", scale=0, min_width=90, elem_id=f"{of.name}-new")
            notice = gr.HTML(elem_classes="status quiet", elem_id=f"{of.name}-notice")
    view = ListView(listing, gr.State(ChosenItem()), notice, fields)
    outputs = view.flat()
    save.click(
        show_errors(lambda slug, chosen, *values: save_item(of, slug, chosen, *values)),
        [page.slug, view.chosen, *fields], outputs, **QUIET,
    )  # fmt: skip

    def clicked(slug: str, event: gr.EventData) -> list[Any]:
        return do_with_item(of, slug, event)

    listing.click(show_errors(clicked), page.slug, outputs, **QUIET)
    new.click(show_errors(lambda slug: show_list(of, slug)), page.slug, outputs, **QUIET)
    return view
