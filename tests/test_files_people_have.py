"""Files as programs and people write them: what is learned of each, by kind."""

import json

import pytest
from cases import check_each
from row_files import line, source

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, SkippedRow, registry

ASKED = ["What is under the bridge?", "And the rest?"]
SAID = ["Water, mostly.", "Trolls."]
WANTED = list(zip(ASKED, SAID, strict=True))
TALK = [(who, text) for pair in WANTED for who, text in zip(("Bob", "Ann"), pair, strict=True)]
FIRST, SECOND = WANTED[:1], WANTED[1:]


def read(folder, name, data, speaker="", format=""):
    opened = source(folder, name, data)
    options = ImportOptions(speakers=(speaker,) if speaker else ())
    return list(registry.read_source(opened, format or registry.detect_format(opened), options))


def pairs(found):
    return [(i.instruction, i.output) for i in found if isinstance(i, Pair)]


def skipped(found):
    return [i.why for i in found if isinstance(i, SkippedRow)]


def turns(who="role", what="content", sides=("user", "assistant")):
    return [{who: sides[n % 2], what: text} for n, (_, text) in enumerate(TALK)]


U, A, U2, A2 = turns()
QA = [{"question": q, "answer": a} for q, a in WANTED]


# --- data: objects around the rows, roles, trees, tools ------------------------------------------------------------

OPENASSISTANT = {"message_tree_id": "1", "prompt": {"role": "prompter", "text": ASKED[0], "replies": [
    {"role": "assistant", "text": "Nothing.", "rank": 1, "replies": []},
    {"role": "assistant", "text": SAID[0], "rank": 0, "replies": [{"role": "prompter", "text": ASKED[1], "replies": [
        {"role": "assistant", "text": SAID[1], "rank": None, "replies": []}]}]}]}}  # fmt: skip
