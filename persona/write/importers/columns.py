"""Columns of a table, or keys of a row, as fields of a pair: guessed from their names, or chosen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from persona.errors import InputError, Message, join
from persona.write.importers import ImportOptions
from persona.write.importers.rows import RowPairs, note_unused_keys, parse_complete_pair

FIELDS = ("instruction", "input", "output", "history", "source")
COLUMN_NAMES = {  # in order of preference; compared without regard to case
    "instruction": (
        "instruction", "question", "prompt", "query", "problem", "q", "user", "human", "ask",
        "指令", "问题", "提问", "问", "问句", "提示", "用户", "input", "输入", "上文", "問題", "提問", "質問", "질문",
        "frage", "pregunta", "pergunta", "domanda", "vraag", "pytanie", "вопрос", "soru", "pertanyaan", "السؤال",
        "prompts", "questions",
    ),
    "output": (
        "output", "answer", "response", "reply", "completion", "solution", "a", "assistant", "bot", "gpt", "target",
        "generated", "chosen", "输出", "回答", "答案", "答复", "回复", "回应", "答", "答句", "下文",
        "antwort", "respuesta", "resposta", "réponse", "risposta", "antwoord", "odpowiedź", "ответ", "cevap",
        "jawaban", "回應", "回覆", "答え", "답변",
        "الجواب", "answers", "responses", "replies",
    ),
    "input": ("input", "输入", "context"),
    "history": ("history", "历史", "对话历史", "历史对话"),
    "source": ("source", "来源", "出处"),
}  # fmt: skip

# how the input of a row is joined to its instruction, by name; the last two are Alpaca's block, whole once the template
# alpaca-zh or alpaca-en has written its own marks around both
INPUT_JOINS = {
    "line": "\n", "paragraph": "\n\n", "none": "", "alpaca-zh": "\n\n### 输入:\n", "alpaca-en": "\n\n### Input:\n",
}  # fmt: skip


def guess_columns(names: Iterable[str]) -> dict[str, str]:
    """Field of a pair → the name that means it, each name used once."""
    by_folded_name: dict[str, str] = {}
    for name in names:
        by_folded_name.setdefault(name.strip().casefold(), name)
    mapping: dict[str, str] = {}
    for field, candidates in COLUMN_NAMES.items():
        match = next(
            (
                by_folded_name[c]
                for c in candidates
                if c in by_folded_name and by_folded_name[c] not in mapping.values()
            ),
            None,
        )
        if match is not None:
            mapping[field] = match
    return {field: mapping[field] for field in FIELDS if field in mapping}


def assign_columns(names: Sequence[str], chosen: Mapping[str, str], texts: Sequence[str] = ()) -> dict[str, str]:
    """Field → column name: the choice, else the guess, else the two text columns in their order."""
    guessed = guess_columns(n for n in names if n not in chosen.values())
    mapping = {**{field: name for field, name in guessed.items() if field not in chosen}, **chosen}
    missing = [field for field in ("instruction", "output") if field not in mapping]
    unused = [name for name in texts if name not in mapping.values()]
    return (
        {**mapping, **dict(zip(missing, unused, strict=True))}
        if len(texts) == 2 and len(unused) == len(missing)
        else mapping
    )


def resolve_columns(
    names: Sequence[str], options: ImportOptions, place: str, texts: Sequence[str] = ()
) -> dict[str, str]:
    """assign_columns(), checked. A choice of "" leaves a field out.

    Raises InputError listing the names when question or answer is not among them.
    """
    listed = Message("It has: {names}.", names=", ".join(repr(n)[:60] for n in names[:50]) or Message("none"))
    chosen = dict(options.columns)
    if wrong := [field for field in chosen if field not in FIELDS]:
        raise InputError(
            "{field!r}: not a field of a pair. There are {fields}.", field=wrong[0], fields=", ".join(FIELDS)
        )
    if wrong := [name for name in chosen.values() if name and name not in names]:
        raise InputError("{place}: no column {column!r}. {listed}", place=place, column=wrong[0], listed=listed)
    mapping = assign_columns(names, chosen, texts)
    if missing := [field for field in ("instruction", "output") if not mapping.get(field)]:
        raise InputError(
            "{place}: which column is the {fields}? {listed} Choose: {options}",
            place=place,
            fields=join(" and which the ", missing),
            listed=listed,
            options=" ".join(f"--column {field}=NAME" for field in missing),
        )
    for field in FIELDS:  # a key that only later rows have
        if field not in mapping and field not in mapping.values():
            mapping[field] = field
    return {field: name for field, name in mapping.items() if name}


def row_to_pairs(
    row: Any, columns: Mapping[str, str], place: str, join_input: str = "line", system: str = "", weights: Any = None
) -> RowPairs:
    """Raises InputError. place: the pair's source when the row names none. join_input: a key of INPUT_JOINS.

    system, weights: of this row alone.
    """
    if not isinstance(row, dict):
        return [parse_complete_pair(row)], []  # says what it is
    fields = {field: row.get(columns.get(field, "")) for field in ("instruction", "output", "history")}
    extra_input, source = row.get(columns.get("input", "")), row.get(columns.get("source", ""))
    if not isinstance(extra_input, str | None):
        raise InputError("'input' is not text: {more}", more=f"{extra_input!r:.40}")
    if extra_input and isinstance(fields["instruction"], str | None):
        fields["instruction"] = INPUT_JOINS[join_input].join(filter(None, (fields["instruction"], extra_input)))
    output = fields["output"] = first_answer(fields["output"])
    answers: list[Any] = output if isinstance(output, list) and is_texts(output) else [output]
    own = {name: value for name, value in (("system", system), ("weights", weights)) if value}
    notes = note_unused_keys(row, [*columns.values(), *own])
    fields |= own
    if not isinstance(source, str | None):
        notes.append(Message("a source that is not text left out"))
    fields["source"] = source if isinstance(source, str) else place
    return [parse_complete_pair({**fields, "output": answer}) for answer in answers], notes


def first_answer(value: Any) -> Any:
    """The first of the answers that SQuAD lists, which mark the same words; None where it has none. Others stay."""
    texts = value.get("text") if isinstance(value, dict) and "answer_start" in value else value
    if isinstance(texts, list) and all(isinstance(x, dict) and "answer_start" in x for x in texts):
        texts = [x.get("text") for x in texts]
    return texts if texts is value else next(iter(texts or ()), None)


def is_texts(value: Any) -> bool:
    """Whether a row has several answers, as RoleBench's have."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
