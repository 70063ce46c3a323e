"""One talk as every program's data: the same pairs come back; and what is no message of anybody's is none."""

import csv
import io
import json

import pytest
from cases import check_each
from row_files import line, parquet, sheet, source

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportNote, ImportOptions, SkippedRow, registry

TALK = [
    ("Bob", "What is under the bridge?"),
    ("Ann", "Water, mostly – été."),
    ("Bob", "And the rest?"),
    ("Ann", "Trolls. 😀"),
]
WANTED = [(TALK[0][1], TALK[1][1]), (TALK[2][1], TALK[3][1])]


def rows(**fields) -> list[dict]:
    """A message for each line of the talk; a field is a value, or a function of number, name and text."""
    return [
        {key: make(n, who, text) if callable(make) else make for key, make in fields.items()}
        for n, (who, text) in enumerate(TALK, 1)
    ]


def who(n, who, text):
    return who


def said(n, who, text):
    return text


def number(n, who, text):
    return n


def latin1(n, who, text):
    return text.encode().decode("latin-1")


def table(*columns, delimiter=",", header=True) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    names, makers = columns[::2], columns[1::2]
    writer.writerows([names] * header)
    for n, (name, text) in enumerate(TALK, 1):
        writer.writerow([make(n, name, text) if callable(make) else make for make in makers])
    return out.getvalue()


TELEGRAM = rows(id=number, type="message", date="2026-05-01T10:00:00", date_unixtime="1", **{"from": who}, from_id="u",
                text=lambda n, w, t: [t[:3], {"type": "bold", "text": t[3:]}])  # fmt: skip
SERVICE = {"id": 9, "type": "service", "actor": "Bob", "action": "phone_call", "text": ""}
DISCORD = rows(id=number, type="Default", timestamp="2026", content=said, author=lambda n, w, t: {"id": "1", "name": w.lower(), "nickname": w}, attachments=[])  # fmt: skip
META = rows(sender_name=who, timestamp_ms=number, content=latin1, type="Generic")

FILES = {
    "sillytavern.jsonl": line(user_name="Bob", character_name="Ann", chat_metadata={}) + "".join(line(**r) for r in rows(name=who, is_user=lambda n, w, t: w == "Bob", is_system=False, mes=said, swipes=lambda n, w, t: ["x", t])) + line(name="S", is_user=False, is_system=True, mes="Saved"),
    "result.json": json.dumps({"name": "Ann", "type": "personal_chat", "id": 7, "messages": [SERVICE, *TELEGRAM]}),
    "telegram all.json": json.dumps({"about": "x", "chats": {"list": [{"name": "Ann", "messages": [*TELEGRAM, SERVICE]}]}}, indent=1),
    "discord.json": json.dumps({"guild": {"id": "1", "name": "G"}, "channel": {"name": "c"}, "messages": [*DISCORD, {"id": "9", "type": "RecipientAdd", "content": "Added x", "author": {"name": "Ann"}}], "messageCount": 5}),
    "message_1.json": json.dumps({"participants": [{"name": "Ann"}, {"name": "Bob"}], "messages": [*reversed(META)], "title": "x"}),
    "e2ee.json": json.dumps({"participants": ["Ann", "Bob"], "threadName": "x", "messages": rows(isUnsent=False, media=[], senderName=who, text=said, timestamp=number, type="text")}),
    "slack.json": json.dumps(rows(type="message", user="U1", text=said, ts=number, user_profile=lambda n, w, t: {"real_name": w})),
    "google.json": json.dumps({"messages": rows(creator=lambda n, w, t: {"name": w, "user_type": "Human"}, created_date="x", text=said)}),
    "matrix.json": json.dumps({"messages": rows(sender=who, type="m.room.message", content=lambda n, w, t: {"msgtype": "m.text", "body": t})}),
    "coser.json": json.dumps([{"book": "x", "plots": [{"conversation": [{"scenario": "x", "dialogues": rows(character=who, message=said)}]}]}]),
    "speakers.jsonl": line(dialogue=rows(speaker=who, text=said)),
    "soda.jsonl": line(dialogue=[t for _, t in TALK], speakers=[w for w, _ in TALK]),
    "lines in a text.json": json.dumps([{"role": "Ann", "context": "\n".join(f"{w}：{t}" for w, t in TALK)}]),
    "flat.jsonl": "".join(line(**r) for r in rows(speaker=who, utterance=said)),
    "wechat.json": json.dumps(rows(talker=who, msg=said, is_sender=0, type_name="文本")),
    "discord.csv": table("AuthorID", "1", "Author", who, "Date", "2026-05-01T10:02:00", "Content", said, "Attachments", "", "Reactions", "👍 (1)"),
    "weclone.csv": table("id", number, "MsgSvrID", number, "type_name", "文本", "is_sender", "0", "talker", who, "room_name", "r", "msg", said, "src", "", "CreateTime", "x"),
    "memotrace.csv": table("localId", number, "TalkerId", "1", "Type", "1", "SubType", "0", "IsSender", "0", "CreateTime", "1", "Status", "", "StrContent", said, "StrTime", "x", "Remark", "", "NickName", who, "Sender", who),
    "kakao.csv": table("Date", "2026-05-01 10:02:00", "User", who, "Message", said),
    "lines.csv": table("Character", who, "Sentence", said, delimiter=";"),
    "lines.tsv": table("角色", who, "台词", said, delimiter="\t"),
    "unknown.csv": table("Wer", who, "Was", said),
    "no header.csv": table("", who, "", said, header=False),
    "lines.parquet": parquet(rows(speaker=who, line=said)),
    "lines.xlsx": sheet(("Speaker", "Line"), *TALK),
}  # fmt: skip


