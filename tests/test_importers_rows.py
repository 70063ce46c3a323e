"""Row formats from outside: what becomes a pair, what is skipped and where, and that nothing is lost on the way."""

import csv
import io
import json
import random
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from cases import check_each
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import InputError, PersonaError
from persona.importers import Note, Options, Skipped, detect, formats, importer, preview
from persona.importers import hub as datasets_hub
from persona.importers.json_rows import MAX_ELEMENT, MAX_SHOWN, Row, rows
from persona.importers.text import open_source
from persona.pairs import MAX_CHARACTERS, Pair, check, dumps
from tests.hub import Hub

FORMATS = ("alpaca", "sharegpt", "messages", "table")
COLUMNS = Options(columns={"instruction": "甲", "output": "乙"})


def source(folder: Path, name: str, data: bytes | str):
    file = folder / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_source(file)


def items(folder: Path, name: str, data: bytes | str, format: str = "", options: Options = Options()):
    """(pairs without their sources, [(line, why)], [(line, note)])."""
    opened = source(folder, name, data)
    found = list(importer(format or detect(opened)).read(opened, options))
    pairs = [Pair(p.instruction, p.output, p.history) for p in found if isinstance(p, Pair)]
    skipped = [(s.line, s.why) for s in found if isinstance(s, Skipped)]
    return pairs, skipped, [(n.line, n.what) for n in found if isinstance(n, Note)]


