"""OpenAI's and TRL's rows: {"messages": [{"role": …, "content": …}]}, or {"prompt": …, "completion": …}."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from persona.store.pairs import Pair
from persona.write.importers import ImportItem, ImportOptions, SourceSurvey, conversation_rows
from persona.write.importers.json_reader import read_json_rows, score_first_rows
from persona.write.importers.rows import convert_rows
from persona.write.importers.text_source import SourceFile

NAME = "messages"
TITLE = "Messages: role and content, or prompt and completion (JSON, JSONL)"
SUFFIX = ".jsonl"


def sniff(source: SourceFile) -> float:
    return score_first_rows(source, is_messages_row)


def is_messages_row(row: dict[str, Any]) -> bool:
    return conversation_rows.has_turn_keys(_turns(row), "role", "content")


def survey(source: SourceFile) -> SourceSurvey:
    return conversation_rows.survey_conversations(source, _turns)


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    yield from convert_rows(read_json_rows(source), source, row_to_pair)


def row_to_pair(row: Any, place: str) -> tuple[Pair, list[str]]:
    """Raises InputError."""
    found = _turns(row)
    used = ("prompt", "completion") if found and not conversation_rows.find_turns(row) else ()
    return conversation_rows.conversation_to_pair(row, place, found, used)


def _turns(row: Any) -> list[Any]:
    found = conversation_rows.find_turns(row)
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
