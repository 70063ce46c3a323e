"""Nothing of a character is lost: import → edit → export → import, book, greetings and all that isn't used."""

import base64
import json
import random
import zipfile

import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from persona.cli import app as cli_app
from persona.errors import InputError
from persona.store import kept_card
from persona.store.character_book import CharacterBook, read_book
from persona.store.persona_folder import open_persona, update_card
from persona.write.importers.character_card import read_card, survey
from persona.write.importers.registry import detect_format
from persona.write.importers.text_source import open_source

ENTRY = {
    "keys": ["Bosun", "cat"], "content": "Bosun is {{char}}'s cat.", "enabled": True, "insertion_order": 5,
    "selective": True, "secondary_keys": ["ship"], "constant": False, "case_sensitive": None, "position": "before_char",
    "id": 7, "priority": 3, "extensions": {"depth": 4, "x/y": [1]}, "unknown": {"a": 1},
}  # fmt: skip
DATA = {
    "name": "Mags Tolliver", "description": "{{char}} keeps the light. {{user}} visits.", "personality": "gruff",
    "scenario": "A storm.", "first_mes": "Come in, {{user}}.", "nickname": "Mags",
    "mes_example": "<START>\n{{user}}: Tea?\n{{char}}: Coffee.\n<START>\n{{user}}: Why?\n{{char}}: Why not.",
    "alternate_greetings": ["Oh, {{user}}.", "{{random:Hm,Hey}}."], "group_only_greetings": ["All of you?"],
    "post_history_instructions": "{{original}}Be {{pick:dry,brief}}.", "creator": "Ann", "creator_notes": "For night.",
    "creator_notes_multilingual": {"de": "Für nachts."}, "tags": ["sea"], "character_version": "1.2", "source": ["x"],
    "system_prompt": "{{original}} Be {{char}}.", "creation_date": 1, "modification_date": 2,
    "assets": [{"type": "icon", "uri": "ccdefault:", "name": "main", "ext": "png"}],
    "character_book": {"name": "Book", "scan_depth": 4, "token_budget": 300, "recursive_scanning": True,
                       "extensions": {"b": 2}, "entries": [ENTRY, {"keys": [], "content": "Always.", "constant": True,
                       "enabled": False, "insertion_order": 1, "extensions": {}, "use_regex": False}]},
    "extensions": {"talkativeness": "0.5", "depth_prompt": {"prompt": "…", "depth": 4}}, "future_field": [1, {"a": 2}],
}  # fmt: skip
V3 = {"spec": "chara_card_v3", "spec_version": "3.0", "data": DATA}


def run(*args):
    result = CliRunner().invoke(cli_app, [str(a) for a in args])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def mags(tmp_path):
    (tmp_path / "mags.json").write_text(json.dumps(V3))
    run("import", tmp_path / "mags.json", tmp_path / "mags")
    return open_persona(tmp_path / "mags")


def exported(persona, out):
    run("export", persona.path, out, "--as", "card")
    data = json.loads(out.read_text())["data"]
    assert data["extensions"].pop("persona")["source"] == "character card mags.json"
    return data


def test_a_card_that_nobody_edits_goes_out_as_it_came(mags, tmp_path):
    card = mags.card()
    assert card.alternate_greetings == ("Oh, you.", "{{random:Hm,Hey}}.") and card.nickname == "Mags"
    assert card.post_history_instructions == "Be {{pick:dry,brief}}."
    assert [e.title for e in card.character_book.entries] == ["Bosun, cat", "Always."]
    assert exported(mags, tmp_path / "out.json") == DATA


def test_only_what_was_edited_changes_in_the_export(mags, tmp_path):
    card = mags.card()
    entry = card.character_book.entries[0].model_copy(update={"content": "Bosun sleeps."})
    book = card.character_book.model_copy(update={"entries": (entry, *card.character_book.entries[1:])})
    update_card(mags, lambda _: {"alternate_greetings": ("Ahoy.",), "character_book": book.model_dump(), "author": "Bo",
                                 "system": "You are Mags."})  # fmt: skip
    mags.save_pairs(mags.pairs()[:1])
    wanted_book = json.loads(json.dumps(DATA["character_book"]))
    wanted_book["entries"][0]["content"] = "Bosun sleeps."
    data = exported(mags, tmp_path / "out.json")
    assert data == DATA | {
        "alternate_greetings": ["Ahoy."], "character_book": wanted_book, "creator": "Bo", "system_prompt": "",
        "description": "You are Mags.", "personality": "", "scenario": "",
        "mes_example": "<START>\n{{user}}: Tea?\n{{char}}: Coffee.",
    }  # fmt: skip
    again = survey(open_source(tmp_path / "out.json")).card
    assert (again.system, again.alternate_greetings, again.character_book) == ("You are Mags.", ("Ahoy.",), book)


def test_what_was_deleted_does_not_come_back(mags, tmp_path):
    update_card(mags, lambda _: {"character_book": None, "alternate_greetings": (), "nickname": ""})
    data = exported(mags, tmp_path / "out.json")
    assert "character_book" not in data and "nickname" not in data and data["alternate_greetings"] == []


def test_a_folder_from_before_is_written_as_before(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "persona.json").write_text('{"name": "Old"}')
    persona = open_persona(tmp_path / "old")
    persona.save_card(persona.card())
    assert not {"character_book", "alternate_greetings", "post_history_instructions", "book_in_training",
                "nickname"} & json.loads((tmp_path / "old" / "persona.json").read_text()).keys()  # fmt: skip
    assert kept_card.read_kept_card(persona.path) == {}