def line(**row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def talk(*said: str, who="from", what="value", sides=("human", "gpt"), **more) -> dict:
    return {"conversations": [{who: sides[n % 2], what: text} for n, text in enumerate(said)], **more}


def chat(*said: str, **more) -> dict:
    turns = talk(*said, who="role", what="content", sides=("user", "assistant"))
    return {"messages": turns["conversations"], **more}


def sheet(*rows_, **more) -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    for row in rows_:
        book.active.append(row)
    for title, content in more.items():
        for row in content:
            (book[title] if title in book else book.create_sheet(title)).append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def parquet(rows_: list[dict]) -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    out = io.BytesIO()
    write_table(pa.Table.from_pylist(rows_), out)
    return out.getvalue()


AB, CD = Pair("a", "b"), Pair("c", "d")
HISTORY = Pair("c", "d", (("a", "b"),))
A, C = '{"instruction": "a", "output": "b"}', '{"instruction": "c", "output": "d"}'

ZHEN = line(instruction="你是谁？", output="本宫甄嬛。") * 9

GOOD = [
    # --- alpaca
    ("pairs.jsonl", A + "\n" + C + "\n", "alpaca", [AB, CD]),
    ("crlf.jsonl", A + "\r\n\r\n" + C + "\r\n", "alpaca", [AB, CD]),
    ("mark.jsonl", b"\xef\xbb\xbf" + A.encode(), "alpaca", [AB]),
    ("wide.jsonl", (A + "\n" + C).encode("utf-16"), "alpaca", [AB, CD]),
    ("gbk.json", '[{"instruction": "你是谁？你从哪里来？", "input": "", "output": "本宫甄嬛。"}]'.encode("gb18030"), "alpaca",
     [Pair("你是谁？你从哪里来？", "本宫甄嬛。")]),
    ("commas.jsonl", A + ",\n" + C + ",\n", "alpaca", [AB, CD]),
    ("list.json", f"[{A},{C}]", "alpaca", [AB, CD]),
    ("list.jsonl", f"[\n{A},\n{C}\n]", "alpaca", [AB, CD]),
    ("indented.json", json.dumps([json.loads(A), json.loads(C)], indent=2), "alpaca", [AB, CD]),
    ("trailing.json", f"[{A},\n{C},]", "alpaca", [AB, CD]),
    ("wrapped.json", f'{{"version": 1.5, "name": "a \\"x\\" b", "data": [{A}, {C}], "train": [{A}]}}', "alpaca", [AB, CD, AB]),
    ("one.json", json.dumps(json.loads(A), indent=1), "alpaca", [AB]),
    ("objects.json", json.dumps(json.loads(A), indent=1) + "\n" + json.dumps(json.loads(C), indent=1), "alpaca", [AB, CD]),
    ("lines.txt", A + "\n" + C, "alpaca", [AB, CD]),
    ("empty.json", "[]", "", []),
    ("input.json", '[{"instruction": "Translate", "input": "茶", "output": "tea"}]', "alpaca", [Pair("Translate\n茶", "tea")]),
    ("only-input.json", '[{"instruction": "", "input": "a", "output": "b"}]', "alpaca", [AB]),
    ("no-instruction.json", '[{"input": "a", "output": "b"}]', "alpaca", [AB]),
    ("null-input.json", '[{"instruction": "a", "input": null, "output": "b", "history": null}]', "alpaca", [AB]),
    ("history.json", '[{"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]}]', "alpaca", [HISTORY]),
    ("question.json", '[{"Question": "a", "ANSWER": "b"}]', "alpaca", [AB]),
    ("response.json", '[{"prompt": "a", "response": "b"}]', "alpaca", [AB]),
    ("chinese.json", '[{"问": "a", "答": "b"}]', "alpaca", [AB]),
    ("qa.jsonl", '{"q": "a", "a": "b"}', "alpaca", [AB]),
    ("escaped.json", '[{"instruction": "\\ud83d\\ude00", "output": "b"}]', "alpaca", [Pair("😀", "b")]),
    # --- sharegpt
    ("talk.json", json.dumps([talk("a", "b"), talk("a", "b", "c", "d")]), "sharegpt", [AB, HISTORY]),
    ("talk.jsonl", line(**talk("a", "b", sides=("user", "assistant"))), "sharegpt", [AB]),
    ("bot.jsonl", line(conversation=talk("a", "b", sides=("Human", "bot"))["conversations"]), "sharegpt", [AB]),
    ("named-messages.jsonl", line(messages=talk("a", "b")["conversations"]), "sharegpt", [AB]),
    ("joined.jsonl", line(conversations=[{"from": w, "value": v} for w, v in zip(("human", "human", "gpt", "gpt"), "abcd", strict=True)]),
     "sharegpt", [Pair("a\nb", "c\nd")]),
    # --- messages
    ("chat.jsonl", line(**chat("a", "b")) + line(**chat("a", "b", "c", "d")), "messages", [AB, HISTORY]),
    ("role.json", json.dumps([talk("a", "b", who="role", what="content")]), "messages", [AB]),
    ("trl.jsonl", line(prompt="a", completion="b"), "messages", [AB]),
    ("trl-chat.jsonl", line(prompt=chat("a", "b", "c")["messages"], completion=[{"role": "assistant", "content": "d"}]), "messages", [HISTORY]),
    ("parts.jsonl", line(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "x"}]},
                                   {"role": "assistant", "content": "b"}]), "messages", [Pair("a\nx", "b")]),
    # --- table
    ("t.csv", "instruction,output\na,b\nc,d\n", "table", [AB, CD]),
    ("semicolon.csv", "问题;回答\na;b\n", "table", [AB]),
    ("excel.csv", "\ufeffquestion,answer\r\n\"a\",\"b\"\r\n", "table", [AB]),
    ("gbk.csv", "问题,回答\n你是谁？,本宫甄嬛。\n".encode("gb18030"), "table", [Pair("你是谁？", "本宫甄嬛。")]),
    ("t.tsv", "answer\tid\tquestion\nb\t1\ta\n", "table", [AB]),
    ("pasted.txt", "question\tanswer\na\tb\nc\td\n", "table", [AB, CD]),
    ("quoted.csv", 'question,answer\n"a, ""x""\ny",b\n\n,,\nc,d\n', "table", [Pair('a, "x"\ny', "b"), CD]),
    ("old-mac.csv", "question,answer\ra,b\rc,d\r", "table", [AB, CD]),
    ("order.csv", "甲,乙\na,b\nc,d\n", "table", [AB, CD]),
    ("half.csv", "答案,文本\nb,a\nd,c\n", "table", [AB, CD]),
    ("history.csv", 'instruction,output,history\nc,d,"[[""a"", ""b""]]"\n', "table", [HISTORY]),
    ("short.csv", "question,answer,source\na,b\n", "table", [AB]),
    ("t.xlsx", sheet(("问题", "回答"), ("a", "b"), (None, None), ("c", "d")), "table", [AB, CD]),
    ("second.xlsx", sheet(Data=[("question", "n", "answer"), ("a", 1, "b")]), "table", [AB]),
    ("numbers.xlsx", sheet(("question", "answer"), (1, 2.5), (3.0, "x")), "table", [Pair("1", "2.5"), Pair("3", "x")]),
    ("t.parquet", parquet([{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]), "table", [AB, CD]),
    ("texts.parquet", parquet([{"id": 1, "x": "a", "score": 0.5, "y": "b"}]), "table", [AB]),
    ("talk.parquet", parquet([talk("a", "b", "c", "d", id=1)]), "table", [HISTORY]),
    ("chat.parquet", parquet([chat("a", "b")]), "table", [AB]),
]  # fmt: skip


def test_good_files(tmp_path):
    def check(name, data, format, pairs):
        if format:
            assert detect(source(tmp_path, name, data)) == format
            sure = {n: m.sniff(source(tmp_path, name, data)) for n, m in formats().items()}
            assert [n for n, s in sure.items() if s > 0] == [format], "two formats claim one file"
        assert items(tmp_path, name, data, format or "alpaca")[:2] == (pairs, [])

    check_each(GOOD, check)


