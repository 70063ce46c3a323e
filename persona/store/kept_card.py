"""The character card that a persona was made of, as it came: what persona.json has no place for goes out again.

character_card.json   the card's JSON, every field of it
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona.errors import Message
from persona.store import quotas
from persona.store.files import is_file, read_json, to_json, write_atomic
from persona.store.persona_folder import Persona

FILE = "character_card.json"


def keep_card(persona: Persona, card: Mapping[str, Any]) -> None:
    """Write it beside persona.json, over an earlier one; nothing for an empty one."""
    if card:
        quotas.require_disk_quota()
        write_atomic(persona.path / FILE, to_json(dict(card)))


def read_kept_card(folder: Path) -> dict[str, Any]:
    """The card that was kept in a persona's folder; {} without one. Raises InputError where the file is damaged."""
    return read_json(folder / FILE, Message("a character card")) if is_file(folder / FILE) else {}
