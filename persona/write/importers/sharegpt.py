"""ShareGPT: {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from persona.store.pairs import Pair
from persona.write.importers import ImportItem, ImportOptions, SourceSurvey, conversation_rows
from persona.write.importers.json_reader import read_json_rows, score_first_rows
from persona.write.importers.rows import convert_rows
from persona.write.importers.text_source import SourceFile

NAME = "sharegpt"
TITLE = "ShareGPT: conversations of from and value (JSON, JSONL)"
SUFFIX = ".json"


def sniff(source: SourceFile) -> float:
    return score_first_rows(source, is_sharegpt_row)


def is_sharegpt_row(row: dict[str, Any]) -> bool:
    return conversation_rows.has_turn_keys(conversation_rows.find_turns(row), "from", "value")


def survey(source: SourceFile) -> SourceSurvey:
    return conversation_rows.survey_conversations(source)


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    yield from convert_rows(
        read_json_rows(source),
        source,
        lambda row, place: conversation_rows.conversation_to_pair(row, place, conversation_rows.find_turns(row)),
    )


def dump(pairs: Iterable[Pair]) -> Iterator[str]:
    """One JSON list; `source` is written even when empty, so that reading it does not make one up."""
    before = "[\n"
    for pair in pairs:
        said = [*pair.history, (pair.instruction, pair.output)]
        talk = [{"from": who, "value": text} for turn in said for who, text in zip(("human", "gpt"), turn, strict=True)]
        yield before + json.dumps({"conversations": talk, "source": pair.source}, ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"
