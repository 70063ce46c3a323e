"""Blind votes: one question, two answers side by side without names, and which of them was the better one.

    votes/<visitor>.jsonl   append-only: a line when a question is drawn, one when it is answered, one for the vote;
                            kept_answers.py has its choices there too

Who stands on which side is drawn on the server for every question, from a seed that is kept with the question and never
leaves this file: `redact_question` is all that a browser may be given before the vote.
"""

import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from persona.compare import win_rate
from persona.compare.conversation import (
    MAX_VISITORS,
    VOICE_KINDS,
    ConversationAnswer,
    VoiceRecord,
    answer_from_row,
    check_message_text,
    visitor_id,
    voice_from_row,
)
from persona.errors import InputError, Message, join
from persona.store import files, jsonl, quotas

VOTE_CHOICES = ("left", "right", "tie", "bad")  # bad: both
MAX_VOTE_BYTES = 50_000_000  # of one visitor's votes; evidence is never thrown away, so more is refused


@dataclass(frozen=True)
class VoteSide:
    """A voice, and its conversation so far: (message, its reply), oldest first."""

    voice: VoiceRecord
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class BlindQuestion:
    """A question as it was drawn; `answers` (left, right) once they are complete, `choice` once there is a vote.

    system: the persona's prompt, as the preference rows will have it. seed: of the draw. time: seconds since 1970.
    """

    id: str
    said: str
    system: str
    left: VoteSide
    right: VoteSide
    seed: int
    time: float
    sampling: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[ConversationAnswer, ...] = ()
    choice: str = ""


@dataclass(frozen=True)
class VoteLog:
    """The votes of one visitor on one persona: a file that may not be there yet."""

    path: Path


@dataclass(frozen=True)
class Tally:
    """The votes between two voices, counted. wins and rate are those of `first`.

    first_left: in how many of the votes `first` stood left; left_wins: how often the left one was preferred.
    """

    first: VoiceRecord
    second: VoiceRecord
    wins: int
    losses: int
    ties: int
    both_bad: int
    rate: win_rate.WinRate
    first_left: int
    left_wins: int

    @property
    def votes(self) -> int:
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def evidence(self) -> str:
        """In words, whether the votes settle it, and else how many more would."""
        return win_rate.describe_evidence(self.wins, self.wins + self.losses, self.votes)

    @property
    def side_bias(self) -> str:
        """In words, whether the side may have decided instead of the answer; "" without votes."""
        if not self.votes:
            return ""
        decisive = self.wins + self.losses
        text = Message(
            "It stood left in {first_left} of {votes}; the left answer was preferred in {left_wins} of {decisive}.",
            first_left=self.first_left,
            votes=self.votes,
            left_wins=self.left_wins,
            decisive=decisive,
        )
        if win_rate.sign_test(self.left_wins, decisive) >= win_rate.ALPHA:
            return text
        often = (
            Message(
                "You may be favouring the left side: this is unlikely to be chance. Read both answers before you vote."
            )
            if 2 * self.left_wins > decisive
            else Message(
                "You may be favouring the right side: this is unlikely to be chance. Read both answers before you vote."
            )
        )
        return join(" ", [text, often])


def open_vote_log(folder: Path, key: str) -> VoteLog:
    """A visitor's votes in `folder`, a persona's or an opened adapter's. Nothing is created yet."""
    return VoteLog(folder / "votes" / f"{visitor_id(key)}.jsonl")


def draw_question(
    log: VoteLog, text: str, sides: Sequence[VoteSide], system: str, sampling: Mapping[str, float]
) -> BlindQuestion:
    """Draw which of the two voices stands left, and record the question; its left and right side answer in this order.

    Raises InputError unless there are two different voices.
    """
    check_message_text(text)
    if len(sides) != 2 or _is_same_voice(sides[0].voice, sides[1].voice):
        raise InputError("A blind vote is between two different voices. Choose two.")
    quotas.require_disk_quota()
    seed = secrets.randbits(64)
    left, right = random.Random(seed).sample(list(sides), 2)
    question = BlindQuestion(secrets.token_hex(8), text, system, left, right, seed, time.time(), dict(sampling))
    row = asdict(question)
    del row["answers"], row["choice"]
    with files.lock_folder(log.path.parent):
        append_row(log, row)
    return question


def record_answers(log: VoteLog, question_id: str, answers: Sequence[ConversationAnswer]) -> BlindQuestion:
    """Record the left and the right answer; now there can be a vote. Raises InputError for a second answer."""
    with files.lock_folder(log.path.parent):
        question = _find_question(log, question_id)
        if question.answers:
            raise InputError("This question has its answers already. Ask a new one.")
        if [a.voice for a in answers] != [question.left.voice, question.right.voice]:
            raise InputError("These are not the answers of the voices that were drawn, left and right.")
        for a in answers:
            check_message_text(a.text, empty=True)
        append_row(log, {"answered": question_id, "answers": [asdict(a) for a in answers], "time": time.time()})
    return replace(question, answers=tuple(answers))


def record_vote(log: VoteLog, question_id: str, choice: str) -> BlindQuestion:
    """Record the vote; the names may be shown now. Raises InputError for a second vote, which would not be blind."""
    if choice not in VOTE_CHOICES:
        raise InputError(
            "{choice}: not a vote. It is one of {choices}.", choice=f"{choice!r:.40}", choices=", ".join(VOTE_CHOICES)
        )
    with files.lock_folder(log.path.parent):
        question = _find_question(log, question_id)
        if not question.answers:
            raise InputError("The two answers are not complete yet. Vote when both have ended.")
        if question.choice:
            raise InputError("You have voted on this question already, and seen who is who. Ask a new one.")
        append_row(log, {"vote": question_id, "choice": choice, "time": time.time()})
    return replace(question, choice=choice)


