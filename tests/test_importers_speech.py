"""Screenplays and chat logs: who speaks, what becomes a pair, and that each line of the persona is accounted for."""

import pytest
from cases import check_each
from hypothesis import given, settings
from hypothesis import strategies as st
from plays import CHATS, FOUNTAIN, PLAY, pairs, skips

from persona.errors import InputError
from persona.store.pairs import Pair
from persona.write.importers import ImportNote, ImportOptions, novel, screenplay
from persona.write.importers.chat_marks import load_marks
from persona.write.importers.speaker_turns import PersonaSpeaker, rewrite_directions

pytest_plugins = "plays"


def test_a_screenplay_line_by_line(source):
    assert pairs(screenplay, source(PLAY), "阿绫") == [
        ("姑娘，今日风大。", "风大也要过江。", 6),
        ("那就坐稳了。开船——", "有劳。", 8),
        ("上房一间。", "多少银子？", 17),
    ]


def test_each_line_of_hers_without_a_pair_says_why(source):
    found = skips(screenplay, source(PLAY), "阿绫")
    assert [line for line, _ in found] == [10, 13, 14, 15, 20, 21, 23, 24]
    for (_, why), part in zip(
        found,
        [
            "stage direction stands between",
            "no line before it",
            "colon after a name",
            "cannot be read",
            "colon after a name",
            "together",
            "nothing is said",
            "persona's own",
        ],
        strict=True,
    ):
        assert part in why


def test_what_was_left_out_of_a_pair_is_noted(source):
    items = list(screenplay.read(source(PLAY), ImportOptions(speakers=("阿绫",))))
    assert [i.line for i in items if isinstance(i, ImportNote)] == [8]


def test_survey_counts_names_however_they_are_written(source):
    assert screenplay.survey(source(PLAY)).speakers == {"阿绫": 8, "店家": 3, "船夫": 2, "店家、阿绫": 1}
    assert screenplay.survey(source("Ann: a\nANN: b\nAnn (V.O.): c\nBob: d\n")).speakers == {"Ann": 3, "Bob": 1}


def test_an_alias_counts_as_hers(source):
    text = source("乙：一。\n甲：二。\n乙：三。\n小甲：四。\n")
    assert pairs(screenplay, text, "甲", "小甲") == [("一。", "二。", 2), ("三。", "四。", 4)]
    assert pairs(screenplay, text, "甲") == [("一。", "二。", 2)]


def test_two_who_speak_together_are_hers_when_chosen(source):
    mended = PLAY.replace("；", "：")
    assert pairs(screenplay, source(mended), "店家、阿绫") == [("便宜些。", "成交！", 21)]
    assert ("三钱，包早饭。", "便宜些。", 20) in pairs(screenplay, source(mended), "阿绫")
    known = frozenset({"眉", "嬛"})
    assert PersonaSpeaker(frozenset({"嬛"}), known).speaks_with_others("嬛眉")
    assert PersonaSpeaker(frozenset({"嬛"}), known).speaks_with_others("眉和嬛")
    assert not PersonaSpeaker(frozenset({"嬛"}), known).speaks_with_others("嬛儿")
    assert PersonaSpeaker(frozenset({"ann"}), frozenset({"bob"})).speaks_with_others("BOB & ANN")


@pytest.mark.parametrize("module", [screenplay, novel])
@pytest.mark.parametrize("names", [(), ("nobody",)])
def test_who_is_the_persona_must_be_chosen(source, module, names):
    text = (
        "“来。”店家说。\n“走。”阿绫说。\n“好。”阿绫说。\n"
        if module is novel
        else "店家：来。\n阿绫：走。\n阿绫：好。\n"
    )
    with pytest.raises(InputError, match=r"--speaker NAME: 阿绫 \(2\), 店家 \(1\)"):
        list(module.read(source(text), ImportOptions(speakers=names)))


def test_stage_directions_are_kept_when_wanted(source):
    text = source("乙：你来了。\n甲（行礼）：来了（笑）晚了。\n")
    assert pairs(screenplay, text, "甲", actions="keep") == [("你来了。", "*行礼* 来了 *笑* 晚了。", 2)]
    assert skips(screenplay, text, "甲")[0][0] == 2


def test_stage():
    cases = [
        ("a (b) c", "a c", "a *b* c"),
        ("（一）二", "二", "*一* 二"),
        ("一（二（三）四）五", "一五", "一 *二（三）四* 五"),
        ("一（二", "一（二", "一（二"),
        ("smile :) yes", "smile :) yes", "smile :) yes"),
        ("【旁】【白】", "", "*旁*  *白*"),
    ]

    def check(text, dropped, kept):
        assert rewrite_directions(text) == dropped
        assert rewrite_directions(text, keep=True).split() == kept.split()

    check_each(cases, check)


def test_history_is_of_the_same_scene(source):
    text = source("第1场\n乙：一\n甲：二\n乙：三\n甲：四\n乙：五\n甲：六\n第2场\n乙：七\n甲：八\n")
    rows = [i for i in screenplay.read(text, ImportOptions(speakers=("甲",), turns=2)) if isinstance(i, Pair)]
    assert [p.history for p in rows] == [(), (("一", "二"),), (("一", "二"), ("三", "四")), ()]


