"""Conversations: nothing said is lost or overwritten, and nobody but who said it can read it."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cases import check_each
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st
from racing import let_go

from persona import lines, shelf, talks
from persona.errors import InputError
from persona.files import PROJECT
from persona.importers import messages
from persona.pairs import MAX_CHARACTERS, Pair
from persona.shelf import Shelf
from persona.talks import Answer, Talk, Voice

BASE = Voice("base", "Base")
HER = Voice("adapter", "甄嬛", "run/zhen-huan/20261122-031500-a1b2", 0.8, "你是甄嬛。")
KEY = talks.new_key()
DICE = {"temperature": 0.4, "seed": 7}


def replies(*texts: str) -> list[Answer]:
    return [Answer(voice, text, len(text)) for voice, text in zip((BASE, HER), texts, strict=True)]


@pytest.fixture
def mine(tmp_path: Path) -> Shelf:
    return shelf.open_shelf(tmp_path / "p", KEY)


def spoken(mine: Shelf, *said: str) -> Talk:
    """A conversation in which every turn is answered by "base N" and "她 N"."""
    talk = shelf.start(mine, said[0])
    for n, text in enumerate(said):
        talk = talk if n == 0 else shelf.say(mine, talk, text)
        talk = shelf.answer(mine, talk, talk.turns[-1].id, replies(f"base {n}", f"她 {n}"), DICE)
    return talk


def file_of(mine: Shelf, talk: Talk) -> Path:
    return mine.path / f"{talk.id}.jsonl"


def test_a_conversation_is_read_back_as_it_was(mine):
    talk = spoken(mine, "你是谁？\n说说看", "one\u2028two\x85three\x0b\x00four")
    again = shelf.read(mine, talk.id)
    assert again == talk and again.title == "你是谁？" and again.damaged == 0
    assert [t.said for t in again.turns] == ["你是谁？\n说说看", "one\u2028two\x85three\x0b\x00four"]
    last = again.turns[-1]
    assert last.answers == tuple(replies("base 1", "她 1")) and last.sampling == DICE
    assert talks.history(again, last.id, "甄嬛") == (("你是谁？\n说说看", "她 0"),)


def test_it_is_on_disk_when_it_is_shown_as_saved(mine, monkeypatch):
    """fsync has seen the whole line before the function returns."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (synced.append(next(mine.path.glob("*.jsonl")).read_bytes()), real(f)))
    talk = shelf.start(mine, "first")
    assert b'"first"' in synced[-1]
    shelf.say(mine, talk, "second")
    assert synced[-1].endswith(b"\n") and b'"second"' in synced[-1]


def test_two_visitors_see_nothing_of_each_other(tmp_path, mine):
    talk = spoken(mine, "a secret")
    other = shelf.open_shelf(tmp_path / "p", talks.new_key())
    assert shelf.listing(other) == [] and not other.path.exists()
    for use in (shelf.read, shelf.delete):
        with pytest.raises(InputError, match="no such conversation of yours"):
            use(other, talk.id)
    with pytest.raises(InputError, match="no such conversation of yours"):
        shelf.say(other, talk, "let me in")
    assert not other.path.exists(), "a stranger's question leaves no folder behind"
    spoken(other, "another")
    assert [t.title for t in shelf.listing(mine)] == ["a secret"]
    everything = [str(p) for p in tmp_path.rglob("*")] + [p.read_text() for p in tmp_path.rglob("*.jsonl")]
    assert not any(KEY in x for x in everything), "the key is written nowhere"


@pytest.mark.parametrize(
    "key",
    ["", "tiny", "../../../../etc/passwd-and-more", "x" * 201, "a" * 30 + "\0", "ключ" * 10, None, "a" * 30 + "\n"],
)
def test_a_key_that_could_be_guessed_or_leads_out_is_refused_unquoted(tmp_path, key):
    with pytest.raises(InputError, match="Reload the page") as e:
        shelf.open_shelf(tmp_path, key)
    assert not key or str(key) not in str(e.value)


def test_hostile_names_of_conversations_are_refused(mine):
    cases = [
        "../x",
        "",
        "x" * 10_000,
        "a\0b",
        "/etc/passwd",
        "20261122-031500-a1b2c3d4/../x",
        "20261122-031500-a1b2c3d4\n",
        "٢٠٢٦١١٢٢-031500-a1b2c3d4",
        None,
        7,
    ]

    def check(name):
        spoken(mine, "hi")
        before = sorted(mine.path.parent.rglob("*"))
        for use in (shelf.read, shelf.delete):
            with pytest.raises(InputError, match="not the name of a conversation") as e:
                use(mine, name)
            assert len(str(e.value)) < 200
        assert sorted(mine.path.parent.rglob("*")) == before

    check_each(cases, check)