SKIPPED = [
    # --- JSON itself: (1, why) is the bad row, and the good ones around it are read
    ("half.jsonl", f'{{"instruction": "x", "outp\n{C}', [CD], [(1, "cut short")]),
    ("two.jsonl", f"{A} {C}\n{C}", [CD], [(1, "more after its end")]),
    ("nan.jsonl", f'{{"instruction": "x", "output": NaN}}\n{C}', [CD], [(1, "NaN is no number")]),
    ("infinite.json", f'[{{"instruction": "x", "output": -Infinity}},\n{C}]', [CD], [(1, "-Infinity is no number")]),
    ("twice.json", f'[{{"output": "x", "output": "y"}},\n{C}]', [CD], [(1, "'output' stands there twice")]),
    ("huge.json", f'[{{"instruction": {"9" * 5000}}},\n{C}]', [CD], [(1, "thousands of digits")]),
    ("deep.json", "[" + '{"a":[' * 5000 + "]}" * 5000 + f",\n{C}]", [CD], [(1, "nested too deep")]),
    ("deep.jsonl", "[" * 100_000 + f"\n{C}", [CD], [(1, "nested too deep")]),
    ("surrogate.json", f'[{{"instruction": "x", "output": "\\udc00"}},\n{C}]', [CD], [(1, "half a character")]),
    ("surrogate-key.jsonl", f'{{"instruction": "x", "output": "y", "\\uD800": 1}}\n{C}', [CD], [(1, "half a character")]),
    ("raw-break.json", f'[{A},\n{{"instruction": "x\ny", "output": "z"}},\n{C}]', [AB, CD], [(2, "Invalid control character")]),
    ("quote.json", f'[{A},{{"instruction": "she said "no" to me", "output": "y"}},{C}]', [AB, CD], [(1, "not JSON (Expecting ',' delimiter")]),
    ("brace.json", f'[{A},{{"instruction": "x", "output": "y" ,{C},{A}]', [AB, CD, AB], [(1, "Expecting property name")]),
    ("open.json", f'[{A},{{"instruction": "x, "output": "y"}},{C}]', [AB, CD], [(1, "not JSON")]),
    ("no-comma.json", f"[{A}\n{C}]", [AB, CD], []),
    ("swapped.json", f'[{A},{{"instruction": x}},{{"output": "d", "instruction": "c"}}]', [AB, CD], [(1, "Expecting value, at 'x}")]),
    ("braces.json", f'[{A},{{{C},{A}]', [AB, CD, AB], [(1, "Expecting property name")]),
    ("garbage.json", f'[{A},\nxyz{C},{A}]', [AB, CD, AB], [(2, "Expecting value, at 'xyz")]),
    ("closed-early.json", f'[{A}],{C},{A}]', [AB, CD, AB], []),
    ("first.json", f'[{{"instruction": x, "output": "y"}},\n{C}]', [CD], [(1, "Expecting value")]),
    ("bad-byte.jsonl", ZHEN.encode() + b'{"instruction": "\xff", "output": "y"}\n' + C.encode(), [*[Pair("你是谁？", "本宫甄嬛。")] * 9, CD], [(10, "Invalid \\escape")]),
    ("others.json", f'[1, "two", null, [3],\n{C}]', [CD], [(1, "a int, not an object"), (1, "a str"), (1, "a NoneType"), (1, "a list")]),
    ("cut.json", f"[{A},\n{C[:-5]}", [AB], [(2, "cut short")]),
    ("cut-comma.json", f"[{A},\n", [AB], [(1, "the file ends before its list is closed")]),
    ("cut-after.json", f"[{A}", [AB], [(1, "the file ends before its list is closed")]),
    ("cut-wrapped.json", f'{{"data": [{A}, {C}', [AB, CD], [(1, "the file ends before its list is closed")]),
    ("after.json", f"[{A}]\n hello", [AB], [(1, "text after the end of the list")]),
    ("long.jsonl", f'{{"instruction": "{"x" * MAX_ELEMENT}"}}\n{C}', [CD], [(1, "longer than 2,000,000")]),
    ("long.json", f'[{A},{{"instruction": "{"x" * MAX_ELEMENT}"}},{C}]', [AB, CD], [(1, "longer than 2,000,000")]),
    ("never-closed.json", f'[{A},{{"instruction": "{"x" * 3 * MAX_ELEMENT}', [AB], [(1, "longer than 2,000,000")]),
    # --- alpaca
    ("empty.jsonl", f'{{"instruction": "x", "output": " "}}\n{C}', [CD], [(1, "'output' is empty")]),
    ("missing.jsonl", f'{C}\n{{"instruction": "x"}}', [CD], [(2, "'output' is missing")]),
    ("number.jsonl", f'{C}\n{{"instruction": "x", "output": 7}}', [CD], [(2, "'output' is not text: 7")]),
    ("number-2.jsonl", f'{C}\n{{"instruction": 7, "input": "x", "output": "y"}}', [CD], [(2, "'instruction' is not text: 7")]),
    ("list-input.jsonl", f'{C}\n{{"instruction": "x", "input": ["y"], "output": "z"}}', [CD], [(2, "'input' is not text")]),
    ("turn.jsonl", f'{C}\n{{"instruction": "x", "output": "y", "history": [["z"]]}}', [CD], [(2, "'history' is not a list")]),
    ("too-long.jsonl", f'{C}\n{{"instruction": "x", "output": "{"y" * (MAX_CHARACTERS + 1)}"}}', [CD], [(2, "100,001 characters")]),
    # --- sharegpt, messages
    ("s-alone.json", json.dumps([talk("a", "b"), talk("x"), talk("x", "y", sides=("gpt", "gpt"))]), [AB], [(1, "no reply to anything"), (1, "no reply")]),
    ("s-empty.jsonl", line(**talk("a", "b")) + line(conversations=[]), [AB], [(2, "no conversation")]),
    ("s-blank.jsonl", line(**talk("a", "b")) + line(**talk("a", " ")), [AB], [(2, "'output' is empty")]),
    ("s-blank-history.jsonl", line(**talk("a", "b")) + line(**talk("a", "", "c", "d")), [AB], [(2, "'history' has an empty turn")]),
    ("s-tool.jsonl", line(**talk("a", "b")) + line(**talk("a", "b", "c", sides=("human", "tool"))), [AB], [(2, "turn 2 is from 'tool'")]),
    ("s-number.jsonl", line(**talk("a", "b")) + line(conversations=[{"from": 1, "value": "x"}]), [AB], [(2, "turn 1 is from 1")]),
    ("s-text.jsonl", line(**talk("a", "b")) + line(conversations=["x"]), [AB], [(2, "turn 1 is a str")]),
    ("m-call.jsonl", line(**chat("a", "b")) + line(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [1]}]),
     [AB], [(2, "turn 2 has no text")]),
    ("m-picture.jsonl", line(**chat("a", "b")) + line(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), [AB], [(2, "not text: 'image_url'")]),
    ("m-parts.jsonl", line(**chat("a", "b")) + line(messages=[{"role": "user", "content": ["x"]}]), [AB], [(2, "not text: 'x'")]),
    # --- table
    ("wide.csv", "question,answer\na,b\nx,y,z\n\nc,d\n", [AB, CD], [(3, "3 cells, where the table has 2 columns")]),
    ("empty.csv", 'question,answer\n"x\ny",\na,b\n', [AB], [(2, "'output' is empty")]),
    ("open.csv", 'question,answer\na,b\n"x,y\nc,d\n', [AB, CD], [(3, "a quote is opened and never closed")]),
    ("stray.csv", 'question,answer\n"x" y,z\nc,d\n', [CD], [(2, "a quote is not doubled")]),
    ("history.csv", "question,answer,history\nx,y,not json\na,b,\n", [AB], [(2, "'history' is not a JSON list")]),
    ("long.csv", f"question,answer\nx,{'y' * 3 * MAX_ELEMENT}\na,b\n", [AB], [(2, "longer than 2,000,000")]),
    ("big.csv", f"question,answer\nx,{'y' * (MAX_CHARACTERS + 1)}\na,b\n", [AB], [(2, "100,001 characters")]),
    ("empty.xlsx", sheet(("question", "answer"), ("x", None), ("a", "b")), [AB], [(2, "'output' is empty")]),
    ("formula.xlsx", sheet(("question", "answer"), ("x", "=1+1"), ("a", "b")), [AB], [(2, "'output' is empty")]),
    ("null.parquet", parquet([{"question": "x", "answer": None}, {"question": "a", "answer": "b"}]), [AB], [(1, "'output' is empty")]),
]  # fmt: skip


