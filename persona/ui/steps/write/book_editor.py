"""Write, tab Who it is: the character book (lorebook), entry by entry, and how it is searched."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import InputError
from persona.store import persona_folder
from persona.store.character_book import MAX_CONTENT, MAX_ENTRIES, BookEntry, CharacterBook
from persona.store.persona_folder import PersonaCard
from persona.template.book_entries import DEFAULT_BUDGET, DEFAULT_DEPTH
from persona.ui.i18n import t
from persona.ui.page import QUIET, Page, open_current_persona, show_errors
from persona.ui.steps.write.card_lists import CardList, ListView, build_list

POSITIONS = {"after_char": "After the system prompt", "before_char": "Before the system prompt"}


class EntryForm(NamedTuple):
    """The form of an entry: the components, or their values."""

    keys: Any = ""
    content: Any = ""
    secondary_keys: Any = ""
    enabled: Any = True
    constant: Any = False
    selective: Any = False
    case_sensitive: Any = False
    use_regex: Any = False
    insertion_order: Any = 100
    position: Any = "after_char"


def _to_form(entry: BookEntry | None) -> EntryForm:
    if entry is None:
        return EntryForm()
    return EntryForm(
        "\n".join(entry.keys), entry.content, "\n".join(entry.secondary_keys or ()), entry.enabled,
        bool(entry.constant), bool(entry.selective), bool(entry.case_sensitive), bool(entry.use_regex),
        entry.insertion_order, entry.position or "after_char",
    )  # fmt: skip


def _parse(entry: BookEntry | None, values: tuple[Any, ...]) -> BookEntry:
    """The entry; what the form was not changed in stays as it came, also where it came without."""
    form, before = EntryForm(*values), _to_form(entry)
    changed = {name for name, new, old in zip(EntryForm._fields, form, before, strict=True) if new != old}
    content = str(form.content).strip()
    if not content or len(content) > MAX_CONTENT:
        raise InputError("The text of an entry has 1 to {limit:,} characters; this one has {count:,}.",
                         limit=MAX_CONTENT, count=len(content))  # fmt: skip
    if not form.constant and not _lines(form.keys):
        raise InputError("An entry needs a key, one a line, or “always inserted”. Without either it is never used.")
    given: dict[str, Any] = {**form._asdict(), "keys": _lines(form.keys), "content": content}
    given["secondary_keys"] = _lines(form.secondary_keys)
    given["insertion_order"] = form.insertion_order or 0
    required = {"keys", "content", "enabled", "insertion_order"} if entry is None else set()
    return persona_folder.check_model(
        BookEntry, {**(entry.model_dump() if entry else {}), **{n: given[n] for n in changed | required}}
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in str(text).splitlines() if line.strip()]


def _read(card: PersonaCard) -> Sequence[BookEntry]:
    return card.character_book.entries if card.character_book else ()


def _write(card: PersonaCard, entries: Sequence[BookEntry]) -> dict[str, Any]:
    if len(entries) > MAX_ENTRIES:
        raise InputError("A book has {limit:,} entries at most. Delete one first.", limit=MAX_ENTRIES)
    book = (card.character_book or CharacterBook()).model_copy(update={"entries": tuple(entries)})
    return {"character_book": book.model_dump()}


def _summary(entry: BookEntry) -> tuple[str, str]:
    marks = [t("always")] if entry.constant else [", ".join(entry.keys)]
    marks += [t("off")] if not entry.enabled else []
    return entry.content, f"{entry.title} · {' · '.join(marks)}"


BOOK = CardList("book-editor", _read, _write, _to_form, _parse, _summary)


# ---- how it is searched


class BookSettings(NamedTuple):
    """The components, or their values. in_training: PersonaCard.book_in_training."""

    scan_depth: Any
    token_budget: Any
    recursive: Any
    in_training: Any


def load_settings(slug: str) -> BookSettings:
    card = open_current_persona(slug).card() if slug else None
    book = (card and card.character_book) or CharacterBook()
    depth = DEFAULT_DEPTH if book.scan_depth is None else book.scan_depth
    budget = DEFAULT_BUDGET if book.token_budget is None else book.token_budget
    return BookSettings(depth, budget, bool(book.recursive_scanning), bool(card and card.book_in_training))


def save_settings(slug: str, *values: Any) -> str:
    """Save what differs from what is in force. Returns a notice."""
    new, old = BookSettings(*values), load_settings(slug)

    def changes(card: PersonaCard) -> dict[str, Any]:
        book = card.character_book or CharacterBook()
        names = {"scan_depth": "scan_depth", "token_budget": "token_budget", "recursive": "recursive_scanning"}
        changed = {field: getattr(new, n) for n, field in names.items() if getattr(new, n) != getattr(old, n)}
        if not changed:
            return {"book_in_training": bool(new.in_training)}
        return {"book_in_training": bool(new.in_training), "character_book": {**book.model_dump(), **changed}}

    persona_folder.update_card(open_current_persona(slug), changes)
    return t("Saved.")


def build_book(page: Page) -> tuple[ListView, BookSettings]:
    gr.Markdown(
        t("Texts that join the prompt in chat and API while one of their keys is said, as in SillyTavern and the card "
          "formats V2 and V3."), elem_classes="quiet",
    )  # fmt: skip

    def make_fields() -> tuple[Any, ...]:
        with gr.Row():
            keys = gr.Textbox(label=t("Keys, one a line"), lines=2, scale=1, elem_id="book-keys")
            content = gr.Textbox(label=t("Text that joins the prompt"), lines=2, scale=2, elem_id="book-content")
        with gr.Column(min_width=200):  # in a row they would be squeezed on a phone
            enabled = gr.Checkbox(True, label=t("Enabled"), min_width=120)
            constant = gr.Checkbox(label=t("Always inserted"), min_width=120, elem_id="book-constant")
            case = gr.Checkbox(label=t("Match case"), min_width=120)
            regex = gr.Checkbox(label=t("Keys are regular expressions"), min_width=160)
        selective = gr.Checkbox(label=t("Needs a secondary key too"), min_width=160)
        with gr.Row():
            secondary = gr.Textbox(label=t("Secondary keys, one a line"), lines=1, min_width=200)
            order = gr.Number(100, label=t("Insertion order"), info=t("Lower ones come first."), min_width=140)
            position = gr.Dropdown([(t(label), value) for value, label in POSITIONS.items()], value="after_char",
                                   label=t("Position"), min_width=180)  # fmt: skip
        return EntryForm(keys, content, secondary, enabled, constant, selective, case, regex, order, position)

    view = build_list(BOOK, page, make_fields)
    with gr.Column(min_width=200):
        settings = BookSettings(
            gr.Number(DEFAULT_DEPTH, label=t("Messages searched"), precision=0, min_width=140, elem_id="book-depth"),
            gr.Number(DEFAULT_BUDGET, label=t("Tokens of all entries, at most"), precision=0, min_width=160,
                      elem_id="book-budget"),
            gr.Checkbox(label=t("Entries' texts are searched too"), min_width=180),
            gr.Checkbox(label=t("Part of training rows too"), min_width=180, elem_id="book-in-training",
                        info=t("With what stands after the conversation. Never learned: it belongs to the prompt.")),
        )  # fmt: skip
        save = gr.Button(t("Save"), size="sm", scale=0, min_width=110, elem_id="book-settings-save")
    save.click(show_errors(save_settings), [page.slug, *settings], view.notice, **QUIET)
    return view, settings
