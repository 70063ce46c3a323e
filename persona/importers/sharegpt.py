"""ShareGPT: {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from persona.importers import Item, Options, Survey, turns
from persona.importers.json_rows import convert, rows, sure
from persona.importers.text import Source
from persona.pairs import Pair

TITLE = "ShareGPT: conversations of from and value (JSON, JSONL)"
SUFFIX = ".json"


def sniff(source: Source) -> float:
    return sure(source, fits)


def fits(row: dict[str, Any]) -> bool:
    return turns.speaks(turns.turns_of(row), "from", "value")


def survey(source: Source) -> Survey:
    return turns.survey(source)


def read(source: Source, options: Options) -> Iterator[Item]:
    yield from convert(rows(source), source, lambda row, place: turns.pair_of(row, place, turns.turns_of(row)))


def dump(pairs: Iterable[Pair]) -> Iterator[str]:
    """One JSON list; `source` is written even when empty, so that reading it does not make one up."""
    before = "[\n"
    for pair in pairs:
        said = [*pair.history, (pair.instruction, pair.output)]
        talk = [{"from": who, "value": text} for turn in said for who, text in zip(("human", "gpt"), turn, strict=True)]
        yield before + json.dumps({"conversations": talk, "source": pair.source}, ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"