def test_no_pair_across_a_scene_break(source):
    cases = [
        "第2幕",
        "第十二集：雨",
        "INT. KITCHEN - DAY",
        "ext. roof",
        "***",
        "---",
        "* * *",
        "Scene 4",
        "",
        "CUT TO:",
    ]

    def check(between):
        text = source(f"Bob: one\nAnn: two\nBob: three\n{between}\nAnn: four\nBob: five\nAnn: six\n")
        assert [p[1] for p in pairs(screenplay, text, "Ann")] == ["two", "six"]

    check_each(cases, check)


def test_empty_lines_between_all_speeches_are_no_scene_breaks(source):
    assert len(pairs(screenplay, source("Bob: one\n\nAnn: two\n\nBob: three\n\nAnn: four\n"), "Ann")) == 2


def test_a_line_that_nobody_says_is_skipped_and_separates(source):
    text = source("第1幕\n这里没有人说话\n乙：一\n甲：二\n")
    assert pairs(screenplay, text, "甲") == [("一", "二", 4)]
    assert [line for line, _ in skips(screenplay, text, "甲")] == [2]


def test_chat_exports(source):
    def check(text):
        log = source(text)
        line = next(n for n, x in enumerate(text.split("\n"), 1) if "Ann" in x)
        assert pairs(screenplay, log, "ann") == [("hi", "hello: you\nthere", line)]
        assert screenplay.survey(log).speakers == {"Bob": 1, "Ann": 1}
        assert screenplay.sniff(log) == 0.9

    check_each(CHATS, check)


def test_messages_one_after_the_other_are_one_turn(source):
    log = source("<Bob> hi\n<Bob> there?\n<Ann> yes (really)\n<Ann> I am\n* Bob waves\n<Ann> bye\n")
    assert pairs(screenplay, log, "Ann") == [("hi\nthere?", "yes (really)\nI am", 3)]
    assert skips(screenplay, log, "Ann") == [(6, "something is done between it and the line before")]


def test_what_is_no_text_in_a_chat_is_skipped(source):
    log = source(
        "12/03/2024, 10:14 - Messages are encrypted.\n12/03/2024, 10:15 - Bob: hi\n"
        "12/03/2024, 10:15 - Ann: <Media omitted>\n12/03/2024, 10:16 - Ann: look\n"
    )
    assert pairs(screenplay, log, "Ann") == [("hi", "look", 3)]
    assert [line for line, _ in skips(screenplay, log, "Ann")] == [1, 3]


def test_fountain(source):
    script = source(FOUNTAIN)
    assert screenplay.survey(script).speakers == {"ANN": 5, "BOB": 2, "McNeil": 1}
    assert pairs(screenplay, script, "Ann") == [
        ("Is it lit?", "It is lit, my friend.", 13),
        ("Who is there?", "Only me.", 33),
    ]
    assert skips(screenplay, script, "Ann") == [
        (25, "said at the same time as the line before it"),
        (38, "action stands between it and the line before"),
        (43, "no line before it in this scene"),
    ]


def test_marks_of_the_page_are_no_speech(source):
    script = source("BOB\nOne.\n\nANN\nTwo\n(MORE)\n12.\nthree.\n")
    assert pairs(screenplay, script, "Ann", actions="keep") == [("One.", "Two three.", 4)]


def test_ways_to_write_a_name(source):
    cases = ["Ann (V.O.): two", "Ann(CONT'D): two", "**Ann:** two", "ANN：two", "Ann (123) : two"]

    def check(line):
        assert pairs(screenplay, source(f"Bob: one\n{line}\nBob: three\n"), "Ann") == [("one", "two", 2)]

    check_each(cases, check)


def test_a_comment_that_never_ends_is_told(source):
    found = skips(screenplay, source("BOB\nhi\n\nANN\nyes\n\nBOB\nhi\n\n/* ANN\nno\n"), "ANN")
    assert found[0][0] == 10
    assert "not closed" in found[0][1]


@pytest.mark.parametrize(
    "text",
    [
        "            BOB\n    Is it lit?\n\n            ANN\n        (softly)\n    It is, I\n    think. STOP\n",
        "BOB\nIs it lit?\nANN\n(softly)\nIt is, I\nthink. STOP\nBOB\nah\nANN\n(nods)\n",
        "BOB:\nIs it lit?\n\nANN:\n(softly)\nIt is, I\nthink. STOP\n",
    ],
    ids=["indented", "no-empty-lines", "colons"],
)
def test_names_above_the_speech(source, text):
    assert pairs(screenplay, source(text), "ANN")[0][:2] == ("Is it lit?", "It is, I think. STOP")


@settings(max_examples=100)
@given(kept=st.lists(st.sampled_from(list(enumerate(PLAY.split("\n")))), min_size=10, max_size=60))
def test_each_speech_of_hers_is_in_a_pair_or_skipped(source, kept):
    """Lines deleted, repeated and in any order: each that begins with her name and a colon is accounted for."""
    lines = [
        *(f"{line}〔{n}〕" if line.startswith("阿绫：") else line for n, (_, line) in enumerate(kept)),
        "阿绫：完",
        "店家：完",
    ]
    items = list(screenplay.read(source("\n".join(lines)), ImportOptions(speakers=("阿绫",))))
    told = "\n".join(i.output if isinstance(i, Pair) else i.text for i in items if not isinstance(i, ImportNote))
    for n, line in enumerate(lines):
        if line.startswith("阿绫："):
            assert (f"〔{n}〕" if "〔" in line else "完") in told


def test_an_empty_text_has_no_marks():
    assert load_marks().clean("  ").removed == ()