def test_an_edited_turn_branches_and_the_way_back_stays_open(mine):
    talk = spoken(mine, "a", "b", "c")
    first = talk
    talk = shelf.edit(mine, talk, talk.turns[1].id, "B")
    assert [t.said for t in talk.turns] == ["a", "B"]
    assert talk.turns[1].wordings == (first.turns[1].id, talk.turns[1].id)
    talk = shelf.answer(mine, talk, talk.turns[1].id, replies("x", "y"), DICE)
    talk = shelf.say(mine, talk, "D")
    assert [t.said for t in talk.turns] == ["a", "B", "D"]
    back = shelf.show(mine, talk, first.turns[1].id)
    assert [t.said for t in back.turns] == ["a", "b", "c"] and back.turns[2] == first.turns[2]
    assert [t.said for t in shelf.show(mine, back, talk.turns[1].id).turns] == ["a", "B", "D"]


def test_the_first_turn_can_be_edited_too(mine):
    talk = spoken(mine, "a", "b")
    again = shelf.edit(mine, talk, talk.turns[0].id, "A")
    assert [t.said for t in again.turns] == ["A"] and len(again.turns[0].wordings) == 2
    assert again.title == "a"


def test_a_regenerated_answer_replaces_the_last_and_keeps_it(mine):
    talk = spoken(mine, "a", "b")
    before = talk.turns[1]
    talk = shelf.answer(mine, talk, before.id, replies("new", "新"), {"seed": 8})
    assert talks.text_of(talk.turns[1], "甄嬛") == "新" and talk.turns[1].sampling == {"seed": 8}
    assert talk.turns[1].takes == (before.answered, talk.turns[1].answered)
    talk = shelf.show(mine, talk, before.answered)
    assert talks.text_of(talk.turns[1], "甄嬛") == "她 1"
    with pytest.raises(InputError, match="not a message"):
        shelf.show(mine, talk, 99)


def test_a_question_that_was_never_answered_is_kept_but_not_built_upon(mine):
    talk = shelf.say(mine, spoken(mine, "a"), "killed while she answered")
    assert shelf.read(mine, talk.id).turns[-1].answers == ()
    talk = shelf.say(mine, talk, "again")
    assert [t.said for t in talk.turns] == ["a", "again"]
    assert len(talk.turns[-1].wordings) == 2, "it can still be shown"


def test_list_rename_delete(mine):
    old, new = spoken(mine, "old " * 50), spoken(mine, "new")
    assert [t.id for t in shelf.listing(mine)] == [new.id, old.id]
    assert len(shelf.listing(mine)[1].title) <= 60 and shelf.listing(mine)[1].title.endswith("…")
    shelf.rename(mine, old, "  Tea\nwith her ")
    assert [t.title for t in shelf.listing(mine)] == ["Tea", "new"]
    shelf.delete(mine, new.id)
    assert [t.title for t in shelf.listing(mine)] == ["Tea"]
    assert not list(mine.path.glob(f"*{new.id}*"))
    with pytest.raises(InputError, match="deleted"):
        shelf.say(mine, new, "hello?")
    with pytest.raises(InputError, match="empty"):
        shelf.rename(mine, old, " ")


def test_every_way_to_cut_the_last_line_costs_that_line_only(mine):
    talk = spoken(mine, "一", "二")
    file = file_of(mine, talk)
    whole = file.read_bytes()
    starts = whole[:-1].rindex(b"\n") + 1
    for cut in [starts + 1, *range(starts + 2, len(whole) - 2, 13), len(whole) - 2]:
        file.write_bytes(whole[:cut])
        seen = shelf.read(mine, talk.id)
        assert seen.damaged == 1 and [t.said for t in seen.turns] == ["一", "二"] and not seen.turns[1].answers
        seen = shelf.answer(mine, seen, seen.turns[1].id, replies("x", "好"), DICE)
        assert talks.text_of(seen.turns[1], "甄嬛") == "好" and seen.damaged == 1
    file.write_bytes(whole[:-1])  # only the line break is missing: nothing is lost, and nothing glued to it
    assert shelf.say(mine, shelf.read(mine, talk.id), "三").turns[:2] == talk.turns


