"""Blind votes: the browser cannot know who is who, no vote is lost, and the figures are the textbooks'."""

import json
import math
import random
import secrets
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from cases import check_each
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st
from start_together import let_go

from persona.compare import blind_votes, conversation, win_rate
from persona.compare.blind_votes import BlindQuestion, VoteLog, VoteSide
from persona.compare.conversation import ConversationAnswer, VoiceRecord
from persona.errors import InputError
from persona.store import jsonl
from persona.store.workspace import PROJECT_DIR

BASE = VoiceRecord("base", "Base", system="你是甄嬛。")
HER = VoiceRecord("adapter", "甄嬛", "run/zhen-huan/20261122-031500-a1b2", 1.0, "你是甄嬛。")
TEXTS = {"base": "I am a model.", "adapter": "本宫乏了。"}
DICE = {"temperature": 0.4, "seed": 7}
KEY = conversation.new_browser_key()


@pytest.fixture
def book(tmp_path: Path) -> VoteLog:
    return blind_votes.open_vote_log(tmp_path / "p", KEY)


def asked(book: VoteLog, said: str = "你是谁？", **sides) -> BlindQuestion:
    """A question with its answers, not voted on yet."""
    q = blind_votes.draw_question(book, said, [VoteSide(BASE, **sides), VoteSide(HER, **sides)], "你是甄嬛。", DICE)
    return blind_votes.record_answers(
        book, q.id, [ConversationAnswer(v, TEXTS[v.kind], 5) for v in (q.left.voice, q.right.voice)]
    )


def vote(book: VoteLog, winner: str) -> BlindQuestion:
    """A vote for 'adapter' or 'base', wherever it stands; or 'tie', 'bad', 'left', 'right'."""
    q = asked(book)
    side = "left" if q.left.voice.kind == winner else "right"
    return blind_votes.record_vote(book, q.id, winner if winner in blind_votes.VOTE_CHOICES else side)


def test_a_vote_is_kept_with_all_that_it_was_about(book):
    q = asked(book, history=(("hi", "hello\u2028there"),))
    assert blind_votes.read_blind_questions(book) == [q] and not q.choice
    voted = blind_votes.record_vote(book, q.id, "right")
    (again,) = blind_votes.read_blind_questions(book)
    assert again == voted and again.choice == "right" and again.sampling == DICE and again.time > 0
    assert {again.left.voice, again.right.voice} == {BASE, HER}
    assert [a.voice for a in again.answers] == [again.left.voice, again.right.voice]
    assert again.left.history == (("hi", "hello\u2028there"),)


def test_the_browser_sees_two_texts_and_nothing_that_tells_them_apart(book):
    q = asked(book)
    seen = blind_votes.redact_question(q)
    assert set(seen) == {"question", "said", "left", "right"}
    assert {seen["left"], seen["right"]} == set(TEXTS.values())
    told = json.dumps({k: v for k, v in seen.items() if k in ("question", "said")}, ensure_ascii=False)
    for secret in (str(q.seed), f"{q.seed:x}", "adapter", HER.adapter, KEY, book.path.stem):
        assert secret not in told


def test_sides_are_drawn_anew_for_every_question_whatever_the_dice_of_the_answers(book, monkeypatch):
    seeds = iter(range(400))
    monkeypatch.setattr(secrets, "randbits", lambda _: next(seeds))
    monkeypatch.setattr(jsonl, "append_rows", lambda *_: None)
    sides = [VoteSide(BASE), VoteSide(HER)]
    lefts = [blind_votes.draw_question(book, "q", sides, "", DICE).left.voice.kind for _ in range(400)]
    assert 160 < lefts.count("base") < 240  # four standard deviations of a fair coin, with fixed seeds
    changes = sum(a != b for a, b in pairwise(lefts))
    assert 160 < changes < 240, "and not in turn"


