"""Preferences: a prompt, the better answer and a worse one; and the rows of other programs that hold them.

    preferences.jsonl   of a persona: those that were imported, a row each, as LLaMA-Factory has them
                        ({"instruction", "history"?, "system"?, "chosen", "rejected"})

Those that are made here stand where they are made: blind votes and choices among regenerated answers in votes/, and
corrections in pairs.jsonl. compare/preference_sources.py collects them all.
"""

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message
from persona.store import jsonl, quotas
from persona.store.files import require_regular_file
from persona.store.pairs import Pair, parse_pair
from persona.store.persona_folder import Persona, move_to_trash

PREFERENCES_FILE = "preferences.jsonl"
MAX_BYTES = 100_000_000  # of a file of preferences, which is read as a whole
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Preference:
    """pair: the prompt and the better answer. rejected: the other answer to it."""

    pair: Pair
    rejected: str


@dataclass(frozen=True)
class PreferenceSet:
    """Preferences to learn from, and what was left out of them: in words, one a line or vote."""

    preferences: tuple[Preference, ...]
    left_out: tuple[str, ...] = ()


def load_preferences(persona: Persona) -> PreferenceSet:
    """Those that were imported into the persona; none where there is no file. Raises InputError for a damaged one."""
    file = persona.path / PREFERENCES_FILE
    return read_preferences(file) if file.exists() else PreferenceSet(())


def add_preferences(persona: Persona, preferences: Iterable[Preference]) -> int:
    """Add those that are not there yet to the persona's file. Returns how many. Raises InputError."""
    quotas.require_disk_quota()
    with persona.lock():
        known = set(load_preferences(persona).preferences)
        new = [p for p in dict.fromkeys(preferences) if p not in known]
        quotas.require_pair_quota(len(known) + len(new))
        quotas.require_characters_quota(sum(p.pair.characters + len(p.rejected) for p in (*known, *new)))
        jsonl.append_rows(persona.path / PREFERENCES_FILE, *map(_to_row, new))
    return len(new)


def trash_preferences(persona: Persona) -> None:
    """Move the persona's file of imported preferences to the trash, if there is one."""
    with persona.lock():
        if (persona.path / PREFERENCES_FILE).exists():
            move_to_trash(persona.path / PREFERENCES_FILE)


def _to_row(preference: Preference) -> dict[str, Any]:
    row = preference.pair.to_dict()
    for name in ("output", "source", "weights"):
        row.pop(name, None)
    return {**row, "chosen": preference.pair.output, "rejected": preference.rejected}


def find_both_ways(answered: Iterable[tuple[Hashable, str, str]]) -> set[tuple[Hashable, str, str]]:
    """Those of (prompt, better, worse) of which the opposite is preferred too: two such teach nothing."""
    known = set(answered)
    return {(asked, better, worse) for asked, better, worse in known if (asked, worse, better) in known}


def is_preference_row(row: Any) -> bool:
    """Whether a JSON object has two answers to choose between."""
    return isinstance(row, dict) and "chosen" in row and "rejected" in row


def read_preferences(file: Path) -> PreferenceSet:
    """The rows of a file: JSON lines or one JSON list, in TRL's or LLaMA-Factory's shapes (`parse_preference`).

    Raises InputError for a file that cannot be read, or has no row that can be learned from.
    """
    require_regular_file(file)
    if file.stat().st_size > MAX_BYTES:
        raise InputError(
            "{path}: {size:.0f} MB of preferences, more than {limit:.0f}. Split the file.",
            path=file.name, size=file.stat().st_size / 1e6, limit=MAX_BYTES / 1e6,
        )  # fmt: skip
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError("{path}: cannot be read ({reason}).", path=file, reason=e) from e
    kept: list[Preference] = []
    left_out: list[str] = []
    for number, row in _rows(text):
        try:
            kept.append(parse_preference(row if not isinstance(row, str) else json.loads(row)))
        except (InputError, ValueError, RecursionError) as e:
            why = e.message if isinstance(e, InputError) else Message("not JSON that can be read ({reason})", reason=e)
            left_out.append(Message("row {row}: {why}.", row=number, why=why))
    if not kept:
        raise InputError(
            '{path}: no row of it is a preference ({why}). A row is {{"prompt": …, "chosen": …, "rejected": …}}.',
            path=file,
            why=left_out[0].rstrip(".") if left_out else Message("it is empty"),
        )
    return PreferenceSet(tuple(kept), tuple(left_out))


def _rows(text: str) -> Iterable[tuple[int, Any]]:
    """(number from 1, row); a line of JSON lines is not parsed yet."""
    if text.lstrip().startswith("["):
        try:
            return list(enumerate(json.loads(text), 1))
        except (ValueError, RecursionError):
            pass
    return [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def parse_preference(row: Any) -> Preference:
    """The preference in a JSON object. Raises InputError without a row number, which the caller adds.

    TRL: `prompt`, a text or messages, with `chosen` and `rejected`; without `prompt`, both are whole conversations.
    LLaMA-Factory: `instruction` and `input`, or `conversations`, with both answers.
    """
    if not is_preference_row(row):
        raise InputError("'chosen' or 'rejected' is missing")
    chosen, rejected = row["chosen"], row["rejected"]
    system, history = row.get("system") or "", row.get("history") or []
    if "prompt" in row:
        prompt = _messages(row["prompt"])
    elif "conversations" in row:
        prompt = _messages(row["conversations"])
    elif "instruction" in row:
        asked = "\n".join(text for text in (row["instruction"], row.get("input")) if text)
        earlier = [(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
        prompt = [*earlier, ("user", asked)]
    else:
        prompt = _messages(chosen)[:-1]
        if _messages(rejected)[:-1] != prompt:
            raise InputError("the two answers are to different prompts")
    if prompt and prompt[0][0] == "system":
        system = prompt.pop(0)[1]
    roles = [role for role, _ in prompt]
    if not prompt or roles != ["user", "assistant"] * (len(prompt) // 2) + ["user"]:
        raise InputError("its prompt is not a conversation that ends with a question")
    texts = [text for _, text in prompt]
    turns = [list(texts[n : n + 2]) for n in range(0, len(texts) - 1, 2)]
    better, worse = _answer(chosen), _answer(rejected)
    if not better.strip() or not worse.strip():
        raise InputError("an answer is empty")
    if better.strip() == worse.strip():
        raise InputError("the two answers are equal")
    about = {"instruction": texts[-1], "history": turns, "system": system}
    parse_pair({**about, "output": worse})
    return Preference(parse_pair({**about, "output": better, "source": "preference"}), worse)


def _messages(value: Any) -> list[tuple[str, str]]:
    """(role, text) of a prompt, which is one message's text, or messages as OpenAI or ShareGPT write them."""
    if isinstance(value, str):
        return [("user", value)]
    try:
        return [(ROLES[m.get("role", m.get("from"))], str(m.get("content", m.get("value")))) for m in value]
    except (AttributeError, KeyError, TypeError) as e:
        raise InputError("its messages have no role or text that is known") from e


def _answer(value: Any) -> str:
    if isinstance(value, dict):
        value = [value]
    return _messages(value)[-1][1] if value else ""
