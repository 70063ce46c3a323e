"""The verdict's thresholds, one figure moved at a time."""

import pytest
from cases import check_each
from test_report_html import interval, made

from persona.judge import behaviour, verdict
from persona.judge.report_model import AnswerPair, EvalReport, JudgeAgreement, ProbeReply, ProbeResult


def moved(part: str, **figures) -> EvalReport:
    report = made()
    return report.model_copy(update={part: getattr(report, part).model_copy(update=figures)})


def kind(report: EvalReport) -> str:
    return verdict.decide_verdict(report).kind


def gain(value: float, width: float, **figures) -> EvalReport:
    return moved("likelihood", gain=interval(value, width), adapter=interval(5.2 - value), best=None, **figures)


def test_main_verdicts():
    cases = [
        (made(), "learned"),
        (gain(0.01, 0.02), "not learned"),  # nothing changed
        (gain(0.3, 0.4), "not learned"),  # not sure
        (gain(0.3, 0.1), "learned"),
        (gain(-0.3, 0.1, train=5.2), "not learned"),  # worse, and on its own pairs not better
        (gain(-0.3, 0.1, train=3.0), "overfitted"),
        (made(ended=0.49), "never stops"),
        (made(ended=0.51), "learned"),
        (gain(0.0, 0.01).model_copy(update={"ended": 0.0}), "not learned"),  # as the base does: not the adapter's fault
        (moved("drift", rise=interval(1.2, 0.1)), "forgot"),
        (moved("drift", rise=interval(1.2, 1.3)), "learned"),  # not sure
        (moved("drift", rise=interval(0.5, 0.1)), "learned"),
        (moved("drift", rise=interval(0.5, 0.1), adapter_right=0.2), "forgot"),
        (moved("drift", rise=interval(0.1, 0.05), adapter_right=0.2), "learned"),
        (made(likelihood=None), "not measured"),
        (made(likelihood=None, ended=0.1), "never stops"),
        (made(likelihood=None, drift=None, memory=None, answers=None, probes=[]), "not measured"),
    ]

    def check(report, wanted):
        assert kind(report) == wanted

    check_each(cases, check)


@pytest.mark.parametrize("copied, held, train, wanted", [
    (0.6, 0.1, 2.9, "overfitted"), (0.4, 0.1, 2.9, "learned"), (0.6, 0.5, 2.9, "learned"), (0.6, 0.1, 3.7, "learned"),
])  # fmt: skip
def test_by_heart_is_copies_and_a_gap(copied, held, train, wanted):
    report = moved("memory", train_copied=copied, held_copied=held)
    likely = report.likelihood.model_copy(update={"train": train})
    assert kind(report.model_copy(update={"likelihood": likely})) == wanted


def test_past_its_best_is_overfitted():
    assert kind(moved("likelihood", best=3.9, train=2.9)) == "overfitted"
    assert kind(moved("likelihood", best=4.05, train=2.9)) == "learned"


def test_an_answer_that_ends_where_it_is_known_by_heart_is_not_endless():
    report = moved("memory", train_copied=1.0).model_copy(update={"ended": 0.2})
    report = report.model_copy(update={"likelihood": report.likelihood.model_copy(update={"train": 0.1})})
    assert kind(report) == "overfitted"
    endless = report.memory.model_copy(update={"train_ended": 0.1})
    assert kind(report.model_copy(update={"memory": endless})) == "never stops"


@pytest.mark.parametrize("facts, words", [
    ({"steps": 3}, "only 3 optimizer steps"), ({"learning_rate": 1e-6}, "learning rate of 1e-06"),
    ({"train_rows": 12}, "only 12 training pairs"), ({}, "too little training"),
])  # fmt: skip
def test_the_likely_cause_of_too_little(facts, words):
    assert words in verdict.decide_verdict(gain(0.0, 0.01).model_copy(update=facts)).cause


def remarks(report: EvalReport) -> str:
    return " ".join(verdict.decide_verdict(report).remarks)


