"""JSON whose rows stand in columns, in lists, as a map, in SQuAD's articles, or beside comments and NaN."""

import json

import pytest
from cases import check_each
from row_files import line, source

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, SkippedRow, registry
from persona.write.importers.relaxed_json import relax_lines
from persona.write.importers.row_shapes import find_rows
from persona.write.importers.text_source import MAX_LINE

WANTED = [("What is under the bridge?", "Water, mostly."), ("And the rest?", "Trolls.")]
ASKED, SAID = zip(*WANTED, strict=True)
ROWS = [{"question": q, "answer": a} for q, a in WANTED]
SPAN = {"text": ["Trolls.", "trolls"], "answer_start": [3, 3]}


def read(folder, name, data, **columns):
    opened = source(folder, name, data)
    found = list(registry.read_source(opened, registry.detect_format(opened), ImportOptions(columns=columns)))
    return [(i.instruction, i.output) for i in found if isinstance(i, Pair)], found


SHAPES = {
    "pandas columns.json": json.dumps({"question": dict(enumerate(ASKED)), "answer": dict(enumerate(SAID))}),
    "pandas columns by name.json": json.dumps({"question": {"a": ASKED[0]}, "answer": {"a": SAID[0]}}),
    "pandas index.json": json.dumps(dict(enumerate(ROWS))),
    "pandas index by name.json": json.dumps({"first": ROWS[0], "second": ROWS[1]}),
    "pandas split.json": json.dumps({"columns": ["question", "answer"], "index": [0, 1], "data": WANTED}),
    "pandas table.json": json.dumps({"schema": {"fields": [{"name": "question"}]}, "data": ROWS}),
    "pandas values.json": json.dumps([[*pair] for pair in WANTED]),
    "a header.json": json.dumps([["answer", "question"], *((a, q) for q, a in WANTED)]),
    "lists.json": json.dumps({"question": ASKED, "answer": SAID}, indent=1),
    "map.json": json.dumps(dict(WANTED)),
    "map in Chinese.json": json.dumps({"你是谁": "甄嬛。", "这是哪里": "宫里。"}, ensure_ascii=False),
    "nan.json": json.dumps([{**row, "score": float("nan")} for row in ROWS]),
    "nan.jsonl": "".join(line(**row, score=float("-inf")) for row in ROWS),
    "comments.json": "// of Mags, http://x\n[ /* the\n first */\n"
    + ",  // another\n".join(map(json.dumps, ROWS))
    + ",\n\n// end\n]",
    "a comma too many.json": '{"data": [' + "".join(json.dumps(row)[:-1] + ",},\n" for row in ROWS) + "]}",
    "comments.jsonl": "# x\n".replace("#", "//") + "".join(line(**row)[:-2] + ",} // NaN\n" for row in ROWS),
    "over several lines.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "over several lines.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
}
FIRST_ONLY = {"map in Chinese.json": [("你是谁", "甄嬛。"), ("这是哪里", "宫里。")],
              "pandas columns by name.json": WANTED[:1]}  # fmt: skip


def test_every_shape_gives_its_rows(tmp_path):
    def check(data):
        name = next(n for n in SHAPES if SHAPES[n] == data)
        assert read(tmp_path, name, data)[0] == FIRST_ONLY.get(name, WANTED)

    check_each({name: (data,) for name, data in SHAPES.items()}, check)


def test_squad_takes_the_first_answer_and_leaves_the_context_out_if_told(tmp_path):
    article = {"title": "x", "paragraphs": [{"context": "They live there.", "qas": [
        {"question": ASKED[1], "answers": [{"text": "Trolls.", "answer_start": 3}, {"text": "x", "answer_start": 3}]},
        {"question": "Nobody?", "answers": [], "is_impossible": True}]}]}  # fmt: skip
    files = {
        "squad.json": json.dumps({"version": "2.0", "data": [article]}),
        "squad.jsonl": line(context="They live there.", question=ASKED[1], answers=SPAN)
        + line(context="They live there.", question="Nobody?", answers={"text": [], "answer_start": []}),
    }
    for name, data in files.items():
        pairs, found = read(tmp_path, name, data)
        assert pairs == [(f"{ASKED[1]}\nThey live there.", "Trolls.")]
        assert len([i for i in found if isinstance(i, SkippedRow)]) == 1
        assert read(tmp_path, name, data, input="")[0] == WANTED[1:]


def test_what_is_one_row_stays_one():
    one = ({"instruction": "Who?", "output": "I."}, {"name": "Ann", "description": "A ferrywoman."},
           {"dialog": ["Who?", "I."], "act": [1, 2]}, {"dialogue": ["a", "b"], "speakers": ["x", "y"]},
           {"guild": {"id": "0"}, "channel": {"id": "1"}}, {"messages": [{"role": "user", "content": "x"}]})  # fmt: skip
    assert [find_rows(value) for value in one] == [[]] * len(one)


def test_keys_that_say_nothing_are_asked_for(tmp_path):
    data = "".join(line(first=q, second=a) for q, a in WANTED)
    with pytest.raises(InputError, match="which column is the instruction and which the output.*'first', 'second'"):
        read(tmp_path, "x.jsonl", data)
    assert read(tmp_path, "x.jsonl", data, instruction="first", output="second")[0] == WANTED


def test_what_stands_in_a_text_is_no_comment(tmp_path):
    texts = ["http://x/* y */", 'a \\" // b', "NaN, ]", "[1,]", "\\", "\\\\ //", ","]
    rows = [{"question": text, "answer": text} for text in texts]
    for data in (json.dumps(rows, indent=1), json.dumps(rows)):
        assert read(tmp_path, "x.json", data)[0] == [(text, text) for text in texts]
    long = '{"a": "' + "x//" * MAX_LINE + '\\\\", "b": NaN,}'
    pieces = [(1, long[at : at + size]) for size in (7,) for at in range(0, 70, size)]
    assert "".join(text for _, text in relax_lines(pieces)) == long[:70]
    for cut in range(1, 20):
        text = '["\\\\\\"//", ",]", NaN]'
        assert "".join(x for _, x in relax_lines([(1, text[:cut]), (1, text[cut:])])).replace("NaN", "null") == (
            text.replace("NaN", "null")
        )


def test_a_question_that_stands_twice_in_a_map_is_not_dropped_silently(tmp_path):
    with pytest.raises(InputError, match="key 'Who are you\\?' stands there twice"):
        read(tmp_path, "x.json", '{"Who are you?": "Ann.",\n"Who are you?": "Mags.", "And now?": "x"}')
