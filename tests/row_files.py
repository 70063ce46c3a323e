"""Row files of every format: the pairs they give, and what is skipped, noted and refused."""

import io
import json
from pathlib import Path

from persona.store.pairs import MAX_CHARACTERS, Pair
from persona.write.importers import ImportNote, ImportOptions, SkippedRow
from persona.write.importers.registry import detect_format, get_importer
from persona.write.importers.rows import MAX_ROW
from persona.write.importers.text_source import open_source

FORMATS = ("alpaca", "sharegpt", "messages", "table")


def source(folder: Path, name: str, data: bytes | str):
    file = folder / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_source(file)


def items(folder: Path, name: str, data: bytes | str, format: str = "", options: ImportOptions = ImportOptions()):
    """(pairs without their sources, [(line, why)], [(line, note)])."""
    opened = source(folder, name, data)
    found = list(get_importer(format or detect_format(opened)).read(opened, options))
    pairs = [Pair(p.instruction, p.output, p.history) for p in found if isinstance(p, Pair)]
    skipped = [(s.line, s.why) for s in found if isinstance(s, SkippedRow)]
    return pairs, skipped, [(n.line, n.what) for n in found if isinstance(n, ImportNote)]


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
    ("talk.json", json.dumps([talk("a", "b"), talk("a", "b", "c", "d")]), "sharegpt", [AB, AB, HISTORY]),
    ("talk.jsonl", line(**talk("a", "b", sides=("user", "assistant"))), "sharegpt", [AB]),
    ("bot.jsonl", line(conversation=talk("a", "b", sides=("Human", "bot"))["conversations"]), "sharegpt", [AB]),
    ("named-messages.jsonl", line(messages=talk("a", "b")["conversations"]), "sharegpt", [AB]),
    ("joined.jsonl", line(conversations=[{"from": w, "value": v} for w, v in zip(("human", "human", "gpt", "gpt"), "abcd", strict=True)]),
     "sharegpt", [Pair("a\nb", "c\nd")]),
    # --- messages
    ("chat.jsonl", line(**chat("a", "b")) + line(**chat("a", "b", "c", "d")), "messages", [AB, AB, HISTORY]),
    ("role.json", json.dumps([talk("a", "b", who="role", what="content")]), "messages", [AB]),
    ("trl.jsonl", line(prompt="a", completion="b"), "messages", [AB]),
    ("trl-chat.jsonl", line(prompt=chat("a", "b", "c")["messages"], completion=[{"role": "assistant", "content": "d"}]), "messages", [AB, HISTORY]),
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
    ("half.csv", "答案,文本\nb,a\nd,c\n", "table", [AB, CD]),
    ("history.csv", 'instruction,output,history\nc,d,"[[""a"", ""b""]]"\n', "table", [HISTORY]),
    ("short.csv", "question,answer,source\na,b\n", "table", [AB]),
    ("t.xlsx", sheet(("问题", "回答"), ("a", "b"), (None, None), ("c", "d")), "table", [AB, CD]),
    ("second.xlsx", sheet(Data=[("question", "n", "answer"), ("a", 1, "b")]), "table", [AB]),
    ("numbers.xlsx", sheet(("question", "answer"), (1, 2.5), (3.0, "x")), "table", [Pair("1", "2.5"), Pair("3", "x")]),
    ("t.parquet", parquet([{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]), "table", [AB, CD]),
    ("talk.parquet", parquet([talk("a", "b", "c", "d", id=1)]), "table", [AB, HISTORY]),
    ("chat.parquet", parquet([chat("a", "b")]), "table", [AB]),
]  # fmt: skip


