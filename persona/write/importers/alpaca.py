"""Rows with a question and an answer, under whatever names: Alpaca, LLaMA-Factory's, and our own pairs.jsonl."""

from collections.abc import Iterable, Iterator
from typing import Any

from persona.store.pairs import PAIR_KEYS, Pair, dump_pair
from persona.write.importers import ImportItem, ImportOptions, SourceSurvey
from persona.write.importers.chat_shapes import find_keys
from persona.write.importers.columns import FIELDS, first_answer, guess_columns, is_texts, resolve_columns, row_to_pairs
from persona.write.importers.json_reader import read_first_rows, read_json_rows, score_first_rows
from persona.write.importers.rows import RowPairs, convert_rows, select_rows
from persona.write.importers.text_source import SourceFile

NAME = "alpaca"
TITLE = "Alpaca: instruction, input, output (JSON, JSONL)"
OPTIONS = frozenset({"columns", "join_input", "selection"})
SUFFIX = ".jsonl"
UNSURE = 0.01  # of rows with two texts whose keys say nothing: read() asks which are the question and the answer


def sniff(source: SourceFile) -> float:
    return score_first_rows(source, is_alpaca_row) or (UNSURE if score_first_rows(source, _has_texts) else 0.0)


def is_alpaca_row(row: dict[str, Any]) -> bool:
    mapping = guess_columns(row)
    trl = {"prompt", "completion"} <= row.keys()  # the messages format's other form
    asked, answer = (row.get(mapping.get(name, "")) for name in ("instruction", "output"))
    texts = isinstance(asked, str) and (
        isinstance(answer, str) or is_texts(answer) or first_answer(answer) is not answer
    )
    return texts and not trl


def _has_texts(row: dict[str, Any]) -> bool:
    texts = sum(isinstance(value, str) and bool(value) for value in row.values())
    return texts > 1 and not find_keys(row) and not {"instruction", "output"} <= guess_columns(row).keys()


def survey(source: SourceFile) -> SourceSurvey:
    names = _names(source)
    return SourceSurvey(columns=names, mapping=guess_columns(names))


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    columns = resolve_columns(_names(source) or FIELDS, options, source.name)
    systems = {row.get("system") for row in read_first_rows(source, 20) if isinstance(row.get("system"), str | None)}

    def to_pairs(row: Any, place: str) -> RowPairs:
        is_pair_row = isinstance(row, dict) and row.keys() <= set(PAIR_KEYS)  # keeps its source, even an empty one
        system = row.get("system") if isinstance(row, dict) else ""
        own = isinstance(system, str) and "system" not in columns.values() and (is_pair_row or systems != {system})
        place = "" if is_pair_row else place
        weights = row.get("weights") if is_pair_row else None
        return row_to_pairs(row, columns, place, options.join_input, str(system) if own else "", weights)

    rows = select_rows(lambda: read_json_rows(source), options.selection, source.name)
    yield from convert_rows(rows, source, to_pairs)


def dump(pairs: Iterable[Pair]) -> Iterator[str]:
    """The lines of pairs.jsonl."""
    yield from map(dump_pair, pairs)


def _names(source: SourceFile) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in read_first_rows(source, 20) for name in row))
