"""The interview: the bank of questions, what is asked next, and that nothing typed is lost."""

import itertools
import json

import pytest
from cases import check_each

from persona.errors import InputError
from persona.store import edit_history, persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.ui.steps.write import interview_tab
from persona.write import interview, question_bank
from persona.write.interview import Interview, Question
from persona.write.lint.finding import normalize_text
from persona.write.lint.near_duplicates import measure_likeness
from persona.write.lint.question_kinds import classify_question
from persona.write.lint.summary import TARGET_COUNTS


@pytest.fixture
def short_bank(monkeypatch):
    """A bank of 16 questions, which is soon exhausted."""
    bank = question_bank.load_question_bank("en")
    short = question_bank.QuestionBank({topic: questions[:2] for topic, questions in list(bank.topics.items())[:8]}, ())
    monkeypatch.setattr(interview, "load_question_bank", lambda language: short)


@pytest.fixture
def ada(home):
    return persona_folder.create_persona("Ada", persona_folder.default_card("Ada"))


def answer(persona, text: str, question: str = "") -> Interview:
    state = interview.open_interview(persona)
    return interview.answer_question(persona, state.number, text, question or state.question.text)


# ---- the bank


@pytest.mark.parametrize("language", question_bank.BANK_LANGUAGES)
def test_a_bank_has_two_hundred_questions_no_two_alike_and_all_kinds(language):
    bank = question_bank.load_question_bank(language)
    questions = [q for topic in bank.topics.values() for q in topic]
    assert len(questions) >= 200 and all(q == q.strip() and len(q) < 90 for q in questions)
    texts = list(map(normalize_text, questions))
    assert [(a, b) for a, b in itertools.combinations(texts, 2) if measure_likeness(a, b, 0.9)] == []
    kinds = [classify_question(Pair(q, "")) for q in questions]
    assert {k: kinds.count(k) for k in TARGET_COUNTS if k != "multi-turn" and kinds.count(k) < TARGET_COUNTS[k]} == {}
    assert set(bank.topics) == set(interview_tab.TOPIC_TITLES)


def test_what_an_answer_says_is_asked_about():
    cases = [
        ("en", "My old mother taught me.", "Tell me more about your old mother."),
        ("en", "I sailed with Captain Ahab once, far out.", "Tell me more about Captain Ahab."),
        ("en", "On a Sunday I went to the market by the river alone.", ""),
        ("en", "No.", "Why is that?"),
        ("zh", "这手艺是师父教的，学了好些年才会。", "再说说你师父吧。"),
        ("zh", "不知道。", "为什么呢？"),
        ("zh", "外头风大，进来坐着慢慢说，茶也沏好了。", ""),
    ]

    def check(language, said, asked):
        assert question_bank.load_question_bank(language).follow_up(said, ()) == asked

    check_each(cases, check)
    bank = question_bank.load_question_bank("en")
    assert bank.follow_up("No.", {"Why is that?"}) == "Is that all?"
    assert bank.follow_up("x" * 50_000, ()) == "Why is that?"


def test_ten_questions_start_a_persona():
    for language in ("zh-Hans", "en", "fr"):
        pairs = question_bank.make_starter_pairs(language)
        assert len({p.instruction for p in pairs}) == 10 and not any(p.output for p in pairs)
    assert pairs[0].instruction == "Who are you?"


# ---- what is asked


def test_an_answer_is_a_pair_at_once_and_the_kinds_fill_up_in_turn(ada):
    for n in range(25):
        answer(ada, f"So it is, and so it has been for as long as there is anyone to tell of it: {n}.")
    pairs = ada.pairs()
    assert len(pairs) == 25 and {p.source for p in pairs} == {"interview"}
    assert len({p.instruction for p in pairs}) == 25 and pairs[0].instruction == "Who are you?"
    counts = interview.count_kinds(pairs)
    assert min(counts[kind] for kind in TARGET_COUNTS if kind != "multi-turn") >= 3
    assert edit_history.undo_redo_labels(ada)[0] == "answer in the interview"


def test_an_answer_is_followed_up_with_what_was_said_as_an_earlier_turn(ada):
    state = answer(ada, "My mother never told me that, and nobody else did.")
    assert state.question.text == "Tell me more about your mother."
    answer(ada, "She was a baker, and she baked until the day when the oven went out.")
    assert ada.pairs()[1].history == (("Who are you?", ada.pairs()[0].output),)
    state = answer(ada, "No.")
    assert state.question.history == ()  # two of them do not follow each other closely
    state = answer(ada, "No.")
    assert state.question.text == "Why is that?" and state.question.history == ((ada.pairs()[3].instruction, "No."),)


def test_more_like_this_stays_with_the_topic_until_it_is_ended(ada):
    state = interview.open_interview(ada)
    while state.question.topic != "past":
        state = interview.skip_question(ada, state.number, "", "")
    state = interview.stay_on_topic(ada, state.number, "half a se", state.question.text)
    assert (state.topic, state.draft) == ("past", "half a se")
    for _ in range(5):
        assert state.question.topic == "past"
        state = answer(ada, "My mother always hated it.")
    state = interview.stay_on_topic(ada, state.number, "", state.question.text)
    assert answer(ada, "Well, that is a long story, and it is not mine to tell.").question.topic != "past"


