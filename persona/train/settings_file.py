"""A file of settings → RunConfig's names: YAML or JSON that someone wrote, or the run.json of a run to repeat.

A persona's own such file holds what was chosen last for it on the page.
"""

from pathlib import Path
from typing import Any

import yaml

from persona.errors import InputError, Message
from persona.store.files import (
    MAX_JSON_BYTES,
    expand_home,
    is_folder,
    read_json,
    require_regular_file,
    to_json,
    write_atomic,
)
from persona.store.persona_folder import Persona
from persona.train.aliases import resolve_aliases
from persona.train.config import PRESETS, make_config

RUN_FILE = "run.json"
CHOSEN_FILE = "settings.json"
FIRST_PRESET = "quick"


def read_chosen_settings(persona: Persona) -> tuple[str, dict[str, Any]]:
    """The preset that was chosen last for a persona, and the settings that deviate from it.

    The first preset where none are kept, or where the file holds what is no setting.
    """
    file = persona.path / CHOSEN_FILE
    try:
        preset, settings = read_json(file, Message("a run")).get("preset"), read_settings(file)
    except InputError:
        return FIRST_PRESET, {}
    return (preset, settings) if isinstance(preset, str) and preset in PRESETS else (FIRST_PRESET, {})


def write_chosen_settings(persona: Persona, preset: str, settings: dict[str, Any]) -> None:
    """Keep them with the persona. Raises InputError when the disk is full."""
    if (preset, settings) != read_chosen_settings(persona):
        write_atomic(persona.path / CHOSEN_FILE, to_json({"preset": preset, "config": settings}))


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file, by the names of RunConfig; of a folder those of its run.json, a run's or an adapter's.

    Raises InputError naming the file and each setting in it that cannot be right.
    """
    path = expand_home(path)
    path = path / RUN_FILE if is_folder(path) else path
    value: Any = read_json(path, Message("a run")) if path.suffix == ".json" else _read_yaml(path)
    if isinstance(value, dict) and isinstance(value.get("config"), dict):  # a run.json
        value = value["config"]
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError("{path}: not a list of settings. Write one a line, as in learning_rate: 2e-4.", path=path)
    try:
        make_config(**value)
        return resolve_aliases(value)
    except InputError as e:
        raise InputError("{path}: {problem}", path=path, problem=e) from e


def _read_yaml(path: Path) -> Any:
    require_regular_file(path, MAX_JSON_BYTES)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError("{path}: no such file. Check the path.", path=path) from None
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        raise InputError(
            "{path} line {line}, column {column}: not YAML ({reason}). Correct it there.",
            path=path,
            line=mark.line + 1 if mark else 1,
            column=mark.column + 1 if mark else 1,
            reason=e.problem,
        ) from e
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise InputError("{path}: cannot be read ({reason}).", path=path, reason=e) from e
