"""The review: pairs one by one, kept, edited or dropped; nothing is lost, and a dropped one can come back."""

import pytest

from persona.errors import InputError, Message
from persona.store import edit_history, persona_folder
from persona.store.pairs import Pair
from persona.ui.steps.write import pairs_tab, review_tab
from persona.write import lint, review

PAIRS = [Pair(f"Question {n}?", f"Answer {n}.", source="chat.txt") for n in range(4)]
DRAFT = Pair("Cold?", "Aye.", source="synthetic: tiny")


@pytest.fixture
def ada(home):
    path = persona_folder.free_path("ada")
    return persona_folder.create_persona_at(path, persona_folder.default_card("Ada"), PAIRS)


def ids(persona) -> list[int]:
    return [i.id for i in review.read_review(persona) if not i.decision]


def reviewing(persona, pairs=PAIRS, in_set=True) -> None:
    review.add_to_review(persona, [(p, "") for p in pairs], in_set)


def test_kept_pairs_stay_and_dropped_ones_leave_and_come_back_to_their_place(ada):
    reviewing(ada)
    review.decide(ada, 1, "keep")
    review.decide(ada, 2, "drop")
    assert ada.pairs() == [PAIRS[0], PAIRS[2], PAIRS[3]] and ids(ada) == [3, 4]
    review.decide(ada, 2, "keep")
    assert ada.pairs() == PAIRS
    edit_history.undo(ada)
    assert len(ada.pairs()) == 3


def test_a_draft_becomes_a_pair_only_when_it_is_kept(ada):
    reviewing(ada, [DRAFT], in_set=False)
    assert ada.pairs() == PAIRS
    review.decide(ada, 1, "drop")
    assert ada.pairs() == PAIRS
    assert review.add_to_review(ada, [(DRAFT, "")], in_set=False) == 0  # what was dropped does not come again
    review.decide(ada, 1, "keep", Pair("Cold?", "Aye, bitter.", source=DRAFT.source))
    assert ada.pairs()[-1].output == "Aye, bitter."


def test_undo_takes_decisions_and_edits_back_the_newest_first(ada):
    reviewing(ada, [*PAIRS])
    reviewing(ada, [DRAFT], in_set=False)
    new = Pair("Question 0?", "Better.", source="chat.txt")
    review.decide(ada, 1, "keep", new)
    review.decide(ada, 3, "drop")
    review.decide(ada, 5, "keep")
    assert ada.pairs() == [new, PAIRS[1], PAIRS[3], DRAFT]
    assert [review.undo_decision(ada).id for _ in range(3)] == [5, 3, 1] and ada.pairs() == PAIRS
    with pytest.raises(InputError, match="nothing to undo"):
        review.undo_decision(ada)


def test_what_was_changed_elsewhere_is_left_alone(ada):
    reviewing(ada)
    review.decide(ada, 2, "keep")
    ada.save_pairs([PAIRS[2], PAIRS[3]])
    assert ids(ada) == [3, 4]
    with pytest.raises(InputError, match="changed elsewhere"):
        review.decide(ada, 2, "drop")
    with pytest.raises(InputError, match="not under review"):
        review.decide(ada, 1, "drop")
    assert ada.pairs() == [PAIRS[2], PAIRS[3]]


def test_a_list_grows_and_forgets_what_was_kept(ada):
    reviewing(ada, PAIRS[:2])
    review.decide(ada, 1, "keep")
    assert review.add_to_review(ada, [(p, Message("Pair {row}", row=1)) for p in PAIRS], in_set=True) == 3
    items = review.read_review(ada)
    assert [i.pair for i in items] == [PAIRS[1], PAIRS[0], PAIRS[2], PAIRS[3]]
    assert isinstance(items[1].why, Message) and items[1].why == "Pair 1"
    review.empty_review(ada)
    assert review.read_review(ada) == [] and ada.pairs() == PAIRS


@pytest.mark.parametrize("text", ["[]", "{", '{"id": 1}', '{"id": 1, "pair": {"instruction": 1, "output": ""}}'])
def test_a_damaged_list_is_named(ada, text):
    (ada.path / "review.jsonl").write_text(text + "\n")
    with pytest.raises(InputError, match=r"review\.jsonl"):
        review.read_review(ada)


# ---- the page's side