def test_what_is_there_is_not_asked_and_what_has_no_answer_is_asked_first(home, short_bank):
    card = PersonaCard(name="Ada", probes=("How do you do? What shall I call you?", "What should I call you"))
    pairs = [Pair("who are you", "Ada."), Pair("Where is the key?", "", source="book.txt:3")]
    ada = persona_folder.create_persona_at(persona_folder.free_path("ada"), card, pairs)
    state = interview.open_interview(ada)
    assert state.question.text == "Where is the key?" and state.question.unanswered
    answer(ada, "In the lock.", "Where is the  old key?")
    assert ada.pairs()[1] == Pair("Where is the old key?", "In the lock.", source="book.txt:3")
    state = interview.go_back(ada, 1)
    assert ada.pairs() == pairs and (state.question.text, state.draft) == ("Where is the old key?", "In the lock.")
    state = answer(ada, "In the lock, since you ask.")
    asked = set()
    while state.question:
        asked.add(state.question.text)
        state = interview.skip_question(ada, state.number, "", "")
    assert not asked & {"Who are you?", "What should I call you?"} and len(asked) == 14
    assert interview.ask_skipped_again(ada, state.number).question is not None


def test_a_question_in_the_authors_words_is_not_asked_again_in_its_own(ada, short_bank):
    state = answer(ada, "I am Ada, as anyone will tell you who has been here.", "Qui êtes-vous ?")
    assert ada.pairs()[0].instruction == "Qui êtes-vous ?"
    while state.question:
        assert state.question.text != "Who are you?"
        state = interview.skip_question(ada, state.number, "", state.question.text)


# ---- nothing is lost


def test_what_was_typed_is_there_again(ada):
    interview.save_draft(ada, 0, "I am A", "Who are you, then?")
    state = interview.open_interview(ada)
    assert (state.question.text, state.draft) == ("Who are you, then?", "I am A")
    interview.skip_question(ada, 0, "I am Ad", "Who are you, then?")
    state = interview.go_back(ada, 1)
    assert (state.question.text, state.draft, ada.pairs()) == ("Who are you, then?", "I am Ad", [])


def test_back_takes_the_pair_out_and_its_answer_is_the_draft(ada):
    answer(ada, "Ada.")
    answer(ada, "I said so.")
    state = interview.go_back(ada, 2)
    assert state.draft == "I said so." and [p.output for p in ada.pairs()] == ["Ada."]
    edit_history.undo(ada)
    assert [p.output for p in ada.pairs()] == ["Ada.", "I said so."]
    interview.go_back(ada, 3)
    with pytest.raises(InputError, match="first question"):
        interview.go_back(ada, 4)


def test_after_a_kill_between_pair_and_state_the_next_question_is_asked(ada):
    interview.save_draft(ada, 0, "Ada. ", "Who are you?")
    ada.save_pairs([Pair("Who are you?", "Ada.", source="interview")])
    state = interview.open_interview(ada)
    assert state.question.text != "Who are you?" and state.draft == ""


def test_a_second_window_does_not_answer_another_question(ada):
    answer(ada, "Ada.")
    for act in (interview.answer_question, interview.skip_question, interview.save_draft):
        with pytest.raises(InputError, match="another window"):
            act(ada, 0, "Ada, again.", "Who are you?")
    assert len(ada.pairs()) == 1


def test_an_empty_answer_and_a_damaged_file_are_refused(ada):
    with pytest.raises(InputError, match="skip the question"):
        answer(ada, "  \n")
    (ada.path / "interview.json").write_text('{"question": 3}')
    with pytest.raises(InputError, match="not an interview"):
        interview.open_interview(ada)


# ---- the page's side


class Event:
    def __init__(self, **data):
        self._data = data


def test_the_page_shows_escaped_texts_and_says_why_nothing_was_saved(ada):
    _, why = interview_tab.act("ada", Event(do="answer", number=0, answer="I <b>am</b>", question="<i>Who</i>?"))
    assert why == ""
    html, why = interview_tab.act("ada", Event(do="back", number=1))
    assert "I &lt;b&gt;am" in html and "&lt;i&gt;Who" in html and "0 / 10" in html and why == ""
    html, why = interview_tab.act("ada", Event(do="answer", number=7, answer="I", question="Who?"))
    assert isinstance(html, dict) and "another window" in why
    assert "not an answer" in interview_tab.act("ada", Event(do="dance", number=2))[1]
    interview_tab.keep_draft("ada", Event(number=2, answer="I, Ada", question="Who?"))
    assert "I, Ada" in interview_tab.draw_interview("ada") and interview_tab.draw_interview("") == ""


def test_an_action_belongs_to_the_persona_whose_question_it_answers(ada, home):
    other = persona_folder.create_persona("Ben", persona_folder.default_card("Ben"))
    interview_tab.act(other.slug, Event(do="skip", number=0, persona="ada", answer="", question=""))
    assert json.loads((ada.path / "interview.json").read_text())["number"] == 1
    assert not (other.path / "interview.json").exists()
    html = interview_tab.interview_html(
        "ada", Interview(done=(Question(text="?"),)), ada.card(), interview.count_kinds([])
    )
    assert 'data-do="again"' in html
