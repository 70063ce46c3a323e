"""The table of pairs: what it shows, and that what is done in it is what is saved."""

import re

import pytest
from cases import check_each

from persona.errors import InputError
from persona.store import edit_history, persona_folder
from persona.store.edits import PairChange
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.ui.steps import write
from persona.ui.steps.write import card_tab, lint_tab, pairs_table
from persona.ui.steps.write.pairs_table import ROWS_PER_PAGE, TableView
from persona.write.lint.finding import Finding

PAIRS = [
    Pair("你是谁？", "本宫甄嬛。"),
    Pair("Weather?", "Rain, and more rain to come."),
    Pair("and then", "b", (("first", "second"),), "book.txt:7"),
    Pair("", "", source="synthetic: m"),
]
FOUND = [
    Finding("short-reply", "hint", (3,), "short <b>", "Delete it", "short-reply:1"),
    Finding("mojibake", "warning", (2, 3), "odd", "", "mojibake:2"),
]


@pytest.fixture
def persona(tmp_path):
    return persona_folder.create_persona_at(tmp_path / "p", PersonaCard(name="甄嬛"), PAIRS)


def test_a_view_shows_what_it_says():
    cases = [
        (TableView(), [0, 1, 2, 3]),
        (TableView(query="RAIN"), [1]),
        (TableView(query="second"), [2]),
        (TableView(query="book.txt"), [2]),
        (TableView(order="Longest answers first"), [1, 0, 2, 3]),
        (TableView(order="Shortest answers first"), [3, 2, 0, 1]),
        (TableView(order="Most findings first"), [2, 1, 0, 3]),
        (TableView(order="Questions A–Z"), [3, 2, 1, 0]),
        (TableView(row_filter="With findings"), [1, 2]),
        (TableView(row_filter="Unfinished"), [3]),
        (TableView(row_filter="Conversations"), [2]),
        (TableView(row_filter="Synthetic"), [3]),
        (TableView(row_filter="short-reply"), [2]),
        (TableView(row_filter="mojibake:2"), [1, 2]),
        (TableView(query="zz", row_filter="Conversations"), []),
    ]

    def check(view, rows):
        assert pairs_table.select_rows(view, PAIRS, FOUND) == rows

    check_each(cases, check)


def test_a_page_of_many_holds_fifty_and_leads_on():
    many = [Pair(f"q{n}", "a") for n in range(120)]
    rows = pairs_table.select_rows(TableView(), many, [])
    html = pairs_table.table_html(many, rows, TableView(page=1), selected=60)
    assert re.findall(r'data-row="(\d+)"', html) == [str(n) for n in range(51, 101)]
    assert (
        "Pairs 51–<span data-count>100</span> of <span data-count>120</span>" in html
        and 'class="pair selected" role="listitem" data-row="60"' in html
    )
    assert len(rows) // ROWS_PER_PAGE == 2 and 'data-page="2"' in html


def test_text_of_pairs_is_shown_and_never_run():
    nasty = [Pair("</textarea><script>alert(1)</script>", '<img src=x onerror="x">', (("<b>", "&amp;"),), "<i>:1")]
    html = pairs_table.table_html(nasty, [0], TableView())
    assert "<script" not in html and "<img" not in html and "<b>" not in html and "<i>" not in html
    assert "&lt;/textarea&gt;" in html and "&amp;amp;" in html
    marks = lint_tab.marks_html(FOUND)
    assert set(marks) == {"2", "3"} and "short &lt;b&gt;" in marks["3"] and 'data-key="short-reply:1"' in marks["3"]


def test_the_first_line_break_of_a_cell_is_kept():
    # a browser drops one line break after <textarea>
    assert '">\n\nleading</textarea>' in pairs_table.table_html([Pair("\nleading", "x")], [0], TableView())


def edit(row, field, old, text):
    return {"do": "edit", "row": row, "field": field, "old": old, "text": text}


def whole(do, row):
    """What a window sends that shows PAIRS."""
    pair = PAIRS[row - 1]
    return {
        "do": do,
        "row": row,
        "saw": [*(text for turn in pair.history for text in turn), pair.instruction, pair.output],
    }


def test_every_cell_can_be_edited(persona):
    pairs_table.apply_edit(persona, edit(1, "output", "本宫甄嬛。", "本宫乏了。"))
    pairs_table.apply_edit(persona, edit(3, "history.0.1", "second", "2nd\nline"))
    pairs_table.apply_edit(persona, edit(3, "history.0.0", "first", "1st"))
    pairs_table.apply_edit(persona, edit(2, "instruction", "Weather?", "Rain?"))
    assert persona.pairs() == [
        Pair("你是谁？", "本宫乏了。"),
        Pair("Rain?", PAIRS[1].output),
        Pair("and then", "b", (("1st", "2nd\nline"),), "book.txt:7"),
        PAIRS[3],
    ]


