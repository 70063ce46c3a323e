"""Which rows of a file are imported: slices, filters, a seed; data with one text column; how an input is joined."""

import json

import pytest
from cases import check_each
from row_files import parquet, source

from persona.errors import InputError
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.template.chat_template import shipped_templates
from persona.template.render import Renderer
from persona.write.importers import ImportOptions, SkippedRow
from persona.write.importers.registry import detect_format, import_into, read_source
from persona.write.importers.row_selection import parse_selection, split_source_slice

pytest_plugins = "tests.cli_fixtures"

ROWS = [{"instruction": f"q{n}", "output": "x" * n, "mood": "sad" if n % 2 else "glad"} for n in range(1, 41)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "instruction,output,mood\n" + "".join(",".join(row.values()) + "\n" for row in ROWS)


def items(file):
    return list(read_source(file, detect_format(file), ImportOptions()))


def questions(src, options):
    found = read_source(src, detect_format(src), options)
    return [item.instruction for item in found if isinstance(item, Pair)]


def numbers(src, *words):
    return [int(q[1:]) for q in questions(src, ImportOptions(selection=parse_selection(*words)))]


def test_slices_are_those_of_the_datasets_library(tmp_path):
    from datasets import Dataset, ReadInstruction

    rows = Dataset.from_list(ROWS)
    file = source(tmp_path, "rows.jsonl", JSONL)

    def check(split):
        (exact,) = ReadInstruction.from_spec(split).to_absolute({"train": len(rows)})
        assert numbers(file, split) == list(range(exact.from_ + 1, exact.to + 1))

    check_each(["train", "train[:10]", "train[5:7]", "train[-3:]", "train[:10%]", "train[37%:63%]", "train[:-30]",
                "train[-10%:]", "train[30:99]"], check)  # fmt: skip


def test_a_seed_picks_the_rows_that_datasets_picks(tmp_path):
    from datasets import Dataset

    file = source(tmp_path, "rows.jsonl", JSONL)
    theirs = Dataset.from_list(ROWS).shuffle(seed=42).select(range(7))["instruction"]
    assert numbers(file, "", (), 7, 42) == sorted(int(q[1:]) for q in theirs)
    assert numbers(file, "train[:5]", (), 99, 1) == [1, 2, 3, 4, 5]


def test_rows_are_filtered_by_their_columns(tmp_path):
    cases = {
        "equal": (["mood=sad"], [*range(1, 40, 2)]), "unequal": (["mood != sad"], [*range(2, 41, 2)]),
        "length": (["len(output)>38"], [39, 40]), "both": (["len(output)>=37", "mood='glad'"], [38, 40]),
    }  # fmt: skip
    for name, data in (("rows.jsonl", JSONL), ("rows.csv", CSV)):
        file = source(tmp_path, name, data)
        check_each(cases, lambda conditions, left, file=file: numbers(file, "", conditions) == left or pytest.fail())
    scores = source(
        tmp_path, "s.jsonl", "".join(json.dumps({"q": f"q{n}", "a": "a", "score": n}) + "\n" for n in range(9))
    )
    assert numbers(scores, "", ["score>6.5"]) == [7, 8]
    assert numbers(file, "train[:10]", ["mood=sad"], 2) == [1, 3]


def test_each_kind_of_data_is_sliced_and_of_text_the_pairs_are(tmp_path):
    chat = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(6)
    ]
    share = [{"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a"}]} for n in range(6)]
    play = "".join(f"A: q{n}\nB: a\n" for n in range(6))
    cases = {
        "messages": ("m.json", json.dumps(chat)), "sharegpt": ("s.json", json.dumps(share)), "scenes": ("p.txt", play),
        "table": ("t.csv", "question,answer\n" + "".join(f"q{n},a\n" for n in range(6))),
    }  # fmt: skip

    def check(name, data):
        file = source(tmp_path, name, data)
        asked = questions(file, ImportOptions(speakers=("B",), selection=parse_selection("[-4:]", rows=2)))
        assert asked == ["q2", "q3"]

    check_each(cases, check)


def test_what_cannot_be_selected_is_refused_in_words(tmp_path):
    file = source(tmp_path, "rows.jsonl", JSONL)
    cases = {
        "split": (("train+test",), "train\\[:1000\\]"), "step": (("train[::2]",), "no split"),
        "percent": (("train[:120%]",), "-100 to 100"), "rows": (("", (), 0), "at least 1"),
        "seed alone": (("", (), None, 3), "how many"), "condition": (("", ["sad"]), "mood=sad"),
        "number": (("", ["len(output)>long"]), "no number"), "column": (("", ["colour=red"]), "no column 'colour'.*mood"),
        "nothing left": (("", ["mood=angry"]), "leaves none"), "beyond": (("[100:]",), "leaves none"),
    }  # fmt: skip

    def check(words, why):
        with pytest.raises(InputError, match=why):
            numbers(file, *words)

    check_each(cases, check)


def test_nothing_is_read_behind_the_slice(tmp_path):
    file = source(tmp_path, "rows.jsonl", JSONL + "broken\n")
    options = ImportOptions(selection=parse_selection("[:3]"))
    found = list(read_source(file, "alpaca", options))
    assert sum(isinstance(x, Pair) for x in found) == 3 and not any(isinstance(x, SkippedRow) for x in found)


def test_a_slice_stands_behind_the_name():
    assert split_source_slice("tatsu-lab/alpaca[:1000]") == ("tatsu-lab/alpaca", "[:1000]")
    assert split_source_slice("a[1].json") == ("a[1].json", "") and split_source_slice("x") == ("x", "")


