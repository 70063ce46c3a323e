"""Conversations in rows of data: each reply of the persona becomes a pair, whatever the shape, and is learned once."""

import json

import pytest
from cases import check_each
from row_files import chat, items, line, talk

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, conversation_rows, registry
from persona.write.importers.text_source import open_source

AB, CD = Pair("a", "b"), Pair("c", "d", (("a", "b"),))
TURNS = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


def turns(who: str, what: str, *sides: str, **more):
    return [{who: sides[n % 2], what: text, **more} for n, (_, text) in enumerate(TURNS)]


SHAPES = {
    "sharegpt": {"conversations": turns("from", "value", "human", "gpt")},
    "openai": {"messages": turns("role", "content", "user", "assistant")},
    "coser": {"conversations": turns("from", "content", "user", "assistant")},
    "lmsys": {"conversation_id": "7", "model": "m", "conversation": turns("role", "content", "user", "assistant"), "turn": 2},
    "wildchat": {"conversation": turns("role", "content", "user", "assistant", language="English", toxic=False)},
    "pippa": {"bot_name": "Mags", "conversation": [{"message": t, "is_human": w == "user"} for w, t in TURNS]},
    "xtuner": {"conversation": [{"system": "Be.", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
    "json text": {"id": "7", "conversation": json.dumps(turns("role", "content", "user", "assistant"))},
    "dpo": {"chosen": turns("role", "content", "user", "assistant"), "rejected": []},
    "dpo prompt": {"prompt": turns("role", "content", "user", "assistant")[:3], "chosen": [{"role": "assistant", "content": "d"}]},
    "chatgpt": {"title": "x", "current_node": "4", "mapping": {
        "0": {"parent": None, "message": None},
        **{str(n): {"parent": str(n - 1), "message": {"author": {"role": w}, "content": {"content_type": "text", "parts": [t]}}} for n, (w, t) in enumerate(TURNS, 1)},
        "5": {"parent": "3", "message": {"author": {"role": "assistant"}, "content": {"parts": ["another"]}}},
    }},
    "guanaco": {"text": "### Human: a### Assistant: b### Human: c### Assistant: d"},
    "llama 2": {"text": "<s>[INST] <<SYS>>\nBe.\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST] d </s>".replace("<<SYS>>\nBe.\n<</SYS>>\n\n", "")},
    "chatml": {"text": "".join(f"<|im_start|>{w}\n{t}<|im_end|>\n" for w, t in TURNS)},
    "llama 3": {"text": "<|begin_of_text|>" + "".join(f"<|start_header_id|>{w}<|end_header_id|>\n\n{t}<|eot_id|>" for w, t in TURNS)},
    "gemma": {"text": "<bos>" + "".join(f"<start_of_turn>{w.replace('assistant', 'model')}\n{t}<end_of_turn>\n" for w, t in TURNS)},
    "zephyr": {"text": "".join(f"<|{w}|>\n{t}</s>\n" for w, t in TURNS)},
    "vicuna": {"text": "A chat. USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>"},
    "hh": {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"},
    "alpaca text": {"text": "Below is a talk.\n\n### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nc\n\n### Response:\nd"},
}  # fmt: skip


def test_every_reply_of_every_shape_is_a_pair(tmp_path):
    def check(shape):
        for name in ("x.jsonl", "x.json"):
            data = line(**SHAPES[shape]) if name == "x.jsonl" else json.dumps([SHAPES[shape], SHAPES[shape]], indent=1)
            found, skipped, _ = items(tmp_path, name, data)
            assert found == [AB, CD] * (1 if name == "x.jsonl" else 2) and not skipped

    check_each([(s,) for s in SHAPES], check)


def test_a_reply_that_is_not_to_be_learned_is_context(tmp_path):
    def check(key, off):
        rows = [
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: off}]},
            chat("a", "b", "c", "d"),
        ]
        rows[1]["messages"][1][key] = off
        found, skipped, notes = items(tmp_path, "x.jsonl", "".join(line(**row) for row in rows))
        assert found == [CD]
        assert [(n, "weight 0" in why) for n, why in skipped] == [(1, True)]
        assert [what for _, what in notes] == ["reply of weight 0 kept as context, not learned"]

    check_each([("weight", 0), ("weight", 0.0), ("train", False), ("loss", False)], check)


def test_several_answers_are_several_pairs(tmp_path):
    found = items(tmp_path, "x.jsonl", line(role="Ann", question="a", generated=["b", "c"], type="x"))[0]
    assert found == [AB, Pair("a", "c")]


def test_a_last_reply_that_is_not_learned_leaves_the_others(tmp_path):
    row = chat("a", "b", "c", "d")
    row["messages"][3]["weight"] = 0
    assert items(tmp_path, "x.jsonl", line(**row))[0] == [AB]


def test_an_empty_turn_costs_no_other_reply(tmp_path):
    found, skipped, _ = items(tmp_path, "x.jsonl", line(**talk("a", "b", "", "x", "c", "d", "e", "f")))
    assert found == [AB, Pair("c", "d"), Pair("e", "f", (("c", "d"),))]
    assert [why for _, why in skipped] == ["'instruction' is empty"]


def test_the_history_of_a_long_conversation_does_not_grow_with_its_square(tmp_path):
    count = 3 * conversation_rows.MAX_HISTORY
    said = [f"{n}" for n in range(2 * count)]
    found, _, notes = items(tmp_path, "x.jsonl", line(**talk(*said)))
    assert len(found) == count and max(len(p.history) for p in found) == conversation_rows.MAX_HISTORY - 1
    assert sum("begun anew" in what for _, what in notes) == 2
    short = items(tmp_path, "x.jsonl", line(**talk(*said)), options=ImportOptions(turns=2))[0]
    assert short[-1].history == tuple((p.instruction, p.output) for p in found[-3:-1])
    assert items(tmp_path, "x.jsonl", line(**talk(*said)), options=ImportOptions(turns=0))[0][-1].history == ()


def test_replies_and_conversations_are_counted(tmp_path):
    (tmp_path / "x.jsonl").write_text(line(**talk("a", "b", "c", "d", "e", "f")) + line(**talk("a", "b")) * 2)
    count = registry.count_pairs(open_source(tmp_path / "x.jsonl"), "sharegpt", ImportOptions())
    assert (count.replies, count.conversations, count.more) == (5, 3, False)


def test_what_is_no_conversation_is_none():
    cases = [
        {"text": "### Human: a"},
        {"text": "A USER: said so"},
        {"text": "prose"},
        {"messages": "[1"},
        {"messages": []},
    ]
    for row in cases:
        with pytest.raises(InputError):
            conversation_rows.conversation_to_pairs(row, "x", conversation_rows.find_turns(row))


def test_thinking_is_kept_before_its_reply_where_it_is_asked_for(tmp_path):
    """In parts, or under a key beside the reply, as servers and data sets have it."""
    user = {"role": "user", "content": "a"}
    said = [
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        {"role": "assistant", "content": "b", "reasoning": " hm\n"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": [user, reply]}) + "\n" for reply in said))

    def read(**options):
        found = list(registry.read_source(open_source(file), "messages", ImportOptions(**options)))
        return [x.output for x in found if isinstance(x, Pair)], [x for x in found if not isinstance(x, Pair)]

    kept, notes = read(thinking="keep")
    assert kept == ["<think>\nhm\n</think>\n\nb"] * 4 and notes == []
    dropped, notes = read()
    assert dropped == ["b", "b", "b", kept[0]] and len(notes) == 3
    assert all("thinking left out" in str(note.what) for note in notes)
