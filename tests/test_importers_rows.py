"""Row formats from outside: what becomes a pair, what is skipped and where, and that nothing is lost on the way."""

import csv
import io
import json
import tracemalloc
import zipfile

import pytest
from cases import check_each
from hypothesis import given, settings
from hypothesis import strategies as st
from row_files import (
    AB,
    CD,
    FORMATS,
    GOOD,
    NOBODYS,
    NOTES,
    REFUSED,
    SKIPPED,
    STOPPED,
    A,
    C,
    chat,
    items,
    line,
    parquet,
    sheet,
    source,
    talk,
)

from persona.errors import InputError
from persona.store.pairs import Pair, dump_pairs
from persona.write.importers import ImportNote, ImportOptions, SkippedRow
from persona.write.importers.json_reader import read_json_rows
from persona.write.importers.registry import detect_format, get_importer, import_formats, preview_import
from persona.write.importers.rows import MAX_SHOWN, SourceRow
from persona.write.importers.text_source import MAX_LINE, open_source

COLUMNS = ImportOptions(columns={"instruction": "甲", "output": "乙"})


@pytest.mark.slow
def test_good_files(tmp_path):
    def check(name, data, format, pairs):
        if format:
            sure = {n: m.sniff(source(tmp_path, name, data)) for n, m in import_formats().items()}
            assert [n for n, s in sure.items() if s > 0] == [format], "detect_format() takes the one that claims it"
        assert items(tmp_path, name, data, format or "alpaca")[:2] == (pairs, [])

    check_each(GOOD, check)


@pytest.mark.slow
def test_a_bad_row_is_named_and_costs_no_other(tmp_path):
    def check(name, data, pairs, skipped):
        found, bad, _ = items(tmp_path, name, data)
        assert found == pairs
        assert [n for n, _ in bad] == [n for n, _ in skipped]
        for (_, why), (_, expected) in zip(bad, skipped, strict=True):
            assert expected in why and len(why) < 300

    check_each(SKIPPED, check)


def test_a_list_is_read_as_far_as_it_is_json(tmp_path):
    def check(name, data, pairs, line, why):
        found, bad, _ = items(tmp_path, name, data)
        assert found == pairs and [n for n, _ in bad] == [line]
        assert why in bad[0][1] and "Nothing after it was read" in bad[0][1] and len(bad[0][1]) < 300

    check_each(STOPPED, check)


def test_a_file_that_is_broken_from_its_first_row_on_says_where(tmp_path):
    with pytest.raises(InputError, match=r"x.json line 2: not JSON \(Expecting value, at 'oh"):
        items(tmp_path, "x.json", f'[\n{{"instruction": oh}},\n{C}]')


def test_what_is_left_out_of_a_pair_is_noted(tmp_path):
    def check(name, data, notes):
        pairs, skipped, found = items(tmp_path, name, data)
        assert (pairs, skipped) == ([AB], [])
        assert [n for n, _ in found] == [n for n, _ in notes]
        assert all(expected in what for (_, what), (_, expected) in zip(found, notes, strict=True))

    check_each([n for n in NOTES if n[2]], check)


def test_a_file_that_cannot_be_read_at_all_is_refused(tmp_path):
    def check(name, data, format, why):
        with pytest.raises(InputError) as e:
            items(tmp_path, name, data, format)
        assert name in str(e.value) and why in str(e.value)

    check_each(REFUSED, check)


def test_what_is_not_theirs_is_not_claimed(tmp_path):
    def check(name, data):
        opened = source(tmp_path, name, data)
        assert {n: import_formats()[n].sniff(opened) for n in FORMATS} == dict.fromkeys(FORMATS, 0.0)

    check_each(NOBODYS, check)


# --- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, data, format", [
    ("x.json", '[{"甲": "a", "乙": "b", "question": "x", "answer": "y"}]', "alpaca"),
    ("x.csv", "question,answer,甲,乙\nx,y,a,b\n", "table"),
    ("x.xlsx", sheet(("question", "answer", "甲", "乙"), ("x", "y", "a", "b")), "table"),
    ("x.parquet", parquet([{"甲": "a", "乙": "b", "question": "x", "answer": "y"}]), "table"),
])  # fmt: skip
def test_a_choice_of_columns_wins_over_the_guess(tmp_path, name, data, format):
    survey = import_formats()[format].survey(source(tmp_path, name, data))
    assert sorted(survey.columns) == sorted(("甲", "乙", "question", "answer"))
    assert survey.mapping == {"instruction": "question", "output": "answer"}
    assert items(tmp_path, name, data, format)[0] == [Pair("x", "y")]
    assert items(tmp_path, name, data, format, COLUMNS)[0] == [AB]
    with pytest.raises(InputError, match="no column '丙'"):
        items(tmp_path, name, data, format, ImportOptions(columns={"output": "丙"}))
    with pytest.raises(InputError, match="'answers': not a field of a pair"):
        items(tmp_path, name, data, format, ImportOptions(columns={"answers": "甲"}))


def test_a_field_can_be_left_out(tmp_path):
    data = '[{"instruction": "a", "input": "x", "output": "b"}]'
    assert items(tmp_path, "x.json", data, options=ImportOptions(columns={"input": ""}))[0] == [AB]