def test_import_takes_the_slice_from_the_command_line(tmp_path, value, refused):
    file = tmp_path / "rows.jsonl"
    file.write_text(JSONL)
    assert value("import", f"{file}[:10]", tmp_path / "a", "--where", "mood=sad", "--rows", 3)["pairs"] == 3
    assert value("import", file, tmp_path / "b", "--split", "train[:50%]", "--rows", 5, "--shuffle", 7)["pairs"] == 5
    assert "given twice" in refused("import", f"{file}[:10]", tmp_path / "c", "--split", "train[:5]")
    assert "no split 'test'" in refused("import", file, tmp_path / "c", "--split", "test[:5]")
    named = tmp_path / "test.jsonl"
    named.write_text(JSONL)
    assert value("import", named, tmp_path / "d", "--split", "test[:5]")["pairs"] == 5


# ---- texts with marks


ZH = "### 指令:\n问{n}\n\n### 输入:\n数{n}\n\n### 回答:\n答{n}"
EN = "Below is an instruction.\n\n### Instruction:\nAsk {n}\n\n### Response:\nAnswer {n}</s>"


def test_one_column_of_text_is_split_by_its_marks(tmp_path):
    for text, asked, answer in ((ZH, "问0\n\n### 输入:\n数0", "答0"), (EN, "Ask 0", "Answer 0")):
        texts = [text.format(n=n) for n in range(4)]
        quoted = "text\n" + "".join(f'"{one}"\n' for one in texts)
        cases = {
            "jsonl": ("t.jsonl", "".join(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in texts)),
            "csv": ("t.csv", quoted),
        }

        def check(name, data, asked=asked, answer=answer):
            file = source(tmp_path, name, data)
            first = next(x for x in items(file) if isinstance(x, Pair))
            assert (first.instruction, first.output) == (asked, answer)

        check_each(cases, check)


def test_one_column_of_text_without_marks_is_refused_by_name(tmp_path):
    texts = ["Some words, and more.", "Others."]
    cases = {
        "jsonl": ("t.jsonl", "".join(json.dumps({"text": one}) + "\n" for one in texts)),
        "csv": ("t.csv", "text\n" + "".join(f'"{one}"\n' for one in texts)),
    }

    def check(name, data):
        file = source(tmp_path, name, data)
        with pytest.raises(InputError, match=rf"{name}: its only column of text, 'text'.*### Instruction"):
            items(file)

    check_each(cases, check)


def test_columns_of_question_and_answer_win_over_a_text_of_both(tmp_path):
    file = source(tmp_path, "alpaca.csv", f'instruction,input,output,text\nAsk,3,Answer,"{EN.format(n=0)}"\n')
    (pair,) = (x for x in items(file) if isinstance(x, Pair))
    assert (pair.instruction, pair.output) == ("Ask\n3", "Answer")


@pytest.mark.slow
def test_texts_and_slices_in_parquet(tmp_path):
    file = source(tmp_path, "t.parquet", parquet([{"text": ZH.format(n=n)} for n in range(4)]))
    assert questions(file, ImportOptions(selection=parse_selection("train[-2:]"))) == [
        "问2\n\n### 输入:\n数2", "问3\n\n### 输入:\n数3"
    ]  # fmt: skip
    plain = source(tmp_path, "p.parquet", parquet([{"text": "Some words."}]))
    with pytest.raises(InputError, match="its only column of text, 'text'"):
        items(plain)


def test_an_input_is_joined_as_the_tutorials_template_writes_it(tmp_path, byte_tokenizer):
    file = source(tmp_path, "a.json", json.dumps([{"instruction": "译", "input": "hi", "output": "你好"}]))

    def rendered(join, template="alpaca-zh"):
        (pair,) = read_source(file, "alpaca", ImportOptions(join_input=join))
        return Renderer(byte_tokenizer, shipped_templates()[template]).render_example(pair)

    example = rendered("alpaca-zh")
    assert "### 指令:\n译\n\n### 输入:\nhi\n\n### 回答:\n你好" in example.text
    assert "".join(t.text for t in Renderer(byte_tokenizer, shipped_templates()["alpaca-zh"]).tokens(example)
                   if t.learned).startswith("你好")  # fmt: skip
    assert "### Instruction:\n译\n\n### Input:\nhi\n\n### Response:" in rendered("alpaca-en", "alpaca-en").text
    assert (
        "译hi" in rendered("none").text
        and "译\nhi" in rendered("line").text
        and "译\n\nhi" in rendered("paragraph").text
    )


def test_an_input_s_join_is_chosen_on_the_command_line(tmp_path, value, refused):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"instruction": "译", "input": "hi", "output": "你好"}]))
    value("import", file, tmp_path / "p", "--join-input", "alpaca-zh")
    assert persona_folder.open_persona(tmp_path / "p").pairs()[0].instruction == "译\n\n### 输入:\nhi"
    assert "alpaca-zh" in refused("import", file, tmp_path / "q", "--join-input", "tab")


def test_a_refused_selection_changes_nothing(tmp_path, home):
    made = persona_folder.create_persona_at(tmp_path / "p", persona_folder.PersonaCard(name="p"))
    file = source(tmp_path, "rows.jsonl", JSONL)
    with pytest.raises(InputError, match="no column"):
        import_into(made, file, "alpaca", ImportOptions(selection=parse_selection("", ["nope=1"])))
    assert made.pairs() == []
