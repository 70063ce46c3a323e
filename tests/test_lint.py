"""Lint: for every rule what it must find and what it must leave alone; fixes, ignoring, and what holds for any pairs."""

import random
from dataclasses import replace

import pytest
from cases import check_each
from lint_texts import ANSWERS, ANYONE, FILL, HUAN, MAGS, answer, found

from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.write.lint import lint_pairs, near_duplicates
from persona.write.lint.finding import count_by_rule
from persona.write.lint.fixes import fix_finding


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
    (finding,) = lint_pairs([Pair("Hi there, keeper", "Come in<br>and sit with me.", (("Ahoy", "Hm&amp;"),))], ANYONE)
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
    assert found("ai-leak", pairs, PersonaCard(name="Mags", system="You are Mags. You are not an AI assistant."))
    assert not found("ai-leak", pairs, PersonaCard(name="HAL", system="You are a helpful robot."))


def test_a_question_does_not_begin_with_a_speakers_name():
    asked = [
        "User: Hello?",
        "甄嬛：你来了？",
        "Ben: Well?\nTom: Well.",
        "Note: it rains. Why?",
        "Translate: Guten Tag.",
        "Hello?",
    ]
    pairs = [*FILL, *(Pair(text, f"Aye, the {n}th of them.") for n, text in enumerate(asked))]
    rows = [f.pairs for f in found("other-speaker", pairs, HUAN)]
    assert rows == [(7,), (8,), (9,)]


def test_what_takes_up_something_that_is_not_there_is_found():
    lacking = [("And then?", "He left."), ("ok", "No class on Thursday."), ("😂", "I know."), ("然后呢？", "他走了。"), ("真的吗", "真的。"),
               ("Are you coming?", "As I said, no."), ("去哪里？", "就是那个，你知道的。"), ("What about him?", "Gone.")]  # fmt: skip
    fine = [("Who are you?", "Mags."), ("Tea?", "Strong."), ("What about the lamp?", "It is lit."), ("你好", "坐。"), ("And what do you eat?", "Fish."),
            ("Why not leave?", "Because the lamp is mine."), ("Thanks!", "Mind the step.")]  # fmt: skip
    pairs = [Pair(a, f"{b}") for a, b in lacking + fine]
    assert [f.pairs for f in found("lacks-context", pairs)] == [(n + 1,) for n in range(len(lacking))]
    assert not found("lacks-context", [Pair("And then?", "He left.", (("Who was there?", "A man."),))])


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
    assert count_by_rule(lint_pairs(pairs, ANYONE))["duplicate"] == 3
    assert fix_finding(pairs, finding, ANYONE) == pairs[:2]


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
    pairs = near_duplicates.find_similar([*crowd, *copies], 0.9)
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
    card = PersonaCard(name="Mags", probes=("Who is he?",))
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
    traditional = PersonaCard(name="嬛", language="zh-Hant")
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


def test_thinking_at_the_beginning_of_a_reply_is_a_hint_of_what_becomes_of_it():
    """Anywhere else, and under any other tag, it would be learned as text."""
    pairs = [Pair("What now?", "<think>They want tea.</think>\n\nTea?"), Pair("And then?", "Yes.<think>hm</think> Sleep."),
             Pair("Who is there?", "<reflection>hm</reflection> The sea.")]  # fmt: skip
    for mode, words in (
        ("none", "training leaves out"),
        ("keep", "reads it, and learns the rest"),
        ("train", "learned with it"),
    ):
        findings = [f for f in lint_pairs(pairs, ANYONE, thinking=mode) if f.rule == "thinking"]
        assert {f.pairs: f.severity for f in findings} == {(1,): "hint", (2,): "error", (3,): "error"}
        (hint,) = [f for f in findings if f.severity == "hint"]
        assert words in hint.message and fix_finding(pairs, hint, ANYONE)[0].output == "Tea?"
        bare = [f for f in lint_pairs(pairs, ANYONE, thinking=mode) if f.rule == "no-thinking"]
        assert [f.pairs for f in bare] == ([(2, 3)] if mode == "train" else [])
    assert bare[0].message.startswith("2 of 3 pairs hold no thinking")
