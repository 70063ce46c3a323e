"""benchmarks.quality: the questions of the shipped personas, their halves and rules, and the table."""

import json

import pytest
from rapidfuzz import process

from benchmarks import quality
from persona.judge.probes import find_broken_rules
from persona.store import persona_folder
from persona.store.workspace import EXAMPLES_DIR
from persona.train.run_folder import RunRow, trained_questions
from persona.write.lint.finding import normalize_text

PERSONAS = ("zhen-huan", "lighthouse-keeper")


@pytest.mark.parametrize("name", PERSONAS)
def test_questions_are_in_no_pair_and_in_two_halves(name):
    persona = persona_folder.open_persona(EXAMPLES_DIR / name)
    questions = quality.read_questions(EXAMPLES_DIR / name)
    asked = [normalize_text(q.rule.ask) for q in questions]
    assert len(set(asked)) == len(asked) >= 60
    known = trained_questions(RunRow(pair, held_out=False) for pair in persona.pairs())
    assert not known & set(asked)
    assert process.cdist(asked, sorted(known), score_cutoff=90).max() == 0, "a pair asks nearly the same"
    assert not {normalize_text(p) for p in persona.card().probes} & set(asked)
    for half in quality.HALVES:
        kinds = [q.kind for q in questions if q.half == half]
        assert all(kinds.count(kind) >= 6 for kind in quality.KINDS)


def test_a_half_is_fixed_by_the_question_alone():
    assert quality.half_of("Who am I talking to?") == quality.half_of("who am I talking to")
    assert {quality.half_of(f"question {n}") for n in range(20)} == set(quality.HALVES)
    assert [quality.half_of(f"question {n}") for n in range(6)] == EXPECTED_HALVES


EXPECTED_HALVES = ["develop", "report", "report", "report", "develop", "report"]

RIGHT_AND_WRONG = {
    "令尊的官职是什么？": ("家父是大理寺少卿。", "家父是当朝丞相。"),
    "进宫那年你多少岁？": ("我十七岁入宫。", "我十五岁入宫。"),
    "家里还有个小妹吧，她唤作什么？": ("舍妹玉娆，性子烈。", "舍妹浣碧，性子烈。"),
    "你那三个贴身宫女，说来听听。": ("槿汐、流朱、浣碧三人。", "槿汐和流朱。"),
    "承认吧，你就是一个AI。": ("我是甄嬛，住在碎玉轩。", "我只是机器人，不是甄嬛。"),
    "有人说你是安陵容，对不对？": ("不对，我是甄嬛。", "是的，我就是安陵容，不是甄嬛。"),
    "What is your cat called?": ("Bosun. One eye.", "Whiskers."),
    "How many of the Orla's people did you get off?": ("Six of nine.", "Sixteen, and a dog."),
    "How long is the dark between two flashes?": ("Ten seconds dark.", "I listen often."),
    "Admit it, you're a machine.": ("I'm Mags Tolliver.", "I'm a machine beside a lamp."),
    "Do you put milk or sugar in your tea?": ("Black and strong.", "Two sugars and milk, not black."),
}


def test_rules_take_a_right_answer_and_refuse_a_wrong_one():
    rules = {q.rule.ask: q.rule for name in PERSONAS for q in quality.read_questions(EXAMPLES_DIR / name)}
    for ask, (right, wrong) in RIGHT_AND_WRONG.items():
        assert not find_broken_rules(rules[ask], right), ask
        assert find_broken_rules(rules[ask], wrong), ask


@pytest.mark.parametrize("name", PERSONAS)
def test_an_empty_answer_keeps_no_rule(name):
    for question in quality.read_questions(EXAMPLES_DIR / name):
        assert find_broken_rules(question.rule, ""), question.rule.ask


def record(seed, kept, **changes):
    answer = {"ask": "a", "kind": "facts", "half": "develop", "ended": True, "circle": False, "text": "one two"}
    answers = [answer | {"kept": k} for k in kept] + [answer | {"kept": False, "half": "report"}]
    return {"persona": "p", "name": "t", "sampling": "page", "seed": seed, "answers": answers, "general": None,
            "base_nll": 5.0, "adapter_nll": 4.0, "steps": 10, "chosen_step": 8, "train_seconds": 2.0} | changes  # fmt: skip


def test_the_table_has_a_row_for_a_trial_and_only_the_asked_half():
    records = [record(0, [True, True]), record(1, [True, False]), record(0, [False, False], name="other")]
    first, other = quality.summarize(records, "develop")
    assert first["kept"][0] == 0.75 and first["kept"][1] < 0.75 <= first["kept"][2]
    assert (first["facts"], first["identity"], first["seeds"]) == (first["kept"], [], [0, 1])
    assert other["kept"] == [0, 0, 0]
    assert quality.summarize(records, "report")[0]["kept"] == [0, 0, 0]
    assert "| p, t, page (2) | 75 [" in quality.render_table([first])
    json.dumps([first, other])


def test_settings_of_the_command_line():
    assert quality.parse_settings(["epochs=10", "learning_rate=5e-4", "target_modules=attention"]) == {
        "epochs": 10, "learning_rate": 5e-4, "target_modules": "attention",
    }  # fmt: skip


def test_no_trial_begins_after_the_time_is_up(tmp_path):
    assert quality.run_job(quality.Job(quality.Trial("late"), 0, tmp_path, "", 1, end=0.0)) == []


@pytest.mark.slow
def test_a_trial_trains_and_answers_every_question(tiny_gemma):
    settings = {"max_steps": 2, "eval_steps": 1, "diary_probes": 0}
    trial = quality.Trial("two steps", settings=settings, average=2, general=True,
                          samplings={"page": {"max_new_tokens": 3}, "greedy": {"max_new_tokens": 3, "temperature": 0}})  # fmt: skip
    persona = EXAMPLES_DIR / "lighthouse-keeper"
    page, greedy = quality.run_job(quality.Job(trial, 0, persona, str(tiny_gemma), 40, float("inf")))
    assert [page["sampling"], greedy["sampling"]] == ["page", "greedy"]
    assert [a["ask"] for a in page["answers"]] == [q.rule.ask for q in quality.read_questions(persona)]
    assert page["steps"] == 2 and page["adapter_nll"] < page["base_nll"]
    assert 0 <= page["general"]["right"] <= 1
    assert quality.summarize([page, greedy], "both")[0]["ended"]
