"""The interview: one question after another, answered by the author as the persona. Its state is on disk.

`interview.json` of a persona holds the question that is asked, what was typed so far, and what was asked before. Each
answer is saved as a pair at once. What is asked next: a question of the set that has no answer; what the last answer
invites; else one of the kind that the set has least of, from the topic that was asked about longest ago.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona.errors import InputError, Message
from persona.store import edit_history, quotas
from persona.store.edits import PairChange
from persona.store.files import read_json, to_json, write_atomic
from persona.store.pairs import MAX_CHARACTERS, Pair
from persona.store.persona_folder import Persona, PersonaCard
from persona.write.lint.finding import normalize_text
from persona.write.lint.near_duplicates import is_like_any
from persona.write.lint.question_kinds import classify_question
from persona.write.lint.summary import TARGET_COUNTS, count_kinds
from persona.write.question_bank import QuestionBank, load_question_bank

SOURCE = "interview"  # of the pairs that it makes
MAX_LIKENESS = 0.9  # a question more like one that was asked is not asked again
TURNS_BETWEEN = 2  # questions between two that follow up an answer
NO_FOLLOW_UP = ("greeting", "farewell")
MAX_REMEMBERED = 1000  # questions, the newest


class Question(BaseModel):
    """history: the exchange that it follows up. asked: its wording before the author's.

    unanswered: it was a pair without an answer. Once it is done: answered, else skipped with `draft` typed so far.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    topic: str = ""
    history: tuple[tuple[str, str], ...] = ()
    asked: str = ""
    unanswered: bool = False
    answered: bool = False
    draft: str = ""


class Interview(BaseModel):
    """question: None when all were asked. topic: to stay with, "" for any. done: oldest first."""

    model_config = ConfigDict(frozen=True)

    question: Question | None = None
    draft: str = Field(default="", max_length=MAX_CHARACTERS)
    topic: str = ""
    number: int = 0  # grows with each question that is done; two windows of one persona are told apart by it
    done: tuple[Question, ...] = ()


def open_interview(persona: Persona) -> Interview:
    """The interview as it was left, with a question to answer. Raises InputError for a damaged file."""
    state, pairs = _read(persona), persona.scan()[0]
    if state.question is None or _is_answered(state, pairs):
        return _ask_next(state, persona, pairs)
    return state


def save_draft(persona: Persona, number: int, answer: str, question: str) -> None:
    """Keep what was typed. number: of the interview that was shown; question: in the author's words."""
    state = _current(persona, number)
    if state.question:
        _write(persona, _with_text(state, answer, question))


def answer_question(persona: Persona, number: int, answer: str, question: str) -> Interview:
    """Save the pair, then ask the next question. Raises InputError for an empty answer."""
    state = _with_text(_current(persona, number), answer, question)
    asked = state.question
    if asked is None:
        return state
    if not answer.strip():
        raise InputError("Write the answer first, or skip the question.")
    pairs, _ = persona.scan()
    pair = Pair(asked.text, answer.strip(), asked.history, SOURCE)
    change = PairChange(len(pairs), None, pair)
    if asked.unanswered and (row := _find_last(pairs, asked.asked, asked.history, answered=False)) is not None:
        change = PairChange(row, pairs[row], replace(pair, source=pairs[row].source or SOURCE))
    pairs = edit_history.commit(persona, Message("answer in the interview"), [change])
    return _finish(state, persona, pairs, asked.model_copy(update={"answered": True, "draft": ""}))


def ask_next(persona: Persona, text: str, history: tuple[tuple[str, str], ...] = ()) -> None:
    """Make this the question that is asked now; what was typed to another one is kept with that, for the way back."""
    state = _read(persona)
    if state.question and state.draft.strip():
        skipped = state.question.model_copy(update={"draft": state.draft})
        state = state.model_copy(update={"done": (*state.done, skipped)[-MAX_REMEMBERED:]})
    question = Question(text=text, history=history)
    _write(persona, state.model_copy(update={"question": question, "draft": "", "number": state.number + 1}))


def skip_question(persona: Persona, number: int, answer: str, question: str) -> Interview:
    """Ask the next question; what was typed is kept with this one, for the way back."""
    state = _with_text(_current(persona, number), answer, question)
    if state.question is None:
        return state
    return _finish(state, persona, persona.scan()[0], state.question.model_copy(update={"draft": answer}))


def go_back(persona: Persona, number: int) -> Interview:
    """Return to the last question: its pair is taken out again, its answer is the draft. Raises InputError if none."""
    state = _current(persona, number)
    if not state.done:
        raise InputError("This is the first question.")
    last = state.done[-1]
    draft = last.draft
    if last.answered:
        pairs, _ = persona.scan()
        row = _find_last(pairs, last.text, last.history, answered=True)
        if row is not None:
            pair = pairs[row]
            blank = replace(pair, instruction=last.asked, output="") if last.unanswered else None
            edit_history.commit(
                persona, Message("return to an answer of the interview"), [PairChange(row, pair, blank)]
            )
            draft = pair.output
    question = last.model_copy(update={"answered": False, "draft": ""})
    state = state.model_copy(
        update={"question": question, "draft": draft, "done": state.done[:-1], "number": state.number + 1}
    )
    _write(persona, state)
    return state


def stay_on_topic(persona: Persona, number: int, answer: str, question: str) -> Interview:
    """Ask more questions like this one from now on; if that is so already, of any kind again."""
    state = _with_text(_current(persona, number), answer, question)
    topic = state.question.topic if state.question else ""
    state = state.model_copy(update={"topic": "" if state.topic == topic else topic})
    _write(persona, state)
    return state