def test_the_draw_can_be_checked_afterwards(book):
    q = asked(book)
    row = json.loads(book.path.read_text().split("\n")[0])
    assert row["seed"] == q.seed
    left, right = random.Random(q.seed).sample([BASE, HER], 2)
    assert (q.left.voice, q.right.voice) == (left, right)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda b, q: blind_votes.record_vote(b, q.id, "both"), "not a vote"),
        (lambda b, q: blind_votes.record_vote(b, "../x", "left"), "no such question"),
        (lambda b, q: blind_votes.record_vote(b, "x" * 10_000 + "\0", "left"), "no such question"),
        (lambda b, q: blind_votes.record_vote(blind_votes.open_vote_log(b.path.parent.parent, conversation.new_browser_key()), q.id, "left"), "no such question"),
        (lambda b, q: (blind_votes.record_vote(b, q.id, "tie"), blind_votes.record_vote(b, q.id, "left")), "seen who is who"),
        (lambda b, q: blind_votes.record_answers(b, q.id, q.answers), "answers already"),
        (lambda b, q: blind_votes.record_vote(b, blind_votes.draw_question(b, "q", [q.left, q.right], "", {}).id, "left"), "not complete"),
        (lambda b, q: blind_votes.record_answers(b, blind_votes.draw_question(b, "q", [q.left, q.right], "", {}).id, q.answers[:1]), "not the answers"),
        (lambda b, q: blind_votes.draw_question(b, "q", [q.left, q.left], "", {}), "two different"),
        (lambda b, q: blind_votes.draw_question(b, "q", [VoteSide(BASE), VoteSide(VoiceRecord("base", "Other", system=BASE.system))], "", {}), "two different"),
        (lambda b, q: blind_votes.draw_question(b, " ", [q.left, q.right], "", {}), "Write something"),
        (lambda b, q: blind_votes.draw_question(b, "\udc00", [q.left, q.right], "", {}), "half a character"),
        (lambda b, q: VoiceRecord("Base", "Base"), "one of base, prompt, adapter"),
    ],
)  # fmt: skip
def test_what_is_refused(book, act, says):
    q = asked(book)
    with pytest.raises(InputError, match=says) as e:
        act(book, q)
    assert len(str(e.value)) < 200 and len(blind_votes.read_blind_questions(book)[0].answers) == 2


def test_a_kill_in_the_middle_of_a_vote_costs_that_vote_only(book):
    first, second = vote(book, "adapter"), vote(book, "base")
    whole = book.path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in range(last + 1, len(whole) - 1, 7):
        book.path.write_bytes(whole[:cut])
        assert [q.choice for q in blind_votes.read_blind_questions(book)] == [first.choice, ""]
        blind_votes.record_vote(book, second.id, "tie")
        assert [q.choice for q in blind_votes.read_blind_questions(book)] == [first.choice, "tie"]


def test_lines_changed_by_hand_are_not_counted(book):
    vote(book, "adapter")
    with book.path.open("a") as f:
        for row in (
            '{"vote": "nobody", "choice": "left"}',
            '{"seed": 1}',
            '{"vote": [1], "choice": "tie"}',
            "{}",
            '"x"',
        ):
            f.write(row + "\n")
    (t,) = blind_votes.tally_all(blind_votes.read_blind_questions(book))
    assert (t.wins, t.votes) == (1, 1)


def test_two_windows_vote_at_once(tmp_path, book):
    code = (
        "import sys; from pathlib import Path; from persona.compare import blind_votes as votes\n"
        "from persona.compare.conversation import ConversationAnswer, VoiceRecord\n"
        "b = votes.open_vote_log(Path(sys.argv[1]), sys.argv[2]); print(1, flush=True); input()\n"
        "sides = [votes.VoteSide(VoiceRecord('base', 'Base')), votes.VoteSide(VoiceRecord('adapter', 'She'))]\n"
        "for _ in range(8):\n"
        "    q = votes.draw_question(b, 'q', sides, '', {})\n"
        "    answers = [ConversationAnswer(s.voice, 'x' * 9_000) for s in (q.left, q.right)]\n"
        "    votes.record_answers(b, q.id, answers)\n"
        "    votes.record_vote(b, q.id, 'left' if q.left.voice.kind == sys.argv[3] else 'right')"
    )
    pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT_DIR}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "p"), KEY, kind], **pipes)
        for kind in ("adapter", "base")
    ]
    let_go(children)
    (t,) = blind_votes.tally_all(blind_votes.read_blind_questions(book))
    assert (t.wins, t.losses, jsonl.read_rows(book.path)[1]) == (8, 8, 0)


