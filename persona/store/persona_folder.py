"""A persona folder on disk: its card and pairs; create, open, list, copy, trash and restore."""

import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer

from persona.errors import InputError, Message, describe_validation_error, join
from persona.store import quotas
from persona.store.character_book import CharacterBook
from persona.store.cjk import HAN
from persona.store.files import (
    expand_home,
    is_file,
    is_folder,
    lock_folder,
    path_exists,
    read_json,
    safe_join,
    slugify,
    to_json,
    write_atomic,
)
from persona.store.pairs import BadLine, Pair, count_characters, read_pairs, scan_pairs, write_pairs
from persona.store.workspace import EXAMPLES_DIR, current_workspace

MAX_NAME, MAX_SYSTEM, MAX_GREETING = 80, 4_000, 10_000  # characters
MAX_GREETINGS = 100


class SamplingDefaults(BaseModel):
    """Sampling settings that the author recommends; None leaves the default. Limits as in models.sampling.Sampling."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=1, le=2)

    @model_serializer
    def chosen(self) -> dict[str, Any]:
        """The settings that the author has chosen, under the names of models.sampling.Sampling."""
        return {name: value for name, value in self if value is not None}


class ProbeRule(BaseModel):
    """What an answer to a probe must and must not mention. Upper and lower case are one; `a|b` is either of them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    ask: str = Field(min_length=1, max_length=2_000)
    must_mention: tuple[str, ...] = Field(default=(), description="every entry must be in the answer")
    must_not_mention: tuple[str, ...] = Field(default=(), description="no entry may be in the answer")


