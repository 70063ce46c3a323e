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
