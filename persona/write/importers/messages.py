"""Conversations whose turns say who is the persona: {"messages": [{"role": …, "content": …}]}, OpenAI's and TRL's.

Also {"prompt": …, "completion": …}, turns under other names (from and content, PIPPA, XTuner), and a conversation that
stands there as one text with the marks of a chat template.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportItem, ImportOptions, SourceSurvey, conversation_rows
from persona.write.importers.json_reader import read_json_rows, score_first_rows
from persona.write.importers.rows import RowPairs, convert_rows, select_rows
from persona.write.importers.text_source import SourceFile
from persona.write.importers.turns import USER, find_side, find_turns, has_roles, has_turn_keys

NAME = "messages"
TITLE = "Messages: role and content, or prompt and completion (JSON, JSONL)"
OPTIONS = frozenset({"turns", "selection", "thinking"})
SUFFIX = ".jsonl"


def sniff(source: SourceFile) -> float:
    return score_first_rows(source, is_messages_row)


def is_messages_row(row: dict[str, Any]) -> bool:
    found = _turns(row)
    return has_roles(found) and not has_turn_keys(found, "from", "value")


def survey(source: SourceFile) -> SourceSurvey:
    return conversation_rows.survey_conversations(source, _turns)


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    common = conversation_rows.find_common_system(source, _turns)
    rows = select_rows(lambda: read_json_rows(source), options.selection, source.name)
    yield from convert_rows(rows, source, lambda row, place: row_to_pairs(row, place, options, common))


def row_to_pairs(row: Any, place: str, options: ImportOptions = ImportOptions(), common: str = "") -> RowPairs:
    """common: the system prompt of all rows, see conversation_to_pairs. Raises InputError."""
    used = ("prompt", _answer_key(row), "label") if _is_prompt_row(row) else ()
    if used and row.get("label") is False:
        raise InputError("labelled as an answer that is not wanted")
    keeps = options.thinking == "keep"
    return conversation_rows.conversation_to_pairs(row, place, _turns(row), used, options.turns, common, keeps)


def _is_prompt_row(row: Any) -> bool:
    """TRL's rows: a completion of a prompt, or the chosen one of two."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str | list):
        return False
    return isinstance(row.get("completion"), str | list) or isinstance(row.get("chosen"), list)


def _answer_key(row: dict[str, Any]) -> str:
    return "completion" if row.get("completion") else "chosen"


def _turns(row: Any) -> list[Any]:
    if not _is_prompt_row(row):
        return find_turns(row)
    answer = row[_answer_key(row)]
    if isinstance(answer, list) and any(find_side(turn) == USER for turn in answer if isinstance(turn, dict)):
        return answer  # it begins with the prompt
    found: list[Any] = []
    sides = (("prompt", "user"), (_answer_key(row), "assistant"))
    for key, role in sides:
        found = [*found, *(row[key] if isinstance(row[key], list) else [{"role": role, "content": row[key]}])]
    return found


def dump(pairs: Iterable[Pair]) -> Iterator[str]:
    """JSONL; `source` is written even when empty, so that reading it does not make one up."""
    for pair in pairs:
        talk: list[dict[str, Any]] = [{"role": "system", "content": pair.system}] if pair.system else []
        for user, reply in pair.turns:
            talk += [{"role": "user", "content": user}, {"role": "assistant", "content": reply, "weight": 0}]
        if pair.may_learn(len(pair.history)):
            del talk[-1]["weight"]
        row = {"messages": talk, "source": pair.source, **conversation_rows.dump_weights(pair)}
        yield json.dumps(row, ensure_ascii=False) + "\n"
