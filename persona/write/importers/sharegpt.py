"""ShareGPT: {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from persona.store.pairs import Pair
from persona.write.importers import ImportItem, ImportOptions, SourceSurvey, conversation_rows
from persona.write.importers.json_reader import read_json_rows, score_first_rows
from persona.write.importers.rows import RowPairs, convert_rows, select_rows
from persona.write.importers.text_source import SourceFile
from persona.write.importers.turns import find_side, find_turns, has_turn_keys

NAME = "sharegpt"
TITLE = "ShareGPT: conversations of from and value (JSON, JSONL)"
OPTIONS = frozenset({"turns", "selection", "thinking"})
SUFFIX = ".json"


def sniff(source: SourceFile) -> float:
    return score_first_rows(source, is_sharegpt_row)


def is_sharegpt_row(row: dict[str, Any]) -> bool:
    found = find_turns(row)
    return has_turn_keys(found, "from", "value") and any(find_side(turn) for turn in found[:4])


def survey(source: SourceFile) -> SourceSurvey:
    return conversation_rows.survey_conversations(source)


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    common = conversation_rows.find_common_system(source)

    def to_pairs(row: Any, place: str) -> RowPairs:
        return conversation_rows.conversation_to_pairs(
            row, place, find_turns(row), history=options.turns, common=common, keep_thinking=options.thinking == "keep"
        )

    rows = select_rows(lambda: read_json_rows(source), options.selection, source.name)
    yield from convert_rows(rows, source, to_pairs)


def dump(pairs: Iterable[Pair]) -> Iterator[str]:
    """One JSON list; `source` is written even when empty, so that reading it does not make one up."""
    before = "[\n"
    for pair in pairs:
        talk: list[dict[str, Any]] = [{"from": "system", "value": pair.system}] if pair.system else []
        for user, reply in pair.turns:
            talk += [{"from": "human", "value": user}, {"from": "gpt", "value": reply, "weight": 0}]
        if pair.may_learn(len(pair.history)):
            del talk[-1]["weight"]
        row = {"conversations": talk, "source": pair.source, **conversation_rows.dump_weights(pair)}
        yield before + json.dumps(row, ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"