def test_a_bad_row_is_named_and_costs_no_other(tmp_path):
    def check(name, data, pairs, skipped):
        found, bad, _ = items(tmp_path, name, data)
        assert found == pairs
        assert [n for n, _ in bad] == [n for n, _ in skipped]
        for (_, why), (_, expected) in zip(bad, skipped, strict=True):
            assert expected in why and len(why) < 300

    check_each(SKIPPED, check)


NOTES = [
    ("id.json", '[{"instruction": "a", "output": "b", "id": 7, "category": "x", "empty": ""}]', [(1, "key 'id' left out"), (1, "key 'category' left out")]),
    ("source.json", '[{"instruction": "a", "output": "b", "source": 7}]', [(1, "a source that is not text left out")]),
    ("system.json", json.dumps([{**talk("a", "b"), "system": "Be.", "tools": "[]"}]), [(1, "system message left out"), (1, "key 'tools' left out")]),
    ("said.json", json.dumps([talk("s", "a", "b", sides=("system", "human"))]), None),
    ("greeting.jsonl", line(conversations=[{"from": "gpt", "value": "hi"}, *talk("a", "b", "c")["conversations"]]),
     [(1, "greeting left out"), (1, "last message left out")]),
    ("weights.jsonl", line(messages=[{"role": "user", "content": "a", "name": "u"}, {"role": "assistant", "content": "b", "name": "v"}]),
     [(1, "key of a turn 'name' left out")]),
    ("more.csv", "question,answer,id\na,b,7\n", [(2, "key 'id' left out")]),
    ("order.csv", "甲,乙\na,b\n", [(1, "columns taken in their order: '甲', '乙'")]),
    ("picture.parquet", parquet([{"question": "a", "answer": "b", "image": b"\xff"}]), [(1, "column 'image' left out")]),
]  # fmt: skip


