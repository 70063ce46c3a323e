"""A persona on disk: open, create, list, rename, delete; the page and the command line see only this."""

import re
import shutil
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer

from persona.errors import InputError, Message, invalid, join
from persona.store import files, quotas
from persona.store.cjk import HAN
from persona.store.files import read_json, safe_join, slugify, to_json, write_atomic
from persona.store.pairs import BadLine, Pair, read_pairs, scan_pairs, write_pairs
from persona.store.workspace import EXAMPLES_DIR, current_workspace

MAX_NAME, MAX_SYSTEM, MAX_GREETING = 80, 4_000, 2_000  # characters


class SamplingDefaults(BaseModel):
    """How the author would have her words drawn; what is None is left to the page. Limits as sampling.Sampling's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float | None = Field(default=None, ge=0, le=5)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, lt=1)
    repetition_penalty: float | None = Field(default=None, ge=1, le=2)

    @model_serializer
    def chosen(self) -> dict[str, Any]:
        """What the author has chosen, by the names of sampling.Sampling."""
        return {name: value for name, value in self if value is not None}


class ProbeRule(BaseModel):
    """What an answer to a probe must and must not mention. Upper and lower case are one; `a|b` is either of them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    ask: str = Field(min_length=1, max_length=2_000)
    must_mention: tuple[str, ...] = Field(default=(), description="every entry must be in the answer")
    must_not_mention: tuple[str, ...] = Field(default=(), description="no entry may be in the answer")