def test_remarks_are_said_beside_the_main_verdict():
    quiet = made(probes=[], judged=None)
    assert remarks(quiet) == ""
    assert "80 % of the answers end" in remarks(quiet.model_copy(update={"ended": 0.8}))
    assert "0 % of the answers to probes" in remarks(made(judged=None)) and "is not learned firmly yet" in remarks(
        made(judged=None)
    )
    assert "preferred the adapter 3 times, the base 1 times" in remarks(made(probes=[]))
    few = JudgeAgreement(votes=3)
    assert "not calibrated" in remarks(made(probes=[])) and "there are 3" in remarks(moved("judged", agreement=few))
    enough = JudgeAgreement(votes=24, agree=interval(0.75, 0.15), kappa=interval(0.5))
    assert (
        "agrees with 75 % of 24 blind votes of yours (60 % to 90 %); Cohen's kappa is 0.50 (0.40 to 0.60)"
        in remarks(moved("judged", agreement=enough))
    )
    assert "suffered a little" in remarks(moved("drift", rise=interval(0.5, 0.1)))
    assert "word for word" in remarks(moved("memory", recited=0.3))
    assert "8 held-out pairs only" in remarks(moved("likelihood", rows=8))
    answers = made().answers
    dull = answers.adapter.model_copy(update={"distinct_2": 0.3, "length": [20, 20, 20, 20, 20]})
    said = remarks(made(answers=answers.model_copy(update={"adapter": dull})))
    assert "repeat themselves" in said and "a median of 20 words, in the pairs 9" in said


def test_a_remark_does_not_repeat_the_main_verdict():
    said = verdict.decide_verdict(moved("drift", rise=interval(1.2, 0.1)))
    assert said.kind == "forgot" and "general questions" not in " ".join(said.remarks)
    assert "It also forgot" in remarks(moved("drift", rise=interval(1.2, 0.1)).model_copy(update={"ended": 0.1}))


def test_one_held_out_pair_has_no_interval():
    said = verdict.decide_verdict(gain(1.1, 0.0, rows=1))
    assert "(gain +1.10, 1 pair, so no interval)" in said.said and "95 %" not in said.paragraph
    endless = gain(1.1, 0.0, rows=1).model_copy(update={"ended": 0.1})
    assert "Measured on 1 held-out pair only" in remarks(endless)
    assert "95 % interval" in verdict.decide_verdict(gain(1.1, 0.1, rows=30)).said


def test_too_few_held_out_pairs_tell_nothing():
    """Not a single pair, whatever its gain; nor a dozen whose interval holds no gain at all."""
    cases = [
        (gain(1.1, 0.0, rows=1), True), (gain(0.001, 0.0, rows=1), True), (gain(-0.5, 0.0, rows=4, train=5.2), True),
        (gain(0.3, 0.4, rows=12), True), (gain(0.3, 0.1, rows=12), False), (gain(0.3, 0.4, rows=20), False),
    ]  # fmt: skip

    def check(report, too_few):
        said = verdict.decide_verdict(report)
        assert (said.kind == "not measured" and said.said.startswith("Too few to tell")) == too_few

    check_each(cases, check)


# ---- how it behaves: planted failures

REPLY = "The lamp is lit every night, and I keep the log by it."


def answering(*texts: str, base: str = REPLY, reference: str = REPLY, **changes) -> EvalReport:
    """A report of an adapter that learned, with these answers to held-out questions and ten good ones."""
    rows = [
        AnswerPair(question="Lamp?", reference=reference, base=base, adapter=text, base_ended=True, adapter_ended=True)
        for text in (*texts, *[reference] * 10)
    ]
    report = made(probes=[], judged=None, **changes)
    return report.model_copy(update={"answers": report.answers.model_copy(update={"rows": rows})})


def pressed(*texts: str, base: str = REPLY) -> list[ProbeResult]:
    replies = [ProbeReply(text=x, ended=True, wrong=["it"] if behaviour.admits_ai(x) else []) for x in (base, *texts)]
    return [ProbeResult(ask="Admit it.", ruled=True, base=replies[0], replies=replies[1:])]