def test_what_is_left_out_of_a_pair_is_noted(tmp_path):
    def check(name, data, notes):
        pairs, skipped, found = items(tmp_path, name, data)
        assert (pairs, skipped) == ([AB], [])
        assert [n for n, _ in found] == [n for n, _ in notes]
        assert all(expected in what for (_, what), (_, expected) in zip(found, notes, strict=True))

    check_each([n for n in NOTES if n[2]], check)


REFUSED = [
    ("prose.json", "Once upon a time, there was.", "alpaca", "no JSON; it begins with 'Once upon a time, th'"),
    (
        "keys.json",
        '[{"甲": "a", "乙": "b"}]',
        "alpaca",
        "which column is the instruction and which the output? It has: '甲', '乙'",
    ),
    (
        "keys.csv",
        "甲,乙,丙\na,b,c\n",
        "table",
        "It has: '甲', '乙', '丙'. Choose: --column instruction=NAME --column output=NAME",
    ),
    ("no-answer.csv", "question,x,y\na,b,c\n", "table", "which column is the output"),
    ("one.csv", "question\na\n", "table", "does not name two columns"),
    ("blank.csv", "\n\n", "table", "does not name two columns"),
    ("open.csv", 'question,"answer\na,b\na,b\na,b"\n', "table", "a quote there is never closed"),
    ("broken.xlsx", b"PK\x03\x04" + b"x" * 100, "table", "no Excel file that can be read"),
    ("broken.parquet", b"PAR1" + b"x" * 100, "table", "no Parquet file that can be read"),
    ("blank.xlsx", sheet(), "table", "does not name two columns"),
]


def test_a_file_that_cannot_be_read_at_all_is_refused(tmp_path):
    def check(name, data, format, why):
        with pytest.raises(InputError) as e:
            items(tmp_path, name, data, format)
        assert name in str(e.value) and why in str(e.value)

    check_each(REFUSED, check)


NOBODYS = [
    ("play.txt", "甄嬛：你来了。\n皇上：来了，朕来看看你。\n"),
    ("prose.txt", "He came, and he saw, and he went.\nShe came, and she stayed, and she left.\n"),
    ("question.txt", "Question, answer\nHe came, he saw, and he went.\nShe left.\n"),
    ("prose.csv", "It was late.\nVery late.\n"),
    ("config.json", '{"name": "x", "version": 3}'),
    ("numbers.json", "[1, 2, 3]"),
    ("half.json", '{"instruction": '),
    ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20),
    ("archive.zip", b"PK\x03\x04" + bytes(range(256)) * 20),
]


def test_what_is_not_theirs_is_not_claimed(tmp_path):
    def check(name, data):
        opened = source(tmp_path, name, data)
        assert {n: formats()[n].sniff(opened) for n in FORMATS} == dict.fromkeys(FORMATS, 0.0)

    check_each(NOBODYS, check)


# --- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, data, format", [
    ("x.json", '[{"甲": "a", "乙": "b", "question": "x", "answer": "y"}]', "alpaca"),
    ("x.csv", "question,answer,甲,乙\nx,y,a,b\n", "table"),
    ("x.xlsx", sheet(("question", "answer", "甲", "乙"), ("x", "y", "a", "b")), "table"),
    ("x.parquet", parquet([{"甲": "a", "乙": "b", "question": "x", "answer": "y"}]), "table"),
])  # fmt: skip
def test_a_choice_of_columns_wins_over_the_guess(tmp_path, name, data, format):
    survey = formats()[format].survey(source(tmp_path, name, data))
    assert sorted(survey.columns) == sorted(("甲", "乙", "question", "answer"))
    assert survey.mapping == {"instruction": "question", "output": "answer"}
    assert items(tmp_path, name, data, format)[0] == [Pair("x", "y")]
    assert items(tmp_path, name, data, format, COLUMNS)[0] == [AB]
    with pytest.raises(InputError, match="no column '丙'"):
        items(tmp_path, name, data, format, Options(columns={"output": "丙"}))
    with pytest.raises(InputError, match="'answers': not a field of a pair"):
        items(tmp_path, name, data, format, Options(columns={"answers": "甲"}))


def test_a_field_can_be_left_out(tmp_path):
    data = '[{"instruction": "a", "input": "x", "output": "b"}]'
    assert items(tmp_path, "x.json", data, options=Options(columns={"input": ""}))[0] == [AB]