class PersonaCard(BaseModel):
    """persona.json: name, system prompt, greeting. Unknown keys are kept, so that older programs keep newer files."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1, max_length=MAX_NAME)
    system: str = Field(
        default="", max_length=MAX_SYSTEM, description="system prompt, part of every training row and chat"
    )
    greeting: str = Field(default="", max_length=MAX_GREETING)
    language: str = Field(default="", max_length=20, description="BCP 47: zh, en, …")
    author: str = ""
    source: str = Field(default="", description="where the text comes from")
    rights: str = Field(default="", description="whose text it is, under which licence")

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        """The name in one line, without control and direction characters."""
        one = " ".join("".join(c for c in name if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")).split())
        return one or "persona"

    probes: tuple[str, ...] = Field(default=(), description="questions kept out of the pairs, to test what was learned")
    sampling: SamplingDefaults = Field(
        default=SamplingDefaults(),
        exclude_if=lambda m: not m.chosen(),
        description="sampling settings of a shared link",
    )
    probe_rules: tuple[ProbeRule, ...] = Field(
        default=(), description="what the answer to a probe must or must not mention"
    )
    alternate_greetings: tuple[Annotated[str, Field(max_length=MAX_GREETING)], ...] = Field(
        default=(), max_length=MAX_GREETINGS, exclude_if=lambda v: not v, description="greetings to choose from instead"
    )
    post_history_instructions: str = Field(
        default="", max_length=MAX_SYSTEM, exclude_if=lambda v: not v, description="stands after the conversation"
    )
    character_book: CharacterBook | None = Field(
        default=None, exclude_if=lambda v: v is None, description="texts that join the prompt when their keys are said"
    )
    book_in_training: bool = Field(
        default=False,
        exclude_if=lambda v: not v,
        description="book entries and post-history instructions are part of training rows too",
    )
    nickname: str = Field(
        default="", max_length=MAX_NAME, exclude_if=lambda v: not v, description="stands for {{char}}"
    )

    @property
    def greetings(self) -> tuple[str, ...]:
        """Every greeting, the default one first."""
        return tuple(filter(None, (self.greeting, *self.alternate_greetings)))


@dataclass(frozen=True)
class Persona:
    """One persona folder: `persona.json`, `pairs.jsonl`, `runs/`."""

    path: Path

    @property
    def pairs_file(self) -> Path:
        return self.path / "pairs.jsonl"

    @property
    def runs_dir(self) -> Path:
        return self.path / "runs"

    @property
    def slug(self) -> str:
        return self.path.name

    def lock(self) -> AbstractContextManager[None]:
        """Held while pairs or card are read and written again: two windows may edit one persona."""
        return lock_folder(self.path / "undo")

    def card(self) -> PersonaCard:
        file = self.path / "persona.json"
        return parse_card(read_json(file, Message("a persona")), str(file))

    def save_card(self, card: PersonaCard) -> None:
        text = to_json(card.model_dump(mode="json"))
        quotas.require_card_quota(len(text))
        write_atomic(self.path / "persona.json", text)

    def pairs(self) -> list[Pair]:
        """Strict: raises InputError listing every bad line."""
        return read_pairs(self.pairs_file)

    def scan(self) -> tuple[list[Pair], list[BadLine]]:
        return scan_pairs(self.pairs_file)

    def save_pairs(self, pairs: list[Pair], bad: list[BadLine] | None = None) -> None:
        """Replace pairs.jsonl; its invalid lines move to `pairs.rejected.txt` first.

        bad: the invalid lines, if the caller has just read the file.
        """
        self.save_rejected_lines(self.scan()[1] if bad is None else bad)
        write_pairs(self.pairs_file, pairs)

    def save_rejected_lines(self, bad: list[BadLine]) -> None:
        """Append invalid lines to `pairs.rejected.txt`, before a save leaves them out of pairs.jsonl."""
        if bad:
            rejected = self.path / "pairs.rejected.txt"
            earlier = rejected.read_text(encoding="utf-8") if rejected.exists() else ""
            write_atomic(rejected, earlier + "".join(f"# line {b.line}: {b.why}\n{b.text}\n" for b in bad))


def parse_card(value: dict[str, Any], place: str) -> PersonaCard:
    """Raises InputError naming every field of `value` that is wrong."""
    return check_model(PersonaCard, value, place)


T = TypeVar("T", bound=BaseModel)


def check_model(model: type[T], value: Mapping[str, Any], place: str = "") -> T:
    """`value` as that part of a card. Raises InputError naming every field that is wrong. place: where it stands."""
    try:
        return model.model_validate(value)
    except ValidationError as e:
        wrong = [
            Message("'{field}': {problem}", field=".".join(map(str, x["loc"])), problem=describe_validation_error(x))
            for x in e.errors()
        ]
        if not place:
            raise InputError("{problems}.", problems=join("; ", wrong)) from e
        raise InputError("{place}: {problems}. Correct it there.", place=place, problems=join("; ", wrong)) from e


def personas_dir() -> Path:
    return current_workspace() / "personas"


def open_persona(path: Path | str) -> Persona:
    """Raises InputError when `path` is not a persona folder."""
    path = expand_home(path)
    if not is_file(path / "persona.json"):
        raise InputError(
            "{path}: not a persona folder (no persona.json). Make one with: persona new {path} --name NAME",
            path=path,
        )
    return Persona(path.resolve())


def open_by_name(name: Path | str, note: Callable[[str], None] = lambda _: None) -> Persona:
    """The persona in that folder, or else the user's persona of that name.

    By an example's name it is the user's own copy of the example, which is made on first use; `note` says so. Raises
    InputError.
    """
    if path_exists(Path(name)):
        return open_persona(name)
    if str(name) in {p.name for p in EXAMPLES_DIR.iterdir()}:
        persona = copy_example(str(name))
        note(f"{name}: your copy of the example, in {persona.path}")
        return persona
    named = personas_dir() / name
    return open_persona(named if is_folder(named) else name)


def create_persona_at(path: Path, card: PersonaCard, pairs: list[Pair] | None = None) -> Persona:
    """A new folder at `path`. Raises InputError if something is there already."""
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise InputError("{path}: already exists. Choose another name, or open it.", path=path)
    quotas.require_disk_quota()
    quotas.require_pair_quota(len(pairs or []))
    quotas.require_characters_quota(count_characters(pairs or []))
    for row, pair in enumerate(pairs or [], 1):
        quotas.require_pair_length_quota(row, pair.characters)
    persona = Persona(path.resolve())
    persona.save_card(card)
    write_pairs(persona.pairs_file, pairs or [])
    return persona


def default_card(name: str) -> PersonaCard:
    """A card for a persona of which only the name is known, in the language of the name. Raises InputError."""
    chinese = re.search(f"[{HAN}]", name)
    system = f"你是{name}，以{name}的身份与口吻作答。" if chinese else f"You are {name}. Answer as {name} would."
    return parse_card({"name": name, "system": system, "language": "zh" if chinese else "en"}, f"{name:.80}")


def free_path(name: str) -> Path:
    """The first free folder for `name` under PERSONA_HOME: mags, mags-2, mags-3, …"""
    base = personas_dir() / slugify(name)
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def list_personas() -> list[Persona]:
    """The user's personas, most recently changed first. A broken folder is listed too; opening it says why."""
    if not personas_dir().is_dir():
        return []
    personas = [Persona(p) for p in personas_dir().iterdir() if (p / "persona.json").is_file()]
    return sorted(
        personas,
        key=lambda p: (
            -max((p.path / f).stat().st_mtime if (p.path / f).exists() else 0 for f in ("persona.json", "pairs.jsonl"))
        ),
    )


