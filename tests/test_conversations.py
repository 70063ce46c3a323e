"""Conversations: nothing said is lost or overwritten, and nobody but who said it can read it."""

import errno
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
from start_together import let_go

from persona.compare import conversation, conversation_store
from persona.compare.conversation import Conversation, ConversationAnswer, VoiceRecord
from persona.compare.conversation_store import ConversationStore
from persona.errors import InputError
from persona.store import jsonl
from persona.store.pairs import MAX_CHARACTERS
from persona.store.workspace import PROJECT_DIR

BASE = VoiceRecord("base", "Base")
HER = VoiceRecord("adapter", "甄嬛", "run/zhen-huan/20261122-031500-a1b2", 0.8, "你是甄嬛。")
KEY = conversation.new_browser_key()
DICE = {"temperature": 0.4, "seed": 7}


def replies(*texts: str) -> list[ConversationAnswer]:
    return [ConversationAnswer(voice, text, len(text)) for voice, text in zip((BASE, HER), texts, strict=True)]


@pytest.fixture
def mine(tmp_path: Path) -> ConversationStore:
    return conversation_store.open_store(tmp_path / "p", KEY)


def spoken(mine: ConversationStore, *said: str) -> Conversation:
    """A conversation in which every turn is answered by "base N" and "她 N"."""
    talk = conversation_store.start_conversation(mine, said[0])
    for n, text in enumerate(said):
        talk = talk if n == 0 else conversation_store.add_turn(mine, talk, text)
        talk = conversation_store.add_answers(mine, talk, talk.turns[-1].id, replies(f"base {n}", f"她 {n}"), DICE)
    return talk


def file_of(mine: ConversationStore, talk: Conversation) -> Path:
    return mine.path / f"{talk.id}.jsonl"


def test_a_conversation_is_read_back_as_it_was(mine):
    talk = spoken(mine, "你是谁？\n说说看", "one\u2028two\x85three\x0b\x00four")
    again = conversation_store.read_conversation(mine, talk.id)
    assert again == talk and again.title == "你是谁？" and again.damaged == 0
    assert [t.said for t in again.turns] == ["你是谁？\n说说看", "one\u2028two\x85three\x0b\x00four"]
    last = again.turns[-1]
    assert last.answers == tuple(replies("base 1", "她 1")) and last.sampling == DICE
    assert conversation.column_history(again, last.id, HER.column) == (("你是谁？\n说说看", "她 0"),)


