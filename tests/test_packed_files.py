"""A .zip or .gz around one file, and YAML files: opened within limits, or named."""

import gzip
import io
import json
import zipfile

import pytest
from row_files import source

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, packed_file, registry
from persona.write.importers.text_source import open_source

pytest_plugins = "tests.cli_fixtures"

WANTED = [("What is under the bridge?", "Water, mostly."), ("And the rest?", "Trolls.")]
ROWS = json.dumps([{"question": q, "answer": a} for q, a in WANTED])
CSV = "question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in WANTED)


def pack(**files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def read(opened):
    found = registry.read_source(opened, registry.detect_format(opened), ImportOptions())
    return [(i.instruction, i.output) for i in found if isinstance(i, Pair)]


def test_one_file_in_a_zip_or_gz_is_read(tmp_path):
    packed = {
        "x.zip": pack(**{"in/x.json": ROWS, "photo.jpg": b"\xff\xd8\xff", "__MACOSX/x.json": "-", ".y.txt": "-"}),
        "y.zip": pack(**{"x.csv": CSV}),
        "x.json.gz": gzip.compress(ROWS.encode()),
        "x.csv.GZ": gzip.compress(CSV.encode()),
        "no suffix": gzip.compress(ROWS.encode("utf-16")),
    }
    for name, data in packed.items():
        opened = source(tmp_path, name, data)
        assert read(opened) == WANTED, name
    assert source(tmp_path, "x.zip", packed["x.zip"]).name == "x.json"


def test_of_several_files_one_is_named(tmp_path, call, value):
    (tmp_path / "x.zip").write_bytes(pack(**{"a.json": ROWS, "b.csv": CSV}))
    with pytest.raises(InputError, match=r"x.zip: holds several files: a.json, b.csv. .*--member NAME"):
        open_source(tmp_path / "x.zip")
    status, _, err = call("import", tmp_path / "x.zip", tmp_path / "p", "--member", "c.json")
    assert status == 1 and "holds no 'c.json'. It holds a.json, b.csv" in err
    assert value("import", tmp_path / "x.zip", tmp_path / "p", "--member", "b.csv")["pairs"] == 2


def test_bombs_and_damaged_files_are_refused(tmp_path, monkeypatch):
    bomb, row = "[" + " " * 5_000_000, pack(**{"x.json": ROWS})
    link = zipfile.ZipInfo("x.json")
    link.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused = {
        "bomb.zip": (pack(**{"x.json": bomb}), "more than 1 MB come out of it"),
        "bomb.gz": (gzip.compress(bomb.encode()), "more than 1 MB come out of it"),
        "twice.gz": (gzip.compress(gzip.compress(ROWS.encode())), "a packed file again"),
        "in a zip.zip": (pack(**{"x.txt": row}), "a packed file again"),
        "link.zip": (out.getvalue(), "is a link"),
        "cut.gz": (gzip.compress(ROWS.encode())[:-20], "damaged"),
        "up.zip": (pack(**{"/x.json": ROWS}), "leads out of the zip"),
    }
    for name, (data, why) in refused.items():
        with pytest.raises(InputError, match=why):
            source(tmp_path, name, data)
    monkeypatch.setattr(packed_file, "MAX_BYTES", 50)
    with pytest.raises(InputError, match="more than"):
        source(tmp_path, "x.json.gz", gzip.compress(ROWS.encode()))


TALK = "conversations:\n- - What is under the bridge?\n  - Water, mostly.\n- - And the rest?\n  - Trolls.\n"


def test_yaml_is_read_or_named(tmp_path):
    files = {
        "chatterbot.yml": f"categories:\n- trolls\n{TALK}",
        "pasted.txt": f"# trolls\n{TALK}",
        "rows.yaml": "".join(f"- question: {q}\n  answer: {a}\n" for q, a in WANTED),
        "map.yaml": "".join(f'"{q}": {a}\n' for q, a in WANTED),
    }
    for name, data in files.items():
        assert read(source(tmp_path, name, data)) == WANTED, name
    assert read(source(tmp_path, "x.yml", "conversations:\n- - Really?\n  - yes\n")) == [("Really?", "yes")]
    refused = {
        'version: "3.1"\nnlu:\n- intent: greet\n  examples: |\n    - hey\n': "Rasa's training data",
        "name: x\nage: 3\n": "YAML without a list",
        "Who?: I.\nWho?: Me.\n": "a key stands there twice",
        "a: [\n": "no YAML that can be read",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n": "aliases",
        "[" * 5_000: "no YAML that can be read",
    }
    for data, why in refused.items():
        with pytest.raises(InputError, match=why):
            source(tmp_path, "x.yml", data)
    with pytest.raises(InputError, match="larger than 5 MB"):
        source(tmp_path, "x.yml", "#" * 5_000_001)