WILD = {
    "no book": (None, 0, 0), "a list": ([1], 0, 0), "no entries": ({"entries": 3}, 0, 0),
    "of SillyTavern": ({"entries": {"0": {"key": ["a"], "content": "b", "disable": True, "order": 3}}}, 1, 0),
    "keys as text": ({"entries": [{"keys": "a, b", "content": "c"}]}, 1, 0),
    "wrong kinds": ({"entries": [{"keys": [1, "a"], "content": "c", "enabled": "?", "insertion_order": []}]}, 1, 0),
    "without content": ({"entries": [{"keys": ["a"]}, 1, None]}, 0, 1),
    "wrong settings": ({"scan_depth": -1, "token_budget": "x", "entries": [{"content": "c"}]}, 1, 2),
    "too many": ({"entries": [{"content": "c"}] * 2_001}, 2_000, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", WILD)
def test_any_book_is_read_as_far_as_it_can_be(name):
    value, count, notes = WILD[name]
    said = []
    book = read_book(value, said.append)
    assert (len(book.entries) if book else 0, len(said)) == (count, notes), said
    if book:
        assert CharacterBook.model_validate(book.model_dump(mode="json")) == book
        assert all(isinstance(key, str) for e in book.entries for key in e.keys)
    if name == "of SillyTavern":
        assert not book.entries[0].enabled and book.entries[0].insertion_order == 3


def test_a_version_1_card_is_kept_too():
    assert read_card({"name": "Mags", "description": "d", "first_mes": "", "personality": ""}).name == "Mags"


# ---- PNG and .charx


def charx_file(path, members, **extra):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content, **extra)
    return path


ASSETS = {
    "assets/icon/images/main.png": b"\x89PNG not really",
    "assets/other/code/a.lua": b"print(1)",
    "module.risum": b"\0\1",
}


def test_a_charx_keeps_its_assets(tmp_path):
    file = charx_file(tmp_path / "mags.charx", {"card.json": json.dumps(V3), **ASSETS})
    assert detect_format(open_source(file)) == "character"
    run("import", file, tmp_path / "mags")
    update_card(open_persona(tmp_path / "mags"), lambda _: {"author": "Bo"})
    run("export", tmp_path / "mags", tmp_path / "out.charx", "--as", "card")
    with zipfile.ZipFile(tmp_path / "out.charx") as found:
        data = json.loads(found.read("card.json"))["data"]
        assert {name: found.read(name) for name in found.namelist() if name != "card.json"} == ASSETS
    data["extensions"].pop("persona")
    assert data == DATA | {"creator": "Bo"}
    assert survey(open_source(tmp_path / "out.charx")).card.author == "Bo"


def test_a_png_keeps_its_picture_and_assets(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("ccv3", base64.b64encode(json.dumps(V3).encode()).decode())
    texts.add_text("chara-ext-asset_:a.lua", "cHJpbnQ=")
    Image.new("RGB", (7, 9), (1, 2, 3)).save(tmp_path / "mags.png", pnginfo=texts)
    run("import", tmp_path / "mags.png", tmp_path / "mags")
    run("export", tmp_path / "mags", tmp_path / "out.png", "--as", "card")
    with Image.open(tmp_path / "out.png") as found:
        assert found.size == (7, 9) and found.getpixel((0, 0)) == (1, 2, 3)
        assert found.info["chara-ext-asset_:a.lua"] == "cHJpbnQ=" and {"ccv3", "chara"} <= found.info.keys()
    run("export", tmp_path / "mags", tmp_path / "out.charx", "--as", "card")
    with zipfile.ZipFile(tmp_path / "out.charx") as archive:
        assert (
            json.loads(archive.read("card.json"))["data"]["assets"][0]["uri"] == "embeded://assets/icon/images/main.png"
        )
        with archive.open("assets/icon/images/main.png") as file, Image.open(file) as icon:
            assert icon.size == (7, 9)


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


ATTACKS = {
    "up": {"../card.json": "{}", "card.json": "{}"}, "absolute": {"/etc/x": "", "card.json": "{}"},
    "drive": {"C:x": "", "card.json": "{}"}, "backslash": {"a\\..\\b": "", "card.json": "{}"},
    "bomb": {"card.json": json.dumps(V3), "a.bin": bytes(40_000_000)}, "huge card": {"card.json": " " * 2_000_000},
    "no card": {"deep/card.json": json.dumps(V3)}, "not JSON": {"card.json": b"\xff\xfe"},
    "many": {**{f"a{n}": "" for n in range(2_001)}, "card.json": json.dumps(V3)},
}  # fmt: skip


@pytest.mark.parametrize("name", [*ATTACKS, "link", "cut", "too large"])
def test_a_hostile_charx_is_refused_in_words(tmp_path, name):
    file = tmp_path / "x.charx"
    if name == "link":
        with zipfile.ZipFile(file, "w") as out:
            out.writestr("card.json", json.dumps(V3))
            out.writestr(link("a"), "/etc/passwd")
    elif name == "too large":
        with zipfile.ZipFile(file, "w") as out:
            out.writestr("card.json", json.dumps(V3))
            out.writestr("a.bin", random.Random(1).randbytes(50_000_001))
    else:
        charx_file(file, ATTACKS.get(name, {"card.json": json.dumps(V3)}))
    if name == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError) as refused:
        survey(open_source(file))
    assert "x.charx" in str(refused.value) and len(str(refused.value)) < 400
    assert {f.name for f in tmp_path.iterdir()} == {"home", "x.charx"}, "nothing was unpacked"
