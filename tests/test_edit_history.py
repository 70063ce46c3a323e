"""Edits of the pairs: every one can be taken back, whatever it was, after a reload too."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import InputError
from persona.store import edit_history, edits, persona_folder
from persona.store.edits import PairChange
from persona.store.pairs import Pair, dump_pairs
from persona.store.persona_folder import PersonaCard

texts = st.sampled_from(["a", "b", "你好", "x\ny", ""])
some_pairs = st.lists(st.builds(Pair, texts, texts), max_size=8)


@pytest.fixture
def persona(tmp_path):
    pairs = [Pair("你是谁？", "本宫甄嬛。"), Pair("hi", "hello"), Pair("c", "d", (("a", "b"),), "book.txt:7")]
    return persona_folder.create_persona_at(tmp_path / "p", PersonaCard(name="甄嬛"), pairs)


@given(some_pairs, some_pairs)
def test_a_difference_leads_there_and_back(before, after):
    changes = edits.diff_pairs(before, after)
    assert edits.apply_changes(before, changes) == after
    assert edits.apply_changes(after, edits.invert_changes(changes)) == before


def test_a_difference_of_deleted_rows_names_those_rows_only():
    before = [Pair(str(n), "x") for n in range(9)]
    assert edits.diff_pairs(before, before[:2] + before[3:7] + before[8:]) == [
        PairChange(2, before[2], None),
        PairChange(7, before[7], None),
    ]


@settings(max_examples=40)
@given(st.lists(some_pairs, min_size=1, max_size=6))
def test_any_row_of_edits_is_undone_and_redone(tmp_path_factory, states):
    persona = persona_folder.create_persona_at(
        tmp_path_factory.mktemp("any") / "p", PersonaCard(name="A"), [Pair("first", "pair")]
    )
    files = [persona.pairs_file.read_bytes()]
    for n, after in enumerate(states):
        changes = edits.diff_pairs(persona.pairs(), after)
        edit_history.commit(persona, f"edit {n}", changes)
        if changes:
            files.append(persona.pairs_file.read_bytes())
    for expected in reversed(files[:-1]):
        edit_history.undo(persona)
        assert persona.pairs_file.read_bytes() == expected
    with pytest.raises(InputError, match="nothing to undo"):
        edit_history.undo(persona)
    for expected in files[1:]:
        edit_history.redo(persona)
        assert persona.pairs_file.read_bytes() == expected
    with pytest.raises(InputError, match="nothing to redo"):
        edit_history.redo(persona)


def test_a_new_edit_ends_what_could_be_redone(persona):
    a, b = persona.pairs()[:2]
    edit_history.commit(persona, "delete pair 1", [PairChange(0, a, None)])
    edit_history.commit(persona, "delete pair 1", [PairChange(0, b, None)])
    edit_history.undo(persona)
    edit_history.undo(persona)
    assert edit_history.undo_redo_labels(persona) == ("", "delete pair 1")
    edit_history.commit(persona, "add a pair", [PairChange(0, None, Pair("new", "new"))])
    assert edit_history.undo_redo_labels(persona) == ("add a pair", "")


def test_typing_in_one_cell_is_one_undo(persona):
    before = persona.pairs_file.read_bytes()
    old = persona.pairs()[0]
    for text in ("本", "本宫", "本宫乏了。"):
        new = Pair(old.instruction, text)
        edit_history.commit(persona, "edit pair 1", [PairChange(0, old, new)], merge="1/output")
        old = new
    second = persona.pairs()[1]
    edit_history.commit(persona, "edit pair 2", [PairChange(1, second, Pair("hi", "hello!"))], merge="2/output")
    assert edit_history.undo(persona) == "edit pair 2"
    assert edit_history.undo(persona) == "edit pair 1"
    assert persona.pairs_file.read_bytes() == before


def test_what_another_window_saved_is_never_overwritten(persona):
    seen = persona.pairs()[0]
    edit_history.commit(persona, "the other window", [PairChange(0, seen, Pair("你是谁？", "我是甄嬛。"))])
    saved = persona.pairs_file.read_bytes()
    with pytest.raises(InputError, match="Pair 1 was changed elsewhere"):
        edit_history.commit(persona, "this window", [PairChange(0, seen, Pair("你是谁？", "嬛嬛。"))])
    assert persona.pairs_file.read_bytes() == saved
    assert edit_history.undo_redo_labels(persona) == ("the other window", "")


def test_a_file_changed_by_hand_is_not_undone_over(persona):
    edit_history.commit(persona, "edit", [PairChange(1, persona.pairs()[1], Pair("hi", "ho"))])
    persona.pairs_file.write_text(dump_pairs([Pair("by", "hand"), Pair("and", "again")]))
    with pytest.raises(InputError, match="changed elsewhere"):
        edit_history.undo(persona)
    assert [p.instruction for p in persona.pairs()] == ["by", "and"]


def test_a_pair_that_is_none_is_refused_with_nothing_written(persona):
    before = persona.pairs_file.read_bytes()
    with pytest.raises(InputError, match="Pair 2: 'output' has 100,001 characters"):
        edit_history.commit(persona, "edit", [PairChange(1, persona.pairs()[1], Pair("hi", "x" * 100_001))])
    assert persona.pairs_file.read_bytes() == before and edit_history.undo_redo_labels(persona) == ("", "")


def test_what_a_killed_save_has_left_goes_with_the_next(persona):
    stray = persona.path / ".pairs.jsonl.abc123.tmp"
    stray.write_text("half a fi")
    edit_history.commit(persona, "edit", [PairChange(0, persona.pairs()[0], Pair("n", "m"))])
    assert not stray.exists() and persona.pairs()[0] == Pair("n", "m")


def test_only_the_last_edits_are_kept(persona, monkeypatch):
    monkeypatch.setattr(edit_history, "MAX_UNDO", 3)
    for n in range(6):
        edit_history.commit(persona, f"edit {n}", [PairChange(0, persona.pairs()[0], Pair("n", str(n)))])
    assert len(list((persona.path / "undo").glob("*.jsonl"))) == 3
    assert [edit_history.undo(persona) for _ in range(3)] == ["edit 5", "edit 4", "edit 3"]
    with pytest.raises(InputError):
        edit_history.undo(persona)


def test_appending_twice_adds_once_but_keeps_repeats_of_one_file(persona):
    new = [Pair("q", "a", source="f:1"), Pair("q", "a", source="f:2"), Pair("hi", "hello", source="f:3")]
    first = edit_history.append(persona, iter(new), "import f")
    assert (first.added, first.duplicates) == (2, 1)
    again = edit_history.append(persona, iter(new), "import f")
    assert (again.added, again.duplicates) == (0, 3)
    assert len(persona.pairs()) == 5 and edit_history.undo_redo_labels(persona) == ("import f", "")
    assert edit_history.undo(persona) == "import f"
    assert len(persona.pairs()) == 3
    edit_history.redo(persona)
    assert persona.pairs()[3:] == new[:2]


def test_appending_that_fails_changes_nothing(persona):
    def broken():
        yield Pair("q", "a")
        raise InputError("the file ended")

    before = persona.pairs_file.read_bytes()
    with pytest.raises(InputError, match="the file ended"):
        edit_history.append(persona, broken(), "import")
    assert persona.pairs_file.read_bytes() == before and edit_history.undo_redo_labels(persona) == ("", "")
    assert [f.name for f in (persona.path / "undo").iterdir()] == [".lock"]


def test_appending_keeps_lines_that_are_no_pairs_aside(persona):
    with persona.pairs_file.open("a") as f:
        f.write("not json\n")
    edit_history.append(persona, [Pair("q", "a")], "import")
    assert len(persona.pairs()) == 4
    assert "not json" in (persona.path / "pairs.rejected.txt").read_text()


def test_memory_does_not_grow_with_what_is_appended(tmp_path):
    def peak(count: int) -> int:
        persona = persona_folder.create_persona_at(tmp_path / str(count), PersonaCard(name="A"))
        tracemalloc.start()
        edit_history.append(persona, (Pair(f"question {n}", "x" * 200) for n in range(count)), "import")
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(8_000) < peak(500) + 200_000  # 8,000 such pairs in memory would be 3 MB


def test_replace_counts_every_field_and_takes_text_as_it_is(persona):
    pairs = [Pair("a.c", "x", (("A.C", "abc"),)), Pair("abc", "z")]
    assert [c.new for c in edits.replace_in_pairs(pairs, "a.c", r"\1")] == [Pair(r"\1", "x", (("A.C", "abc"),))]
    assert [c.new for c in edits.replace_in_pairs(pairs, "A.C", "-", match_case=False)] == [
        Pair("-", "x", (("-", "abc"),))
    ]
    with pytest.raises(InputError, match="Find"):
        edits.replace_in_pairs(pairs, "", "x")


@pytest.mark.parametrize(
    ("text", "halves"),
    [
        ("本宫乏了。你退下吧。", ("本宫乏了。", "你退下吧。")),
        ("One. Two is long enough here.", ("One.", "Two is long enough here.")),
        ("“走！”他说。再来。", ("“走！”他说。", "再来。")),
        ("first line\nsecond line", ("first line", "second line")),
    ],
)
def test_split_cuts_between_sentences(text, halves):
    first, second = edits.split_pair(Pair("q", text, source="s"))
    assert (first.output, second.output) == halves
    assert second.history == (("q", halves[0]),) and second.instruction == ""


def test_split_of_a_conversation_gives_a_pair_a_reply_and_join_puts_it_together():
    whole = Pair("c", "d", (("a", "b"),))
    parts = edits.split_pair(whole)
    assert parts == [Pair("a", "b"), Pair("c", "d", (("a", "b"),))]
    assert edits.join_pairs(*parts) == whole
    assert edits.join_pairs(Pair("a", "b"), Pair("c", "d")) == whole
    with pytest.raises(InputError, match="no place"):
        edits.split_pair(Pair("q", "one sentence."))