class PersonaCard(BaseModel):
    """persona.json: who she is. Unknown keys are kept as they are, so that newer files survive older programs."""

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
        """Without what could begin a line of its own in a file that is made of it, or turn the text around it."""
        one = " ".join("".join(c for c in name if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf")).split())
        return one or "persona"

    probes: tuple[str, ...] = Field(default=(), description="questions kept out of the pairs, to hear what was learned")
    sampling: SamplingDefaults = Field(
        default=SamplingDefaults(),
        exclude_if=lambda m: not m.chosen(),
        description="how her words are drawn in a shared link",
    )
    probe_rules: tuple[ProbeRule, ...] = Field(default=(), description="what an answer to a probe is to mention or not")


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

    def card(self) -> PersonaCard:
        file = self.path / "persona.json"
        return parse_card(read_json(file, Message("a persona")), str(file))

    def save_card(self, card: PersonaCard) -> None:
        write_atomic(self.path / "persona.json", to_json(card.model_dump(mode="json")))

    def pairs(self) -> list[Pair]:
        """Strict: raises InputError listing every bad line."""
        return read_pairs(self.pairs_file)

    def scan(self) -> tuple[list[Pair], list[BadLine]]:
        return scan_pairs(self.pairs_file)

    def save_pairs(self, pairs: list[Pair], bad: list[BadLine] | None = None) -> None:
        """Replace pairs.jsonl; lines of it that are no pairs move to `pairs.rejected.txt` first.

        bad: these lines, if the caller has just read the file.
        """
        self.save_rejected_lines(self.scan()[1] if bad is None else bad)
        write_pairs(self.pairs_file, pairs)

    def save_rejected_lines(self, bad: list[BadLine]) -> None:
        """Keep lines that are no pairs in `pairs.rejected.txt`, before a save leaves them out of pairs.jsonl."""
        if bad:
            aside = self.path / "pairs.rejected.txt"
            before = aside.read_text(encoding="utf-8") if aside.exists() else ""
            write_atomic(aside, before + "".join(f"# line {b.line}: {b.why}\n{b.text}\n" for b in bad))


def parse_card(value: dict[str, Any], place: str) -> PersonaCard:
    """Raises InputError naming every field of `value` that is wrong."""
    try:
        return PersonaCard.model_validate(value)
    except ValidationError as e:
        wrong = [Message("'{field}': {problem}", field=".".join(map(str, x["loc"])), problem=invalid(x))
                 for x in e.errors()]  # fmt: skip
        raise InputError("{place}: {problems}. Correct it there.", place=place, problems=join("; ", wrong)) from e


def personas_dir() -> Path:
    return current_workspace() / "personas"


def open_persona(path: Path | str) -> Persona:
    """Raises InputError when `path` is not a persona folder."""
    path = Path(path).expanduser()
    if not (path / "persona.json").is_file():
        raise InputError(
            "{path}: not a persona folder (no persona.json). Make one with: persona new {path} --name NAME",
            path=path,
        )
    return Persona(path.resolve())


def create_persona_at(path: Path, card: PersonaCard, pairs: list[Pair] | None = None) -> Persona:
    """A new folder at `path`. Raises InputError if something is there already."""
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise InputError("{path}: already exists. Choose another name, or open it.", path=path)
    quotas.require_disk_quota()
    quotas.require_pair_quota(len(pairs or []))
    persona = Persona(path.resolve())
    persona.save_card(card)
    write_pairs(persona.pairs_file, pairs or [])
    return persona


def default_card(name: str) -> PersonaCard:
    """The card of a persona of whom only the name is known yet, in the language of the name."""
    chinese = re.search(f"[{HAN}]", name)
    system = f"你是{name}，以{name}的身份与口吻作答。" if chinese else f"You are {name}. Answer as {name} would."
    return PersonaCard(name=name, system=system, language="zh" if chinese else "en")


def free_path(name: str) -> Path:
    """The first free folder for `name` under PERSONA_HOME: mags, mags-2, mags-3, …"""
    base = personas_dir() / slugify(name)
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def list_personas() -> list[Persona]:
    """The user's personas, most recently touched first. A broken folder is listed too: opening it says why."""
    if not personas_dir().is_dir():
        return []
    found = [Persona(p) for p in personas_dir().iterdir() if (p / "persona.json").is_file()]
    return sorted(
        found,
        key=lambda p: (
            -max((p.path / f).stat().st_mtime if (p.path / f).exists() else 0 for f in ("persona.json", "pairs.jsonl"))
        ),
    )


def find_persona(name: str) -> Persona:
    """The user's persona of that folder name; `name` may come from a link or a browser."""
    return open_persona(safe_join(personas_dir(), name))


def list_examples() -> list[Persona]:
    """The shipped personas, the one with most pairs first."""
    found = [Persona(p.parent) for p in EXAMPLES_DIR.glob("*/persona.json")]
    return sorted(found, key=lambda p: (-len(p.scan()[0]), p.slug))


def update_card(persona: Persona, change: Callable[[PersonaCard], dict[str, Any]], where: str = "persona.json") -> None:
    """Save a card with what `change` says of the one that is on disk now; it may raise. No window saves meanwhile.

    where: whose text it is, for the message when it cannot be a card. Raises InputError.
    """
    with files.lock_folder(persona.path / "undo"):  # where pairs are locked too
        card = persona.card()
        if news := change(card):
            persona.save_card(parse_card({**card.model_dump(), **news}, where))


def create_persona(name: str, card: PersonaCard) -> Persona:
    """A new persona in the first free folder for `name`; two who ask at the same moment get two."""
    with files.lock_folder(personas_dir()):
        return create_persona_at(free_path(name), card)


def copy_example(name: str) -> Persona:
    """The user's own copy of a shipped persona; an existing copy is opened, never overwritten."""
    example = open_persona(safe_join(EXAMPLES_DIR, name))
    path = personas_dir() / example.slug
    with files.lock_folder(personas_dir()):  # of two windows that open it at the same moment, the second finds the copy
        if (path / "persona.json").is_file():
            return Persona(path)
        return create_persona_at(free_path(example.slug), example.card(), example.pairs())


def trash_persona(persona: Persona) -> Path:
    """Move the folder to `trash/`, from where it can be brought back by `restore`."""
    trash = current_workspace() / "trash"
    trash.mkdir(parents=True, exist_ok=True)
    target = trash / f"{persona.slug}.{time.time_ns()}"
    shutil.move(persona.path, target)
    return target


def restore_persona(trashed: Path) -> Persona:
    target = free_path(trashed.name.rsplit(".", 1)[0])
    shutil.move(trashed, target)
    return Persona(target)