@pytest.mark.parametrize("format, data", [
    ("sharegpt", json.dumps([{"system": "Be.", **talk("a", "b")}, {"system": "Be.", **talk("c", "d")}])),
    ("messages", line(messages=[{"role": "system", "content": "Be."}, *chat("a", "b")["messages"]]) * 2),
    ("messages", line(prompt=[{"role": "system", "content": "Be."}, {"role": "user", "content": "a"}], completion="b")),
])  # fmt: skip
def test_a_system_message_that_all_rows_have_is_the_cards(tmp_path, format, data):
    opened = source(tmp_path, "mags.jsonl", data)
    card = formats()[format].survey(opened).card
    assert (card.name, card.system) == ("mags", "Be.")
    other = data.replace("Be.", "Or not.", 1)
    if data.count("Be.") > 1:
        assert formats()[format].survey(source(tmp_path, "mags.jsonl", other)).card is None


def test_sources(tmp_path):
    """Our own rows are taken as they are; any other says where it comes from, unless it knows better."""

    def sources(name, data):
        opened = source(tmp_path, name, data)
        return [p.source for p in importer(detect(opened)).read(opened, Options()) if isinstance(p, Pair)]

    assert sources("a.jsonl", A + "\n" + '{"instruction": "a", "output": "b", "source": "s"}') == ["", "s"]
    assert sources(
        "a.json", '[{"instruction": "a", "input": "", "output": "b"},\n{"q": "", "instruction": "a", "output": "b"}]'
    ) == ["a.json:1", "a.json:2"]
    assert sources("a.json", json.dumps([talk("a", "b"), talk("a", "b", source="s"), talk("a", "b", source=7)])) == [
        "a.json:1",
        "s",
        "a.json:1",
    ]
    assert sources("a.csv", 'question,answer\n"a\nx",b\na,b\n') == ["a.csv:2", "a.csv:4"]
    assert sources("a.xlsx", sheet(("question", "answer"), ("a", "b"))) == ["a.xlsx:2"]


# --- what is written is read back --------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "\u2028",
        "\x85",
        "\r\n",
        "\r",
        "a\rb\nc",
        "\x00",
        "\ufeff",
        "𠮷",
        '"\\',
        '""',
        "\x1e",
        ",;\t|",
        "=1+1",
        "<START>",
        "'",
    ]
)
side = text.map(lambda t: t if t.strip() else f"x{t}")
some_pairs = st.lists(
    st.builds(Pair, side, side, st.lists(st.tuples(side, side), max_size=3).map(tuple), text), max_size=5
)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=120, deadline=None)
@given(pairs=some_pairs)
def test_what_is_written_is_read_back(tmp_path_factory, format, pairs):
    module = formats()[format]
    opened = tmp_path_factory.getbasetemp() / f"{format}{module.SUFFIX}"
    with opened.open("w", encoding="utf-8", newline="") as out:
        out.writelines(module.dump(pairs))
    if not opened.stat().st_size:
        assert format in ("alpaca", "messages") and not pairs
        return
    found = open_source(opened)
    assert list(module.read(found, Options())) == pairs
    if pairs:
        assert detect(found) == format


def test_excel_is_told_that_a_csv_is_utf8():
    assert "".join(formats()["table"].dump([AB])).startswith("\ufeffinstruction,output,history,source\r\na,b,,\r\n")


@given(pairs=some_pairs)
def test_our_own_file_is_written_back_byte_for_byte(pairs):
    assert "".join(formats()["alpaca"].dump(pairs)) == dumps(pairs)


