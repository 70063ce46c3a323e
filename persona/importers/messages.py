"""OpenAI's and TRL's rows: {"messages": [{"role": …, "content": …}]}, or {"prompt": …, "completion": …}."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from persona.importers import Item, Options, Survey, turns
from persona.importers.json_rows import convert, rows, sure
from persona.importers.text import Source
from persona.pairs import Pair

TITLE = "Messages: role and content, or prompt and completion (JSON, JSONL)"
SUFFIX = ".jsonl"


def sniff(source: Source) -> float:
    return sure(source, fits)


def fits(row: dict[str, Any]) -> bool:
    return turns.speaks(_turns(row), "role", "content")


def survey(source: Source) -> Survey:
    return turns.survey(source, _turns)


def read(source: Source, options: Options) -> Iterator[Item]:
    yield from convert(rows(source), source, pair_of)


def pair_of(row: Any, place: str) -> tuple[Pair, list[str]]:
    """Raises InputError."""
    found = _turns(row)
    used = ("prompt", "completion") if found and not turns.turns_of(row) else ()
    return turns.pair_of(row, place, found, used)


def _turns(row: Any) -> list[Any]:
    found = turns.turns_of(row)
    if found or not isinstance(row, dict):
        return found
    sides = (("prompt", "user"), ("completion", "assistant"))
    if not all(isinstance(row.get(key), str | list) for key, _ in sides):
        return []
    for key, role in sides:
        found = [*found, *(row[key] if isinstance(row[key], list) else [{"role": role, "content": row[key]}])]
    return found


def dump(pairs: Iterable[Pair]) -> Iterator[str]:
    """JSONL; `source` is written even when empty, so that reading it does not make one up."""
    for pair in pairs:
        talk = []
        for user, reply in [*pair.history, (pair.instruction, pair.output)]:
            talk += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
        yield json.dumps({"messages": talk, "source": pair.source}, ensure_ascii=False) + "\n"