def find_persona(name: str) -> Persona:
    """The user's persona of that folder name; `name` may come from a link, or a page that shows one deleted since."""
    folder = safe_join(personas_dir(), name)
    if not is_file(folder / "persona.json"):
        raise InputError("There is no persona called “{name}” here.", name=name[:80])
    return open_persona(folder)


def list_examples() -> list[Persona]:
    """The shipped personas, the one with most pairs first."""
    examples = [Persona(p.parent) for p in EXAMPLES_DIR.glob("*/persona.json")]
    return sorted(examples, key=lambda p: (-len(p.scan()[0]), p.slug))


def update_card(persona: Persona, change: Callable[[PersonaCard], dict[str, Any]], where: str = "persona.json") -> None:
    """Update the card on disk by the fields that `change` returns for it, under the folder's lock. `change` may raise.

    where: named in the message when the result is no valid card. Raises InputError.
    """
    with persona.lock():
        card = persona.card()
        if fields := change(card):
            quotas.require_disk_quota()
            persona.save_card(parse_card({**card.model_dump(), **fields}, where))


def create_persona(name: str, card: PersonaCard) -> Persona:
    """A new persona in the first free folder for `name`."""
    with lock_folder(personas_dir()):
        return create_persona_at(free_path(name), card)


def copy_example(name: str) -> Persona:
    """The user's own copy of a shipped persona; an existing copy is opened, never overwritten."""
    example = open_persona(safe_join(EXAMPLES_DIR, name))
    path = personas_dir() / example.slug
    with lock_folder(personas_dir()):  # a second window that opens it meanwhile finds the copy
        if (path / "persona.json").is_file():
            return Persona(path)
        return create_persona_at(free_path(example.slug), example.card(), example.pairs())


def trash_persona(persona: Persona) -> Path:
    """Move the folder to `trash/`, from which restore_persona() brings it back."""
    return move_to_trash(persona.path)


def move_to_trash(folder: Path) -> Path:
    """Move a folder of this workspace to `trash/`, with the time behind its name. Returns where it is now."""
    trash = current_workspace() / "trash"
    trash.mkdir(parents=True, exist_ok=True)
    target = trash / f"{folder.name}.{time.time_ns()}"
    shutil.move(folder, target)
    return target


def restore_persona(trashed: Path) -> Persona:
    target = free_path(trashed.name.rsplit(".", 1)[0])
    shutil.move(trashed, target)
    return Persona(target)