DATA = {
    "two objects around.json": (json.dumps({"data": {"items": QA}}), WANTED),
    "three objects around.json": (json.dumps({"ok": True, "response": {"data": {"rows": QA}}}), WANTED),
    "conversations around.json": (json.dumps({"data": {"conversations": [{"messages": turns()}]}}), WANTED),
    "a list of turns.json": (json.dumps(turns()), WANTED),
    "lists of turns.json": (json.dumps([turns(), turns()[:2]]), WANTED + FIRST),
    "objects in one line.json": ("".join(map(json.dumps, QA)), WANTED),
    "marks of joined files.jsonl": ("".join(f"\ufeff{json.dumps(row)}\n" for row in QA), WANTED),
    "claude.json": (json.dumps([{"chat_messages": turns("sender", "text", ("human", "assistant"))}]), WANTED),
    "gemini.json": (json.dumps({"contents": [{"role": r, "parts": [{"text": t}]} for r, t in zip(("user", "model"), WANTED[0], strict=True)]}), FIRST),
    "ai studio.json": (json.dumps({"chunkedPrompt": {"chunks": [{"role": "user", "text": ASKED[0]}, {"role": "model", "text": "Hm.", "isThought": True}, {"role": "model", "text": SAID[0]}]}}), FIRST),
    "text-generation-webui.json": (json.dumps({"internal": WANTED, "visible": WANTED}), WANTED),
    "a greeting of text-generation-webui.json": (json.dumps({"internal": [["<|BEGIN-VISIBLE-CHAT|>", "Hello."], *WANTED]}), WANTED),
    "openassistant.jsonl": (line(**OPENASSISTANT), WANTED),
    "flat tree.jsonl": ("".join(line(message_id=str(n), parent_id=p, role=r, text=t) for n, (p, r, t) in enumerate([(None, "prompter", ASKED[0]), ("0", "assistant", SAID[0]), ("0", "assistant", "Nothing."), ("1", "prompter", ASKED[1]), ("3", "assistant", SAID[1])])), [*FIRST, (ASKED[0], "Nothing."), *SECOND]),
    "arena.jsonl": (line(winner="model_b", conversation_a=[U, {**A, "content": "Bad."}], conversation_b=[U, A]), FIRST),
    "prompt again.jsonl": (line(prompt=ASKED[0], chosen=[U, A], rejected=[U, {**A, "content": "No."}]), FIRST),
    "unwanted.jsonl": (line(prompt=ASKED[0], completion=SAID[0], label=True) + line(prompt="x", completion="Bad.", label=False), FIRST),
    "openai parts.jsonl": (line(messages=[{"role": "user", "content": [{"type": "input_text", "text": ASKED[0]}]}, {"role": "assistant", "content": [{"type": "output_text", "text": SAID[0]}]}]), FIRST),
    "thinking.jsonl": (line(messages=[U, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": SAID[0]}]}]), FIRST),
    "conversations by id.csv": ("conversation_id,role,content\n1,user,A?\n1,assistant,B.\n1,user,Bye.\n2,assistant,Hello.\n2,user,C?\n2,assistant,D.\n", [("A?", "B."), ("C?", "D.")]),
    "python in a cell.csv": ('id,messages\n1,"' + str([U, A]).replace('"', '""') + '"\n', FIRST),
}  # fmt: skip


def test_data_whose_sides_are_clear_needs_no_choice(tmp_path):
    def check(data, wanted):
        name = next(n for n, case in DATA.items() if case[0] == data)
        assert pairs(read(tmp_path, name, data)) == wanted

    check_each(DATA, check)


def test_earlier_turns_of_a_list_of_roles_are_history(tmp_path):
    found = [i for i in read(tmp_path, "x.json", json.dumps(turns())) if isinstance(i, Pair)]
    assert [len(pair.history) for pair in found] == [0, 1]


def test_a_reply_with_a_tool_or_a_picture_is_listed_and_costs_no_other(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    picture = {"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {}}]}
    cases = {
        "tool": ([U, call, {"role": "tool", "content": "3"}, A, U2, A2], "uses a tool"),
        "function": ([U, {"role": "function", "content": "3"}, A, U2, A2], "uses a tool"),
        "picture": ([picture, A, U2, A2], "not text: 'image_url'"),
    }

    def check(talk, why):
        found = read(tmp_path, "x.jsonl", line(messages=talk))
        assert pairs(found) == SECOND and [why in s for s in skipped(found)] == [True]

    check_each(cases, check)


def test_other_conversations_are_no_context(tmp_path):
    rows = [("1", "Bob", "A?"), ("1", "Ann", "B."), ("1", "Bob", "Bye."), ("2", "Ann", "Hello."), ("2", "Bob", "C?"), ("2", "Ann", "D.")]  # fmt: skip
    data = "".join(line(dialogue_id=d, speaker=w, utterance=t) for d, w, t in rows)
    assert pairs(read(tmp_path, "x.jsonl", data, "Ann")) == [("A?", "B."), ("C?", "D.")]
    with pytest.raises(InputError, match="--speaker"):
        read(tmp_path, "x.jsonl", data)


# --- text: senders, notices, marks ---------------------------------------------------------------------------------


def stamped(format, talk=TALK, first=10):
    """{0}: a minute that counts, {1}: name, {2}: message."""
    return "".join(format.format(n, *said) for n, said in enumerate(talk, first))


ANDROID = "12/03/2024, 10:{0} - {1}: {2}\n"
LOGS = {
    "weechat": "2024-03-12 10:{0}:02\t{1}\t{2}\n2024-03-12 10:{0}:03\t-->\tCarl has joined\n",
    "discord, pinned": "[12-Mar-24 10:{0} AM] {1}#1234 (pinned)\n{2}\n\n{{Reactions}}\n👍 (2)\n\n",
    "zoom of 2020": "10:{0}:02 From {1} to Everyone : {2}\n",
    "zoom of 2024": "2024-03-12 10:{0}:02 From {1} to Everyone:\n\t{2}\n2024-03-12 10:{0}:03 From {1} to Everyone:\n\tReacted to \"x...\" with 👍\n",
    "zoom reply": "2024-03-12 10:{0}:02 From {1} to Bob(Direct Message):\n\tReplying to \"x\"\n\n\t{2}\n",
    "signal quote": "[2024-03-12 10:{0}] {1}: \n>\n> Earlier.\n>\n{2}  (- Bob: 👍 -)\n",
    "subject": ANDROID + "12/03/2024, 10:{0} - Ann changed the subject from “a: b” to “c: d”\n",
    "poll": ANDROID + "12/03/2024, 10:{0} - {1}: POLL:\nWho?\nOPTION: me (1 vote)\n",
    "hebrew": ANDROID + "12/03/2024, 10:{0} - {1}: \u200f<המדיה לא נכללה>\n",
    "swedish": ANDROID + "12/03/2024, 10:{0} - {1}: Det här meddelandet raderades\n",
    "line": "10:{0}\t{1}\t{2}\n10:{0}\t{1}\tunsent a message.\n",
    "marks of Markdown": "### {1}: {2}\n",
}  # fmt: skip


def test_a_talk_comes_back_from_every_log(tmp_path):
    def check(format):
        data = stamped(format)
        if format.startswith(ANDROID):
            assert "a: b" not in str(pairs(read(tmp_path, "x.txt", data, "Ann")))
        assert pairs(read(tmp_path, "x.txt", data, "Ann")) == WANTED

    check_each([(f,) for f in LOGS.values()], check)


def test_a_forwarded_message_is_context_and_not_learned(tmp_path):
    talk = [("Bob", "Look?"), ("Ann", "Not mine."), ("Bob", "Some news."), ("Ann", "I see.")]
    log = "".join(
        f"{who}, [12.03.2024 10:1{n}]\n{'[Forwarded from Carl]' + chr(10) if n in (1, 2) else ''}{text}\n\n"
        for n, (who, text) in enumerate(talk)
    )
    rows = [
        {"id": n, "type": "message", "from": who, "from_id": who, "text": text, **({"forwarded_from": "Carl"} if n in (1, 2) else {})}
        for n, (who, text) in enumerate(talk)
    ]  # fmt: skip
    for name, data in (("x.txt", log), ("result.json", json.dumps({"messages": rows}))):
        found = read(tmp_path, name, data, "Ann")
        assert pairs(found) == [("Some news.", "I see.")], name
        assert sum("forwarded message" in getattr(i, "what", "") for i in found) == 2


def test_skype_writes_the_newest_message_first(tmp_path):
    rows = [
        {"id": str(n), "originalarrivaltime": f"2024-03-12T10:15:0{n}Z", "messagetype": "RichText", "content": text, "from": f"8:{who}"}
        for n, (who, text) in enumerate(TALK)
    ]  # fmt: skip
    data = json.dumps({"conversations": [{"id": "8:Ann", "MessageList": rows[::-1]}]})
    assert pairs(read(tmp_path, "messages.json", data, "8:Ann")) == WANTED


def test_a_kind_that_is_not_read_is_named(tmp_path):
    cases = {
        "bz2": (b"BZh91AY&SY" + b"\xb5x" * 60, "BZIP2.*Unpack"),
        "xz": (b"\xfd7zXZ\0" + b"\xb5x" * 60, "XZ.*Unpack"),
        "Arrow": (b"ARROW1\0\0" + b"x" * 60, "Arrow.*CSV"),
        "a stream of Arrow": (b"\xff\xff\xff\xff" + b"x" * 60, "Arrow.*CSV"),
        "LINE on a PC": ("2024.03.12 火曜日\n10:15 花子 橋の下？\n10:16 太郎 水。\n".encode(), "LINE on a PC.* tab"),
        "iMessage as HTML": (
            b'<html><body><span class="timestamp">1</span><span class="sender">Me</span><span class="bubble">Hi</span></body></html>',
            "imessage-exporter HTML.* --format txt",
        ),
        "XML": (b'<?xml version="1.0"?>\n<messages count="1"><message body="hi"/></messages>', "XML.*CSV"),
    }

    def check(data, why):
        with pytest.raises(InputError, match=why):
            read(tmp_path, "x.bin", data, "Ann")

    check_each(cases, check)


def test_numbered_questions_are_of_two_speakers(tmp_path):
    data = "Q1: What is it?\nA1: Water.\n\nQ2: And then?\nA2: Trolls.\n"
    assert pairs(read(tmp_path, "x.txt", data, "A")) == [("What is it?", "Water."), ("And then?", "Trolls.")]


# --- tables and bytes ----------------------------------------------------------------------------------------------

ROWS = "".join(f"{q};{a}\n" for q, a in WANTED)
SWAPPED = "".join(f"{a};{q}\n" for q, a in WANTED)
TABLES = {
    "Excel says its delimiter": (f"sep=;\r\nquestion;answer\n{ROWS}", WANTED),
    "a title above": (f"My pairs;\n;\nquestion;answer\n{ROWS}", WANTED),
    "Spanish": (f"Respuesta;Pregunta\n{SWAPPED}", WANTED),
    "Russian": (f"Вопрос;Ответ\n{ROWS}", WANTED),
    "Japanese": (f"質問;回答\n{ROWS}", WANTED),
    "Markdown": ("| question | answer |\n|:--|---|\n" + "".join(f"| {q} | {a} |\n" for q, a in WANTED), WANTED),
    "no names, questions second": (f"left;right\n{SWAPPED}", WANTED),
    "an id": ("id;first;second\n" + "".join(f"a{n};{q};{a}\n" for n, (q, a) in enumerate(WANTED)), WANTED),
    "one column of conversations": (
        f'text\n"<|im_start|>user\n{ASKED[0]}<|im_end|>\n<|im_start|>assistant\n{SAID[0]}<|im_end|>"\n',
        FIRST,
    ),
    "Korean": ("질문;답변\n다리 밑에 뭐가 있어?;거의 물이야.\n".encode("euc_kr"), [("다리 밑에 뭐가 있어?", "거의 물이야.")]),
}  # fmt: skip


def test_a_table_is_read_for_what_it_says(tmp_path):
    check_each(TABLES, lambda data, wanted: _check_table(tmp_path, data, wanted))


def _check_table(tmp_path, data, wanted):
    assert pairs(read(tmp_path, "x.csv", data)) == wanted


def test_where_two_columns_do_not_say_which_is_which_it_asks(tmp_path):
    cases = {
        "no question in either": "left;right\nI am here.;So am I.\nGood.;Well.\n",
        "an id and an answer": "uuid;response\n550e8400-e29b;Water.\n550e8401-e29b;Trolls.\n",
        "an address": "url;text\nhttps://x.y/1;Water.\nhttps://x.y/2;Trolls.\n",
    }

    def check(data):
        with pytest.raises(InputError, match="--column instruction="):
            read(tmp_path, "x.csv", data, format="table")

    check_each([(data,) for data in cases.values()], check)


def test_some_bytes_of_another_encoding_are_told_and_cost_no_other(tmp_path):
    data = "Bob: What – été?\nAnn: Déjà vu – là.\n".encode() + "Bob: Café?\nAnn: Oui.\n".encode("cp1252")
    found = read(tmp_path, "x.txt", data, "Ann")
    assert pairs(found) == [("What – été?", "Déjà vu – là."), ("Caf\\xe9?", "Oui.")]
    assert any("1 bytes are no utf-8 text" in getattr(i, "what", "") for i in found)