def test_line_breaks_of_another_system_do_not_look_like_a_conflict(tmp_path):
    persona = persona_folder.create_persona_at(tmp_path / "p", PersonaCard(name="A"), [Pair("q", "a\r\nb")])
    pairs_table.apply_edit(persona, edit(1, "output", "a\nb", "c"))
    assert persona.pairs()[0].output == "c"


@pytest.mark.parametrize(
    ("event", "after", "looked_at"),
    [
        ({"do": "add", "row": 1}, [0, "new", 1, 2, 3], 2),
        ({"do": "add", "row": 0}, [0, 1, 2, 3, "new"], 5),
        (whole("duplicate", 2), [0, 1, 1, 2, 3], 3),
        (whole("delete", 4), [0, 1, 2], 3),
        (whole("delete", 1), [1, 2, 3], 1),
    ],
)
def test_rows_come_and_go(persona, event, after, looked_at):
    before = persona.pairs_file.read_bytes()
    assert pairs_table.apply_edit(persona, event) == looked_at
    assert persona.pairs() == [Pair("", "") if n == "new" else PAIRS[n] for n in after]
    edit_history.undo(persona)
    assert persona.pairs_file.read_bytes() == before


def test_split_and_join_are_each_one_edit(persona):
    pairs_table.apply_edit(persona, whole("split", 3))
    assert [p.instruction for p in persona.pairs()] == ["你是谁？", "Weather?", "first", "and then", ""]
    assert pairs_table.apply_edit(persona, whole("join", 2)) == 1
    assert persona.pairs()[0] == Pair("Weather?", PAIRS[1].output, (("你是谁？", "本宫甄嬛。"),))
    edit_history.undo(persona)
    edit_history.undo(persona)
    assert persona.pairs() == PAIRS


def test_what_cannot_be_done_changes_nothing(persona):
    cases = [
        edit(1, "output", "what it never was", "x"),
        edit(1, "source", "", "x"),
        edit(1, "history.0.0", "", "x"),
        edit(3, "history.0.2", "", "x"),
        edit(3, "history.x.0", "", "x"),
        edit(9, "output", "", "x"),
        edit(0, "output", "", "x"),
        whole("join", 1),
        whole("split", 1),
        {"do": "delete", "row": 1},
        {"do": "explode", "row": 1},
        {"do": "delete", "row": "x"},
        {"do": "edit", "row": 1},
        {},
    ]

    def check(event):
        before = persona.pairs_file.read_bytes()
        with pytest.raises(InputError):
            pairs_table.apply_edit(persona, event)
        assert persona.pairs_file.read_bytes() == before and edit_history.undo_redo_labels(persona) == ("", "")

    check_each(cases, check)


@pytest.mark.parametrize("do", ["duplicate", "split", "join", "delete", "edit"])
def test_another_pair_than_the_one_that_was_seen_is_left_alone(persona, do):
    """Another window has taken the first row away: row 3 is another pair now."""
    edit_history.commit(persona, "elsewhere", [PairChange(0, PAIRS[0], None)])
    typed = edit(3, "output", PAIRS[3].output, "new") if do == "edit" else {}
    with pytest.raises(InputError, match="Press Reload"):
        pairs_table.apply_edit(persona, whole(do, 3) | typed)
    assert persona.pairs() == PAIRS[1:]
    persona = persona_folder.create_persona_at(
        persona.path.parent / "breaks", PersonaCard(name="A"), [Pair("q", "a\r\nb")]
    )
    pairs_table.apply_edit(persona, {"do": "duplicate", "row": 1, "saw": ["q", "a\nb"]})


def test_two_windows_on_one_card():
    """A window writes what was changed in it, and nothing over what another one has saved since."""
    persona = persona_folder.create_persona_at(
        persona_folder.free_path("A"), PersonaCard(name="A", system="Be dry.", greeting="Aye?")
    )
    *_, seen = write.load_persona(persona.slug)
    fields = dict(zip(card_tab.CARD_FIELDS, seen, strict=True))
    _, _, mine = card_tab.save_card(persona.slug, seen, *(fields | {"system": "Be wet."}).values())
    assert persona.card().system == "Be wet." and "Be wet." in mine
    card_tab.save_card(persona.slug, seen, *(fields | {"greeting": "Ahoy."}).values())
    assert (persona.card().system, persona.card().greeting) == ("Be wet.", "Ahoy.")
    with pytest.raises(InputError, match="since you saw it here: System prompt"):
        card_tab.save_card(persona.slug, seen, *(fields | {"system": "Be warm.", "greeting": "Ahoy."}).values())
    assert persona.card().system == "Be wet."
