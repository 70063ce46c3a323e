"""Tables: CSV and TSV, Excel sheets, Parquet. Columns are matched by their names, or chosen."""

import csv
import io
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat, zip_longest
from typing import Any, TextIO

from persona.errors import InputError, Message
from persona.store.csv_safety import escape_formula, unescape_formula
from persona.store.pairs import PAIR_KEYS, Pair
from persona.write.importers import ImportItem, ImportNote, ImportOptions, SkippedRow, SourceSurvey, messages
from persona.write.importers.chat_shapes import find_keys
from persona.write.importers.columns import assign_columns, guess_columns, is_texts, resolve_columns, row_to_pairs
from persona.write.importers.conversation_rows import common_system
from persona.write.importers.decode_table import MAX_COLUMNS
from persona.write.importers.packed_table import SIGNATURES, cell_text, read_parquet, read_sheet, too_many_columns
from persona.write.importers.rows import (
    MAX_ROW,
    MAX_SHOWN,
    RowPairs,
    SourceRow,
    convert_rows,
    select_rows,
    truncate_text,
)
from persona.write.importers.text_source import SourceFile
from persona.write.importers.turns import (
    CONVERSATION_KEYS,
    RENDERED_KEYS,
    explain_unmarked_text,
    find_turns,
    find_used_keys,
    has_roles,
)

NAME = "table"
TITLE = "Table: CSV, TSV, Excel, Parquet"
OPTIONS = frozenset({"columns", "turns", "join_input", "selection"})
SUFFIX = ".csv"

DELIMITERS = ",\t;|"
MAX_COLUMN_NAME = 200  # characters of a column name; a longer one is text, or an unclosed quote
MAX_READ_AGAIN, MAX_READ_AGAIN_START = 8, 4_000_000  # characters after broken records: so many times, and at first
SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet")
HEAD_ROWS = 20  # rows read to find out what a column holds
MAX_HEADING = 60  # characters of a column's name in words, and of a name in a column of names
MIN_NAMED_ROWS = 4  # with fewer rows, a value that comes again says nothing
SENTENCE_ENDS = ("?", "!", ".", "。", "？", "！", "…")
_NUMBER = re.compile(r"[-+]?[\d.,:/ -]+%?")
_CODE = re.compile(r"(?=[^\d/]{0,80}(?:\d|://))[!-~]{1,300}")  # an id, an address: no space, but a digit
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")  # the first line that Excel writes to say its delimiter
_MARKDOWN_RULE = re.compile(r"[\s|:-]+")  # between the header of a table and its rows
MAX_TITLE_LINES = 10  # lines above the header that fill one cell only
_CSV_ERRORS = {
    "unexpected end of data": Message("a quote is opened and never closed"),
    "expected after": Message("a quote is not doubled"),
}


def sniff(source: SourceFile) -> float:
    try:
        names, rows = open_table(source)
        first_rows = list(islice(rows, HEAD_ROWS))
    except InputError:
        if source.suffix in (".xlsx", ".parquet"):
            raise  # no other format can be meant
        return 0.0
    if _table_kind(source) != "csv" or source.suffix in (".csv", ".tsv"):
        return (
            0.95
            if _has_conversations(first_rows)
            or {"instruction", "output"} <= _guess_mapping(names, iter(first_rows)).keys()
            else 0.6
        )
    # pasted text: prose has commas too
    cells = [len(row.value) for row in islice(_read_csv(source), HEAD_ROWS) if isinstance(row, SourceRow)]
    regular = len(cells) > 1 and len(set(cells)) == 1
    return 0.9 if regular and {"instruction", "output"} <= guess_columns(names).keys() else 0.0


