"""A character book (lorebook) of character cards V2 and V3: texts that join the prompt when their keys are said.

Fields that this program does not use, `extensions` among them, are kept as they came. When an entry joins the prompt
is decided in template/book_entries.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from persona.errors import Message

MAX_ENTRIES = 2_000
MAX_KEYS = 200  # of one entry
MAX_KEY = 500  # characters
MAX_CONTENT = 20_000  # characters of one entry


class _AsGiven(BaseModel):
    """What was not given is not written, so that a card comes back as it came."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_serializer(mode="wrap")
    def as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class BookEntry(_AsGiven):
    """One entry, named as in the card specifications (character-card-spec-v2, -v3)."""

    keys: tuple[str, ...] = Field(default=(), max_length=MAX_KEYS)
    content: str = Field(default="", max_length=MAX_CONTENT)
    enabled: bool = True
    insertion_order: int | float = Field(default=100, description="lower ones stand earlier in the prompt")
    priority: int | float | None = Field(default=None, description="lower ones are left out first, over the budget")
    constant: bool | None = Field(default=None, description="always inserted")
    selective: bool | None = Field(default=None, description="a key and a secondary key must be said")
    secondary_keys: tuple[str, ...] | None = Field(default=None, max_length=MAX_KEYS)
    case_sensitive: bool | None = None
    use_regex: bool | None = Field(default=None, description="keys are regular expressions")
    position: Literal["before_char", "after_char"] | None = Field(
        default=None, description="before or after the system prompt"
    )
    name: str | None = None
    comment: str | None = None

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.name or self.comment or ", ".join(self.keys[:3]) or self.content[:40]


class CharacterBook(_AsGiven):
    """The entries, and how they are searched for. scan_depth: messages; token_budget: tokens of all entries."""

    entries: tuple[BookEntry, ...] = Field(default=(), max_length=MAX_ENTRIES)
    scan_depth: int | float | None = Field(default=None, ge=0, le=1_000)
    token_budget: int | float | None = Field(default=None, ge=0, le=1_000_000)
    recursive_scanning: bool | None = None


def read_book(value: Any, note: Callable[[str], None]) -> CharacterBook | None:
    """The book of a card from anywhere; `note` is told what cannot be used. None where there is no entry."""
    if not isinstance(value, Mapping):
        return None
    given = value.get("entries")
    if isinstance(given, Mapping):  # as SillyTavern keeps a book of its own
        given = list(given.values())
    entries: list[BookEntry] = []
    left_out = 0
    for raw in given if isinstance(given, list) else []:
        entry = _read_entry(raw) if len(entries) < MAX_ENTRIES else None
        entries += [entry] if entry else []
        left_out += entry is None
    if left_out:
        note(Message("character_book: {count:,} entr(y|ies) cannot be used and (was|were) left out", count=left_out))
    if not entries:
        return None
    rest = {k: v for k, v in value.items() if k != "entries"}
    for name in ("scan_depth", "token_budget", "recursive_scanning"):
        if name in rest and not _is_valid_setting(name, rest[name]):
            del rest[name]
            note(Message("character_book: {field} cannot be used and was left out", field=name))
    return CharacterBook.model_validate({**rest, "entries": entries})


def _is_valid_setting(name: str, value: Any) -> bool:
    try:
        CharacterBook.model_validate({name: value})
    except ValueError:
        return False
    return True


_SILLYTAVERN = {"key": "keys", "keysecondary": "secondary_keys", "order": "insertion_order", "uid": "id"}


def _read_entry(raw: Any) -> BookEntry | None:
    """The entry; fields of a wrong kind are left out, and None where no content is left."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("content"), str):
        return None
    row = {_SILLYTAVERN.get(name, name) if "keys" not in raw else name: value for name, value in raw.items()}
    if "disable" in row and "enabled" not in row:
        row["enabled"] = not row["disable"]
    for name in ("keys", "secondary_keys"):
        if isinstance(row.get(name), str):
            row[name] = [key.strip() for key in row[name].split(",") if key.strip()]
        if isinstance(row.get(name), list):
            row[name] = [key[:MAX_KEY] for key in row[name] if isinstance(key, str)][:MAX_KEYS]
    row["content"] = row["content"][:MAX_CONTENT]
    while True:
        try:
            return BookEntry.model_validate(row)
        except ValueError as e:
            wrong = {error["loc"][0] for error in getattr(e, "errors", list)()}
            if not wrong or "content" in wrong:
                return None
            row = {name: value for name, value in row.items() if name not in wrong}
