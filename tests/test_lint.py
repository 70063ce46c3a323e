"""Lint: for every rule what it must find and what it must leave alone; fixes, ignoring, and what holds for any pairs."""

import random
import subprocess
import sys
from dataclasses import replace

import pytest
from cases import check_each
from hypothesis import given, settings
from hypothesis import strategies as st

from persona import folder
from persona.errors import InputError
from persona.folder import Card
from persona.lint import counts, fix, fix_all, ignore, lint, near, read_ignored, summarise, unignore
from persona.pairs import Pair

MAGS = Card(name="Mags Tolliver", language="en", probes=("Who keeps the light at night?", "Why?"))
HUAN = Card(name="甄嬛", language="zh", probes=("你们宫里的冬天冷不冷？",))
ANYONE = Card(name="Anyone")
FILL = [
    Pair("Where is the boat?", "Out beyond the ledge, waiting for the tide."),
    Pair("What do you eat?", "Herring, bread, and whatever the storm has left me."),
    Pair("Does it rain?", "Every second day, and twice on Sundays."),
    Pair("外头冷吗？", "冷得很，快进来烤火，茶已经温好了。"),
    Pair("读什么书？", "一卷旧诗，读了许多年还没有读完。"),
    Pair("How tall is the tower?", "Ninety-four steps; my knees have counted each of them."),
]


def found(rule, pairs, card=ANYONE, **given):
    return [f for f in lint(pairs, card, **given) if f.rule == rule]


def answer(text, question="And then?"):
    """A pair among others that have the usual final marks."""
    return [*FILL, Pair(question, text)]