PACKED = (".parquet", ".xlsx")  # decoded in a process


def read(folder, name, data, *speakers, **options):
    opened = source(folder, name, data)
    assert registry.detect_format(opened) == "chat"
    return list(registry.read_source(opened, "chat", ImportOptions(speakers=speakers or ("Ann",), **options)))


def pairs(found):
    return [(i.instruction, i.output) for i in found if isinstance(i, Pair)]


def test_one_talk_in_every_programs_data(tmp_path):
    def check(name):
        assert pairs(read(tmp_path, name, FILES[name])) == WANTED

    check_each([(name,) for name in FILES if not name.endswith(PACKED)], check)


@pytest.mark.slow
def test_one_talk_in_packed_tables(tmp_path):
    for name in (name for name in FILES if name.endswith(PACKED)):
        assert pairs(read(tmp_path, name, FILES[name])) == WANTED


def test_who_the_persona_is_must_be_chosen(tmp_path):
    for name in ("sillytavern.jsonl", "lines.csv"):
        opened = source(tmp_path, name, FILES[name])
        assert registry.get_importer("chat").survey(opened).speakers == {"Bob": 2, "Ann": 2}
        with pytest.raises(InputError, match=r"--speaker NAME: Bob \(2\), Ann \(2\)"):
            list(registry.read_source(opened, "chat", ImportOptions()))


def test_what_is_no_message_is_listed(tmp_path):
    skipped = [s.why for s in read(tmp_path, "x.json", FILES["result.json"]) if isinstance(s, SkippedRow)]
    assert len(skipped) == 1 and "no message" in skipped[0]
    wechat = table(
        "type_name", lambda n, w, t: "图片" if n == 2 else "文本", "is_sender", "0", "talker", who, "msg", said
    )
    found = read(tmp_path, "x.csv", wechat)
    assert pairs(found) == [("\n".join(t for _, t in TALK[:3:2]), TALK[3][1])]
    assert sum(isinstance(i, SkippedRow) for i in found) == 1


def test_a_reply_answers_the_message_that_it_names(tmp_path):
    talk = [("Bob", "One?", None), ("Cat", "Two?", None), ("Ann", "To the first.", 1), ("Cat", "Three?", None), ("Ann", "To three.", 4)]  # fmt: skip
    messages = [
        {"id": n, "type": "message", "from": w, "from_id": w, "text": t, **({"reply_to_message_id": r} if r else {})}
        for n, (w, t, r) in enumerate(talk, 1)
    ]
    assert pairs(read(tmp_path, "x.json", json.dumps({"messages": messages}))) == [
        ("One?", "To the first."),
        ("Three?", "To three."),
    ]


@pytest.mark.slow
def test_a_long_chat_in_one_object_is_streamed(tmp_path):
    many = [{**m, "text": "x" * 3_000 + str(n)} for n in range(400) for m in TELEGRAM[:2]]
    found = read(tmp_path, "x.json", json.dumps({"name": "Ann", "messages": many}))
    assert len(pairs(found)) == 400


def test_questions_and_answers_are_no_chat(tmp_path):
    for name, data in (
        ("qa.csv", "user,assistant\na,b\na,c\na,d\n"),
        ("qa.jsonl", line(role="x", question="a", answer="b") * 3),
        ("m.jsonl", line(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) * 3),
        ("c.json", json.dumps({"name": "x", "text": "y"})),
    ):
        opened = source(tmp_path, name, data)
        assert registry.get_importer("chat").sniff(opened) == 0, name


# --- tables that could be several things -------------------------------------------------------------------------


def test_a_first_row_that_is_a_pair_is_no_header(tmp_path):
    opened = source(tmp_path, "x.csv", "What is it?,Water.\nAnd then?,Trolls.\nWhy?,So.\n")
    assert registry.detect_format(opened) == "table"
    found = list(registry.read_source(opened, "table", ImportOptions()))
    assert pairs(found) == [("What is it?", "Water."), ("And then?", "Trolls."), ("Why?", "So.")]
    assert any(isinstance(i, ImportNote) and "in their order" in i.what for i in found)


def test_where_the_columns_are_not_sure_it_asks(tmp_path):
    cases = [
        ("x.csv", "Character,Line\nTom,Hi.\nAnn,Hello.\n"),
        ("x.tsv", 'a\tb\n{"k": 1}\tx\n{"k": 2}\ty\n'),
        ("x.csv", "甲,乙,丙\na,b,c\nd,e,f\n"),
        ("x.csv", "label,note\nbad,one\nbad,two\nbad,three\ngood,four\n"),
    ]
    for name, data in cases:
        with pytest.raises(InputError, match="which column is"):
            list(registry.read_source(source(tmp_path, name, data), "table", ImportOptions()))
