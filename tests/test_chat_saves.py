"""Chats as RisuAI, Agnai, KoboldAI, imessage-exporter and SMS Backup & Restore save them: who says what."""

import json

import pytest
from cases import check_each
from row_files import source

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, registry

TALK = [("Bob", "What is under the bridge?"), ("Ann", "Water, mostly."), ("Bob", "And the rest?"), ("Ann", "Trolls.")]
WANTED = [(TALK[0][1], TALK[1][1]), (TALK[2][1], TALK[3][1])]


def pairs(folder, name, data, persona=""):
    opened = source(folder, name, data)
    options = ImportOptions(speakers=(persona,) if persona else ())
    found = registry.read_source(opened, registry.detect_format(opened), options)
    return [(i.instruction, i.output) for i in found if isinstance(i, Pair)]


def risu(**more):
    said = [
        {"role": "user" if who == "Bob" else "char", "data": text, "time": 1, **more.get(who, {})} for who, text in TALK
    ]
    return {"name": "Chat 1", "note": "", "localLore": [], "fmIndex": -1, "message": said}


KOBOLD = {"gamestarted": True, "memory": "", "authorsnote": "", "anotetemplate": "", "worldinfo": []}
MARKS = {"Bob": "\n{{[INPUT]}}\n", "Ann": "\n{{[OUTPUT]}}\n"}
IMESSAGE = """May 17, 2022  5:29:42 PM
Bob
What is under the bridge?
    May 17, 2022  5:30:42 PM
    Ann
    Water, mostly.

May 17, 2022  5:30:01 PM Bob named the conversation Bridge

May 17, 2022  5:30:42 PM (Read by you after 1 hour, 49 minutes)
Ann
Water, mostly.
/Users/b/Library/Messages/Attachments/a/b.jpeg
Reactions:
Loved by Bob

This message responded to an earlier message.

May 18, 2022 11:05:02 AM
Bob
And the rest?

May 18, 2022 11:06:02 AM
Ann
Trolls.
"""
SMS = """<?xml version='1.0' encoding='UTF-8' standalone='yes' ?>
<!--File Created By SMS Backup & Restore v10.05.602 on 12/07/2018 09:59:50-->
<?xml-stylesheet type="text/xsl" href="sms.xsl"?>
<smses count="7">
  <sms protocol="0" address="+1" date="1000" type="1" subject="null" body="{0}" read="1" contact_name="Bob" />
  <sms protocol="0" address="+2" date="1500" type="1" body="Hello?" contact_name="(Unknown)" />
  <sms protocol="0" address="+1" date="2000" type="2" body="{1}" contact_name="Bob" />
  <sms protocol="0" address="+1" date="2500" type="3" body="a draft" contact_name="Bob" />
  <sms protocol="0" address="+1" date="9000" type="1" body="Late." contact_name="Bob" />
  <mms date="4000" msg_box="2" address="+1" contact_name="Bob"><parts><part seq="-1" ct="application/smil" text="x"/>
    <part seq="0" ct="text/plain" text="{3}"/></parts><addrs><addr address="+1" type="151"/></addrs></mms>
  <mms date="3000" msg_box="1" address="+1" contact_name="Bob"><parts><part ct="text/plain" text="{2}"/></parts></mms>
</smses>""".format(*(text for _, text in TALK))
SAVES = {
    "risu.json": (json.dumps({"type": "risuChat", "ver": 2, "data": risu(), "folders": []}), ""),
    "all of risu.json": (json.dumps({"type": "risuAllChats", "ver": 1, "data": [risu()]}), ""),
    "a group of risu.json": (json.dumps({"type": "risuChat", "ver": 2, "data": risu(Ann={"saying": "a-1", "name": "Ann"}) | {
        "message": [*risu(Ann={"saying": "a-1", "name": "Ann"})["message"], {"role": "char", "data": "I too.", "saying": "c-1"}]}}), "Ann"),
    "agnai.json": (json.dumps({"name": "Exported", "greeting": "", "scenario": "", "messages": [
        {"handle": "", "userId": "0" if who == "Bob" else None, "characterId": None, "msg": text, "state": None} for who, text in TALK]}), ""),
    "lite.json": (json.dumps({**KOBOLD, "prompt": MARKS["Bob"] + TALK[0][1], "actions": [MARKS[who] + text for who, text in TALK[1:]], "savedsettings": {}}), ""),
    "kobold.json": (json.dumps({**KOBOLD, "prompt": "Bob: " + TALK[0][1], "actions": [f"\n{who}: {text}" for who, text in TALK[1:]], "actions_metadata": {}}), "Ann"),
    "imessage.txt": (IMESSAGE, "Ann"),
    "sms.xml": (SMS, "me"),
    # signal-export, models.py, Message.dict_str: a message a line
    "data.json": ("".join(json.dumps({"date": f"2024-03-12T10:15:0{n}", "sender": who, "body": text, "quote": "", "sticker": None, "reactions": [], "attachments": []}) + "\n" for n, (who, text) in enumerate(TALK)), "Ann"),
}  # fmt: skip


def test_a_talk_comes_back_from_every_save(tmp_path):
    check_each(
        [(name, *case) for name, case in SAVES.items()],
        lambda name, data, persona: _check(tmp_path, name, data, persona),
    )


def _check(folder, name, data, persona):
    assert pairs(folder, name, data, persona) == WANTED


def test_other_files_with_such_words_stay_what_they_are(tmp_path):
    row = json.dumps({"instruction": "userId?", "output": "b", "userId": 1})
    assert pairs(tmp_path, "x.json", row) == [("userId?", "b")]
    assert pairs(tmp_path, "x.jsonl", f"{row}\n{row}\n") == [("userId?", "b")] * 2
    for data in (
        '{"gamestarted": true, "actions": [',
        '{"gamestarted": true}',
        '{"type": "risuChat", "data": {"message": 3}}',
    ):
        with pytest.raises(InputError):
            pairs(tmp_path, "x.json", data)


def test_an_sms_file_is_read_within_limits(tmp_path):
    bomb = SMS.replace("<smses", '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY a{n} "{"&a{};".format(n - 1 if n else "") * 10}">' for n in range(8)) + "]><smses", 1).replace(TALK[0][1], "&a7;")  # fmt: skip
    for data in (SMS[:700], bomb):
        with pytest.raises(InputError):
            pairs(tmp_path, "x.xml", data, "me")