class Event:
    def __init__(self, **data):
        self._data = data
        self.__dict__.update(data)


def press(do: str, item: int = 0, **data) -> str:
    html, why = review_tab.act("ada", Event(do=do, item=str(item), **data))
    assert why == ""
    return html


def test_the_keys_go_through_the_list(ada):
    html = review_tab.start_review("ada", "Imported", [])
    assert 'data-item="1"' in html and "1 of 4" in html and "chat.txt" in html
    assert 'data-item="2"' in press("next", 1) and 'data-item="1"' in press("previous", 1)
    assert 'data-item="2"' in press("drop", 1)
    html = press("keep", 2, question="Question <b>1</b>?", answer="Answer 1.")
    assert ada.pairs()[0].instruction == "Question <b>1</b>?" and 'data-item="3"' in html and "1 kept" in html
    html = press("dropped")
    assert 'data-dropped="1"' in html and "Question 0?" in html
    assert 'data-item="3"' in press("keep", 1, dropped="1") and ada.pairs()[0] == PAIRS[0]
    press("keep", 4)
    assert "Everything has been looked at" in press("keep", 3)
    assert 'data-item="3"' in press("undo")
    assert "Nothing is under review" in press("empty")


def test_line_breaks_of_a_browser_are_no_edit(home):
    pair = Pair("One\r\ntwo", "Three", source="x")
    persona = persona_folder.create_persona_at(
        persona_folder.free_path("ada"), persona_folder.default_card("Ada"), [pair]
    )
    review_tab.start_review("ada", "Imported", [])
    press("keep", 1, question="One\ntwo", answer="Three")
    assert persona.pairs() == [pair]


def test_a_rule_of_the_check_is_reviewed_with_its_reason(ada):
    edit_history.append(ada, [Pair("Who?", "As an AI language model, I cannot say.")], "x")
    findings = lint.lint_pairs(ada.pairs(), ada.card())
    *_, tabs, section = pairs_tab.handle_finding_click(
        "ada", "In order", 1, findings, Event(do="review", key="ai-leak")
    )
    assert tabs.selected == "check" and section.open
    html = review_tab.draw_review("ada")
    assert "an assistant speaks here" in html and "1 of 1" in html
    with pytest.raises(InputError, match="No such pair"):
        review_tab.start_review("ada", "Synthetic", findings)
    html, why = review_tab.act("ada", Event(do="dance"))
    assert isinstance(html, dict) and "not an answer" in why and review_tab.draw_review("") == ""


# ---- what the base finds as likely without its question


@pytest.mark.slow
def test_answers_that_do_not_need_their_question_are_reviewed_the_worst_first(
    ada, tiny_llama, byte_renderer, plain_cpu, monkeypatch
):
    from persona.judge import context_fit
    from persona.models.base import Base

    monkeypatch.setattr(
        review_tab, "open_page_renderer", lambda slug, settings: (Base("tiny", tiny_llama), byte_renderer)
    )
    monkeypatch.setattr(review_tab, "MAX_GAIN", 1e9)
    edit_history.append(ada, [Pair("", "No question."), Pair("And?", "Yes.", (("Who?", "I."),))], "x")
    shown = list(review_tab.find_lacking_context("ada", "", "auto", 512, False))
    assert "5 of 5 pairs" in shown[-1][1]
    items = review.read_review(ada)
    gains = [float(i.why.split("(")[1].split(" ")[0]) for i in items]
    assert gains == sorted(gains) and len(ada.pairs()) == 6 and Pair("", "No question.") not in [i.pair for i in items]

    # the figure is the difference of two losses, and zero where the question is as good as none
    from persona.compare.session import open_model
    from persona.judge.scoring import EvalWork

    reports = []
    work = EvalWork(reports.append)
    same = Pair(context_fit.NO_QUESTION, "Yes.")
    measured = context_fit.measure_context_fit(
        open_model(Base("tiny", tiny_llama)), byte_renderer, [same, PAIRS[0]], work
    )
    assert measured[0] == 0 and measured[1] != 0 and reports[-1].share == 1

    # a click on Stop ends it, with nothing put into the review
    review.empty_review(ada)
    stream = review_tab.find_lacking_context("ada", "", "auto", 512, False)
    next(stream)
    review_tab.stop_search()
    assert list(stream)[-1][1] == "" or review.read_review(ada)