def survey(source: SourceFile) -> SourceSurvey:
    names, rows = open_table(source)
    return SourceSurvey(columns=tuple(names), mapping=_guess_mapping(names, rows))


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    """Raises InputError when the file is damaged, or holds no columns for question and answer."""
    names, rows = open_table(source)
    first_rows = list(islice(rows, HEAD_ROWS))
    has_conversations = not options.columns and _has_conversations(first_rows)
    if not has_conversations and (unmarked := explain_unmarked_text(source.name, _row_values(first_rows))):
        raise unmarked
    columns = (
        {} if has_conversations else resolve_columns(names, options, source.name, _text_columns(names, first_rows))
    )
    if not has_conversations and not {"instruction", "output"} <= assign_columns(names, options.columns).keys():
        yield ImportNote(
            1,
            Message(
                "columns taken in their order: {first}, {second}",
                first=f"{columns['instruction']!r:.40}",
                second=f"{columns['output']!r:.40}",
            ),
        )

    system = common_system(_row_values(first_rows)) if has_conversations else ""
    systems = {row.get("system") or "" for row in _row_values(first_rows)}
    own = set(names) <= set(PAIR_KEYS) or len(systems) > 1  # else all rows have the system prompt of the persona

    def to_pairs(row: dict[str, Any], place: str) -> RowPairs:
        if has_conversations:
            return messages.row_to_pairs(row, place, options, system)
        fields = {name: value if is_texts(value) else cell_text(value) for name, value in row.items()}
        history = columns.get("history", "")
        if history in row:
            fields[history] = _parse_history(row[history])
        rows_system = str(fields.get("system") or "") if own and "system" not in columns.values() else ""
        weights = _parse_weights(fields.get("weights")) if "weights" not in columns.values() else None
        return row_to_pairs(fields, columns, place, options.join_input, rows_system, weights)

    # the first pass goes on where the first rows were read; another one opens the file anew
    passes = chain([chain(first_rows, rows)], (open_table(source)[1] for _ in repeat(None)))
    yield from convert_rows(select_rows(lambda: next(passes), options.selection, source.name), source, to_pairs)