def test_a_vote_is_checked_and_written_under_one_lock(book, monkeypatch):
    real = jsonl.append_rows

    def append(path: Path, row: dict) -> None:
        with pytest.raises(Timeout):
            FileLock(book.path.parent / ".lock").acquire(timeout=0)
        real(path, row)

    monkeypatch.setattr(jsonl, "append_rows", append)
    assert vote(book, "tie").choice == "tie"


def test_limits(tmp_path, book, monkeypatch):
    vote(book, "tie")
    monkeypatch.setattr(blind_votes, "MAX_VISITORS", 1)
    with pytest.raises(InputError, match="no more votes are kept"):
        asked(blind_votes.open_vote_log(tmp_path / "p", conversation.new_browser_key()))
    monkeypatch.setattr(blind_votes, "MAX_VOTE_BYTES", book.path.stat().st_size + 10)
    with pytest.raises(InputError, match="Export them"):
        asked(book)
    assert len(blind_votes.read_blind_questions(book)) == 1


def test_a_tally_counts_votes_for_the_voice_and_not_for_the_side(tmp_path, book):
    for winner in ["adapter"] * 7 + ["base"] * 2 + ["tie"] * 3 + ["bad"]:
        vote(book, winner)
    asked(book)  # no vote yet
    t = blind_votes.tally_all(blind_votes.read_blind_questions(book))[0]
    assert (t.first, t.second) == (HER, BASE)
    assert (t.wins, t.losses, t.ties, t.both_bad, t.votes) == (7, 2, 3, 1, 13)
    assert t.rate == win_rate.estimate_win_rate(7, 9) and t.rate.value == pytest.approx(7 / 9)
    assert t.evidence == win_rate.describe_evidence(7, 9, 13)
    turned = blind_votes.tally_votes(blind_votes.read_blind_questions(book), BASE, HER)
    assert (turned.wins, turned.losses, turned.first_left) == (2, 7, 13 - t.first_left)
    assert f"left in {t.first_left} of 13" in t.side_bias and f"preferred in {t.left_wins} of 9" in t.side_bias
    other = blind_votes.open_vote_log(tmp_path / "p", conversation.new_browser_key())
    vote(other, "adapter")
    assert blind_votes.tally_all(blind_votes.read_all_visitors(tmp_path / "p"))[0].wins == 8
    assert blind_votes.tally_all(blind_votes.read_blind_questions(other))[0].wins == 1


def test_the_votes_are_told_from_the_chosen_adapters_side(book):
    own, early = VoiceRecord("adapter", "Mags", "run/m/r"), VoiceRecord("adapter", "Mags, step 1", "run/m/r@1")
    q = blind_votes.draw_question(book, "q", [VoteSide(own), VoteSide(early)], "", {})
    blind_votes.record_answers(book, q.id, [ConversationAnswer(s.voice, "x") for s in (q.left, q.right)])
    blind_votes.record_vote(book, q.id, "left" if q.left.voice == own else "right")
    questions = blind_votes.read_blind_questions(book)
    for chosen, wins in ((own.adapter, 1), (early.adapter, 0)):
        (tally,) = blind_votes.tally_all(questions, chosen)
        assert (tally.first.adapter, tally.wins) == (chosen, wins)


def test_voices_are_told_apart_by_what_they_are_and_not_by_their_label(book):
    for label, strength in [("甄嬛", 1.0), ("Zhen Huan", 1.0), ("甄嬛", 0.5)]:
        q = blind_votes.draw_question(
            book, "q", [VoteSide(BASE), VoteSide(VoiceRecord("adapter", label, "run/a/b", strength))], "", {}
        )
        q = blind_votes.record_answers(book, q.id, [ConversationAnswer(s.voice, "x") for s in (q.left, q.right)])
        blind_votes.record_vote(book, q.id, "tie")
    assert [(t.first.strength, t.votes) for t in blind_votes.tally_all(blind_votes.read_blind_questions(book))] == [
        (1.0, 2),
        (0.5, 1),
    ]


