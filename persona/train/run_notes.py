"""What the author keeps of a run beside what it did: a name, a note, a star; and its way into the trash."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona.errors import InputError, Message, PersonaError, RunError
from persona.store.files import read_json, to_json, write_atomic
from persona.store.persona_folder import move_to_trash
from persona.train.progress import ACTIVE_STATUSES
from persona.train.run_folder import Run

NOTE_FILE = "note.json"


class RunNote(BaseModel):
    """note.json of a run. name: "" where the author gave none."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(default="", max_length=80)
    note: str = Field(default="", max_length=2000)
    starred: bool = False


def read_note(run: Run) -> RunNote:
    """The author's note; an empty one where there is none, or it is damaged."""
    if not (run.path / NOTE_FILE).exists():
        return RunNote()
    try:
        return RunNote.model_validate(read_json(run.path / NOTE_FILE, Message("a run")))
    except (PersonaError, ValidationError):
        return RunNote()


def change_note(run: Run, **changes: Any) -> RunNote:
    """Change fields of the note. Raises InputError for a text that is too long."""
    try:
        note = RunNote(**{**read_note(run).model_dump(), **changes})
    except ValidationError as e:
        raise InputError("A run's name has up to 80 characters, its note up to 2,000. Shorten it.") from e
    write_atomic(run.path / NOTE_FILE, to_json(note.model_dump()))
    return note


def trash_run(run: Run) -> Path:
    """Move the run's folder to `trash/`. Returns where it is now. Raises RunError while it waits or trains."""
    if run.progress().status in ACTIVE_STATUSES:
        raise RunError("{run} is still training. Stop it first, or wait until it is done.", run=run.name)
    return move_to_trash(run.path)
