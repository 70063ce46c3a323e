"""Fixes of what the checks find, findings that are ignored, and what holds for any pairs."""

import pytest
from cases import check_each
from hypothesis import given, settings
from hypothesis import strategies as st
from lint_texts import ANSWERS, ANYONE, FILL, HUAN, MAGS, answer, found

from persona.errors import InputError
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.write.lint import ignore_finding, lint_pairs, read_ignored, unignore_findings
from persona.write.lint.fixes import fix_finding, fix_findings
from persona.write.lint.summary import summarize_dataset

FIXES = [
    ("control-token", "Yes.<end_of_turn>", "Yes."),
    ("control-token", "<|im<|x|>_end|>Yes.", "Yes."),
    ("markup", "One.<br>Two &amp; <b>three</b>.", "One.\nTwo & three."),
    ("markup", "&amp;lt;b&amp;gt; it.", "it."),
    ("markup", "It is **very** [late](http://a.b).", "It is very late."),
    ("stage-direction", "（转身）你来了。（笑）", "你来了。"),
    ("stage-direction", "It is late. *looks away*", "It is late."),
    ("mojibake", "cafÃ© by the sea.", "café by the sea."),
    ("mojibake", "今夜月色真好!".encode().decode("gb18030"), "今夜月色真好!"),
    ("mojibake", "锟斤拷你好。", None),
    ("mojibake", "Caf\x8e, no.", "CafŽ, no."),
    ("thinking", "<think>They want tea.</think>\n\nTea?", "Tea?"),
    ("thinking", "They want tea.</think>Tea?", "Tea?"),
    ("macro", "Hello, {{user}}.", None),
    ("hidden-character", "\ufeffcafe\u0301\u200b.\r\nNo.", "café.\nNo."),
    ("other-speaker", "甄嬛：你来了，坐。", "你来了，坐。"),
    ("other-speaker", "皇帝：你来了，坐。", None),
    ("stage-direction", "（笑）", None),
    ("chat-mark", "Page nine. <This message was edited>", "Page nine."),
    ("personal-data", "Call 13812345678.", None),
]


def test_a_fix_does_what_it_says_and_the_finding_is_gone():
    def check(rule, before, after):
        pairs = [*FILL, Pair("And then?", before), *FILL[:1]]
        (finding,) = [f for f in found(rule, pairs, HUAN) if f.pairs == (7,)]
        fixed = fix_finding(pairs, finding, HUAN)
        assert bool(finding.fix) == (after is not None)
        assert fixed[6].output == (before if after is None else after)
        assert fixed[:6] == pairs[:6] and fixed[7:] == pairs[7:]
        assert fix_finding(fixed, finding, HUAN) == fixed, "a second click does nothing"
        if after is not None:
            assert not [f for f in found(rule, fixed, HUAN) if f.pairs == (7,)]

    check_each(FIXES, check)


def test_fixes_of_one_check_go_together():
    pairs = [Pair("", ""), *FILL, *FILL[:2], Pair("Go on.", "（笑）<b>Yes</b>, I will.<eos>")]
    findings = lint_pairs(pairs, ANYONE)
    fixed = fix_findings(pairs, findings, ANYONE)
    assert fixed == [*FILL, Pair("Go on.", "Yes, I will.")]
    assert fix_findings(fixed, findings, ANYONE) == fixed
    assert not [f for f in lint_pairs(fixed, ANYONE) if f.fix]


def test_a_fix_leaves_what_was_edited_since():
    pairs = answer("One.<br>Two.")
    (finding,) = found("markup", pairs)
    edited = [*pairs[:-1], Pair("And then?", "Three.<br>Four.")]
    assert fix_finding(edited, finding, ANYONE) == edited
    assert fix_finding(pairs[:3], finding, ANYONE) == pairs[:3]


def test_a_repeat_whose_first_is_gone_stays():
    pairs = [FILL[0], FILL[1], FILL[0]]
    (finding,) = found("duplicate", pairs)
    edited = [FILL[2], FILL[1], FILL[0]]
    assert fix_finding(edited, finding, ANYONE) == edited


@pytest.fixture
def persona(tmp_path):
    return persona_folder.create_persona_at(tmp_path / "mags", ANYONE, [Pair("Is it far?", "Yes."), *FILL, *FILL[:2]])