SKIPPED = [
    # --- JSON itself: (1, why) is the bad row, and the good ones around it are read
    ("half.jsonl", f'{{"instruction": "x", "outp\n{C}', [CD], [(1, "cut short")]),
    ("two.jsonl", f"{A} {C}\n{C}", [AB, CD, CD], []),
    ("nan.jsonl", f'{{"instruction": "x", "output": NaN}}\n{C}', [CD], [(1, "'output' is missing")]),
    ("twice.json", f'[{{"output": "x", "output": "y"}},\n{C}]', [CD], [(1, "'output' stands there twice")]),
    ("huge.jsonl", f'{{"instruction": {"9" * 5000}}}\n{C}', [CD], [(1, "thousands of digits")]),
    ("deep.json", "[" + '{"a":[' * 5000 + "]}" * 5000 + f",\n{C}]", [CD], [(1, "nested too deep")]),
    ("deep.jsonl", "[" * 100_000 + f"\n{C}", [CD], [(1, "nested too deep")]),
    ("surrogate-key.jsonl", f'{{"instruction": "x", "output": "y", "\\uD800": 1}}\n{C}', [CD], [(1, "half a character")]),
    ("bad-byte.jsonl", ZHEN.encode() + b'{"instruction": "\xff", "output": "y"}\n' + C.encode(), [*[Pair("你是谁？", "本宫甄嬛。")] * 9, CD], [(10, "Invalid \\escape")]),
    ("others.json", f'[1, "two", null, [3],\n{C}]', [CD], [(1, "a int, not an object"), (1, "a str"), (1, "a NoneType"), (1, "a list")]),
    ("cut.json", f"[{A},\n{C[:-5]}", [AB], [(2, "cut short")]),
    ("cut-comma.json", f"[{A},\n", [AB], [(1, "the file ends before its list is closed")]),
    ("cut-after.json", f"[{A}", [AB], [(1, "the file ends before its list is closed")]),
    ("cut-wrapped.json", f'{{"data": [{A}, {C}', [AB, CD], [(1, "the file ends before its list is closed")]),
    ("long.jsonl", f'{{"instruction": "{"x" * MAX_ROW}"}}\n{C}', [CD], [(1, "longer than 2,000,000")]),
    ("long.json", f'[{A},{{"instruction": "{"x" * MAX_ROW}"}},{C}]', [AB, CD], [(1, "longer than 2,000,000")]),
    ("never-closed.json", f'[{A},{{"instruction": "{"x" * 3 * MAX_ROW}', [AB], [(1, "longer than 2,000,000")]),
    ("open-text.json", json.dumps(json.loads(A), indent=1) + ' "hello', [AB], [(4, "text after the end")]),
    ("number.json", json.dumps(json.loads(A), indent=1) + " 5", [AB], [(4, "text after the end")]),
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
    ("s-blank-history.jsonl", line(**talk("a", "b")) + line(**talk("a", "", "c", "d")), [AB, CD], [(2, "'output' is empty")]),
    ("s-tool.jsonl", line(**talk("a", "b")) + line(**talk("a", "b", "c", sides=("human", "tool"))), [AB], [(2, "uses a tool")]),
    ("s-number.jsonl", line(**talk("a", "b")) + line(conversations=[{"from": 1, "value": "x"}]), [AB], [(2, "turn 1 is from 1")]),
    ("s-text.jsonl", line(**talk("a", "b")) + line(conversations=["x"]), [AB], [(2, "turn 1 is a str")]),
    ("m-call.jsonl", line(**chat("a", "b")) + line(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [1]}]),
     [AB], [(2, "uses a tool")]),
    ("m-picture.jsonl", line(**chat("a", "b")) + line(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), [AB], [(2, "no reply to anything")]),
    ("m-parts.jsonl", line(**chat("a", "b")) + line(messages=[{"role": "user", "content": ["x"]}]), [AB], [(2, "no reply to anything")]),
    # --- table
    ("wide.csv", "question,answer\na,b\nx,y,z\n\nc,d\n", [AB, CD], [(3, "3 cells, where the table has 2 columns")]),
    ("empty.csv", 'question,answer\n"x\ny",\na,b\n', [AB], [(2, "'output' is empty")]),
    ("open.csv", 'question,answer\na,b\n"x,y\nc,d\n', [AB, CD], [(3, "a quote is opened and never closed")]),
    ("stray.csv", 'question,answer\n"x" y,z\nc,d\n', [CD], [(2, "a quote is not doubled")]),
    ("history.csv", "question,answer,history\nx,y,not json\na,b,\n", [AB], [(2, "'history' is not a JSON list")]),
    ("long.csv", f"question,answer\nx,{'y' * 3 * MAX_ROW}\na,b\n", [AB], [(2, "longer than 2,000,000")]),
    ("big.csv", f"question,answer\nx,{'y' * (MAX_CHARACTERS + 1)}\na,b\n", [AB], [(2, "100,001 characters")]),
    ("empty.xlsx", sheet(("question", "answer"), ("x", None), ("a", "b")), [AB], [(2, "'output' is empty")]),
    ("formula.xlsx", sheet(("question", "answer"), ("x", "=1+1"), ("a", "b")), [AB], [(2, "'output' is empty")]),
    ("null.parquet", parquet([{"question": "x", "answer": None}, {"question": "a", "answer": "b"}]), [AB], [(1, "'output' is empty")]),
]  # fmt: skip


STOPPED = [
    # --- a list ends where it is not JSON: the rows before it, the line, and why
    ("huge.json", f'[{A},\n{{"instruction": {"9" * 5000}}},\n{C}]', [AB], 2, "thousands of digits"),
    ("long.json", f'[{A},\n{{"instruction": {"9" * 40}}},\n{C}]', [AB], 2, "integer overflow"),
    ("surrogate.json", f'[{A},\n{{"instruction": "x", "output": "\\udc00"}},\n{C}]', [AB], 2, "half a character"),
    ("raw-break.json", f'[{A},\n{{"instruction": "x\ny", "output": "z"}},\n{C}]', [AB], 2, "Invalid control character"),
    ("quote.json", f'[{A},{{"instruction": "she said "no" to me", "output": "y"}},{C}]', [AB], 1, "not JSON (Expecting ',' delimiter"),
    ("brace.json", f'[{A},{{"instruction": "x", "output": "y" ,{C},{A}]', [AB], 1, "Expecting property name"),
    ("open.json", f'[{A},{{"instruction": "x, "output": "y"}},{C}]', [AB], 1, "not JSON"),
    ("no-comma.json", f"[{A}\n{C}]", [AB], 2, """not JSON (Expecting value or ',', at '{"instruction": "c",')"""),
    ("garbage.json", f"[{A},\nxyz{C},{A}]", [AB], 2, "Expecting value or ',', at 'xyz"),
    ("same-line.json", f"[{A} xyz, {C}]", [AB], 1, "Expecting value or ',', at 'xyz"),
    ("closed-early.json", f"[{A}],{C},{A}]", [AB], 1, "text after the end of the list"),
    ("after.json", f"[{A}]\n hello", [AB], 2, "text after the end of the list"),
    ("far-after.json", f"[{A},,]" + "\n" * 200 + C, [AB], 1, "not JSON"),
    ("after-rows.json", f"{A}\n{C} hello", [AB, CD], 2, "text after the end of the list"),
    ("after-object.json", f'{{"data": [{A}]}} hello', [AB], 1, "text after the end of the list"),
]  # fmt: skip


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
    ("picture.parquet", parquet([{"question": "a", "answer": "b", "image": b"\xff"}]), [(1, "column 'image' left out")]),
]  # fmt: skip


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