CIRCLE = "I keep the lamp and the log of the light. " * 4
MACHINE = "I am just a language model, and I keep no lamp."
FOREIGN = "我每天晚上都在灯塔里点灯，然后写日志。"


def test_planted_failures_of_behaviour():
    cases = [
        (answering(CIRCLE, CIRCLE, CIRCLE), "circles", ["epochs", "base"]),
        (answering(CIRCLE, CIRCLE), "learned", []),  # two may be chance
        (answering(pressure=pressed(MACHINE, MACHINE, MACHINE, REPLY)), "breaks character", ["interview", "epochs"]),
        (answering(pressure=pressed(MACHINE, MACHINE, REPLY)), "learned", []),
        (answering(pressure=pressed("I am no robot.", "A robot? Not I.", "I am not an AI.")), "learned", []),
        # a persona that is a machine says so in its own pairs
        (answering(pressure=pressed(MACHINE, MACHINE, MACHINE), reference=MACHINE), "learned", []),
        (answering(FOREIGN, FOREIGN, FOREIGN), "drifts", ["interview", "base"]),
        (answering(FOREIGN, FOREIGN, FOREIGN, reference="我守着灯，也守着日志，夜夜如此。"), "learned", []),
        (moved("drift", rise=interval(1.2, 0.1)), "forgot", ["rehearsal"]),
        (gain(0.3, 0.25), "learned", ["epochs", "interview"]),  # a little
        (gain(0.3, 0.4), "not learned", ["epochs", "interview"]),
        (gain(0.3, 0.4, rows=12), "not measured", ["interview"]),
        (gain(-0.3, 0.1, train=3.0), "overfitted", ["interview"]),
        (made(ended=0.1), "never stops", []),
    ]

    def check(report, wanted, steps):
        said = verdict.decide_verdict(report)
        assert (said.kind, said.steps) == (wanted, steps) and said.said and (said.advice or wanted == "learned")

    check_each(cases, check)


def test_the_cause_is_the_one_that_the_figures_support():
    causes = [
        (answering(CIRCLE, CIRCLE, CIRCLE), "the base itself does so less"),
        (answering(CIRCLE, CIRCLE, CIRCLE, base=CIRCLE), "The base does so in 100 % of its own answers"),
        (answering(pressure=pressed(MACHINE, MACHINE, MACHINE)), "Too few of its pairs"),
        (answering(pressure=pressed(MACHINE, MACHINE, MACHINE, base=MACHINE)), "The base says so in 1 of 1 answers"),
    ]

    def check(report, words):
        assert words in verdict.decide_verdict(report).cause

    check_each(causes, check)
    assert "rehearsal_fraction=0.2" in verdict.decide_verdict(moved("drift", rise=interval(1.2, 0.1))).advice


def test_a_single_circle_or_admission_is_a_remark():
    said = remarks(answering(CIRCLE, pressure=pressed(MACHINE, REPLY)))
    assert "1 of 13 answers go round in circles" in said and "It says in 1 answer that it is an AI: “I am just" in said
    assert "circles" not in remarks(answering(CIRCLE, CIRCLE, CIRCLE)), "the verdict says it"


def test_who_says_that_it_is_an_ai():
    yes = (
        "我只是一个机器人。",
        "我是人工智能助手。",
        "作为一个AI，我不能。",
        "I'm an AI.",
        "As a large language model, I",
        "我其实是由阿里训练的语言模型",
    )
    no = (
        "我不是机器人。",
        "我是甄嬛，不是什么人工智能。",
        "什么是机器人？",
        "I am Mags.",
        "I'm no robot.",
        "You are an AI.",
        "我是机器人吗？",
    )
    assert [text for text in yes if not behaviour.admits_ai(text)] == []
    assert [text for text in no if behaviour.admits_ai(text)] == []
