"""What an import could not do is said: bytes that are no text, options without effect, no pair, a kind that is not read."""

import io
import json
import zipfile

import pytest
from cases import check_each
from row_files import items, line, source

from persona.errors import InputError
from persona.write.importers import ImportNote, ImportOptions, registry
from persona.write.importers.text_source import open_source

pytest_plugins = "tests.cli_fixtures"

FRENCH = "Où étais-tu cet été ?;Près de la forêt, à côté des pêcheurs noyés.\nEt ta mère ?;Elle préférait la mer, ça se comprend.\n"


def notes(opened, format, options=ImportOptions()):
    return [i.what for i in registry.read_source(opened, format, options) if isinstance(i, ImportNote)]


def test_old_mac_files_are_read(tmp_path):
    for encoding in ("mac_roman", "cp1252"):
        opened = source(tmp_path, "x.csv", f"Question;Answer\n{FRENCH}".encode(encoding))
        assert opened.encoding in (encoding, "mac_iceland", "mac_roman")[: 3 if encoding == "mac_roman" else 1]
        assert registry.preview_import(opened, "table", ImportOptions()).pairs[0].output.endswith("noyés.")


def test_bytes_that_are_no_text_are_counted(tmp_path):
    good = "你是谁？\t本宫甄嬛。\n" * 20
    broken = f"question\tanswer\n{good}".encode() + b"\xff\xfe\tx\n"
    said = notes(source(tmp_path, "x.tsv", broken), "table")
    assert any("bytes are no" in what and "xNN" in what for what in said), said
    assert not [w for w in notes(source(tmp_path, "x.tsv", f"question\tanswer\n{good}"), "table") if "bytes" in w]


def test_a_preview_does_not_read_on_for_bytes_that_are_no_text(tmp_path, monkeypatch):
    opened = source(tmp_path, "x.tsv", "question\tanswer\n" + "".join(f"Who {n}?\tI am.\n" for n in range(20)))
    read = []
    monkeypatch.setattr(type(opened), "count_undecoded", lambda _: read.append(1) or 5)
    assert registry.preview_import(opened, "table", ImportOptions(), limit=19).more and not read
    assert not registry.preview_import(opened, "table", ImportOptions(), limit=20).more, "a note is no pair"
    assert any("bytes are no" in what for what in notes(opened, "table"))


def test_an_option_without_effect_is_noted(tmp_path):
    rows = {
        "alpaca": line(instruction="a", output="b"),
        "messages": line(prompt="a", completion="b"),
        "table": "question,answer\na,b\n",
        "screenplay": "Bob: a\nAnn: b\nBob: c\nAnn: d\n",
    }
    options = ImportOptions(columns={"instruction": "q"}, speakers=("Ann",), actions="keep", turns=1)
    unused = {
        "alpaca": ("--speaker", "--actions", "--history"),
        "messages": ("--column", "--speaker", "--actions"),
        "table": ("--speaker", "--actions"),
        "screenplay": ("--column",),
    }

    def check(format):
        given = ImportOptions(**{**vars(options), "columns": {} if format in ("alpaca", "table") else options.columns})
        said = [w.split()[0] for w in notes(source(tmp_path, "x.txt", rows[format]), format, given) if "no effect" in w]
        assert sorted(said) == sorted(unused[format])
        assert not [w for w in notes(source(tmp_path, "x.txt", rows[format]), format, ImportOptions(speakers=("Ann",) if format == "screenplay" else ())) if "no effect" in w]  # fmt: skip

    check_each([(format,) for format in rows], check)


def packed(*names) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


KINDS = {
    "RTF": rb"{\rtf1\ansi x}",
    "DOC, XLS": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100),
    "SQLite": b"SQLite format 3\0" + bytes(100),
    "OpenDocument": packed("mimetype", "content.xml"),
    "ZIP": packed("photo.jpg"),
    "JPEG": b"\xff\xd8\xff\xe0" + bytes(20),
}


def test_a_kind_that_is_not_read_is_named(tmp_path):
    def check(kind):
        opened = source(tmp_path, "x.bin", KINDS[kind])
        for act in (registry.detect_format, lambda s: list(registry.read_source(s, "prose", ImportOptions()))):
            with pytest.raises(InputError, match=f"it seems to be {kind}, which is not read. [A-Z]"):
                act(opened)

    check_each([(kind,) for kind in KINDS], check)


def test_no_pair_is_an_error_that_says_why(tmp_path, call):
    file = tmp_path / "x.json"
    file.write_text(json.dumps([{"instruction": "a", "output": ""}] * 3, indent=1))
    status, out, err = call("import", file, tmp_path / "p", "--json")
    assert status == 1 and "read as alpaca" in err and "3 times: 'output' is empty" in err
    assert json.loads(out.splitlines()[-1])["left_out"] == 3, "the rows are listed all the same"
    assert not (tmp_path / "p").exists()


def test_replies_are_counted_on_the_command_line(tmp_path, value, call):
    turns = [{"role": r, "content": f"{r} {n}"} for n in range(3) for r in ("user", "assistant")]
    (tmp_path / "x.jsonl").write_text(line(messages=turns) * 2)
    got = value("import", tmp_path / "x.jsonl", tmp_path / "p")
    assert (got["pairs"], got["replies"], got["conversations"]) == (6, 6, 2)
    _, out, _ = call("import", tmp_path / "x.jsonl", tmp_path / "p")
    assert "6 replies in 2 conversations" in out
    assert len(items(tmp_path, "x.jsonl", (tmp_path / "x.jsonl").read_text())[0]) == 6
    assert open_source(tmp_path / "x.jsonl").count_undecoded() == 0