def redact_question(question: BlindQuestion) -> dict[str, str]:
    """All that a browser may have before the vote: no name, no seed, and nothing that depends on them."""
    left, right = (a.text for a in question.answers) if question.answers else ("", "")
    return {"question": question.id, "said": question.said, "left": left, "right": right}


def rank_answers(question: BlindQuestion) -> tuple[ConversationAnswer, ConversationAnswer]:
    """The better answer and the other one. Raises InputError when the vote preferred none."""
    if question.choice not in ("left", "right"):
        raise InputError("Neither answer was preferred here. Vote left or right, or write a better answer yourself.")
    left, right = question.answers
    return (left, right) if question.choice == "left" else (right, left)


def read_blind_questions(log: VoteLog) -> list[BlindQuestion]:
    """All questions of this visitor, oldest first, with their answers and votes where they have them."""
    questions: dict[str, BlindQuestion] = {}
    for row in jsonl.read_rows(log.path)[0]:
        try:
            if "seed" in row:
                questions[row["id"]] = _question_from_row(row)
            elif "answered" in row:
                answers = tuple(map(answer_from_row, row["answers"]))
                questions[row["answered"]] = replace(questions[row["answered"]], answers=answers)
            elif row["choice"] in VOTE_CHOICES:
                questions[row["vote"]] = replace(questions[row["vote"]], choice=row["choice"])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue  # changed by hand: the question has no answer or no vote then, and is not counted
    return list(questions.values())


def read_all_visitors(folder: Path) -> list[BlindQuestion]:
    """The questions of all visitors, for figures; the texts are private, so show none of them to another visitor."""
    return [q for file in sorted((folder / "votes").glob("*.jsonl")) for q in read_blind_questions(VoteLog(file))]


def tally_all(asked: Sequence[BlindQuestion], chosen: str = "") -> list[Tally]:
    """A tally for every two voices that were voted on, the pair with most votes first.

    `first` is the adapter called `chosen`, else the more trained of the two, so that the rate reads as "how often the
    persona wins".
    """
    pairs: dict[tuple[VoiceRecord, VoiceRecord], None] = {}
    for q in asked:
        first, second = sorted(
            (q.left.voice, q.right.voice),
            key=lambda v: (bool(chosen) and v.adapter == chosen, _training_rank(v)),
            reverse=True,
        )
        if not any(_is_same_voice(first, a) and _is_same_voice(second, b) for a, b in pairs):
            pairs[first, second] = None
    tallies = [tally_votes(asked, first, second) for first, second in pairs]
    return sorted((t for t in tallies if t.votes), key=lambda t: -t.votes)


def tally_votes(asked: Sequence[BlindQuestion], first: VoiceRecord, second: VoiceRecord) -> Tally:
    """The votes between these two voices, under any label; questions without a vote do not count."""
    on_left = {
        True: dict.fromkeys(VOTE_CHOICES, 0),
        False: dict.fromkeys(VOTE_CHOICES, 0),
    }  # by whether `first` stood left
    for q in asked:
        if q.choice:
            for left in (True, False):
                a, b = (first, second) if left else (second, first)
                on_left[left][q.choice] += _is_same_voice(q.left.voice, a) and _is_same_voice(q.right.voice, b)
    when_left, when_right = on_left[True], on_left[False]
    wins, losses = when_left["left"] + when_right["right"], when_left["right"] + when_right["left"]
    ties, bad = when_left["tie"] + when_right["tie"], when_left["bad"] + when_right["bad"]
    left_wins, first_left = when_left["left"] + when_right["left"], sum(when_left.values())
    rate = win_rate.estimate_win_rate(wins, wins + losses)
    return Tally(first, second, wins, losses, ties, bad, rate, first_left, left_wins)


def _is_same_voice(a: VoiceRecord, b: VoiceRecord) -> bool:
    """Whether two voices are the same, under any label."""
    return replace(a, label=b.label) == b


def _training_rank(voice: VoiceRecord) -> tuple:
    return VOICE_KINDS.index(voice.kind), voice.adapter, voice.strength, voice.system, voice.label


def _find_question(log: VoteLog, question_id: str) -> BlindQuestion:
    for q in read_blind_questions(log):
        if q.id == question_id:
            return q
    raise InputError("There is no such question of yours. Ask a new one.")


def append_row(log: VoteLog, row: dict[str, Any]) -> None:
    """Add a row; the caller holds the folder's lock. Raises InputError where no more is kept."""
    if not log.path.exists() and len(list(log.path.parent.glob("*.jsonl"))) >= MAX_VISITORS:
        raise InputError(
            "{limit} visitors have voted on this persona already: no more votes are kept.", limit=MAX_VISITORS
        )
    size = log.path.stat().st_size if log.path.exists() else 0
    if size + len(jsonl.encode_row(row)) > MAX_VOTE_BYTES:
        raise InputError(
            "Your votes have reached {limit:.0f} MB, so no more are kept. Export them.", limit=MAX_VOTE_BYTES / 1e6
        )
    jsonl.append_rows(log.path, row)


def _question_from_row(row: dict[str, Any]) -> BlindQuestion:
    left, right = (_side_from_row(row[side]) for side in ("left", "right"))
    return BlindQuestion(
        str(row["id"]), str(row["said"]), str(row["system"]), left, right, int(row["seed"]), float(row["time"]),
        dict(row["sampling"]),
    )  # fmt: skip


def _side_from_row(row: Mapping[str, Any]) -> VoteSide:
    return VoteSide(voice_from_row(row["voice"]), tuple((str(u), str(r)) for u, r in row["history"]))
