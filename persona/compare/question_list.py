"""A list of questions put to all voices, and the answers as a table: CSV, Markdown, HTML."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from persona.compare.session import Column, LoadedModel, Voice, stream_replies
from persona.errors import InputError, Message
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.store.csv_safety import escape_formula
from persona.store.files import write_atomic

BATCH_ROWS = 8  # rows of a batch; on two cores a step of eight cost 2.5 times a step of two
TABLE_FORMATS = (".csv", ".md", ".html")


@dataclass(frozen=True)
class AnswerRow:
    """One row of the table: a question, each voice's rendered column, and its reply."""

    question: str
    columns: tuple[Column, ...]
    replies: tuple[Generation, ...]


def read_questions(path: Path) -> list[str]:
    """One question a line. Raises InputError where there is none."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(
            "{path}: cannot be read ({reason}). Write one question a line, as UTF-8 text.", path=path, reason=e
        ) from e
    if questions := [line.strip() for line in lines if line.strip()]:
        return questions
    raise InputError("{path}: no question in it. Write one a line.", path=path)


def questions_at_once(voices: int) -> int:
    """How many questions share a batch."""
    return max(1, BATCH_ROWS // voices)


def ask_questions(
    model: LoadedModel, voices: Sequence[Voice], questions: Sequence[str], sampling: Sampling
) -> Iterator[AnswerRow]:
    """Yield the answers to each question; every voice answers each as a conversation of its own.

    Several questions share a batch, and others get their turn on the model between the batches. Raises InputError for
    an empty question, and where no voice at all can answer.
    """
    if not all(q.strip() for q in questions):
        raise InputError("The prompt is empty. Write something to say.")
    at_once, width = questions_at_once(len(voices)), len(voices)
    for start in range(0, len(questions), at_once):
        batch = questions[start : start + at_once]
        columns = [voice.render_column([], question) for question in batch for voice in voices]
        *_, replies = stream_replies(model, columns, sampling)
        if all(r.error for r in replies):
            raise InputError(Message.of(replies[0].error))
        for n, question in enumerate(batch):
            of_question = slice(n * width, (n + 1) * width)
            yield AnswerRow(question, tuple(columns[of_question]), tuple(replies[of_question]))


def require_table_format(path: Path) -> None:
    """Raises InputError unless the file's name says which form the table gets."""
    if path.suffix.lower() not in TABLE_FORMATS:
        raise InputError(
            "{path}: a table is saved as {forms}. End the name with one of them.",
            path=path,
            forms=", ".join(TABLE_FORMATS),
        )


def save_table(path: Path, labels: Sequence[str], rows: Sequence[AnswerRow]) -> None:
    """Write the table in the form that the file's name asks for."""
    require_table_format(path)
    form = {".csv": to_csv, ".md": to_markdown, ".html": to_html}[path.suffix.lower()]
    write_atomic(path, form(_table(labels, rows)))


def _table(labels: Sequence[str], rows: Sequence[AnswerRow]) -> list[list[str]]:
    lines = ([r.question, *(x.text if not x.error else f"({x.error})" for x in r.replies)] for r in rows)
    return [["question", *labels], *lines]


def to_csv(table: Sequence[Sequence[str]]) -> str:
    """With a mark of UTF-8 for Excel. A cell that a spreadsheet would take for a formula begins with ' (OWASP)."""
    out = io.StringIO()
    csv.writer(out).writerows([map(escape_formula, row) for row in table])
    return "\ufeff" + out.getvalue()


def to_markdown(table: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_markdown_cell, cells)) + " |\n"

    head, *rows = table
    return line(head) + "|" + " --- |" * len(head) + "\n" + "".join(map(line, rows))


def _markdown_cell(text: str) -> str:
    plain = "".join("\\" + c if c in "\\`*_[]|#~" else c for c in escape(text, quote=False))
    return "<br>".join(plain.splitlines())


def to_html(table: Sequence[Sequence[str]]) -> str:
    """A file of its own."""
    style = "table{border-collapse:collapse}td,th{border:1px solid;padding:4px;vertical-align:top;white-space:pre-wrap}"
    return (
        '<!doctype html>\n<meta charset="utf-8">\n<title>Answers</title>\n'
        f"<style>{style}</style>\n{render_table_html(table)}\n"
    )


def render_table_html(table: Sequence[Sequence[str]]) -> str:
    """The table as an element, with the first line as its head; for page and notebooks too. Text is escaped."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"

    head, *rows = table
    body = "\n".join(cells(row, "td") for row in rows)
    return f"<table><thead>{cells(head, 'th')}</thead><tbody>{body}</tbody></table>"


class Answers(list[dict[str, str]]):
    """{"prompt", "base", "adapter"} for each question, of persona.chat(); a table in a notebook."""

    def _repr_html_(self) -> str:
        rows = [[turn["prompt"], turn["base"], turn["adapter"]] for turn in self]
        return render_table_html([["question", "base", "persona"], *rows])
