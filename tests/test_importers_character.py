"""Character cards: the persona in them, the pairs of their example dialogue, and what is left out."""

import base64
import io
import json
import random
import struct
import zlib

import pytest

from persona.errors import InputError, PersonaError
from persona.store.pairs import Pair
from persona.write.importers import ImportNote, ImportOptions, SkippedRow
from persona.write.importers.alpaca import UNSURE
from persona.write.importers.registry import detect_format, get_importer, import_formats
from persona.write.importers.text_source import open_source

EXAMPLE = """<START>
{{user}}: Who are you?
{{char}}: *looks up* Mags.
I keep the light.
{{user}}: Alone?
And at night?
{{char}}: Alone.
<start>
{{User}}：Tea?
Mags: {{CHAR}} drinks coffee, <USER>.
"""
FIELDS = {
    "name": "Mags",
    "description": "{{char}} keeps a lighthouse. <BOT> likes {{user}}.",
    "personality": "gruff",
    "scenario": "A storm.",
    "first_mes": "Come in, {{user}}.",
    "mes_example": EXAMPLE,
}
V2 = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {**FIELDS, "creator": "Ann", "system_prompt": "{{original}} Be {{char}}."},
}
V3 = {"spec": "chara_card_v3", "spec_version": "3.0", "data": {**FIELDS, "nickname": "Maggie", "creator": "Ann"}}
CHINESE = {
    **FIELDS,
    "name": "阿灯",
    "description": "{{char}}守着灯塔，话不多。",
    "personality": "寡言",
    "scenario": "暴风雨夜",
    "first_mes": "进来坐，{{user}}。",
    "mes_example": "{{user}}：你是谁？\n阿灯：我守灯塔。",
}  # fmt: skip
PAIRS = [
    Pair("Who are you?", "*looks up* Mags.\nI keep the light."),
    Pair("Alone?\nAnd at night?", "Alone."),
    Pair("Tea?", "Mags drinks coffee, you."),
]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def coded(card: dict) -> bytes:
    return base64.b64encode(json.dumps(card, ensure_ascii=False).encode())


