"""Screenplays, chat logs and novels: who speaks, what becomes a pair, and that each line of hers is accounted for."""

import itertools

import pytest
from cases import check_each
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona.errors import InputError
from persona.importers import Note, Options, Skipped, detect, formats, prose, screenplay
from persona.importers.speech import Her, Names, stage
from persona.importers.text import open_source
from persona.pairs import Pair

PLAY = """第一集

第1幕
（渡口。天未亮）
船夫：姑娘，今日风大。
阿绫：风大也要过江。
船夫（摇头）：那就坐稳了。（撑篙）开船——
阿绫：有劳。（递过铜钱）
（对岸传来钟声）
阿绫：到了么？

第2幕
阿绫：有人么？
店家；客官里边请。
阿绫，住店。
店家（擦桌）上房一间。
阿绫：多少银子？
店家：三钱，
包早饭。
阿绫；便宜些。
店家、阿绫：成交！
店家：楼上请。
阿绫：（点头）
阿绫：多谢。
"""


@pytest.fixture
def source(tmp_path):
    def write(text, name="a.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
        return open_source(path)

    return write


def pairs(module, source, *names, **options):
    items = module.read(source, Options(speakers=names, **options))
    return [(p.instruction, p.output, int(p.source.rsplit(":", 1)[1])) for p in items if isinstance(p, Pair)]


def skips(module, source, *names, **options):
    return [(s.line, s.why) for s in module.read(source, Options(speakers=names, **options)) if isinstance(s, Skipped)]


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
            "her own",
        ],
        strict=True,
    ):
        assert part in why


def test_what_was_left_out_of_a_pair_is_noted(source):
    items = list(screenplay.read(source(PLAY), Options(speakers=("阿绫",))))
    assert [i.line for i in items if isinstance(i, Note)] == [8]


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
    assert Her(frozenset({"嬛"}), known).speaks_too("嬛眉")
    assert Her(frozenset({"嬛"}), known).speaks_too("眉和嬛")
    assert not Her(frozenset({"嬛"}), known).speaks_too("嬛儿")
    assert Her(frozenset({"ann"}), frozenset({"bob"})).speaks_too("BOB & ANN")


@pytest.mark.parametrize("module", [screenplay, prose])
@pytest.mark.parametrize("names", [(), ("nobody",)])
def test_who_is_the_persona_must_be_chosen(source, module, names):
    text = (
        "“来。”店家说。\n“走。”阿绫说。\n“好。”阿绫说。\n"
        if module is prose
        else "店家：来。\n阿绫：走。\n阿绫：好。\n"
    )
    with pytest.raises(InputError, match=r"--speaker NAME: 阿绫 \(2\), 店家 \(1\)"):
        list(module.read(source(text), Options(speakers=names)))


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
        assert stage(text) == dropped
        assert stage(text, keep=True).split() == kept.split()

    check_each(cases, check)


def test_history_is_of_the_same_scene(source):
    text = source("第1场\n乙：一\n甲：二\n乙：三\n甲：四\n乙：五\n甲：六\n第2场\n乙：七\n甲：八\n")
    rows = [i for i in screenplay.read(text, Options(speakers=("甲",), turns=2)) if isinstance(i, Pair)]
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


CHATS = {
    "whatsapp-ios": "[12/3/24, 10:15:02] Bob: hi\n[12/3/24, 10:15:40] Ann: hello: you\nthere\n",
    "whatsapp-narrow-space": "\u200e[12/3/24, 10:15:02\u202fPM] Bob: hi\n[12/3/24, 10:15:40\u202fPM] Ann: hello: you\nthere\n",
    "whatsapp-android": "12/03/2024, 10:15 - Bob: hi\n12/03/2024, 10:15 - Ann: hello: you\nthere\n",
    "clock-and-nick": "[10:15] <Bob> hi\n[10:15] <Ann> hello: you\nthere\n",
    "nick": "<Bob> hi\n<Ann> hello: you\nthere\n",
    "qq": "2024-03-12 10:15:02 Bob(12345)\nhi\n\n2024-03-12 10:15:09 Ann(ann@b.c)\nhello: you\nthere\n",
    "wechat": "Bob 2024/3/12 10:15:02\nhi\nAnn 2024/3/12 10:15:30\nhello: you\nthere\n",
    "slack": "Bob 10:15 AM\nhi\nAnn 10:16 AM\nhello: you\nthere\n",
    "discord": "Bob — Today at 10:15 AM\nhi\nAnn — Today at 10:16 AM\nhello: you\nthere\n",
    "telegram": "Bob, [12.03.24 10:15]\nhi\n\nAnn, [12.03.24 10:16]\nhello: you\nthere\n",
    "exporter": "[12/03/2024 10:15 AM] Bob\nhi\n\n[12/03/2024 10:16 AM] Ann\nhello: you\nthere\n",
    "chinese-clock": "Bob 2024年3月12日 上午10:15\nhi\nAnn 2024年3月12日 下午1:16\nhello: you\nthere\n",
}


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