@pytest.mark.parametrize(("side", "warned"), [("left", True), ("right", True), ("adapter", False)])
def test_always_the_same_side_is_remarked_on(book, monkeypatch, side, warned):
    seeds = iter([n for n in range(200) if random.Random(n).sample([0, 1], 2)[0] == 0][:6]
                 + [n for n in range(200) if random.Random(n).sample([0, 1], 2)[0] == 1][:6])  # fmt: skip
    monkeypatch.setattr(secrets, "randbits", lambda _: next(seeds))
    for _ in range(12):
        vote(book, side)
    (t,) = blind_votes.tally_all(blind_votes.read_blind_questions(book))
    assert t.first_left == 6 and (f"You may be favouring the {side} side" in t.side_bias) == warned


# Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 5; and the zero rule 1 - (α/2)^(1/n)
@pytest.mark.parametrize(
    ("wins", "votes_", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_the_interval_is_the_published_one(wins, votes_, low, high):
    r = win_rate.estimate_win_rate(wins, votes_)
    assert (round(r.low, 4), round(r.high, 4)) == (low, high)
    turned = win_rate.estimate_win_rate(votes_ - wins, votes_)
    assert (turned.low, turned.high) == pytest.approx((1 - r.high, 1 - r.low), abs=1e-9)


def test_no_vote_gives_no_rate():
    r = win_rate.estimate_win_rate(0, 0)
    assert (r.value, r.low, r.high, r.settled) == (None, 0.0, 1.0, False)


# 2 * sum of comb(n, k) / 2**n, by hand: 6 of 6 is 2/64; 9 of 10 is 2*11/1024
def test_the_sign_test():
    cases = [(6, 6, 1 / 32), (9, 10, 22 / 1024), (1, 10, 22 / 1024), (5, 10, 1.0), (0, 0, 1.0)]

    def check(wins, n, p):
        assert win_rate.sign_test(wins, n) == pytest.approx(p, rel=1e-9)

    check_each(cases, check)


@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_settled_means_the_same_in_the_interval_and_in_the_test(count):
    wins, n = count
    r = win_rate.estimate_win_rate(wins, n)
    assert 0 <= r.low <= (r.value if n else 0.5) <= r.high <= 1
    assert r.settled == (win_rate.sign_test(wins, n) < win_rate.ALPHA)


@settings(max_examples=60)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_forecast_is_the_first_count_that_settles_it(count):
    wins, n = count
    most, far = max(wins, n - wins), 120

    def settles(total: int) -> bool:
        tail = sum(math.comb(total, k) for k in range(most * total // n, total + 1))
        return 2 * tail < win_rate.ALPHA * 2**total

    if win_rate.sign_test(wins, n) >= win_rate.ALPHA:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(win_rate, "MAX_VOTES_NEEDED", far)
            assert win_rate.votes_needed(wins, n) == next(
                (m for m in range(1, far + 1) if 2 * most > n and settles(n + m)), None
            )


def test_how_many_more_is_said_in_words_that_make_sense():
    cases = [
        (0, 0, 0, "No vote yet"),
        (0, 0, 5, "do not tell the two apart"),
        (3, 6, 6, "no number of votes will settle"),
        (1, 1, 1, "About 5 more votes"),
        (1, 1, 3, "About 15 more votes"),
        (5, 5, 5, "About 1 more vote if"),
        (6, 6, 9, "Statistically significant"),
        (0, 6, 6, "Statistically significant"),
        (51, 100, 100, "more than 1,000 more votes"),
        (1, 3, 900, "more than 1,000 more votes"),
    ]

    def check(wins, decisive, total, words):
        assert words in win_rate.describe_evidence(wins, decisive, total)

    check_each(cases, check)


@given(st.integers(0, 80), st.integers(0, 80), st.integers(0, 40))
def test_no_outlook_is_nonsense(wins, losses, rest):
    text = win_rate.describe_evidence(wins, wins + losses, wins + losses + rest)
    assert not any(word in text for word in ("nan", "inf", "None", " 0 more", "-"))
    if text.startswith("About"):
        assert 1 <= int(text.split()[1].replace(",", "")) <= win_rate.MAX_VOTES_NEEDED