def test_it_is_on_disk_when_it_is_shown_as_saved(mine, monkeypatch):
    """fsync has seen the whole line before the function returns."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (synced.append(next(mine.path.glob("*.jsonl")).read_bytes()), real(f)))
    talk = conversation_store.start_conversation(mine, "first")
    assert b'"first"' in synced[-1]
    conversation_store.add_turn(mine, talk, "second")
    assert synced[-1].endswith(b"\n") and b'"second"' in synced[-1]


def test_two_visitors_see_nothing_of_each_other(tmp_path, mine):
    talk = spoken(mine, "a secret")
    other = conversation_store.open_store(tmp_path / "p", conversation.new_browser_key())
    assert conversation_store.list_conversations(other) == [] and not other.path.exists()
    for use in (conversation_store.read_conversation, conversation_store.delete_conversation):
        with pytest.raises(InputError, match="no such conversation of yours"):
            use(other, talk.id)
    with pytest.raises(InputError, match="no such conversation of yours"):
        conversation_store.add_turn(other, talk, "let me in")
    assert not other.path.exists(), "a stranger's question leaves no folder behind"
    spoken(other, "another")
    assert [t.title for t in conversation_store.list_conversations(mine)] == ["a secret"]
    everything = [str(p) for p in tmp_path.rglob("*")] + [p.read_text() for p in tmp_path.rglob("*.jsonl")]
    assert not any(KEY in x for x in everything), "the key is written nowhere"


@pytest.mark.parametrize(
    "key",
    ["", "tiny", "../../../../etc/passwd-and-more", "x" * 201, "a" * 30 + "\0", "ключ" * 10, None, "a" * 30 + "\n"],
)
def test_a_key_that_could_be_guessed_or_leads_out_is_refused_unquoted(tmp_path, key):
    with pytest.raises(InputError, match="Reload the page") as e:
        conversation_store.open_store(tmp_path, key)
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
        for use in (conversation_store.read_conversation, conversation_store.delete_conversation):
            with pytest.raises(InputError, match="not the name of a conversation") as e:
                use(mine, name)
            assert len(str(e.value)) < 200
        assert sorted(mine.path.parent.rglob("*")) == before

    check_each(cases, check)


def test_an_edited_turn_branches_and_the_way_back_stays_open(mine):
    talk = spoken(mine, "a", "b", "c")
    first = talk
    talk = conversation_store.edit_turn(mine, talk, talk.turns[1].id, "B")
    assert [t.said for t in talk.turns] == ["a", "B"]
    assert talk.turns[1].wordings == (first.turns[1].id, talk.turns[1].id)
    talk = conversation_store.add_answers(mine, talk, talk.turns[1].id, replies("x", "y"), DICE)
    talk = conversation_store.add_turn(mine, talk, "D")
    assert [t.said for t in talk.turns] == ["a", "B", "D"]
    back = conversation_store.show_branch(mine, talk, first.turns[1].id)
    assert [t.said for t in back.turns] == ["a", "b", "c"] and back.turns[2] == first.turns[2]
    assert [t.said for t in conversation_store.show_branch(mine, back, talk.turns[1].id).turns] == ["a", "B", "D"]


def test_the_first_turn_can_be_edited_too(mine):
    talk = spoken(mine, "a", "b")
    again = conversation_store.edit_turn(mine, talk, talk.turns[0].id, "A")
    assert [t.said for t in again.turns] == ["A"] and len(again.turns[0].wordings) == 2
    assert again.title == "a"


def test_a_regenerated_answer_replaces_the_last_and_keeps_it(mine):
    talk = spoken(mine, "a", "b")
    before = talk.turns[1]
    talk = conversation_store.add_answers(mine, talk, before.id, replies("new", "新"), {"seed": 8})
    assert conversation.answer_text(talk.turns[1], HER.column) == "新" and talk.turns[1].sampling == {"seed": 8}
    assert talk.turns[1].regenerations == (before.answered, talk.turns[1].answered)
    talk = conversation_store.show_branch(mine, talk, before.answered)
    assert conversation.answer_text(talk.turns[1], HER.column) == "她 1"
    with pytest.raises(InputError, match="not a message"):
        conversation_store.show_branch(mine, talk, 99)


def test_a_question_that_was_never_answered_is_kept_but_not_built_upon(mine):
    talk = conversation_store.add_turn(mine, spoken(mine, "a"), "killed while she answered")
    assert conversation_store.read_conversation(mine, talk.id).turns[-1].answers == ()
    talk = conversation_store.add_turn(mine, talk, "again")
    assert [t.said for t in talk.turns] == ["a", "again"]
    assert len(talk.turns[-1].wordings) == 2, "it can still be shown"


def test_list_rename_delete(mine):
    old, new = spoken(mine, "old " * 50), spoken(mine, "new")
    assert [t.id for t in conversation_store.list_conversations(mine)] == [new.id, old.id]
    assert len(conversation_store.list_conversations(mine)[1].title) <= 60 and conversation_store.list_conversations(
        mine
    )[1].title.endswith("…")
    conversation_store.rename_conversation(mine, old, "  Tea\nwith her ")
    assert [t.title for t in conversation_store.list_conversations(mine)] == ["Tea", "new"]
    conversation_store.delete_conversation(mine, new.id)
    assert [t.title for t in conversation_store.list_conversations(mine)] == ["Tea"]
    assert not list(mine.path.glob(f"*{new.id}*"))
    with pytest.raises(InputError, match="deleted"):
        conversation_store.add_turn(mine, new, "hello?")
    with pytest.raises(InputError, match="empty"):
        conversation_store.rename_conversation(mine, old, " ")


def test_every_way_to_cut_the_last_line_costs_that_line_only(mine):
    talk = spoken(mine, "一", "二")
    file = file_of(mine, talk)
    whole = file.read_bytes()
    starts = whole[:-1].rindex(b"\n") + 1
    for cut in [starts + 1, *range(starts + 2, len(whole) - 2, 13), len(whole) - 2]:
        file.write_bytes(whole[:cut])
        seen = conversation_store.read_conversation(mine, talk.id)
        assert seen.damaged == 1 and [t.said for t in seen.turns] == ["一", "二"] and not seen.turns[1].answers
        seen = conversation_store.add_answers(mine, seen, seen.turns[1].id, replies("x", "好"), DICE)
        assert conversation.answer_text(seen.turns[1], HER.column) == "好" and seen.damaged == 1
    file.write_bytes(whole[:-1])  # only the line break is missing: nothing is lost, and nothing glued to it
    assert (
        conversation_store.add_turn(mine, conversation_store.read_conversation(mine, talk.id), "三").turns[:2]
        == talk.turns
    )


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
    seen = conversation_store.read_conversation(mine, talk.id)
    assert seen.damaged == 1 + len(by_hand) and seen.turns[-1] == talk.turns[-1]


def test_a_killed_program_has_kept_all_that_it_had_shown(tmp_path, mine):
    code = (
        "import sys; from pathlib import Path; from persona.compare import conversation_store as store\n"
        "s = store.open_store(Path(sys.argv[1]), sys.argv[2]); t = store.start_conversation(s, 'begin')\n"
        "print(t.id, flush=True)\n"
        "for n in range(10_000):\n"
        "    t = store.edit_turn(s, t, t.turns[0].id, f'turn {n} ' + 'x' * 5_000); print(n, flush=True)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "p"), KEY], cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    name = child.stdout.readline().strip()
    for _ in range(20):
        shown = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    talk = conversation_store.read_conversation(mine, name)
    assert len(talk.turns[0].wordings) >= shown + 2
    assert conversation_store.edit_turn(mine, talk, talk.turns[0].id, "after").turns[0].said == "after"


def test_two_processes_add_to_one_conversation(tmp_path, mine):
    talk = conversation_store.start_conversation(mine, "begin")
    code = (
        "import sys; from pathlib import Path; from persona.compare import conversation_store as store\n"
        "s = store.open_store(Path(sys.argv[1]), sys.argv[2]); t = store.read_conversation(s, sys.argv[3])\n"
        "print(1, flush=True); input()\n"
        "for n in range(25): store.edit_turn(s, t, 1, f'{sys.argv[4]} {n} ' + '字' * 3_000)"
    )
    pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT_DIR}
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "p"), KEY, talk.id, who], **pipes) for who in "ab"
    ]
    let_go(children)
    rows, bad = jsonl.read_rows(file_of(mine, talk))
    said = [r["said"][:4].split() for r in rows if "said" in r and r["said"] != "begin"]
    assert bad == 0 and [r["id"] for r in rows if "id" in r] == list(range(1, 52))
    assert all([n for w, n in said if w == who] == [str(n) for n in range(25)] for who in "ab")


def test_where_no_lock_can_be_made_the_disk_is_named(mine, monkeypatch):
    """A disk that became read-only; the folder is there from before."""
    talk = conversation_store.start_conversation(mine, "Who are you?")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    for act in (
        lambda: conversation_store.add_turn(mine, talk, "And now?"),
        lambda: conversation_store.start_conversation(mine, "Anew?"),
    ):
        with pytest.raises(InputError, match="no permission to write here"):
            act()


def test_what_is_added_is_decided_and_written_under_one_lock(mine, monkeypatch):
    talk = spoken(mine, "a")
    real = jsonl.append_rows

    def append(path: Path, *rows: dict) -> None:
        with pytest.raises(Timeout):
            FileLock(mine.path / ".lock").acquire(timeout=0)
        real(path, *rows)

    monkeypatch.setattr(jsonl, "append_rows", append)
    conversation_store.rename_conversation(mine, conversation_store.add_turn(mine, talk, "b"), "c")
    assert conversation_store.start_conversation(mine, "d").turns


def test_limits_are_sentences_and_nothing_is_lost_in_silence(tmp_path, mine, monkeypatch):
    with pytest.raises(InputError, match="more than 100,000"):
        conversation_store.start_conversation(mine, "x" * (MAX_CHARACTERS + 1))
    with pytest.raises(InputError, match="Write something"):
        conversation_store.start_conversation(mine, " \n")
    assert not mine.path.exists()
    talk = conversation_store.start_conversation(mine, "x" * MAX_CHARACTERS)
    with pytest.raises(InputError, match="more than 100,000"):
        conversation_store.add_answers(mine, talk, 1, replies("", "y" * (MAX_CHARACTERS + 1)), DICE)
    with pytest.raises(InputError, match="half a character"):
        conversation_store.add_turn(mine, talk, "\ud83d")
    monkeypatch.setattr(conversation_store, "MAX_CONVERSATION_BYTES", 150_000)
    before = file_of(mine, talk).read_bytes()
    with pytest.raises(InputError, match="Start a new one"):
        conversation_store.edit_turn(mine, talk, 1, "y" * 60_000)
    assert file_of(mine, talk).read_bytes() == before


def test_a_full_store_deletes_the_oldest_and_says_so(mine, monkeypatch):
    monkeypatch.setattr(conversation_store, "MAX_CONVERSATIONS", 3)
    kept = [spoken(mine, f"talk {n}") for n in range(3)]
    for n, talk in enumerate(kept):
        os.utime(file_of(mine, talk), (n, n))
    conversation_store.add_turn(mine, kept[0], "used again, so no longer the oldest")
    new = conversation_store.start_conversation(mine, "one more")
    assert new.removed == ("talk 1",) and conversation_store.read_conversation(mine, new.id).removed == ("talk 1",)
    assert {t.title for t in conversation_store.list_conversations(mine)} == {"talk 0", "talk 2", "one more"}
    monkeypatch.setattr(conversation_store, "MAX_STORE_BYTES", conversation_store.MAX_CONVERSATION_BYTES)
    assert len(conversation_store.start_conversation(mine, "by size").removed) == 3


def test_a_visitor_too_many_is_told_and_takes_from_nobody(tmp_path, mine, monkeypatch):
    monkeypatch.setattr(conversation_store, "MAX_VISITORS", 2)
    spoken(mine, "a")
    spoken(conversation_store.open_store(tmp_path / "p", conversation.new_browser_key()), "b")
    third = conversation_store.open_store(tmp_path / "p", conversation.new_browser_key())
    with pytest.raises(InputError, match="this one is not kept"):
        conversation_store.start_conversation(third, "c")
    assert not third.path.exists() and spoken(mine, "more").turns


def test_a_disk_that_cannot_be_written_is_a_sentence(mine, monkeypatch):
    talk = spoken(mine, "a")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        conversation_store.add_turn(mine, talk, "b")


moves = st.lists(
    st.tuples(st.sampled_from(["say", "edit", "answer", "show"]), st.integers(0, 9), st.text(min_size=1, max_size=5)),
    max_size=8,
)


@settings(max_examples=15)
@given(moves)
def test_whatever_is_done_everything_said_can_be_shown_again(tmp_path_factory, todo):
    mine = conversation_store.open_store(tmp_path_factory.mktemp("any"), KEY)
    talk = conversation_store.start_conversation(mine, "begin")
    said, answers = {1: "begin"}, {}
    for move, n, text in todo:
        turn = talk.turns[n % len(talk.turns)]
        if move == "show":
            chosen = (*turn.wordings, *turn.regenerations)[n % len((*turn.wordings, *turn.regenerations))]
            talk = conversation_store.show_branch(mine, talk, chosen)
            assert chosen in [x for t in talk.turns for x in (t.id, t.answered)]
        elif move == "answer":
            talk = conversation_store.add_answers(mine, talk, turn.id, replies(text, text), {})
            answers[talk.turns[-1].answered] = text
        elif text.strip():
            try:
                text.encode()
            except UnicodeEncodeError:
                continue
            talk = (
                conversation_store.add_turn(mine, talk, text)
                if move == "say"
                else conversation_store.edit_turn(mine, talk, turn.id, text)
            )
            said[talk.turns[-1].id] = text
        assert conversation_store.read_conversation(mine, talk.id) == talk and talk.damaged == 0
    shown: set[int] = set()
    todo_ids = [x for t in talk.turns for x in (*t.wordings, *t.regenerations)]
    while todo_ids:
        if (x := todo_ids.pop()) not in shown:
            shown.add(x)
            talk = conversation_store.show_branch(mine, talk, x)
            for t in talk.turns:
                assert t.said == said[t.id] and (not t.answered or t.answers[0].text == answers[t.answered])
                todo_ids += [*t.wordings, *t.regenerations]
    assert shown == set(said) | set(answers)