def test_damage_in_the_middle_costs_what_was_there(mine):
    talk = spoken(mine, "a", "b", "c")
    file = file_of(mine, talk)
    rows = file.read_bytes().split(b"\n")
    rows[3] = b'{"id": 3, "parent": \xff'  # what "b" was
    said = '"time": 1.0, "said": "by hand"}'
    by_hand = [
        '{"id": 2, "parent": 9}', '{"show": [1]}', '{"show": 77}', '{"id": "x"}', '{"nothing": 1}', "[]", "[" * 100_000,
        f'{{"id": 50, "parent": 50, {said}', f'{{"id": 51, "parent": 52, {said}', f'{{"id": 2, "parent": 1, {said}',
    ]  # fmt: skip
    rows += [x.encode() for x in by_hand]
    file.write_bytes(b"\n".join(rows) + b"\n")
    seen = shelf.read(mine, talk.id)
    assert seen.damaged == 1 + len(by_hand) and seen.turns[-1] == talk.turns[-1]


def test_a_killed_program_has_kept_all_that_it_had_shown(tmp_path, mine):
    code = (
        "import sys; from pathlib import Path; from persona import shelf\n"
        "s = shelf.open_shelf(Path(sys.argv[1]), sys.argv[2]); t = shelf.start(s, 'begin'); print(t.id, flush=True)\n"
        "for n in range(10_000): t = shelf.edit(s, t, t.turns[0].id, f'turn {n} ' + 'x' * 5_000); print(n, flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "p"), KEY], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    name = child.stdout.readline().strip()
    for _ in range(20):
        shown = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    talk = shelf.read(mine, name)
    assert len(talk.turns[0].wordings) >= shown + 2
    assert shelf.edit(mine, talk, talk.turns[0].id, "after").turns[0].said == "after"


def test_two_processes_add_to_one_conversation(tmp_path, mine):
    talk = shelf.start(mine, "begin")
    code = (
        "import sys; from pathlib import Path; from persona import shelf\n"
        "s = shelf.open_shelf(Path(sys.argv[1]), sys.argv[2]); t = shelf.read(s, sys.argv[3]); print(1, flush=True); input()\n"
        "for n in range(25): shelf.edit(s, t, 1, f'{sys.argv[4]} {n} ' + '字' * 3_000)"
    )
    pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "p"), KEY, talk.id, who], **pipes) for who in "ab"
    ]
    let_go(children)
    rows, bad = lines.read(file_of(mine, talk))
    said = [r["said"][:4].split() for r in rows if "said" in r and r["said"] != "begin"]
    assert bad == 0 and [r["id"] for r in rows if "id" in r] == list(range(1, 52))
    assert all([n for w, n in said if w == who] == [str(n) for n in range(25)] for who in "ab")


def test_where_no_lock_can_be_made_the_disk_is_named(mine, monkeypatch):
    """A disk that became read-only; the folder is there from before."""
    talk = shelf.start(mine, "Who are you?")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    for act in (lambda: shelf.say(mine, talk, "And now?"), lambda: shelf.start(mine, "Anew?")):
        with pytest.raises(InputError, match="no permission to write here"):
            act()


def test_what_is_added_is_decided_and_written_under_one_lock(mine, monkeypatch):
    talk = spoken(mine, "a")
    real = lines.append

    def append(path: Path, *rows: dict) -> None:
        with pytest.raises(Timeout):
            FileLock(mine.path / ".lock").acquire(timeout=0)
        real(path, *rows)

    monkeypatch.setattr(lines, "append", append)
    shelf.rename(mine, shelf.say(mine, talk, "b"), "c")
    assert shelf.start(mine, "d").turns


def test_limits_are_sentences_and_nothing_is_lost_in_silence(tmp_path, mine, monkeypatch):
    with pytest.raises(InputError, match="more than 100,000"):
        shelf.start(mine, "x" * (MAX_CHARACTERS + 1))
    with pytest.raises(InputError, match="Write something"):
        shelf.start(mine, " \n")
    assert not mine.path.exists()
    talk = shelf.start(mine, "x" * MAX_CHARACTERS)
    with pytest.raises(InputError, match="more than 100,000"):
        shelf.answer(mine, talk, 1, replies("", "y" * (MAX_CHARACTERS + 1)), DICE)
    with pytest.raises(InputError, match="half a character"):
        shelf.say(mine, talk, "\ud83d")
    monkeypatch.setattr(shelf, "MAX_TALK_BYTES", 150_000)
    before = file_of(mine, talk).read_bytes()
    with pytest.raises(InputError, match="Start a new one"):
        shelf.edit(mine, talk, 1, "y" * 60_000)
    assert file_of(mine, talk).read_bytes() == before