def ask_skipped_again(persona: Persona, number: int) -> Interview:
    """Ask what was skipped, once everything was asked."""
    state = _current(persona, number)
    state = state.model_copy(update={"done": tuple(q for q in state.done if q.answered)})
    state = _ask_next(state, persona, persona.scan()[0])
    _write(persona, state)
    return state


def _finish(state: Interview, persona: Persona, pairs: Sequence[Pair], done: Question) -> Interview:
    state = state.model_copy(update={"done": (*state.done, done)[-MAX_REMEMBERED:], "number": state.number + 1})
    state = _ask_next(state, persona, pairs)
    _write(persona, state)
    return state


def _ask_next(state: Interview, persona: Persona, pairs: Sequence[Pair]) -> Interview:
    question = choose_question(state, pairs, persona.card())
    return state.model_copy(update={"question": question, "draft": question.draft if question else ""})


def choose_question(state: Interview, pairs: Sequence[Pair], card: PersonaCard) -> Question | None:
    """The next question; None when all were asked or skipped."""
    done = {(q.asked or q.text).strip() for q in state.done}
    for pair in pairs:
        if not pair.output.strip() and pair.instruction.strip() and pair.instruction.strip() not in done:
            return Question(text=pair.instruction, asked=pair.instruction, history=pair.history, unanswered=True)
    if not state.topic and (question := _follow_up(state, pairs, card)):
        return question
    texts = [*(p.instruction for p in pairs), *card.probes, *done, *(q.text for q in state.done)]
    asked = list({normalize_text(text) for text in texts})
    for question in _by_need(state, pairs, card):
        if not is_like_any(normalize_text(question.text), asked, MAX_LIKENESS):
            return question
    return None


def _follow_up(state: Interview, pairs: Sequence[Pair], card: PersonaCard) -> Question | None:
    """A question about the last answer, unless one of the last questions was such a one."""
    recent = state.done[-TURNS_BETWEEN:]
    if not recent or not recent[-1].answered or any(q.history for q in recent):
        return None
    last = recent[-1]
    if last.topic in NO_FOLLOW_UP:
        return None
    if (row := _find_last(pairs, last.text, last.history, answered=True)) is None:
        return None
    answer = pairs[row].output
    text = load_question_bank(card.language).follow_up(answer, {q.asked or q.text for q in state.done})
    return Question(text=text, topic=last.topic, history=((last.text, answer),)) if text else None


def _by_need(state: Interview, pairs: Sequence[Pair], card: PersonaCard) -> list[Question]:
    """The questions of the bank: those of the chosen topic, then of the kind that the set has least of."""
    counts = count_kinds(pairs)
    last_asked = {q.topic: n for n, q in enumerate(state.done)}

    def need(item: tuple[Question, str]) -> tuple[bool, float, int]:
        question, kind = item
        full = min(1.0, counts[kind] / TARGET_COUNTS[kind])
        return question.topic != state.topic, full, last_asked.get(question.topic, -1)

    return [question for question, _ in sorted(_bank_in_turn(load_question_bank(card.language)), key=need)]


@lru_cache
def _bank_in_turn(bank: QuestionBank) -> list[tuple[Question, str]]:
    """Each question with its kind: the first of each topic, then the second of each."""
    topics = [[Question(text=q, topic=topic) for q in questions] for topic, questions in bank.topics.items()]
    in_turn = filter(None, itertools.chain.from_iterable(itertools.zip_longest(*topics)))
    return [(question, classify_question(Pair(question.text, ""))) for question in in_turn]


def _find_last(pairs: Sequence[Pair], text: str, history: Iterable[Sequence[str]], answered: bool) -> int | None:
    """Index of the newest pair with this question and history, with or without an answer."""
    wanted = text.strip(), tuple(map(tuple, history))
    return next(
        (
            n
            for n in range(len(pairs) - 1, -1, -1)
            if (pairs[n].instruction.strip(), pairs[n].history) == wanted and bool(pairs[n].output.strip()) == answered
        ),
        None,
    )


def _is_answered(state: Interview, pairs: Sequence[Pair]) -> bool:
    """Whether the draft is among the pairs: the program was killed after it had saved the pair."""
    question = state.question
    if question is None or not state.draft.strip():
        return False
    row = _find_last(pairs, question.text, question.history, answered=True)
    return row is not None and pairs[row].output == state.draft.strip()


def _with_text(state: Interview, answer: str, question: str) -> Interview:
    """The state with what the author has typed. An emptied question gets its own words back."""
    if state.question is None:
        return state
    old = state.question
    text = re.sub(r"\s+", " ", question).strip()[:MAX_CHARACTERS] or old.asked or old.text
    new = old if text == old.text else old.model_copy(update={"text": text, "asked": old.asked or old.text})
    return state.model_copy(update={"question": new, "draft": answer[:MAX_CHARACTERS]})


def _current(persona: Persona, number: int) -> Interview:
    state = open_interview(persona)
    if state.number != number:
        raise InputError(
            "The interview went on in another window. Copy what you just typed, press Reload, and type it again."
        )
    return state


def _read(persona: Persona) -> Interview:
    file = persona.path / "interview.json"
    if not file.exists():
        return Interview()
    try:
        return Interview.model_validate(read_json(file, Message("an interview")))
    except ValidationError:
        raise InputError("{file}: not an interview. Delete the file to begin a new one.", file=file) from None


def _write(persona: Persona, state: Interview) -> None:
    quotas.require_disk_quota()
    write_atomic(persona.path / "interview.json", to_json(state.model_dump(mode="json", exclude_defaults=True)))