def dump(pairs: Iterable[Pair]) -> Iterator[str]:
    """RFC 4180, with a byte order mark, without which Excel takes UTF-8 for something else; escape_formula()."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    out.write("\ufeff")
    writer.writerow(PAIR_KEYS)
    for pair in pairs:
        history = json.dumps(pair.history, ensure_ascii=False) if pair.history else ""
        weights = json.dumps(pair.weights) if pair.weights else ""
        cells = pair.instruction, pair.output, history, pair.source, pair.system, weights
        writer.writerow(map(escape_formula, cells))
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    yield out.getvalue()


# --- columns -----------------------------------------------------------------------------------------------------


def open_table(source: SourceFile) -> tuple[list[str], Iterator[SourceRow | SkippedRow | ImportNote]]:
    """Column names, and the rows as objects of them. Raises InputError when there is no table."""
    kind = _table_kind(source)
    if kind == "parquet":
        return read_parquet(source)
    cells: Iterator[SourceRow | SkippedRow] = _read_csv(source) if kind == "csv" else read_sheet(source)
    header, titles = next(cells, None), list[SourceRow | SkippedRow]()
    while isinstance(header, SourceRow) and _is_title(header.value) and len(titles) < MAX_TITLE_LINES:
        titles.append(SkippedRow(header.line, Message("a line above the table"), truncate_text(header.text)))
        header = next(cells, None)
    cells = chain(titles, cells)
    if not isinstance(header, SourceRow) or not _may_be_header(header.value):
        raise InputError("{source}: no table: its first line does not name two columns or more.", source=source.name)
    if len(header.value) > MAX_COLUMNS:
        raise too_many_columns(source, len(header.value))
    if _is_data(header.value):
        cells = chain([header], cells)
        header = header._replace(value=[""] * len(header.value))
    names: list[str] = []
    for number, cell in enumerate(header.value, 1):
        name = cell_text(cell).strip() or f"column {number}"
        names.append(f"{name} ({number})" if name in names else name)
        if len(name) > MAX_COLUMN_NAME or name.count("\n") > 2:
            raise InputError(
                "{source}: column {number} is named {name!r}…: a quote there is never closed.",
                source=source.name,
                number=number,
                name=name[:40],
            )
    return names, _name_cells(names, cells)


def _is_title(cells: list[Any]) -> bool:
    """Whether a line above the header fills one cell only; a column of whole conversations is a table by itself."""
    return sum(bool(cell_text(cell).strip()) for cell in cells) < 2 and not _may_be_header(cells[:1])


def _may_be_header(cells: list[Any]) -> bool:
    alone = cell_text(cells[0]).strip().lower() if cells else ""
    return len(cells) > 1 or alone in (*CONVERSATION_KEYS, *RENDERED_KEYS)


def _is_data(cells: list[Any]) -> bool:
    """Whether a first row is no header: none of its cells names a column that is known, and one is a sentence."""
    texts = [cell_text(cell).strip() for cell in cells]
    if guess_columns(texts) or find_keys(dict.fromkeys(texts)):
        return False
    return any(len(t) > MAX_HEADING or t.endswith(SENTENCE_ENDS) or t[:2] in ("[{", '{"') for t in texts)


def _table_kind(source: SourceFile) -> str:
    return SIGNATURES.get(source.bytes(4), "csv")


def _name_cells(names: list[str], cells: Iterator[SourceRow | SkippedRow]) -> Iterator[SourceRow | SkippedRow]:
    for row in cells:
        if not isinstance(row, SourceRow):
            yield row
        elif any(cell_text(cell) for cell in row.value[len(names) :]):
            yield SkippedRow(
                row.line,
                Message(
                    "{count} cells, where the table has {columns} columns", count=len(row.value), columns=len(names)
                ),
                truncate_text(row.text),
            )
        else:
            values = [unescape_formula(cell) if isinstance(cell, str) else cell for cell in row.value[: len(names)]]
            yield SourceRow(row.line, dict(zip_longest(names, values, fillvalue="")), row.text)


def _row_values(found: Iterable[SourceRow | SkippedRow | ImportNote]) -> list[dict[str, Any]]:
    return [row.value for row in found if isinstance(row, SourceRow)]


def _has_conversations(head: list[SourceRow | SkippedRow | ImportNote]) -> bool:
    """Whether a column holds whole conversations, as lists, as JSON or with the marks of a chat template.

    Not where question and answer have columns of their own beside such a text, as in tatsu-lab/alpaca.
    """
    return any(has_roles(find_turns(row)) and not _has_own_columns(row) for row in _row_values(head))


def _has_own_columns(row: dict[str, Any]) -> bool:
    mapping, (used, *others) = guess_columns(row), find_used_keys(row)
    asked, answer = mapping.get("instruction"), mapping.get("output")
    return not others and isinstance(row[used], str) and bool(asked and answer) and used not in (asked, answer)


def _guess_mapping(names: list[str], found: Iterator[SourceRow | SkippedRow | ImportNote]) -> dict[str, str]:
    head = list(islice(found, HEAD_ROWS))
    return {} if _has_conversations(head) else assign_columns(names, {}, _text_columns(names, head))


def _text_columns(names: list[str], head: list[SourceRow | SkippedRow | ImportNote]) -> list[str]:
    """The columns that hold text, of two the one with more questions first.

    None where that is not sure, or where one is of names or data.
    """
    rows = _row_values(head)
    texts = find_text_columns(names, rows) if not find_keys(dict.fromkeys(names)) else []
    unsure = (holds_names(n, rows) or any(str(r.get(n)).lstrip()[:2] in ("[{", '{"') for r in rows) for n in texts)
    if any(unsure):
        return []
    if len(texts) != 2 or guess_columns(texts):
        return texts
    first, second = (sum(str(r.get(n)).rstrip().endswith(("?", "？")) for r in rows) for n in texts)
    return [] if first == second else texts if first > second else texts[::-1]


def find_text_columns(names: list[str], rows: list[dict[str, Any]]) -> list[str]:
    return [
        n
        for n in names
        if any(
            isinstance(v := r.get(n), str) and v and not _NUMBER.fullmatch(v) and not _CODE.fullmatch(v) for r in rows
        )
    ]


def holds_names(name: str, rows: list[dict[str, Any]]) -> bool:
    """Whether a few short values come again and again in a column: who speaks, or a label."""
    values = [str(v) for row in rows if (v := row.get(name))]
    few = 2 * len(set(values)) <= len(values)
    return len(values) >= MIN_NAMED_ROWS and few and all(len(v) <= MAX_HEADING for v in values)


def _parse_history(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError) as e:
        raise InputError("'history' is not a JSON list of [user, reply] texts ({kind})", kind=type(e).__name__) from e


def _parse_weights(value: Any) -> Any:
    """A list of numbers; None where the column holds something else, and is left out."""
    try:
        weights = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    return weights if isinstance(weights, list) else None


# --- CSV ---------------------------------------------------------------------------------------------------------


def _read_csv(source: SourceFile) -> Iterator[SourceRow | SkippedRow]:
    """Each record that is not blank; after a broken one, reading goes on with its second line.

    Unless that would read most lines many times over: then with the line after it.
    """
    csv.field_size_limit(MAX_ROW)
    delimiter = _delimiter(source)
    with source.open_text(newline="") as file:
        waiting: deque[str] = deque()
        line, read, again = 1, 0, 0  # characters read, and read again
        while True:
            taken: list[str] = []
            try:
                cells = next(csv.reader(_feed(file, waiting, taken), delimiter=delimiter, strict=True))
            except StopIteration:
                return
            except csv.Error as e:
                why = next((ours for theirs, ours in _CSV_ERRORS.items() if theirs in str(e)), e.args[0])
                yield SkippedRow(line, why, taken[0].strip()[:MAX_SHOWN])
                read += len(taken[0])
                again += sum(map(len, taken[1:]))
                if again <= MAX_READ_AGAIN * read + MAX_READ_AGAIN_START:
                    waiting.extendleft(reversed(taken[1:]))
                    line += 1
                else:
                    line += len(taken)
                    read += sum(map(len, taken[1:]))
                continue
            if delimiter == "|" and taken[0].lstrip().startswith("|"):  # Markdown
                cells = [] if _MARKDOWN_RULE.fullmatch(taken[0]) else [cell.strip() for cell in cells]
            if any(cells) and not (line == 1 and _SEPARATOR_LINE.match(taken[0].lstrip("\ufeff"))):
                yield SourceRow(line, cells, "".join(taken))
            line += len(taken)
            read += sum(map(len, taken))


def _feed(file: TextIO, waiting: deque[str], taken: list[str]) -> Iterator[str]:
    size = 0
    while line := waiting.popleft() if waiting else file.readline(MAX_ROW):
        taken.append(line)
        size += len(line)
        if size >= MAX_ROW:
            while line and line[-1] not in "\r\n":  # the rest of this line is no line of its own
                line = file.readline(MAX_ROW)
            raise csv.Error(Message("longer than {limit:,} characters, or a quote is never closed", limit=MAX_ROW))
        yield line


def _delimiter(source: SourceFile) -> str:
    """The delimiter with which the first line names most fields of a pair; else the one that cuts lines most evenly."""
    head = source.head().lstrip("\ufeff")
    if said := _SEPARATOR_LINE.match(head):
        return said[1]
    first = head.split("\n", 1)[0]
    if _may_be_header([first]):
        return ","
    named = {d: len(guess_columns(name.strip('" \t') for name in first.split(d))) for d in DELIMITERS if d in first}
    if any(named.values()):
        return max(named, key=lambda d: named[d])
    if source.suffix == ".tsv" and "\t" in first:
        return "\t"
    lines = [line for line in head.split("\n")[:HEAD_ROWS] if line]
    return max(DELIMITERS, key=lambda d: (_evenness(lines, d), first.count(d)))


def _evenness(lines: list[str], delimiter: str) -> float:
    """The share of rows that have as many cells as most rows do; 0 where that is one cell."""
    try:
        widths = Counter(map(len, csv.reader(lines, delimiter=delimiter)))
    except csv.Error:
        return 0.0
    most, rows = max(widths.items(), key=lambda found: found[1], default=(1, 0))
    return rows / widths.total() if most > 1 else 0.0
