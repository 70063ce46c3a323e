"""The verdict's thresholds, one figure moved at a time."""

import pytest
from cases import check_each
from test_report_html import interval, made

from persona.judge import verdict
from persona.judge.report_model import EvalReport


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
