"""A .zip, .gz or .tar around one file, and YAML files: opened within limits, or named."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest
from row_files import source

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.store.persona_folder import find_persona
from persona.ui.steps.write import import_tab
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


def tar(mode="w", **files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if data is info else len(data)
            archive.addfile(info, None if data is info else io.BytesIO(data.encode()))
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
        "x.tar": tar(**{"in/x.json": ROWS, "photo.jpg": "-", "._x.json": "-"}),
        "x.tar.gz": tar("w:gz", **{"x.csv": CSV}),
        "x.tgz": tar("w:gz", **{"x.json": ROWS}),
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
    (tmp_path / "x.tgz").write_bytes(tar("w:gz", **{"a/x.json": ROWS, "b/x.json": ROWS[:-1]}))
    assert packed_file.list_members(tmp_path / "x.tgz") == ["a/x.json", "b/x.json"]
    assert value("import", tmp_path / "x.tgz", tmp_path / "q", "--member", "a/x.json")["pairs"] == 2
    (tmp_path / "x.json").write_text(ROWS)
    status, _, err = call("import", tmp_path / "x.json", tmp_path / "r", "--member", "a.json")
    assert status == 1 and "x.json: no .zip or .tar" in err


def test_the_page_asks_which_of_several_files(home, tmp_path):
    file = tmp_path / "x.zip"
    file.write_bytes(pack(**{"a/x.json": ROWS, "b.csv": CSV, "c.txt": "ADA: One?\nBEN: Two.\n" * 3}))
    voice, button = import_tab.ask_whose_voice(str(file))
    assert "3 files" in voice.info and button.visible
    slug, *_ = import_tab.start_from_file(str(file), "Mags")
    seen = import_tab.survey_for_persona(slug, str(file), "", "")
    assert [name for name, _ in seen.member.choices] == ["a/x.json", "b.csv", "c.txt"] and seen.member.visible
    assert "holds 3 files" in seen.found and not seen.add.interactive
    chosen = "", 0, "", "", "b.csv"
    seen = import_tab.survey_for_persona(slug, str(file), "", "", *chosen)
    assert "Pairs in all: 2" in seen.preview and seen.add.interactive and seen.member.value == "b.csv"
    columns = "question", "answer", "", ""
    rest = [], "drop", 0, *columns, "line", *chosen
    assert "Pairs in all: 2" in import_tab.update_preview(str(file), "", "", "table", *rest)[0]
    import_tab.add_imported_pairs(slug, str(file), "", "", "table", False, *rest)
    assert [pair.output for pair in find_persona(slug).pairs()] == [a for _, a in WANTED]
    one = tmp_path / "one.json"
    one.write_text(ROWS)
    seen = import_tab.survey_for_persona(slug, str(one), "", "", *chosen)
    assert seen.add.interactive and not seen.member.visible, "what was chosen in another archive is forgotten"


def test_bombs_and_damaged_files_are_refused(tmp_path, monkeypatch):
    bomb, row = "[" + " " * 5_000_000, pack(**{"x.json": ROWS})
    link = zipfile.ZipInfo("x.json")
    link.external_attr = 0o120777 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    link_to_passwd = tarfile.TarInfo("x.json")
    link_to_passwd.type, link_to_passwd.linkname = tarfile.SYMTYPE, "/etc/passwd"
    refused = {
        "bomb.zip": (pack(**{"x.json": bomb}), "more than 1 MB come out of it"),
        "bomb.gz": (gzip.compress(bomb.encode()), "more than 1 MB come out of it"),
        "twice.gz": (gzip.compress(gzip.compress(ROWS.encode())), "a packed file again"),
        "in a zip.zip": (pack(**{"x.txt": row}), "a packed file again"),
        "link.zip": (out.getvalue(), "is a link"),
        "cut.gz": (gzip.compress(ROWS.encode())[:-20], "damaged"),
        "link.tar": (tar(x=link_to_passwd), "is a link"),
        "cut.tar": (tar(**{"x.json": ROWS * 20})[:1000], "damaged"),
        "cut.tgz": (tar("w:gz", **{"x.json": ROWS * 20})[:120], "damaged"),
        "bomb.tgz": (tar("w:gz", **{"x.json": bomb, "y.json": ROWS}), "more than 1 MB come out of it"),
        "up.tar": (tar(**{"a\\x.json": ROWS}), "leads out of the archive"),
        "in a tar.tar": (tar(**{"x.txt": tar(**{"x.json": "{}"}).decode()}), "a packed file again"),
        "up.zip": (pack(**{"/x.json": ROWS}), "leads out of the archive"),
    }
    for name, (data, why) in refused.items():
        with pytest.raises(InputError, match=why):
            source(tmp_path, name, data)
            pytest.fail(name)
    with pytest.raises(InputError, match="seems to be TAR.* Unpack it"):
        read(source(tmp_path, "x.tar", tar(**{"photo.jpg": "-"})))
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
