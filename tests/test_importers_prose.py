"""Novels: who speaks; which format a text is; and that any text ends in items or a refusal."""

import itertools

import pytest
from cases import check_each
from hypothesis import given, settings
from hypothesis import strategies as st
from plays import CHATS, FOUNTAIN, NOVEL, PLAY, pairs, skips

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, screenplay
from persona.write.importers import novel as write_importers_novel
from persona.write.importers.registry import detect_format, import_formats
from persona.write.importers.speaker_turns import SpeakerNames

pytest_plugins = "plays"


def test_a_chinese_novel(source):
    novel = source(NOVEL)
    assert write_importers_novel.survey(novel).speakers == {"阿绫": 5, "船夫": 3}
    assert pairs(write_importers_novel, novel, "阿绫") == [
        ("姑娘，过江么？", "过。", 4),
        ("风大，坐稳了。", "我不怕。走吧。", 6),
        ("到了。", "多谢。", 11),
    ]
    assert skips(write_importers_novel, novel, "阿绫") == [
        (7, "nobody is named as its speaker"),
        (8, "nobody is named as its speaker"),
        (9, "nobody is named as the speaker of the line before it"),
        (15, "no line before it in this chapter"),
    ]


def test_an_english_novel_broken_at_its_margin(source):
    novel = source(
        "“Is it lit?” asked Bob, who had come up the stairs of the tower and\nwas out of breath.\n\n"
        "“It has been lit,” said Ann, “since you were\nborn.\n\n“And it will be.”\n\n"
        "Bob looked at it. “Good,” he said.\n\n“Good,” Ann answered quietly. “Sit\ndown.”\n\n"
        "* * *\n\n‘I don’t see the boys’ lamp,’ said Mr. Hale.\n\n‘Nor I,’ replied Ann to him.\n"
    )
    assert pairs(write_importers_novel, novel, "Ann") == [
        ("Is it lit?", "It has been lit, since you were born. And it will be.", 4),
        ("I don’t see the boys’ lamp.", "Nor I.", 18),
    ]
    assert [line for line, _ in skips(write_importers_novel, novel, "Ann")] == [9, 11]


def test_a_pronoun_counts_where_its_paragraph_names_one_speaker(source):
    text = (
        '"One," said Bob.\n"Two," said Ann. "And three," she said.\n"Four," said Bob.\nAnn saw Bob. "Five," she said.\n'
    )
    assert pairs(write_importers_novel, source(text), "Ann") == [("One.", "Two. And three.", 2)]


def test_an_answer_is_near(source):
    near = "“一。”店家说。\n雨。\n雨。\n雨。\n“二。”阿绫说。\n"
    assert len(pairs(write_importers_novel, source(near), "阿绫")) == 1
    assert pairs(write_importers_novel, source(near.replace("雨。\n", "雨。\n雨。\n")), "阿绫") == []


def test_a_quotation_without_end_is_skipped(source):
    text = source("“一。”店家说。\n阿绫说：“二。\n店家走了。\n“三。”阿绫说。\n")
    assert pairs(write_importers_novel, text, "阿绫") == []
    assert skips(write_importers_novel, text, "阿绫")[0] == (2, "its quotation mark is never closed")


@pytest.mark.parametrize(
    ("text", "format"),
    [(PLAY, "screenplay"), (FOUNTAIN, "screenplay"), (CHATS["qq"], "screenplay"), (NOVEL, "prose")],
    ids=["play", "fountain", "chat", "novel"],
)
def test_sniff_knows_its_own(source, text, format):
    sure = {name: import_formats()[name].sniff(source(text)) for name in ("screenplay", "prose")}
    assert max(sure, key=sure.get) == format
    assert sure[format] >= 0.5
    assert detect_format(source(text)) == format


NOT_OURS = {
    "json": b'[\n  {\n    "instruction": "a",\n    "output": "b said"\n  }\n]\n',
    "jsonl": b'{"instruction": "a", "output": "b"}\n' * 9,
    "csv": b'speaker,line\n"Ann","Hi, he said"\n' * 9,
    "binary": bytes(range(256)) * 9,
    "blank": b"\n  \n",
    "text": b"One day it rained.\nIt was cold, and nobody came.\n" * 9,
    "html": b"<html><body>\n<p>Ann: a</p>\n<p>Bob: b</p>\n</body></html>",
}


def test_sniff_leaves_others_alone(source):
    def check(module, data):
        assert module.sniff(source(data)) == 0

    check_each(itertools.product([screenplay, write_importers_novel], NOT_OURS), check)


def test_counting_names_does_not_grow_with_the_file(monkeypatch):
    monkeypatch.setattr("persona.write.importers.speaker_turns.MAX_NAMES", 10)
    names = SpeakerNames()
    for n in range(100):
        names.add(f"n{n}")
        names.add("Ann")
    assert names.counts["Ann"] == 100
    assert len(names.counts) <= 11


def test_a_speech_without_end_is_refused_and_not_kept(source):
    text = source("Bob: hi\nAnn: a\n" + "and so on and on and on and\n" * 5_000 + "Bob: ok\nAnn: b\nBob: c\n")
    assert [p[1] for p in pairs(screenplay, text, "Ann")] == ["b"]
    assert skips(screenplay, text, "Ann") == [(2, "longer than 100,000 characters")]


LINES = [*PLAY.split("\n"), *FOUNTAIN.split("\n"), *NOVEL.split("\n"), *"".join(CHATS.values()).split("\n")]
WEIRD = st.text(st.sampled_from('甄嬛道说：:；;，（）()[]【】“”"‘’「<>*-@^~/\\ \t\u3000\ufeff\r12:AN'), max_size=40)
ANY = st.one_of(
    st.sampled_from(LINES), WEIRD, st.text(max_size=30), st.sampled_from(["", "甄：hers", "“hers。”甄说。"])
)


@pytest.mark.parametrize("module", [screenplay, write_importers_novel])
@settings(max_examples=150)
@given(lines=st.lists(ANY, max_size=30), turns=st.integers(0, 3), actions=st.sampled_from(["drop", "keep"]))
def test_any_text_ends_in_items_or_a_refusal(source, module, lines, turns, actions):
    text = source("\n".join(["甄：hers", "乙：yes", "“hers。”甄说。", *lines]))
    assert 0 <= module.sniff(text) <= 1
    total = sum(1 for _ in text.lines())
    for name in [*module.survey(text).speakers, "甄"]:
        try:
            items = list(module.read(text, ImportOptions(speakers=(name,), turns=turns, actions=actions)))
        except InputError:
            assert name == "甄"
            continue
        for item in items:
            if isinstance(item, Pair):
                assert item.instruction.strip() and item.output.strip()
            else:
                assert 1 <= item.line <= total
