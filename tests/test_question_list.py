"""A list of questions put to all voices; the table that comes of it."""

import csv
from dataclasses import replace

import pytest
from cases import check_each
from tiny_models import CARD, FACTS, write_adapter

from persona.compare import question_list, session
from persona.compare.question_list import AnswerRow, ask_questions
from persona.errors import InputError
from persona.models import adapter
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.template.chat_template import ChatTemplate, read_template

pytestmark = pytest.mark.usefixtures("plain_cpu")

GREEDY = Sampling(temperature=0, max_new_tokens=16)
WARM = Sampling(temperature=0.9, seed=3, max_new_tokens=16)


@pytest.fixture(scope="module")
def mags(tmp_path_factory, tiny_gemma):
    folder = tmp_path_factory.mktemp("adapters") / "a"
    write_adapter(tiny_gemma, folder, template="gemma-base")
    return adapter.read_adapter(folder)


@pytest.fixture
def model(tiny_gemma, mags, monkeypatch):
    monkeypatch.setattr(session, "_open", {})
    return session.open_model(session.base_of(mags, str(tiny_gemma)))


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_many_at_once_are_what_each_is_alone(model, mags, sampling):
    """Nine questions of different lengths: two batches of four and one left over, and rows that end early."""
    voices = session.default_voices(model, mags)
    asked = ["Who are you?", "你是谁？", "a", "The lamp?", "wind " * 9, "x y", "茶", "Is it lit?", "So?"]
    together = list(ask_questions(model, voices, asked, sampling))
    assert [row.question for row in together] == asked
    assert together == [row for q in asked for row in ask_questions(model, voices, [q], sampling)]
    assert len({r.text for row in together for r in row.replies}) > 9, "they must differ, or this test sees nothing"


def test_both_are_given_the_prompt_of_her_training(model, mags):
    voices = session.default_voices(model, mags)
    renderer = session.renderer_of(mags, model.tokenizer)
    assert renderer.system == CARD.system and renderer.max_length == FACTS["config"]["max_length"]
    assert renderer.template == read_template("gemma-base")
    (row,) = ask_questions(model, voices, ["你是谁？"], GREEDY)
    assert [c.prompt for c in row.columns] == [renderer.render_prompt([], "你是谁？")] * 2
    assert CARD.system in row.columns[0].prompt.text and row.replies[0].text != row.replies[1].text


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_question_is_refused(model, mags, text):
    with pytest.raises(InputError, match="The prompt is empty"):
        list(ask_questions(model, session.default_voices(model, mags), ["a", text], GREEDY))


def test_one_that_cannot_answer_leaves_the_others(model, mags):
    """A template that fails is that column's error; when nobody can answer, that is said instead of a table."""
    voices = session.default_voices(model, mags)
    (want,) = ask_questions(model, voices, ["So?"], GREEDY)
    failing = ChatTemplate("broken", "{{ raise_exception('no such role') }}")
    broken = replace(voices[1], renderer=replace(voices[1].renderer, template=failing))
    (row,) = ask_questions(model, [broken, *voices], ["So?"], GREEDY)
    assert row.replies[1:] == want.replies and "no such role" in row.replies[0].error
    with pytest.raises(InputError, match="no such role"):
        list(ask_questions(model, [broken], ["So?"], GREEDY))


def test_questions_are_read_line_by_line(tmp_path):
    file = tmp_path / "q.txt"
    file.write_text("\ufeffWho?\r\n\r\n  你是谁？ \n", encoding="utf-8")
    assert question_list.read_questions(file) == ["Who?", "你是谁？"]
    file.write_text(" \n")
    with pytest.raises(InputError, match="no question in it"):
        question_list.read_questions(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        question_list.read_questions(file)
    with pytest.raises(InputError, match="cannot be read"):
        question_list.read_questions(tmp_path / "nowhere")


# ---- the table

ROWS = [AnswerRow("=1+1", (), (Generation("@SUM(A1)"), Generation("a | b\n<script>x</script>"))),
        AnswerRow("你？", (), (Generation(error="too long"), Generation(' -2"')))]  # fmt: skip


def test_a_spreadsheet_sees_no_formula(tmp_path):
    question_list.save_table(tmp_path / "t.csv", ["base", "+persona"], ROWS)
    with (tmp_path / "t.csv").open(encoding="utf-8-sig", newline="") as f:
        assert list(csv.reader(f)) == [
            ["question", "base", "'+persona"],
            ["'=1+1", "'@SUM(A1)", "a | b\n<script>x</script>"],
            ["你？", "(too long)", "' -2\""],
        ]


def test_what_a_spreadsheet_would_calculate_is_text():
    def check(cell):
        assert question_list.to_csv([[cell]]).lstrip('\ufeff"').startswith("'")
        assert "'" not in question_list.to_csv([["x" + cell]])

    check_each(["=x", "+x", "-x", "@x", "\tx", "\rx", "\n=x", "  =x", "＝x"], check)


def test_markdown_keeps_one_row_a_line(tmp_path):
    question_list.save_table(tmp_path / "t.md", ["base", "a|b"], ROWS)
    assert (tmp_path / "t.md").read_text(encoding="utf-8").splitlines() == [
        "| question | base | a\\|b |",
        "| --- | --- | --- |",
        "| =1+1 | @SUM(A1) | a \\| b<br>&lt;script&gt;x&lt;/script&gt; |",
        '| 你？ | (too long) |  -2" |',
    ]


def test_html_shows_what_was_said(tmp_path):
    question_list.save_table(tmp_path / "t.html", ["<b>", "p"], ROWS)
    text = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "<th>&lt;b&gt;</th>" in text and "&lt;script&gt;x&lt;/script&gt;</td>" in text
    assert "<script" not in text and text.count("<tr>") == 3


def test_another_form_is_refused(tmp_path):
    with pytest.raises(InputError, match="saved as .csv, .md, .html"):
        question_list.save_table(tmp_path / "t.xlsx", ["a"], ROWS)
