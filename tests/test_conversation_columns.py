"""The columns of a conversation: each voice's own history, under whatever name the voice is shown."""

import json
from dataclasses import replace

import pytest

from persona.compare import conversation, conversation_store
from persona.compare.conversation import ConversationAnswer, VoiceRecord
from persona.store.pairs import Pair
from persona.write.importers import messages

BASE = VoiceRecord("base", "Base")
HER = VoiceRecord("adapter", "甄嬛", "run/zhen-huan/20261122-031500-a1b2", 0.8, "你是甄嬛。")
DICE = {"temperature": 0.4, "seed": 7}


@pytest.fixture
def mine(tmp_path):
    return conversation_store.open_store(tmp_path, conversation.new_browser_key())


def talk_of(mine, *said, her=HER):
    """A conversation in which every turn is answered by "base N" and "她 N"."""
    talk = conversation_store.start_conversation(mine, said[0])
    for n, text in enumerate(said):
        talk = talk if n == 0 else conversation_store.add_turn(mine, talk, text)
        answers = [ConversationAnswer(BASE, f"base {n}"), ConversationAnswer(her, f"她 {n}")]
        talk = conversation_store.add_answers(mine, talk, talk.turns[-1].id, answers, DICE)
    return talk


def test_an_export_has_a_line_for_each_column_and_comes_back_as_pairs(mine):
    talk = talk_of(mine, "a", "b")
    talk = conversation_store.add_answers(
        mine, conversation_store.add_turn(mine, talk, "c"), 5, [ConversationAnswer(HER, "only she")], DICE
    )
    rows = [json.loads(line) for line in conversation.export_messages(talk)]
    assert [r["column"] for r in rows] == ["Base", "甄嬛"] and rows[1]["strength"] == 0.8
    assert rows[0]["messages"] == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "base 0"},
        {"role": "user", "content": "b"}, {"role": "assistant", "content": "base 1"},
    ]  # fmt: skip
    assert rows[1]["messages"][0] == {"role": "system", "content": "你是甄嬛。"}
    assert [m["content"] for m in rows[1]["messages"][1:]] == ["a", "她 0", "b", "她 1", "c", "only she"]
    assert conversation.column_history(conversation_store.add_turn(mine, talk, "d"), 7, BASE.column) == (
        ("a", "base 0"),
        ("b", "base 1"),
    )
    found, _ = messages.row_to_pairs(rows[1], "talk.jsonl:2", common="你是甄嬛。")
    assert [p.output for p in found] == ["她 0", "她 1", "only she"]
    assert found[-1] == Pair("c", "only she", (("a", "她 0"), ("b", "她 1")), "talk.jsonl:2")


def test_a_column_is_known_by_its_voice_and_not_by_its_label(mine):
    talk = talk_of(mine, "a", "b")
    later = replace(HER, label="Zhen Huan", strength=0.5, system="", adapter="run/renamed/20261122-031500-a1b2")
    twin = replace(HER, adapter="run/zhen-huan/20261122-031530-ffff")  # of the same minute: it has the same label
    assert conversation.answer_text(talk.turns[1], later.column) == "她 1"
    assert conversation.column_history(talk, talk.turns[1].id, later.column) == (("a", "她 0"),)
    assert conversation.answer_text(talk.turns[1], twin.column) == ""
    assert BASE.column != replace(BASE, kind="prompt").column != HER.column


def test_blends_with_different_main_adapters_are_different_columns():
    blend = VoiceRecord("adapter", "25% A + 75% B", "blend/0.25/run/b/20261122-031500-a1b2")
    assert blend.column != replace(blend, label="25% C + 75% B").column == replace(blend, label="25% C + 75% B").column