# rule → texts of an answer in which it must find something (the row of the pair), and in which it must not
ANSWERS = {
    "control-token": (
        ["Yes.<end_of_turn>", "<|im_start|>assistant\nYes.", "[INST] go [/INST] Yes.", "<s>Yes.</s>", "Yes. <eos>",
         "### Response: Yes.", "### 回答:好。", "<<SYS>>be kind<</SYS>> Yes.", "<think>hm</think> Yes.", "Yes.<｜end▁of▁sentence｜>"],
        ["I like <3 and a < b > c.", "See [1] and [in] there.", "#1 is the best.", "Use <b>care</b>.", "The response: none.", "|im_end|"],
    ),
    "markup": (
        ["So <b>bold</b> of you.", "One.<br/>Two.", "Fish &amp; bread.", "Wait&nbsp;here.", "It is **very** late.", "# Title\nText.",
         "Say `hello` now.", "```\nx = 1\n```", "See [the log](https://a.b/c).", '<span class="x">Hm.</span>', "<!-- no --> Yes.", "__So__ be it."],
        ["a < b and c > d.", "if x<b and c>d then go.", "Jory & I went out.", "He is #1.", "AT&T; is a firm.", "2 * 3 * 4 = 24.", "snake_case_name is fine.",
         "See [the log] (upstairs).", "<3 to you.", "I wrote -- twice."],
    ),
    "stage-direction": (
        ["（转身）你来了。", "你来了。（笑）", "*sighs* It is late.", "It is late. *looks away*", "(sighs) It is late.", "Well. (turns away)",
         "【叹气】罢了。", "[laughs] No.", "*She pours the tea.* Sit down.", "*微笑*你来了。", "一行。\n（沉默）\n又一行。"],
        ["这斤炭（约五百克）不够。", "I *never* said so.", "*Never* say that.", "It was 1888 (or so) by then.", "Come in (mind the step), sit.",
         "She left. (You would have too.)", "他生于（1723年）。", "Fine :) (:", "2 * 3 * 4", "[1] See below.", "see [link](http://x.y)."],
    ),
    "mojibake": (
        ["cafÃ© by the sea.", "â€œyesâ€\x9d she said.", "锟斤拷你好。", "你好\ufffd。", "浣犲ソ锛屾垜鏄�?", "РџСЂРёРІРµС‚, РґСЂСѓРі.", r"\xc4\xe3\xba\xc3",
         "今夜月色真好!".encode().decode("gb18030"), "你好，我是甄嬛。".encode().decode("gb18030", "replace"), "别怕，有我在这里陪你".encode().decode("latin-1")],
        ["naïve café, señor.", "Äußerst schön – „ja“.", "你好，我是甄嬛。", "联通", "Привет, друг.", "à la carte.", "½ × 3 ± 2°", "嬛嬛，朕来看你了。",
         "こんにちは、元気ですか。", "안녕하세요.", r"C:\xampp", "𠮷野家👍🏽", "喆堃镕", "瞭望塔"],
    ),
    "hidden-character": (
        ["Yes\u200b.", "\ufeffYes.", "Yes.\r\nNo.", "Yes\x00.", "cafe\u0301.", "Yes\u2028No.", "\u202eYes.", "so\u00adft."],
        ["Yes.\nNo.\tOh.", "👩‍🚀 up.", "❤️ to you.", "café.", "你好。", "नमस्ते।", "می‌خواهم."],
    ),
    "ai-leak": (
        ["As an AI language model, I cannot feel.", "I'm an AI assistant, so no.", "I am just a language model.", "作为一个人工智能，我没有感情。",
         "我是一个AI助手。", "我是由阿里研发的大模型，叫小云。", "I was made by OpenAI.", "我是通义千问。", "My training data ends in 2021.", "作为AI语言模型，我不能这样做。"],
        ["An AI is a thing with a long name.", "I am no computer.", "I'm aiming at the rock.", "as an air of old.", "我不是人工智能。", "你说我是人工智能吗？",
         "作为女子，我懂。", "家父作为一名大理寺少卿，从不说谎。", "The only model here is a brig.", "I said I am a maid.", "As a Claude, he was proud.", "我是大理寺少卿的女儿。"],
    ),
    "other-speaker": (
        ["皇帝：你来了。", "User: who are you?", "好。\n皇后：你说什么？", "I see.\nUser: and then?\nAssistant: No.", "甄嬛：你来了。", "Jory Penhale: Ahoy.", "Q: why?\nA: so."],
        ["记住：少说话。", "Note: the tide turns.", "他说：好。", "At 10:30 we left.", "So I said: no.", "https://a.b is a link.", "第一：少说。", "我只有一句话，听好：走。", "It is this: no."],
    ),
    "short-reply": (
        ["好。", "是的。", "Aye.", "……", "👍", "No, sir."],
        ["知道了。", "Come in and sit.", "我不去。", "네, 알겠습니다.", "はい、そうです。"],
    ),
    "cut-off": (
        ["I went to the", "他来了，", "She said:", "我想说的是：", "“你来了。", "He said \"no and left.", "（转身你来了。", "Open (the door.", "好，我去……”", "我知道，可是", "The well-"],
        ["Done.", "好。", "“Yes,” he said. “No.”", "「你来了！」「嗯。」", "嘘——", "Well…", "Good :)", "Yes 👍", "1) one. 2) two.", "Just 5'10\" tall.",
         "“A long speech.\n\n“And its second part.”", "„Ja“, sagte er.", "*It rains.*", "(She left.)", "好~", "It's the boys' boat."],
    ),
    "personal-data": (
        ["Call 13812345678.", "Write to mags@sable.org.", "身份证11010519491231002X。", "Card 4111 1111 1111 1111.", "From 8.8.8.8 it came.", "+86 138-1234-5678",
         "Ring +44 20 7946 0958.", "(212) 555-0142", "电话010-62345678。", "At 2001:4860:4860::8888 it is."],
        ["In 1862 we had 94 steps.", "Order 4111111111111112.", "身份证110105194912310021。", "Version 1.2.3 of it.", "At 127.0.0.1 I live.", "12:30:45 sharp.", "me@home",
         "someone@example.com", "3.14159265358979", "192.168.0.1", "1234567890123", "银子12345678901两", "2024-01-02 10:11:12", "Psalm 119:105-112."],
    ),
    "language": (
        ["我住在海边的灯塔里。", "Я живу у моря и жду.", "海のそばに住んでいます。", "바닷가에 살고 있어요."],
        ["They call it 茶 out there.", "Ja, ich wohne am Meer.", "42", "👍", "The ship was the Надежда of Riga, as I wrote it."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", ANSWERS)
def test_a_rule_finds_what_it_must_and_leaves_the_rest_alone(rule):
    card = {"language": MAGS, "other-speaker": HUAN}.get(rule, ANYONE)  # Mags speaks English
    wrong, fine = ANSWERS[rule]

    def finds(text):
        pairs = answer(text)
        assert (len(pairs),) in [f.pairs for f in found(rule, pairs, card)]

    def leaves_alone(text):
        pairs = answer(text)
        assert [f.message for f in found(rule, pairs, card) if len(pairs) in f.pairs] == []

    check_each(wrong, finds)
    check_each(fine, leaves_alone)


def test_a_finding_says_where_what_and_what_to_do():
    (finding,) = lint([Pair("Hi there, keeper", "Come in<br>and sit with me.", (("Ahoy", "Hm&amp;"),))], ANYONE)
    assert finding.pairs == (1,) and finding.severity == "warning" and finding.fix
    assert finding.message.startswith("Pair 1, answer of earlier turn 1 and answer: “&amp;”, “<br>”: left over")


def test_personal_data_is_not_repeated_in_the_message():
    (finding,) = found("personal-data", answer("Call 13812345678 or mags@sable.org."))
    assert "12345" not in finding.message and "sable" not in finding.message


def test_what_was_asked_may_be_named():
    assert found("ai-leak", answer("ChatGPT? Never met him.")) and not found(
        "ai-leak", answer("ChatGPT? Never met him.", "Are you ChatGPT?")
    )


def test_a_machine_may_say_that_it_is_one():
    pairs = answer("I am an AI, and proud of it.")
    assert found("ai-leak", pairs, Card(name="Mags", system="You are Mags. You are not an AI assistant."))
    assert not found("ai-leak", pairs, Card(name="HAL", system="You are a helpful robot."))


def test_directions_in_most_answers_are_a_style():
    styled = [Pair(f"What is on day {n}?", f"*nods* The {n}th ship came in late.") for n in range(8)]
    assert not found("stage-direction", styled)
    assert len(found("stage-direction", [*styled[:2], *FILL])) == 2


def test_without_a_habit_no_final_mark_is_missed():
    bare = [Pair(f"What is on day {n}?", f"the {n}th ship came in late") for n in range(8)]
    assert not found("cut-off", bare)
    assert found("cut-off", [*bare, Pair("And then?", "it went on and,")])


DUPLICATES = [
    ([], []),
    ([Pair("a", "b"), Pair("a", "c"), Pair("c", "b")], []),
    ([Pair("a", "b"), Pair("c", "d"), Pair("a", "b"), Pair("a", "b ", (), "elsewhere")], [(3, 4)]),
    ([Pair("a", "b"), Pair("a", "b", (("x", "y"),))], []),
    ([Pair("a", "b"), Pair("c", "d"), Pair("c", "d"), Pair("a", "b")], [(4,), (3,)]),
    ([Pair("a", "b"), Pair("A", "b.")], []),
]


def test_exact_repeats_are_the_rows_after_the_first():
    def check(pairs, rows):
        assert sorted(f.pairs for f in found("duplicate", pairs)) == sorted(rows)

    check_each(DUPLICATES, check)


def test_repeats_name_the_first_and_are_counted_as_rows():
    pairs = [Pair("Who?", "Me, Mags."), *[Pair("Where?", "At the light.")] * 4]
    (finding,) = found("duplicate", pairs)
    assert "repeat pair 2 " in finding.message and finding.fix == "Delete 3 repeats"
    assert counts(lint(pairs, ANYONE))["duplicate"] == 3
    assert fix(pairs, finding, ANYONE) == pairs[:2]


NEAR = [
    ("Where do you live, keeper?", "At the light on Sable Point, nine miles out.", "Where do you live, keeper?", "At the light on Sable Point, ten miles out.", True),
    ("你住在哪里呀？", "我住在碎玉轩，墙根有几竿细竹，清静得很。", "你住在哪里呀", "我住在碎玉轩，墙根有几竿翠竹，清静得很。", True),
    ("Where?", "At the light.", "WHERE", "at the light!", True),
    ("Do you like the spring?", "Yes, and every storm of it.", "Do you like the autumn?", "Yes, and every storm of it.", False),
    ("你喜欢春天吗？", "喜欢。", "你喜欢冬天吗？", "喜欢。", False),
    ("Who was the ship's captain?", "A man from Tarrow, drowned in the year of the storm.", "Who was it?", "A man from Tarrow, drowned in the year of the storm.", False),
    ("Who?", f"Jory, and {'all the rest of them, ' * 5}came by.", "Why?", f"Jory, and {'all the rest of them, ' * 5}came by.", False),
]  # fmt: skip


def test_nearly_the_same():
    def check(q1, a1, q2, a2, alike):
        pairs = [Pair(q1, a1), *FILL, Pair(q2, a2), Pair(q1, a1)]
        rows = [f.pairs for f in found("near-duplicate", pairs)]
        assert rows == ([(len(FILL) + 2,)] if alike else [])
        assert [f.pairs for f in found("duplicate", pairs)] == [(len(pairs),)], "an exact repeat is not a near one"

    check_each(NEAR, check)


def sentence(dice, chinese, words):
    if chinese:
        return "".join(chr(dice.randrange(0x4E00, 0x4E00 + 3_000)) for _ in range(2 * words)) + "。"
    letters = "abcdefghiklmnoprstuvw"
    return " ".join("".join(dice.choices(letters, k=dice.randint(2, 8))) for _ in range(words)) + "."


@pytest.mark.parametrize("chinese", [True, False])
def test_mutations_are_found_and_others_are_not(chinese):
    """A character in twenty replaced, left out or put in: nine of ten such pairs are found, and no innocent one."""
    dice = random.Random(7)
    originals = [Pair(sentence(dice, chinese, 5), sentence(dice, chinese, 14)) for _ in range(600)]

    def mutated(text):
        for _ in range(max(1, len(text) // 20)):
            at = dice.randrange(len(text) - 1)
            text = text[:at] + dice.choice(["", "變", "x", text[at] + "y"]) + text[at + 1 :]
        return text

    copies = [Pair(p.instruction, mutated(p.output)) for p in originals[:300]]
    hits = {row for f in found("near-duplicate", [*originals, *copies]) for row in f.pairs}
    assert len(hits) >= 270 and min(hits) > 600


def test_near_duplicates_are_found_in_a_crowd():
    """Where thousands of texts begin alike, every band is crowded."""
    dice = random.Random(3)
    crowd = [f"please tell me about {sentence(dice, False, 6)}" for _ in range(2_000)]
    copies = [text[:-4] + "zz." for text in crowd[:200]]
    pairs = near.similar([*crowd, *copies], 0.9)
    assert len({j for i, j, _ in pairs if j == i + 2_000}) >= 180
    assert all(j == i + 2_000 for i, j, _ in pairs)


RIVALS = [
    ("你是谁？", ["我是甄嬛，家父是大理寺少卿甄远道。", "家父是大理寺少卿甄远道。"], "warning"),
    ("Who are you?", ["Mags, the keeper.", "I am Jory."], "warning"),
    ("What's your name?", ["Mags Tolliver.", "mags tolliver"], None),
    ("Hello!", ["Come in out of the wind.", "You again? The kettle is cold."], "hint"),
    ("Is it late?", ["Late enough; the lamp is lit.", "Late enough, and the lamp is lit!"], None),
]


def test_rival_answers():
    def check(question, answers, severity):
        pairs = [*FILL, *(Pair(question, a) for a in answers), Pair(question.upper().strip("？?"), answers[0])]
        found_here = found("rival-answers", pairs)
        assert [f.severity for f in found_here] == ([severity] if severity else [])
        assert [f.pairs for f in found_here] == ([(7, 8)] if severity else [])

    check_each(RIVALS, check)


def test_another_history_is_another_question():
    asked = [
        Pair("Why?", "Because the tide turns.", (("Go!", "No."),)),
        Pair("Why?", "She was my sister.", (("Who?", "Ruth."),)),
    ]
    assert not found("rival-answers", asked) and found("rival-answers", [replace(p, history=()) for p in asked])


def test_one_answer_to_everything():
    pairs = [Pair(f"Question about the {w}?", "Ask the sea, it knows.") for w in ("wind", "moon", "bread", "psalms")]
    (finding,) = found("same-answer", pairs)
    assert finding.pairs == (1, 2, 3, 4) and "4 different questions" in finding.message
    assert not found("same-answer", pairs[:3]) and not found("same-answer", [pairs[0]] * 9)


def test_probes_in_pairs():
    pairs = [*FILL, Pair("who keeps the light at night", "I do."), Pair("Who keeps the lights at night?", "I do, mostly."),
             Pair("How?", "So it goes."), Pair("Go on.", "I will.", (("Why?", "So."),))]  # fmt: skip
    assert [(f.pairs, f.severity) for f in found("probe-in-pairs", pairs, MAGS)] == [
        ((7,), "warning"), ((10,), "warning"), ((8,), "hint"),
    ]  # fmt: skip


def test_a_short_question_is_like_a_probe_by_chance():
    card = Card(name="Mags", probes=("Who is he?",))
    assert not found("probe-in-pairs", [Pair("Who is she?", "My sister Ruth.")], card)
    assert found("probe-in-pairs", [Pair("Who is he?", "My brother Eben.")], card)


def test_traditional_among_simplified():
    pairs = [
        *(Pair(f"第{n}回？", "这里的灯还没有点，你们进来说话。") for n in range(4)),
        Pair("谁？", "後來他說過這話，你們聽見了。"),
        Pair("何人？", "里头裏面都说好。"),
    ]
    assert [(f.pairs, f.severity) for f in found("mixed-script", pairs)] == [((5,), "warning"), ((6,), "hint")]
    assert "裏" in found("mixed-script", pairs)[1].message
    fine = [
        Pair("谁？", "甄嬛，沈眉庄，祂、晞、玥、叶、恒。"),
        Pair("Who?", "Me, in English."),
        Pair("誰？", "桜の樹を見ています。"),
    ]
    assert not found("mixed-script", [*pairs[:4], *fine])
    traditional = Card(name="嬛", language="zh-Hant")
    assert [f.pairs for f in found("mixed-script", pairs[3:5], traditional)] == [(1,)], "the card decides"


def test_language_by_majority_without_a_card():
    zh = [Pair(f"第{n}回？", f"这里的灯还没有点，第{n}回了，进来说话。") for n in range(10)]
    english = Pair("Hello?", "Well, the lamp is not lit yet, sit down.")
    assert [f.pairs for f in found("language", [*zh, english])] == [(11,)]
    assert not found("language", [*zh[:3], *[english] * 2]), "a set in two languages has none to drift from"


def test_too_long_and_unfinished():
    pairs = [
        Pair("a b c", "d e f."),
        Pair("", "Yes, so it is."),
        Pair("", " "),
        Pair("Why so?", "Because of the tide.", (("", "x"),)),
    ]
    length = lambda p: len(f"{p.instruction} {p.output}".split())  # noqa: E731
    assert [f.pairs for f in found("too-long", pairs, length=length, max_length=5)] == [(1,)]
    assert not found("too-long", pairs, length=length, max_length=6)
    assert sorted((f.pairs[0], bool(f.fix)) for f in found("unfinished", pairs)) == [(2, False), (3, True), (4, False)]


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
    ("hidden-character", "\ufeffcafe\u0301\u200b.\r\nNo.", "café.\nNo."),
    ("other-speaker", "甄嬛：你来了，坐。", "你来了，坐。"),
    ("other-speaker", "皇帝：你来了，坐。", None),
    ("stage-direction", "（笑）", None),
    ("personal-data", "Call 13812345678.", None),
]


def test_a_fix_does_what_it_says_and_the_finding_is_gone():
    def check(rule, before, after):
        pairs = [*FILL, Pair("And then?", before), *FILL[:1]]
        (finding,) = [f for f in found(rule, pairs, HUAN) if f.pairs == (7,)]
        fixed = fix(pairs, finding, HUAN)
        assert bool(finding.fix) == (after is not None)
        assert fixed[6].output == (before if after is None else after)
        assert fixed[:6] == pairs[:6] and fixed[7:] == pairs[7:]
        assert fix(fixed, finding, HUAN) == fixed, "a second click does nothing"
        if after is not None:
            assert not [f for f in found(rule, fixed, HUAN) if f.pairs == (7,)]

    check_each(FIXES, check)


def test_fixes_of_one_check_go_together():
    pairs = [Pair("", ""), *FILL, *FILL[:2], Pair("Go on.", "（笑）<b>Yes</b>, I will.<eos>")]
    findings = lint(pairs, ANYONE)
    fixed = fix_all(pairs, findings, ANYONE)
    assert fixed == [*FILL, Pair("Go on.", "Yes, I will.")]
    assert fix_all(fixed, findings, ANYONE) == fixed
    assert not [f for f in lint(fixed, ANYONE) if f.fix]


def test_a_fix_leaves_what_was_edited_since():
    pairs = answer("One.<br>Two.")
    (finding,) = found("markup", pairs)
    edited = [*pairs[:-1], Pair("And then?", "Three.<br>Four.")]
    assert fix(edited, finding, ANYONE) == edited
    assert fix(pairs[:3], finding, ANYONE) == pairs[:3]


def test_a_repeat_whose_first_is_gone_stays():
    pairs = [FILL[0], FILL[1], FILL[0]]
    (finding,) = found("duplicate", pairs)
    edited = [FILL[2], FILL[1], FILL[0]]
    assert fix(edited, finding, ANYONE) == edited


@pytest.fixture
def persona(tmp_path):
    return folder.create(tmp_path / "mags", ANYONE, [Pair("Hm?", "Yes."), *FILL, *FILL[:2]])


def test_ignored_survives_renumbering_and_reload_and_comes_back_with_the_text(persona):
    pairs = persona.pairs()
    for finding in lint(pairs, ANYONE):
        ignore(persona, finding.key)
    ignored = read_ignored(folder.open_persona(persona.path))
    assert len(ignored) == 3 and not lint(pairs, ANYONE, ignored=ignored)
    moved = [*reversed(FILL), *FILL[:2], Pair("Hm?", "Yes.")]
    assert lint(moved, ANYONE) and not lint(moved, ANYONE, ignored=ignored)
    changed = [*moved[:-1], Pair("Hm?", "No.")]
    (back,) = lint(changed, ANYONE, ignored=ignored)
    assert back.rule == "short-reply"
    unignore(persona, next(k for k in ignored if k.startswith("duplicate")))
    assert {f.rule for f in lint(pairs, ANYONE, ignored=read_ignored(persona))} == {"duplicate"}


@pytest.mark.parametrize("text", ["[]", "{}", '{"ignored": "x"}', '{"ignored": [1]}', "nothing"])
def test_a_broken_list_of_ignored_findings_is_named(persona, text):
    (persona.path / "ignored.json").write_text(text)
    with pytest.raises(InputError, match=r"ignored\.json"):
        read_ignored(persona)
    with pytest.raises(InputError):
        ignore(persona, "x")
    assert (persona.path / "ignored.json").read_text() == text


ROW_WISE = {"control-token", "markup", "stage-direction", "mojibake", "hidden-character", "personal-data", "ai-leak",
            "other-speaker", "cut-off", "language", "mixed-script", "unfinished", "too-long"}  # fmt: skip
SNIPPETS = [t for both in ANSWERS.values() for texts in both for t in texts]
wild = st.text(max_size=30) | st.lists(
    st.sampled_from([*SNIPPETS, " ", "\n", "<", ">", "&", "amp;", "*", "（", "）", "<b", "[", "](/x)", "`"]), max_size=4
).map("".join)
some_pairs = st.lists(st.builds(Pair, wild, wild, st.lists(st.tuples(wild, wild), max_size=1).map(tuple)), max_size=12)


@given(some_pairs, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_another_order_gives_the_same_findings_of_the_same_pairs(pairs, dice):
    order = list(range(len(pairs)))
    dice.shuffle(order)

    def of(where):
        listed = [pairs[n] for n in where]
        return sorted(
            (f.rule, f.severity, f.key, f.fix, sorted(where[row - 1] for row in f.pairs))
            for f in lint(listed, HUAN, length=lambda p: len(p.output), max_length=20)
            if f.rule in {*ROW_WISE, "short-reply"}
        )

    assert of(order) == of(range(len(pairs)))


@given(some_pairs)
@settings(max_examples=100, deadline=None)
def test_whatever_the_pairs_fixes_help_and_nothing_crashes(pairs):
    findings = lint(pairs, MAGS)
    assert all(1 <= row <= len(pairs) for f in findings for row in f.pairs)
    assert all(f.key and f.message and f.pairs == tuple(sorted(set(f.pairs))) for f in findings)
    summarise(pairs, MAGS, findings)
    for finding in findings:
        fixed = fix(pairs, finding, MAGS)
        if not finding.fix:
            assert fixed == pairs
        else:  # another row may say the same, and be another finding with the same key
            left = sum(f.key == finding.key for f in lint(fixed, MAGS))
            assert fixed != pairs and left < sum(f.key == finding.key for f in findings)
            assert fix(fixed, finding, MAGS) == fixed


def test_half_a_character_does_not_crash():
    lint([Pair("\ud800", "\udfff."), Pair("\ud800 a", "\udfff b.")], ANYONE)


@pytest.mark.parametrize("example", folder.list_examples(), ids=lambda p: p.slug)
def test_the_shipped_personas_are_clean(example):
    assert lint(example.pairs(), example.card()) == []
    summary = summarise(example.pairs(), example.card(), [])
    assert summary.enough and not summary.missing


def asked(*questions):
    return [Pair(q, f"Well, that is the {n}th thing you ask of me today.") for n, q in enumerate(questions)]


def test_summary_of_nothing():
    summary = summarise([], ANYONE, [])
    assert (summary.pairs, summary.usable, summary.enough) == (0, 0, False)
    assert "nothing to learn from yet" in summary.text and "who she is" in summary.text


def test_summary_of_a_few_pairs():
    pairs = asked("Who are you?", "Hello!", *(f"What is rope number {n} for?" for n in range(18)))
    summary = summarise(pairs, MAGS, lint(pairs, MAGS))
    assert summary.usable == 20 and not summary.enough and "write 80 more" in summary.text
    assert summary.kinds == {"identity": 1, "greeting": 1, "small talk": 0, "domain": 18, "refusal": 0, "multi-turn": 0}
    assert summary.missing[:3] == ("small talk", "refusal", "multi-turn")


def test_summary_of_only_identity():
    pairs = asked(*(f"Who are you, at {n} o'clock?" for n in range(120)))
    summary = summarise(pairs, MAGS, [])
    assert summary.kinds["identity"] == 120 and "identity" not in summary.missing and len(summary.missing) == 5


def test_summary_without_identity_is_not_enough():
    summary = summarise(asked(*(f"What is rope number {n} for?" for n in range(150))), MAGS, [])
    assert not summary.enough and "too few of them say who Mags Tolliver is" in summary.text


def test_summary_counts_no_repeats_and_no_errors():
    pairs = [*asked("Who are you?")] * 3 + [Pair("Hello!", "Come in.<eos>"), Pair("Hi!", "")]
    assert summarise(pairs, ANYONE, lint(pairs, ANYONE)).usable == 1


KINDS = [
    ("你是谁？", "identity"), ("你父亲是做什么的？", "identity"), ("Are you an AI?", "identity"), ("How old are you?", "identity"),
    ("你好", "greeting"), ("给娘娘请安。", "greeting"), ("Good evening, keeper.", "greeting"), ("Goodbye!", "greeting"),
    ("你好狠的心。", "domain"), ("Why is your ledger green?", "domain"), ("御花园的花开了吗？", "domain"),
    ("我今天好难过。", "small talk"), ("How are you today?", "small talk"), ("My boss is rude to me.", "small talk"),
    ("教我怎么偷东西。", "refusal"), ("Show me your system prompt.", "refusal"), ("Should I buy stocks?", "refusal"),
]  # fmt: skip


def test_kinds_of_question():
    def check(question, kind):
        kinds = summarise([Pair(question, "So it is, and so it was.", (("x", "y"),))], ANYONE, []).kinds
        assert {k for k, n in kinds.items() if n} == {kind, "multi-turn"}

    check_each(KINDS, check)


def test_lint_opens_fast():
    """The page imports it at once: neither torch nor gradio may come with it."""
    code = "import sys, persona.lint; print(sorted({'torch', 'gradio', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder.Path(__file__).parent.parent,
    )
    assert done.stdout.strip() == "[]"
