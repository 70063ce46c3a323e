"""The LLM judge: blind, and compared with the author's own votes."""

from dataclasses import replace

import pytest
from test_suggestions import Model

from persona.compare.blind_votes import BlindQuestion, VoteSide
from persona.compare.conversation import ConversationAnswer, VoiceRecord
from persona.errors import PersonaError
from persona.judge import evaluate, llm_judge, metrics
from persona.judge.report_model import AnswerPair
from persona.store.persona_folder import PersonaCard

CARD = PersonaCard(name="Mags", system="You are Mags.", language="en")


@pytest.fixture
def model(monkeypatch):
    running = Model()
    monkeypatch.setenv("PERSONA_LLM_URL", f"http://127.0.0.1:{running.server.server_port}/v1")
    monkeypatch.setenv("PERSONA_LLM_MODEL", "wise")
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_a_blind_judge_who_always_says_a_prefers_nobody(model):
    model.says = '["A"]'
    answers = [AnswerPair(question=f"q{n}", reference="r", base="BASE", adapter="OWN", base_ended=True, adapter_ended=True)
               for n in range(20)]  # fmt: skip
    done = []
    said = llm_judge.judge_answers(llm_judge.judge_endpoint(), CARD, answers, lambda: done.append(1))
    assert said.wins + said.losses == 20 and 5 <= said.wins <= 15 and len(done) == 20
    texts = [body["messages"][0]["content"] for _, body in model.asked]
    first_is_own = [t.index("OWN") < t.index("BASE") for t in texts]
    assert sum(first_is_own) == said.wins, "an answer counts for whom it was given"
    assert all(body["temperature"] == 0 for _, body in model.asked)
    model.says = '["neither"]'
    assert llm_judge.judge_answers(llm_judge.judge_endpoint(), CARD, answers[:2], lambda: None).ties == 2


def votes_of(choices):
    """A blind vote for each choice."""
    side = VoteSide(VoiceRecord("base", "base"))
    answers = tuple(ConversationAnswer(side.voice, text) for text in ("AYE", "no"))
    return [BlindQuestion(str(n), f"q{n}", "", side, side, 0, 0.0, {}, answers, c) for n, c in enumerate(choices)]


def test_a_judge_is_compared_with_the_authors_own_votes(model):
    """Of a judge that always says A, half of the agreement is chance; below 20 votes nothing is asked or said."""
    endpoint, model.says = llm_judge.judge_endpoint(), '["A"]'
    few = llm_judge.measure_agreement(endpoint, CARD, votes_of(["left"] * 19), lambda: None)
    assert (few.votes, few.agree, few.kappa, model.asked) == (19, None, None, [])
    votes = votes_of(["left", "right"] * 12)
    found = llm_judge.measure_agreement(endpoint, CARD, votes, lambda: None)
    assert (found.votes, found.agree.value, found.kappa.value) == (
        24,
        0.5,
        0,
    ) and found.agree.low < 0.3 < 0.7 < found.agree.high
    assert "How the character answered" not in model.asked[0][1]["messages"][0]["content"]
    usable = llm_judge.select_votes([*votes_of([""]), *votes, replace(votes[0], answers=(votes[0].answers[0],) * 2)])
    assert usable == votes, "without a vote, or between equal answers: nothing to agree on"


def test_kappa_is_agreement_beyond_chance():
    """Cohen 1960: 45 and 15, 25 and 15 of 100 agree in 60 %, of which 54 % are chance."""
    first = [0] * 60 + [1] * 40
    second = [0] * 45 + [1] * 15 + [0] * 25 + [1] * 15
    kappa, low, high = metrics.cohen_kappa(first, second)
    assert kappa == pytest.approx((0.6 - 0.54) / 0.46) and low < 0 < kappa < high < 0.4
    assert metrics.cohen_kappa(first, first)[0] == 1 and metrics.cohen_kappa([1] * 20, [1] * 20) == (0, 0, 0)


def test_a_judge_that_is_not_set_up_is_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.delenv("PERSONA_LLM_URL", raising=False)
    with pytest.raises(PersonaError, match="PERSONA_LLM_URL"):
        evaluate.evaluate_adapter(None, judge=True)  # type: ignore[arg-type]