def test_a_full_shelf_gives_up_the_oldest_and_says_so(mine, monkeypatch):
    monkeypatch.setattr(shelf, "MAX_TALKS", 3)
    kept = [spoken(mine, f"talk {n}") for n in range(3)]
    for n, talk in enumerate(kept):
        os.utime(file_of(mine, talk), (n, n))
    shelf.say(mine, kept[0], "used again, so no longer the oldest")
    new = shelf.start(mine, "one more")
    assert new.removed == ("talk 1",) and shelf.read(mine, new.id).removed == ("talk 1",)
    assert {t.title for t in shelf.listing(mine)} == {"talk 0", "talk 2", "one more"}
    monkeypatch.setattr(shelf, "MAX_SHELF_BYTES", shelf.MAX_TALK_BYTES)
    assert len(shelf.start(mine, "by size").removed) == 3


def test_a_visitor_too_many_is_told_and_takes_from_nobody(tmp_path, mine, monkeypatch):
    monkeypatch.setattr(shelf, "MAX_VISITORS", 2)
    spoken(mine, "a")
    spoken(shelf.open_shelf(tmp_path / "p", talks.new_key()), "b")
    third = shelf.open_shelf(tmp_path / "p", talks.new_key())
    with pytest.raises(InputError, match="this one is not kept"):
        shelf.start(third, "c")
    assert not third.path.exists() and spoken(mine, "more").turns


def test_a_disk_that_cannot_be_written_is_a_sentence(mine, monkeypatch):
    talk = spoken(mine, "a")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        shelf.say(mine, talk, "b")


def test_an_export_has_a_line_for_each_column_and_comes_back_as_pairs(mine):
    talk = spoken(mine, "a", "b")
    talk = shelf.answer(mine, shelf.say(mine, talk, "c"), 5, [Answer(HER, "only she")], DICE)
    rows = [json.loads(line) for line in talks.export(talk)]
    assert [r["column"] for r in rows] == ["Base", "甄嬛"] and rows[1]["strength"] == 0.8
    assert rows[0]["messages"] == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "base 0"},
        {"role": "user", "content": "b"}, {"role": "assistant", "content": "base 1"},
    ]  # fmt: skip
    assert rows[1]["messages"][0] == {"role": "system", "content": "你是甄嬛。"}
    assert [m["content"] for m in rows[1]["messages"][1:]] == ["a", "她 0", "b", "她 1", "c", "only she"]
    assert talks.history(shelf.say(mine, talk, "d"), 7, "Base") == (("a", "base 0"), ("b", "base 1"))
    pair, _ = messages.pair_of(rows[1], "talk.jsonl:2")
    assert pair == Pair("c", "only she", (("a", "她 0"), ("b", "她 1")), "talk.jsonl:2")


moves = st.lists(
    st.tuples(st.sampled_from(["say", "edit", "answer", "show"]), st.integers(0, 9), st.text(min_size=1, max_size=5)),
    max_size=8,
)


@settings(max_examples=15, deadline=None)
@given(moves)
def test_whatever_is_done_everything_said_can_be_shown_again(tmp_path_factory, todo):
    mine = shelf.open_shelf(tmp_path_factory.mktemp("any"), KEY)
    talk = shelf.start(mine, "begin")
    said, answers = {1: "begin"}, {}
    for move, n, text in todo:
        turn = talk.turns[n % len(talk.turns)]
        if move == "show":
            chosen = (*turn.wordings, *turn.takes)[n % len((*turn.wordings, *turn.takes))]
            talk = shelf.show(mine, talk, chosen)
            assert chosen in [x for t in talk.turns for x in (t.id, t.answered)]
        elif move == "answer":
            talk = shelf.answer(mine, talk, turn.id, replies(text, text), {})
            answers[talk.turns[-1].answered] = text
        elif text.strip():
            try:
                text.encode()
            except UnicodeEncodeError:
                continue
            talk = shelf.say(mine, talk, text) if move == "say" else shelf.edit(mine, talk, turn.id, text)
            said[talk.turns[-1].id] = text
        assert shelf.read(mine, talk.id) == talk and talk.damaged == 0
    shown: set[int] = set()
    todo_ids = [x for t in talk.turns for x in (*t.wordings, *t.takes)]
    while todo_ids:
        if (x := todo_ids.pop()) not in shown:
            shown.add(x)
            talk = shelf.show(mine, talk, x)
            for t in talk.turns:
                assert t.said == said[t.id] and (not t.answered or t.answers[0].text == answers[t.answered])
                todo_ids += [*t.wordings, *t.takes]
    assert shown == set(said) | set(answers)