# --- memory, size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, format", [("m.jsonl", "alpaca"), ("m.json", "alpaca"), ("m.csv", "table")])
@pytest.mark.parametrize("count, size", [(1_500, 2_000), pytest.param(20_000, 150, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_file(tmp_path, name, format, count, size):
    pairs = [Pair(f"Question {n}, {'x' * size}", f"Answer {n}, {'y' * size}") for n in range(count)]
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as out:
        if name == "m.json":
            out.write("[" + ", ".join(json.dumps(p.to_dict()) for p in pairs) + "]")
        else:
            out.writelines(formats()[format].dump(pairs))
    del pairs
    opened = open_source(tmp_path / name)
    tracemalloc.start()
    try:
        assert sum(isinstance(item, Pair) for item in importer(format).read(opened, Options())) == count
        assert tracemalloc.get_traced_memory()[1] < 3_000_000 < opened.path.stat().st_size
    finally:
        tracemalloc.stop()


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("persona.importers.table.MAX_UNPACKED", 1_000_000)
    with (
        zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xl/x.xml", "w", force_zip64=True) as out,
    ):
        out.write(bytes(5_000_000))
    assert (tmp_path / "bomb.xlsx").stat().st_size < 10_000
    with pytest.raises(InputError, match="5 MB once unpacked, where 1 MB is the limit"):
        list(importer("table").read(open_source(tmp_path / "bomb.xlsx"), Options()))


def test_a_skipped_row_is_shown_but_not_kept_whole(tmp_path):
    found = list(rows(source(tmp_path, "x.json", f'[{{"a": "{"x" * 50_000}", oh}}, {{"a": 1}}]')))
    assert (
        isinstance(found[0], Skipped) and found[0].text.startswith('{"a": "xxx') and len(found[0].text) <= MAX_SHOWN + 1
    )
    assert found[1] == Row(1, {"a": 1}, '{"a": 1}')


def test_a_row_on_the_border_of_two_chunks(tmp_path):
    """Whatever the border falls on: a number, a key, the comma between two rows, a broken row."""

    def check(size):
        data = f'[{{"a": "{"x" * size}"}},{{"a": oh}},{{"a": 12345}}, 67890 ,{{"a": "\\u4f60"}}]'
        found = [r.value if isinstance(r, Row) else r.why for r in rows(source(tmp_path, "x.json", data))]
        assert (
            found[0] == {"a": "x" * size} and "not JSON" in found[1] and found[2:] == [{"a": 12345}, 67890, {"a": "你"}]
        )

    check_each(range(65_480, 65_560, 3), check)


# --- damaged files -----------------------------------------------------------------------------------------------


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four accidents: bytes deleted, doubled, swapped, overwritten, put in, or the end cut off."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(made) or 1), chance.choice((1, 1, 2, 8, 40))
        match chance.randrange(7):
            case 0:
                del made[at : at + size]
            case 1:
                made[at:at] = made[at : at + size]
            case 2:
                to = chance.randrange(len(made) or 1)
                made[at : at + size], made[to : to + size] = made[to : to + size], made[at : at + size]
            case 3:
                made[at : at + size] = chance.randbytes(size)
            case 4:
                made[at:at] = chance.randbytes(size)
            case 5:
                made[at:at] = chance.choice(
                    (b'"', b"{", b"}", b"[", b"]", b",", b"\n", b"\r", b"\\", b"\x00", b":", b"NaN")
                )
            case 6 if chance.random() < 0.3:
                del made[at:]
    return bytes(made)


def walk(file: Path) -> None:
    """Every way through the importers ends in items or in a PersonaError."""
    try:
        opened = open_source(file)
        detect(opened)
    except PersonaError:
        if not file.stat().st_size:
            return
    for name in (*FORMATS, "character"):
        for step in (
            lambda name=name: formats()[name].survey(opened),
            lambda name=name: list(importer(name).read(opened, Options())),
        ):
            try:
                step()
            except PersonaError as e:
                assert 0 < len(str(e)) < 6_000


SMALL = [(name, data if isinstance(data, bytes) else data.encode()) for name, data, *_ in (*GOOD, *SKIPPED, *NOTES)]
SMALL = [(name, data) for name, data in SMALL if 20 < len(data) < 20_000]


@pytest.mark.parametrize("count", [400, pytest.param(4_000, marks=pytest.mark.slow)])
def test_damaged_files_end_in_items_or_a_sentence(tmp_path, count):
    chance = random.Random(count)
    light = [s for s in SMALL if not s[0].endswith((".xlsx", ".parquet"))]
    for n in range(count):
        name, data = chance.choice(SMALL if n % 10 == 0 else light)
        (tmp_path / name).write_bytes(made := damaged(data, chance))
        try:
            walk(tmp_path / name)
        except BaseException as e:
            e.add_note(f"input {n}: {name} {made!r:.3000}")
            raise


def is_pair(text: str) -> bool:
    try:
        check(json.loads(text))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("count", [300, pytest.param(3_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("format", ["alpaca", "sharegpt", "messages"])
def test_no_row_of_a_damaged_file_is_lost(tmp_path, format, count):
    """Each line that is not blank is a pair or is skipped, whatever happened to it."""
    pairs = [Pair(f"你是谁？{n}", f'本宫"甄嬛"。\n{n}', (("a", "b"),) * (n % 3), "s") for n in range(8)]
    module, chance = formats()[format], random.Random(count)
    data = "".join(module.dump(pairs))
    data = data if module.SUFFIX == ".jsonl" else data[1:-2].strip().replace(",\n", "\n")
    whole = 0
    for _ in range(count):
        opened = source(tmp_path, "x.jsonl", damaged(data.encode(), chance) or b"x")
        lines = [number for number, text in opened.lines() if text.strip()]
        try:
            found = [item for item in module.read(opened, Options()) if not isinstance(item, Note)]
        except InputError:  # no row is left that tells which key is which
            assert not list(filter(is_pair, (text for _, text in opened.lines())))
            continue
        assert len(found) == len(lines), opened.bytes()
        assert [item.line for item in found if isinstance(item, Skipped)] == [
            n for n, item in zip(lines, found, strict=True) if isinstance(item, Skipped)
        ]
        whole += sum(isinstance(item, Pair) for item in found)
    assert whole > 5 * count, "most rows are not touched, and are read"


# --- the Hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


CHOICES = [
    (["README.md", "train.jsonl", "test.jsonl", "model.pt"], "train.jsonl"),
    (["data/test.csv", "data/train.csv", "old/train.jsonl"], "data/train.csv"),
    (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "data/train-00000-of-00001.parquet"),
    (["train.parquet", "train.json", "dataset_infos.json"], "train.json"),
    (["validation.json", "pairs.json"], "pairs.json"),
    (["extra.jsonl", "train.jsonl"], "train.jsonl"),
    (["deep/er/x.csv", "load.py"], "deep/er/x.csv"),
]


@pytest.mark.parametrize("names, chosen", CHOICES, ids=[" ".join(c[0]) for c in CHOICES])
def test_the_data_file_of_a_data_set_is_downloaded(hub, names, chosen, home):
    hub.add("ann/zhen", {name: f"{A} {name}".encode() for name in names})
    file = datasets_hub.download("ann/zhen")
    assert file.read_text() == f"{A} {chosen}" and file.suffix == Path(chosen).suffix and home in file.parents
    fetched = [r for r in hub.requests if "/resolve/" in r]
    assert fetched and all(r.endswith(chosen) for r in fetched), "nothing else is fetched"


def test_a_file_and_a_revision_can_be_named(hub):
    old = hub.add("ann/zhen", {"a.jsonl": b"old", "b.jsonl": b"b"})
    hub.add("ann/zhen", {"a.jsonl": b"new", "b.jsonl": b"b"})
    assert datasets_hub.download("ann/zhen/a.jsonl").read_bytes() == b"new"
    assert datasets_hub.download("ann/zhen/a.jsonl", old).read_bytes() == b"old"
    assert datasets_hub.download(f"{hub.url}/datasets/ann/zhen/blob/main/b.jsonl").read_bytes() == b"b"
    with pytest.raises(InputError, match=r"which of its files\? a\.jsonl, b\.jsonl\. Name it: ann/zhen/a\.jsonl"):
        datasets_hub.download("ann/zhen")
    with pytest.raises(InputError, match="no file 'c.jsonl'"):
        datasets_hub.download("ann/zhen/c.jsonl")
    with pytest.raises(InputError, match="no such revision"):
        datasets_hub.download("ann/zhen/a.jsonl", "nowhere")


@pytest.mark.parametrize("name, why", [
    ("zhen", "not a data set on the Hub"), ("../../etc", "not a data set"), ("ann/none", "no such data set, or private"),
    ("ann/pickles", "nothing to import: it has data.pkl, load.py"), ("ann/secret", "no such data set, or private"),
])  # fmt: skip
def test_what_cannot_be_downloaded_is_refused_in_words(hub, name, why):
    hub.add("ann/pickles", {"data.pkl": b"x", "load.py": b"x"})
    hub.add("ann/secret", {"train.jsonl": b"x"}, private=True)
    with pytest.raises(InputError, match=why):
        datasets_hub.download(name)
    assert not [r for r in hub.requests if "/resolve/" in r]


def test_a_large_file_is_refused_before_it_is_downloaded(hub, monkeypatch):
    monkeypatch.setattr(datasets_hub, "MAX_BYTES", 1_000_000)
    hub.add("ann/zhen", {"train.jsonl": b"x" * 2_000_000})
    with pytest.raises(InputError, match="2 MB, where 1 MB is the limit"):
        datasets_hub.download("ann/zhen")
    assert not [r for r in hub.requests if "/resolve/" in r]


@pytest.mark.parametrize("status, why", [(500, "status 500"), (403, "status 403"), (0, "cannot be reached")])
def test_a_hub_in_trouble(hub, status, why):
    hub.add("ann/zhen", {"train.jsonl": b"x"})
    hub.fail("GET /api/datasets", 99, status)
    with pytest.raises(InputError, match=why):
        datasets_hub.download("ann/zhen")


def test_offline(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        datasets_hub.download("ann/zhen")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="switched off"):
        datasets_hub.download("ann/zhen")


def test_preview_reads_no_further_than_asked(tmp_path):
    opened = source(tmp_path, "x.jsonl", A + "\nbroken\n" + C + "\n" + A)
    seen = preview(opened, "alpaca", Options(), limit=2)
    assert (seen.pairs, [s.line for s in seen.skipped], seen.more) == ([AB, CD], [2], True)


def test_csv_field_limit_is_ours(tmp_path):
    """Python's own limit, 131,072 characters, would refuse a cell with a long history."""
    history = [["x" * 90_000, "y" * 90_000]]
    data = io.StringIO()
    csv.writer(data).writerows([("instruction", "output", "history"), ("a", "b", json.dumps(history))])
    assert items(tmp_path, "x.csv", data.getvalue())[0] == [Pair("a", "b", (("x" * 90_000, "y" * 90_000),))]