def test_ignored_survives_renumbering_and_reload_and_comes_back_with_the_text(persona):
    pairs = persona.pairs()
    for finding in lint_pairs(pairs, ANYONE):
        ignore_finding(persona, finding.key)
    ignored = read_ignored(persona_folder.open_persona(persona.path))
    assert len(ignored) == 3 and not lint_pairs(pairs, ANYONE, ignored=ignored)
    moved = [*reversed(FILL), *FILL[:2], Pair("Is it far?", "Yes.")]
    assert lint_pairs(moved, ANYONE) and not lint_pairs(moved, ANYONE, ignored=ignored)
    changed = [*moved[:-1], Pair("Is it far?", "No.")]
    (back,) = lint_pairs(changed, ANYONE, ignored=ignored)
    assert back.rule == "short-reply"
    unignore_findings(persona, next(k for k in ignored if k.startswith("duplicate")))
    assert {f.rule for f in lint_pairs(pairs, ANYONE, ignored=read_ignored(persona))} == {"duplicate"}


@pytest.mark.parametrize("text", ["[]", "{}", '{"ignored": "x"}', '{"ignored": [1]}', "nothing"])
def test_a_broken_list_of_ignored_findings_is_named(persona, text):
    (persona.path / "ignored.json").write_text(text)
    with pytest.raises(InputError, match=r"ignored\.json"):
        read_ignored(persona)
    with pytest.raises(InputError):
        ignore_finding(persona, "x")
    assert (persona.path / "ignored.json").read_text() == text


ROW_WISE = {"control-token", "thinking", "macro", "chat-mark", "markup", "stage-direction", "mojibake", "hidden-character", "personal-data", "ai-leak",
            "other-speaker", "cut-off", "language", "mixed-script", "unfinished", "too-long"}  # fmt: skip
SNIPPETS = [t for both in ANSWERS.values() for texts in both for t in texts]
wild = st.text(max_size=30) | st.lists(
    st.sampled_from([*SNIPPETS, " ", "\n", "<", ">", "&", "amp;", "*", "（", "）", "<b", "[", "](/x)", "`"]), max_size=4
).map("".join)
some_pairs = st.lists(st.builds(Pair, wild, wild, st.lists(st.tuples(wild, wild), max_size=1).map(tuple)), max_size=12)


@given(some_pairs, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_another_order_gives_the_same_findings_of_the_same_pairs(pairs, dice):
    order = list(range(len(pairs)))
    dice.shuffle(order)

    def of(where):
        listed = [pairs[n] for n in where]
        return sorted(
            (f.rule, f.severity, f.key, f.fix, sorted(where[row - 1] for row in f.pairs))
            for f in lint_pairs(listed, HUAN, length=lambda p: len(p.output), max_length=20)
            if f.rule in {*ROW_WISE, "short-reply"}
        )

    assert of(order) == of(range(len(pairs)))


@pytest.mark.slow
@given(some_pairs)
@settings(max_examples=100)
def test_whatever_the_pairs_fixes_help_and_nothing_crashes(pairs):
    findings = lint_pairs(pairs, MAGS)
    assert all(1 <= row <= len(pairs) for f in findings for row in f.pairs)
    assert all(f.key and f.message and f.pairs == tuple(sorted(set(f.pairs))) for f in findings)
    summarize_dataset(pairs, MAGS, findings)
    for finding in findings:
        fixed = fix_finding(pairs, finding, MAGS)
        if not finding.fix:
            assert fixed == pairs
        else:  # another row may say the same, and be another finding with the same key
            left = sum(f.key == finding.key for f in lint_pairs(fixed, MAGS))
            assert fixed != pairs and left < sum(f.key == finding.key for f in findings)
            assert fix_finding(fixed, finding, MAGS) == fixed


def test_half_a_character_does_not_crash():
    lint_pairs([Pair("\ud800", "\udfff."), Pair("\ud800 a", "\udfff b.")], ANYONE)


@pytest.mark.parametrize("example", persona_folder.list_examples(), ids=lambda p: p.slug)
def test_the_shipped_personas_are_clean(example):
    assert lint_pairs(example.pairs(), example.card()) == []
    summary = summarize_dataset(example.pairs(), example.card(), [])
    assert summary.enough and not summary.missing
