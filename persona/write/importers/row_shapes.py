"""JSON and YAML files whose rows are not written one after the other, as rows: a line of JSON each.

columns, lists   {"question": {"0": …, "1": …}, "answer": {…}}    {"question": […], "answer": […]}     pandas, dict
index            {"0": {"question": …, "answer": …}, "1": {…}}                                         pandas
split            {"columns": ["question", "answer"], "data": [[…, …], …]}                              pandas
table            {"schema": {…}, "data": [{…}, …]}                                                     pandas
map              {"a question": "its answer", …}
lists of cells   [["a question", "its answer"], …]
SQuAD            {"data": [{"paragraphs": [{"context": …, "qas": [{"question": …, "answers": …}]}]}]}
"""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from persona.write.importers.chat_shapes import find_keys
from persona.write.importers.columns import guess_columns
from persona.write.importers.relaxed_json import relax_lines, skip_comments
from persona.write.importers.text_source import SourceFile
from persona.write.importers.turns import CONVERSATION_KEYS

MAX_BYTES = 20_000_000  # of such a file, which is read as a whole; a larger one is left as it is
ASKED, ANSWERED = "question", "answer"  # the names of columns that have none
_KEY = r'"(?:[^"\\]|\\.){0,500}"'
_SCALAR = r'(?:"|[-\d]|true|false|null|NaN)'
_SHAPES = re.compile(  # the beginning of an object of columns or rows, of a split, a table, SQuAD, a list of lists
    rf"\{{\s*{_KEY}\s*:\s*(?:\[\s*{_SCALAR}|\{{\s*{_KEY}\s*:)"
    rf'|\{{\s*"schema"\s*:\s*\{{|\[\s*\[\s*"|[\[{{](?s:.{{0,400}}?)"paragraphs"\s*:\s*\['
)
_MAP_ENTRY = re.compile(rf'({_KEY})\s*:\s*(?:"|\[\s*")')


def open_reshaped(source: SourceFile) -> SourceFile | None:
    """The rows of a JSON file of one of these shapes, in a temporary file that lasts as long as that; else None."""
    head = skip_comments(source.head()).lstrip("\ufeff \n\t\r")
    if source.path.stat().st_size > MAX_BYTES or not (_SHAPES.match(head) or _may_be_map(head)):
        return None
    try:
        text = "\n".join(text for _, text in relax_lines(source.lines())).lstrip("\ufeff")
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):  # of several values, or damaged: its reader says where
        return None
    rows = find_rows(value)
    return write_rows(source, rows) if rows else None


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(items)) != len(items):
        raise ValueError("a key stands there twice")  # json_reader.py says which
    return made


def write_rows(source: SourceFile, rows: Iterable[Any]) -> SourceFile:
    folder = tempfile.TemporaryDirectory(prefix="persona-")
    path = Path(folder.name) / "rows.jsonl"
    with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return SourceFile(path, source.name, "utf-8", folder)


def find_rows(value: Any) -> list[dict[str, Any]]:
    """The rows of a value of one of these shapes; none where it has another."""
    if isinstance(value, list):
        return _squad_rows(value) or _name_cells(value)
    if not isinstance(value, dict) or len(value) < 1:
        return []
    if isinstance(data := value.get("data"), list) and data:
        if isinstance(value.get("columns"), list) and all(isinstance(name, str) for name in value["columns"]):
            return _name_cells([value["columns"], *data], header=True)
        if isinstance(value.get("schema"), dict) and all(isinstance(row, dict) for row in data):
            return data
        return _squad_rows(data)
    return _rows_of_objects(value) or _rows_of_lists(value) or _rows_of_map(value)


def _rows_of_objects(value: dict[str, Any]) -> list[dict[str, Any]]:
    """pandas' columns and index: objects of the same keys, of which either the outer or the inner ones name columns."""
    inner = [*value.values()]
    if not all(isinstance(part, dict) and part and part.keys() == inner[0].keys() for part in inner):
        return []
    numbered = [all(str(key).isdecimal() for key in keys) for keys in (value, inner[0])]
    if numbered[1] or (not numbered[0] and {"instruction", "output"} <= guess_columns(value).keys()):
        return [{name: part[key] for name, part in value.items()} for key in inner[0]]
    return inner if numbered[0] or {"instruction", "output"} <= guess_columns(inner[0]).keys() else []


def _rows_of_lists(value: dict[str, Any]) -> list[dict[str, Any]]:
    columns = [*value.values()]
    if not all(isinstance(part, list) and len(part) == len(columns[0]) > 1 for part in columns) or len(columns) < 2:
        return []
    if any(str(name).casefold() in (*CONVERSATION_KEYS, "speakers") for name in value):
        return []  # one conversation
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _rows_of_map(value: dict[str, Any]) -> list[dict[str, Any]]:
    texts = all(isinstance(answer, str | list) and answer for answer in value.values())
    if not texts or not _are_questions([*value]):
        return []
    return [{ASKED: asked, ANSWERED: answer} for asked, answer in value.items()]


def _name_cells(rows: list[Any], header: bool = False) -> list[dict[str, Any]]:
    if not rows or not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        return []
    names = [str(cell) for cell in rows[0]]
    if header or {"instruction", "output"} <= guess_columns(names).keys() or find_keys(dict.fromkeys(names)):
        return [dict(zip(names, row, strict=True)) for row in rows[1:]]
    if len(names) != 2 or not all(isinstance(cell, str) for row in rows for cell in row):
        return []
    return [{ASKED: asked, ANSWERED: answer} for asked, answer in rows]


def _squad_rows(articles: list[Any]) -> list[dict[str, Any]]:
    paragraphs = [p for x in articles if isinstance(x, dict) and isinstance(x.get("paragraphs"), list)
                  for p in x["paragraphs"] if isinstance(p, dict) and isinstance(p.get("qas"), list)]  # fmt: skip
    return [{"context": p.get("context"), ASKED: qa.get("question"), "answers": qa.get("answers")}
            for p in paragraphs for qa in p["qas"] if isinstance(qa, dict)]  # fmt: skip


def _may_be_map(head: str) -> bool:
    return head[:1] == "{" and _are_questions([key[1:-1] for key in _MAP_ENTRY.findall(head)])


def _are_questions(keys: list[str]) -> bool:
    """Whether most keys are texts that somebody says, not names of fields."""
    said = sum(bool(re.search(r"[^\x00-\x7f]|[ ?!.]", key)) for key in keys)
    return len(keys) > 1 and 2 * said > len(keys) and not guess_columns(keys) and not find_keys(dict.fromkeys(keys))
