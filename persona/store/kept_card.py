"""The character card that a persona was made of, as it came: what persona.json has no place for goes out again.

character_card.json                      the card's JSON, every field of it
character_card.png, character_card.charx the file that it came in, with its picture or assets
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message
from persona.store import quotas
from persona.store.files import explain_disk_error, is_file, open_atomic, read_json, to_json, write_atomic
from persona.store.persona_folder import Persona

FILE = "character_card.json"
PICTURE = "picture.png"
CONTAINERS = {b"\x89PNG": "character_card.png", b"PK\x03\x04": "character_card.charx"}  # by a file's first bytes


def keep_card(persona: Persona, card: Mapping[str, Any], container: Path | None = None) -> None:
    """Write it beside persona.json, over an earlier one; nothing for an empty one. Raises InputError.

    container: the PNG or .charx that it came in.
    """
    if not card:
        return
    quotas.require_disk_quota()
    try:
        for name in CONTAINERS.values():
            (persona.path / name).unlink(missing_ok=True)
        if container:
            with container.open("rb") as file:
                name = CONTAINERS[file.read(4)]
                file.seek(0)
                with open_atomic(persona.path / name) as out:
                    shutil.copyfileobj(file, out)
    except OSError as e:
        raise InputError(explain_disk_error(persona.path, e)) from e
    write_atomic(persona.path / FILE, to_json(dict(card)))


def read_kept_card(folder: Path) -> dict[str, Any]:
    """The card that was kept in a persona's folder; {} without one. Raises InputError where the file is damaged."""
    return read_json(folder / FILE, Message("a character card")) if is_file(folder / FILE) else {}


def find_container(folder: Path, suffix: str) -> Path | None:
    """The file with this suffix, .png or .charx, that the kept card came in; None where it came in none."""
    file = folder / f"character_card{suffix}"
    return file if is_file(file) and not file.is_symlink() else None


def find_picture(folder: Path) -> Path | None:
    """The persona's picture: the author's, else that of the PNG which its card came in; None for none."""
    own = folder / PICTURE
    return own if is_file(own) and not own.is_symlink() else find_container(folder, ".png")