def png(*chunks: bytes, after: bool = False, size: tuple[int, int] = (2, 2)) -> bytes:
    """A picture with these chunks before its data, or after them as some programs write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\x00\x80\x80" * 2))
    parts = [data, *chunks] if after else [*chunks, data]
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + chunk(b"IEND", b"")


def text(name: str, card: dict) -> bytes:
    return chunk(b"tEXt", name.encode() + b"\0" + coded(card))


def source(folder, name, data):
    file = folder / name
    file.write_bytes(data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode())
    return open_source(file)


def card_of(folder, data, name="card.json"):
    return import_formats()["character"].survey(source(folder, name, data)).card


def items(folder, data, name="card.json", options: ImportOptions = ImportOptions()):
    found = list(get_importer("character").read(source(folder, name, data), options))
    pairs = [Pair(p.instruction, p.output, p.history) for p in found if isinstance(p, Pair)]
    return (
        pairs,
        [(s.line, s.why) for s in found if isinstance(s, SkippedRow)],
        [n.what for n in found if isinstance(n, ImportNote)],
    )


ZTXT = chunk(b"zTXt", b"chara\0\0" + zlib.compress(coded(V2)))
ITXT = chunk(b"iTXt", b"chara\0\0\0\0\0" + coded(V2))
ITXT_PACKED = chunk(b"iTXt", b"chara\0\1\0\0\0" + zlib.compress(coded(V2)))
FORMS = {
    "v1.json": FIELDS,
    "v2.json": V2,
    "v3.json": V3,
    "both.json": {**FIELDS, "first_mes": "old", **V2},  # as SillyTavern exports: the old fields beside the new
    "indented.json": json.dumps(V2, indent=4).encode(),
    "mark.json": b"\xef\xbb\xbf" + json.dumps(V2).encode(),
    "v1.png": png(text("chara", FIELDS)),
    "v2.png": png(text("chara", V2)),
    "after.png": png(text("chara", V2), after=True),
    "ztxt.png": png(ZTXT),
    "itxt.png": png(ITXT),
    "packed.png": png(ITXT_PACKED),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_card_is_read(tmp_path, name):
    opened = source(tmp_path, name, FORMS[name])
    assert detect_format(opened) == "character"
    assert {n: m.sniff(opened) for n, m in import_formats().items() if m.sniff(opened) > UNSURE} == {"character": 0.95}
    card = card_of(tmp_path, FORMS[name], name)
    who = "Maggie" if name == "v3.json" else "Mags"
    begins = "Be Mags.\n\n" if "v1" not in name and name != "v3.json" else ""
    assert card.name == "Mags" and card.greeting == "Come in, you."
    assert (
        card.system == f"{begins}{who} keeps a lighthouse. {who} likes you.\n\nPersonality: gruff\n\nScenario: A storm."
    )
    assert card.author == ("" if "v1" in name else "Ann")
    pairs, skipped, notes = items(tmp_path, FORMS[name], name)
    assert pairs == [*PAIRS[:2], Pair("Tea?", f"{who} drinks coffee, you.")]
    assert (skipped, notes) == ([], [])


def test_the_newer_chunk_wins(tmp_path):
    older = {"spec": "chara_card_v2", "data": {**FIELDS, "name": "Old"}}
    for chunks in ((text("chara", older), text("ccv3", V3)), (text("ccv3", V3), text("chara", older))):
        assert card_of(tmp_path, png(*chunks), "x.png").name == "Mags"


def test_a_chinese_card_speaks_chinese(tmp_path):
    card = card_of(tmp_path, CHINESE)
    assert card.system == "阿灯守着灯塔，话不多。\n\n性格：寡言\n\n场景：暴风雨夜"
    assert (card.greeting, card.language) == ("进来坐，你。", "zh")
    assert items(tmp_path, CHINESE)[0] == [Pair("你是谁？", "我守灯塔。")]


def test_the_example_goes_with_its_earlier_turns_when_asked(tmp_path):
    first = (PAIRS[0].instruction, PAIRS[0].output)
    expected = [PAIRS[0], Pair(PAIRS[1].instruction, PAIRS[1].output, (first,)), PAIRS[2]]
    assert items(tmp_path, V2, options=ImportOptions(turns=3))[0] == expected


def test_sources_name_the_line_of_the_example(tmp_path):
    found = get_importer("character").read(source(tmp_path, "mags.json", V2), ImportOptions())
    assert [p.source for p in found if isinstance(p, Pair)] == ["mags.json:2", "mags.json:5", "mags.json:9"]


EXAMPLES = [
    ("{{char}}: Hello.\n{{user}}: Hi.\n{{char}}: Yes.", [Pair("Hi.", "Yes.")], [(1, "a reply to nothing")]),
    ("{{user}}: Hi.\n{{char}}: Yes.\n{{user}}: And?", [Pair("Hi.", "Yes.")], [(3, "nobody replies to this")]),
    ("It is night.\nDark.\n{{user}}: Hi.\n{{char}}: Yes.", [Pair("Hi.", "Yes.")], [(1, "nobody says this")]),
    ("{{user}}: Hi.\n{{user}}: You?\n{{char}}: Yes.\n{{char}}: No.", [Pair("Hi.\nYou?", "Yes.\nNo.")], []),
    ("{{user}}:\n{{char}}: Yes.", [], [(1, "'instruction' is empty")]),
    ("<START>\n<START>\n\n<START>", [], []),
    ("", [], []),
    ("User: Hi.\r\nMAGS : Yes.\r\nMagsy: no.", [Pair("Hi.", "Yes.\nMagsy: no.")], []),
    (
        "{{user}}: Who?\n{{char}}: I.\n{{random_user_1}}: And he?\n{{char}}: Nobody.",
        [Pair("Who?", "I."), Pair("And he?", "Nobody.")],
        [],
    ),
    (
        "You: Hi.\nMags: Yes.\nEND_OF_DIALOG\nYou: Bye.\nMags: Go.\n<END>",
        [Pair("Hi.", "Yes."), Pair("Bye.", "Go.")],
        [],
    ),
    (
        "{{char}}: Sit.\nGuard: Halt!\n{{char}}: Halt yourself.",
        [Pair("Halt!", "Halt yourself.")],
        [(1, "a reply to nothing")],
    ),
    ("{{user}}: Hi.\nGuard: Halt!\n{{char}}: Who?", [Pair("Halt!", "Who?")], [(1, "nobody replies to this")]),
    (
        "{{user}}: How?\n{{char}}: So.\nMood: grim\n{{user}}: And?\n{{char}}: No.",
        [Pair("How?", "So.\nMood: grim"), Pair("And?", "No.")],
        [],
    ),
    ("{{user}}: Look: a lamp.\n{{char}}: Mine: yes.", [Pair("Look: a lamp.", "Mine: yes.")], []),
]


@pytest.mark.parametrize("example, pairs, skipped", EXAMPLES)
def test_example_dialogue(tmp_path, example, pairs, skipped):
    found, bad, notes = items(tmp_path, {**FIELDS, "mes_example": example})
    assert (found, notes) == (pairs, [])
    assert [line for line, _ in bad] == [line for line, _ in skipped]
    assert all(expected in why for (_, why), (_, expected) in zip(bad, skipped, strict=True))


def test_what_does_not_fit_is_noted(tmp_path):
    long = "\n".join(f"Line {n} of what {{{{char}}}} is." for n in range(400))
    data = {**FIELDS, "name": "M" * 90, "description": long, "first_mes": "x" * 10_100}
    card = card_of(tmp_path, data)
    assert len(card.name) == 80 and len(card.system) <= 4_000 and len(card.greeting) == 10_000
    assert card.system.partition("\n\n")[0].endswith("is."), "cut at the end of a line"
    notes = items(tmp_path, data)[2]
    assert "name: the last 10 of 90 characters left out: there is no room" in notes
    assert "first_mes: the last 100 of 10,100 characters left out: there is no room" in notes
    assert any(n.startswith("description: the last ") for n in notes)
    left = sum(
        int(n.split("the last ")[1].split(" of")[0].replace(",", ""))
        for n in notes
        if n.startswith(("desc", "pers", "scen"))
    )
    whole = long.replace("{{char}}", "M" * 90)
    assert left + len(card.system) >= len(whole), "every character is in the card or in a note"


def test_what_a_persona_has_no_place_for_is_noted(tmp_path):
    more = {
        "group_only_greetings": ["Hi."],
        "character_book": {"entries": [1]},
        "creator_notes": "x",
        "tags": [],
    }
    notes = items(tmp_path, {**V2, "data": {**V2["data"], **more}})[2]
    assert notes == [
        "group_only_greetings is kept for an export, and not used here",
        "creator_notes is kept for an export, and not used here",
        "character_book: 1 entry cannot be used and was left out",
    ]


REFUSED = [
    ("x.json", {"a": 1}, "no character card"),
    ("x.json", {**FIELDS, "name": " "}, "has no name"),
    ("x.json", b"{", "cannot be read"),
    ("x.json", b"[" * 100_000, "cannot be read"),
    ("x.json", b'{"name": "\\ud800"}', "cannot be read"),
    ("x.json", b'{"name": ' + b"9" * 5_000 + b"}", "cannot be read"),
    ("x.json", [FIELDS], "no character card"),
    ("x.png", png(), "a picture without a character in it"),
    ("x.png", png(text("chara", {"a": 1})), "no character card"),
    ("x.png", png(chunk(b"tEXt", b"chara\0not base64!")), "cannot be read"),
    ("x.png", png(chunk(b"tEXt", b"chara\0" + base64.b64encode(b"\xff\xfe"))), "cannot be read"),
    ("x.png", png(text("chara", V2))[:60], "no PNG that can be read"),
    ("x.png", png(chunk(b"zTXt", b"chara\0\0" + zlib.compress(bytes(100_000_000)))), "read"),
]


@pytest.mark.parametrize("name, data, why", REFUSED)
def test_what_is_no_card_is_refused_in_words(tmp_path, name, data, why):
    with pytest.raises(InputError, match=why) as e:
        items(tmp_path, data, name)
    assert name in str(e.value) and len(str(e.value)) < 400


def test_a_picture_of_any_size_costs_nothing(tmp_path):
    """A header that claims 100 million pixels allocates none."""
    with pytest.raises(InputError, match="20,000 × 5,000 pixels is no card"):
        card_of(tmp_path, png(text("chara", V2), size=(20_000, 5_000)), "x.png")


@pytest.mark.parametrize("data", [{"name": "x", "description": "y"}, {"spec": "chara_card_v2"}, png()], ids=range(3))
def test_what_is_no_card_is_not_claimed(tmp_path, data):
    name = "x.png" if isinstance(data, bytes) else "x.json"
    opened = source(tmp_path, name, data)
    assert import_formats()["character"].sniff(opened) == 0


def test_damaged_cards_end_in_items_or_a_sentence(tmp_path):
    from test_importers_damaged import damaged

    chance, module, read_ = random.Random(5), import_formats()["character"], 0
    forms = [(n, d if isinstance(d, bytes) else json.dumps(d).encode()) for n, d in FORMS.items()]
    for _ in range(700):
        name, data = chance.choice(forms)
        (tmp_path / name).write_bytes(made := damaged(data, chance) or b"x")
        try:
            opened = open_source(tmp_path / name)
            module.sniff(opened)
            found = list(module.read(opened, ImportOptions()))
            read_ += bool(found and module.survey(opened).card)
        except PersonaError:
            continue
        except BaseException as e:
            e.add_note(f"{name} {made!r:.3000}")
            raise
    assert read_ > 20, "some are hurt only a little"


def test_pillow_writes_what_we_read(tmp_path):
    """The chunks above are made by hand; this one by the library that most tools use."""
    from PIL import Image, PngImagePlugin

    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("chara", coded(V2).decode())
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=info)
    assert card_of(tmp_path, out.getvalue(), "x.png").name == "Mags"