@pytest.mark.parametrize("format, data", [
    ("sharegpt", json.dumps([{"system": "Be.", **talk("a", "b")}, {"system": "Be.", **talk("c", "d")}])),
    ("messages", line(messages=[{"role": "system", "content": "Be."}, *chat("a", "b")["messages"]]) * 2),
    ("messages", line(prompt=[{"role": "system", "content": "Be."}, {"role": "user", "content": "a"}], completion="b")),
])  # fmt: skip
def test_a_system_message_that_all_rows_have_is_the_cards(tmp_path, format, data):
    opened = source(tmp_path, "mags.jsonl", data)
    card = import_formats()[format].survey(opened).card
    assert (card.name, card.system) == ("mags", "Be.")
    other = data.replace("Be.", "Or not.", 1)
    if data.count("Be.") > 1:
        assert import_formats()[format].survey(source(tmp_path, "mags.jsonl", other)).card is None


def test_sources(tmp_path):
    """Our own rows are taken as they are; any other says where it comes from, unless it knows better."""

    def sources(name, data):
        opened = source(tmp_path, name, data)
        return [
            p.source for p in get_importer(detect_format(opened)).read(opened, ImportOptions()) if isinstance(p, Pair)
        ]

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
@settings(max_examples=60)
@given(pairs=some_pairs)
def test_what_is_written_is_read_back(tmp_path_factory, format, pairs):
    module = import_formats()[format]
    opened = tmp_path_factory.getbasetemp() / f"{format}{module.SUFFIX}"
    with opened.open("w", encoding="utf-8", newline="") as out:
        out.writelines(module.dump(pairs))
    if not opened.stat().st_size:
        assert format in ("alpaca", "messages") and not pairs
        return
    found = open_source(opened)
    read = [item for item in module.read(found, ImportOptions()) if not isinstance(item, ImportNote)]
    assert read == pairs
    if pairs:
        assert detect_format(found) == format


def test_excel_is_told_that_a_csv_is_utf8():
    assert "".join(import_formats()["table"].dump([AB])).startswith(
        "\ufeffinstruction,output,history,source,system,weights\r\na,b,,,,\r\n"
    )


@given(pairs=some_pairs)
def test_our_own_file_is_written_back_byte_for_byte(pairs):
    assert "".join(import_formats()["alpaca"].dump(pairs)) == dump_pairs(pairs)


# --- memory, size ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name, format", [("m.jsonl", "alpaca"), ("m.json", "alpaca"), ("m.csv", "table")])
@pytest.mark.parametrize(
    "count, size", [(1_500, 2_000), pytest.param(20_000, 150, marks=[pytest.mark.slow, pytest.mark.release])]
)
def test_memory_does_not_grow_with_the_file(tmp_path, name, format, count, size):
    pairs = [Pair(f"Question {n}, {'x' * size}", f"Answer {n}, {'y' * size}") for n in range(count)]
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as out:
        if name == "m.json":
            out.write("[" + ", ".join(json.dumps(p.to_dict()) for p in pairs) + "]")
        else:
            out.writelines(import_formats()[format].dump(pairs))
    del pairs
    opened = open_source(tmp_path / name)
    tracemalloc.start()
    try:
        assert sum(isinstance(item, Pair) for item in get_importer(format).read(opened, ImportOptions())) == count
        assert tracemalloc.get_traced_memory()[1] < 3_000_000 < opened.path.stat().st_size
    finally:
        tracemalloc.stop()


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("persona.write.importers.budget.MIN_BYTES", 1_000_000)
    with (
        zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xl/x.xml", "w", force_zip64=True) as out,
    ):
        out.write(bytes(5_000_000))
    assert (tmp_path / "bomb.xlsx").stat().st_size < 10_000
    with pytest.raises(InputError, match="more than 1 MB come out of it"):
        list(get_importer("table").read(open_source(tmp_path / "bomb.xlsx"), ImportOptions()))


def test_a_skipped_row_is_shown_but_not_kept_whole(tmp_path):
    found = list(read_json_rows(source(tmp_path, "x.json", f'[{{"a": 1}}, {{"a": "{"x" * 50_000}", oh}}]')))
    assert found[0] == SourceRow(1, {"a": 1}, '{"a": 1}')
    assert (
        isinstance(found[1], SkippedRow)
        and found[1].text.startswith('{"a": "xxx')
        and len(found[1].text) <= MAX_SHOWN + 1
    )


def test_a_row_may_be_cut_anywhere_between_two_pieces(tmp_path):
    """A line of more than MAX_LINE characters comes in pieces: of a number, a key, an escape, what separates rows."""

    def check(size):
        data = f'[{{"a": "{"x" * size}"}},{{"a": 12345}}, 67890 ,{{"b": "\\ud83d\\ude00"}},[{{"c": true}}]]'
        found = [r.value for r in read_json_rows(source(tmp_path, "x.json", data)) if isinstance(r, SourceRow)]
        assert found == [{"a": "x" * size}, {"a": 12345}, 67890, {"b": "😀"}, [{"c": True}]]

    check_each(range(MAX_LINE - 80, MAX_LINE, 3), check)


def test_preview_reads_no_further_than_asked(tmp_path):
    opened = source(tmp_path, "x.jsonl", A + "\nbroken\n" + C + "\n" + A)
    seen = preview_import(opened, "alpaca", ImportOptions(), limit=2)
    assert (seen.pairs, [s.line for s in seen.skipped], seen.more) == ([AB, CD], [2], True)


def test_csv_field_limit_is_ours(tmp_path):
    """Python's own limit, 131,072 characters, would refuse a cell with a long history."""
    history = [["x" * 90_000, "y" * 90_000]]
    data = io.StringIO()
    csv.writer(data).writerows([("instruction", "output", "history"), ("a", "b", json.dumps(history))])
    assert items(tmp_path, "x.csv", data.getvalue())[0] == [Pair("a", "b", (("x" * 90_000, "y" * 90_000),))]