FOUNTAIN = """Title: The Lamp
Author: me

# Act

INT. LIGHTHOUSE - NIGHT

Rain. ANN listens.

BOB
Is it lit?

ANN (CONT'D)
(softly)
It is lit, [[louder?]]
my friend.

BOB
Good.

/* cut
ANN
Never.
*/
ANN ^
Good.

CUT TO:

@McNeil
Who is there?

ANN (V.O.)
Only me.

She puts the lamp down.

ANN
And the rain.

EXT. PIER - DAY

ANN
Alone.
"""


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


NOVEL = """第一章 渡口

  船夫低声问道：“姑娘，过江么？”
  阿绫点点头道：“过。”
  船夫看看天色，说道：“风大，坐稳了。”
  “我不怕。”阿绫说，“走吧。”
  “真不怕？”
  “不怕。”
  阿绫听了，忙笑道：“快些。”
  他是村里人说的“老江湖”，不再多话。
  船夫道：“到了。”阿绫又道：“多谢。”

第二章

  “有人么？”阿绫喊道。
"""


def test_a_chinese_novel(source):
    novel = source(NOVEL)
    assert prose.survey(novel).speakers == {"阿绫": 5, "船夫": 3}
    assert pairs(prose, novel, "阿绫") == [
        ("姑娘，过江么？", "过。", 4),
        ("风大，坐稳了。", "我不怕。走吧。", 6),
        ("到了。", "多谢。", 11),
    ]
    assert skips(prose, novel, "阿绫") == [
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
    assert pairs(prose, novel, "Ann") == [
        ("Is it lit?", "It has been lit, since you were born. And it will be.", 4),
        ("I don’t see the boys’ lamp.", "Nor I.", 18),
    ]
    assert [line for line, _ in skips(prose, novel, "Ann")] == [9, 11]


def test_a_pronoun_counts_where_its_paragraph_names_one_speaker(source):
    text = (
        '"One," said Bob.\n"Two," said Ann. "And three," she said.\n"Four," said Bob.\nAnn saw Bob. "Five," she said.\n'
    )
    assert pairs(prose, source(text), "Ann") == [("One.", "Two. And three.", 2)]


def test_an_answer_is_near(source):
    near = "“一。”店家说。\n雨。\n雨。\n雨。\n“二。”阿绫说。\n"
    assert len(pairs(prose, source(near), "阿绫")) == 1
    assert pairs(prose, source(near.replace("雨。\n", "雨。\n雨。\n")), "阿绫") == []


def test_a_quotation_without_end_is_skipped(source):
    text = source("“一。”店家说。\n阿绫说：“二。\n店家走了。\n“三。”阿绫说。\n")
    assert pairs(prose, text, "阿绫") == []
    assert skips(prose, text, "阿绫")[0] == (2, "its quotation mark is never closed")


@pytest.mark.parametrize(
    ("text", "format"),
    [(PLAY, "screenplay"), (FOUNTAIN, "screenplay"), (CHATS["qq"], "screenplay"), (NOVEL, "prose")],
    ids=["play", "fountain", "chat", "novel"],
)
def test_sniff_knows_its_own(source, text, format):
    sure = {name: formats()[name].sniff(source(text)) for name in ("screenplay", "prose")}
    assert max(sure, key=sure.get) == format
    assert sure[format] >= 0.5
    assert detect(source(text)) == format


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

    check_each(itertools.product([screenplay, prose], NOT_OURS), check)


def test_counting_names_does_not_grow_with_the_file(monkeypatch):
    monkeypatch.setattr("persona.importers.speech.MAX_NAMES", 10)
    names = Names()
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


@pytest.mark.parametrize("module", [screenplay, prose])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(ANY, max_size=30), turns=st.integers(0, 3), actions=st.sampled_from(["drop", "keep"]))
def test_any_text_ends_in_items_or_a_refusal(source, module, lines, turns, actions):
    text = source("\n".join(["甄：hers", "乙：yes", "“hers。”甄说。", *lines]))
    assert 0 <= module.sniff(text) <= 1
    total = sum(1 for _ in text.lines())
    for name in [*module.survey(text).speakers, "甄"]:
        try:
            items = list(module.read(text, Options(speakers=(name,), turns=turns, actions=actions)))
        except InputError:
            assert name == "甄"
            continue
        for item in items:
            if isinstance(item, Pair):
                assert item.instruction.strip() and item.output.strip()
            else:
                assert 1 <= item.line <= total


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.lists(st.sampled_from(list(enumerate(PLAY.split("\n")))), min_size=10, max_size=60))
def test_each_speech_of_hers_is_in_a_pair_or_skipped(source, kept):
    """Lines deleted, repeated and in any order: each that begins with her name and a colon is accounted for."""
    lines = [
        *(f"{line}〔{n}〕" if line.startswith("阿绫：") else line for n, (_, line) in enumerate(kept)),
        "阿绫：完",
        "店家：完",
    ]
    items = list(screenplay.read(source("\n".join(lines)), Options(speakers=("阿绫",))))
    told = "\n".join(i.output if isinstance(i, Pair) else i.text for i in items if not isinstance(i, Note))
    for n, line in enumerate(lines):
        if line.startswith("阿绫："):
            assert (f"〔{n}〕" if "〔" in line else "完") in told
