"""`import` and `lint` from the command line."""

import json

import pytest

from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from tests.cli_fixtures import CARD, shell

pytest_plugins = "tests.cli_fixtures"


def test_import_makes_the_persona_and_a_second_time_adds_nothing(tmp_path, value, home):
    file = tmp_path / "rows.json"
    rows = [
        {"instruction": "Who?", "input": "", "output": "Me."},
        {"instruction": "no answer"},
        {"instruction": "Why?", "input": "", "output": "So."},
    ]
    file.write_text(json.dumps(rows, indent=1), encoding="utf-16")
    got = value("import", file, tmp_path / "mags")
    assert (got["read"], got["pairs"], got["known"], got["format"], got["encoding"]) == (3, 2, 0, "alpaca", "utf-16")
    assert [s["line"] for s in got["skipped"]] == [7] and "output" in got["skipped"][0]["why"]
    made = persona_folder.open_persona(tmp_path / "mags")
    assert made.card().name == "mags" and [p.instruction for p in made.pairs()] == ["Who?", "Why?"]
    assert made.pairs()[1].source == "rows.json:10"
    again = value("import", file, tmp_path / "mags")
    assert (again["read"], again["pairs"], again["known"]) == (3, 0, 2) and len(made.pairs()) == 2


def test_import_of_a_screenplay_wants_a_speaker_and_names_those_there_are(tmp_path, value, refused):
    play = tmp_path / "play.txt"
    play.write_text("甲：谁？\n乙：我。\n甲：何事？\n乙：借个火。\n", encoding="gb18030")
    message = refused("import", play, tmp_path / "yi")
    assert "乙 (2)" in message and "--speaker" in message
    assert not (tmp_path / "yi").exists(), "refused: nothing is written"
    got = value("import", play, tmp_path / "yi", "--speaker", "乙", "--history", 1)
    assert got["pairs"] == 2 and got["encoding"] == "gb18030"
    assert persona_folder.open_persona(tmp_path / "yi").pairs()[1].history == (("谁？", "我。"),)


def test_import_reads_what_is_piped_in_and_columns_that_are_named(tmp_path, home):
    table = "Frage,Antwort,Nr\nWer?,Ich.,1\n"
    words = (
        "import",
        "-",
        tmp_path / "p",
        "--format",
        "table",
        "--column",
        "instruction=Frage",
        "--column",
        "output=Antwort",
        "--json",
    )
    done = shell(*words, home=home, input=table)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"] == 1
    assert persona_folder.open_persona(tmp_path / "p").pairs()[0].instruction == "Wer?"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{tmp}/missing.json"], "cannot be read"),
        (["{tmp}/good.json", "--format", "pdf"], "no such format"),
        (["{tmp}/good.json", "--column", "instruction"], "--column instruction=Question"),
        (["{tmp}/good.json", "--actions", "sing"], "drop or keep"),
        (["{tmp}/empty.json"], "is empty"),
        (["nobody/no-data-set"], "nobody/no-data-set"),
    ],
)
def test_import_refuses_in_words_and_changes_nothing(tmp_path, refused, words, says, persona):
    (tmp_path / "good.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "empty.json").write_text("")
    before = persona.pairs_file.read_bytes()
    words = [w.format(tmp=tmp_path) for w in words]
    assert says in refused("import", words[0], persona.path, *words[1:])
    assert persona.pairs_file.read_bytes() == before


def test_lint_says_what_is_wrong_by_rule_and_row(tmp_path, value, call):
    pairs = [
        Pair("你是谁？", "本宫甄嬛。"),
        Pair("你是谁？", "我是一个人工智能语言模型。"),
        Pair("茶？", "好茶。"),
        Pair("茶？", "好茶。"),
    ]
    made = create_persona_at(tmp_path / "zh", PersonaCard(name="甄嬛", language="zh"), pairs)
    got = value("lint", made.path)
    assert got["pairs"] == 4 and got["counts"]["duplicate"] == 1 and got["counts"]["ai-leak"] == 1
    assert {"rule": "duplicate", "severity": "warning", "pairs": [4]}.items() <= next(
        f for f in got["findings"] if f["rule"] == "duplicate"
    ).items()
    assert got["counts"]["rival-answers"] == 2 and "identity" in got["kinds"] and got["summary"]
    status, out, _ = call("lint", made.path)
    assert status == 0 and "duplicate" in out


@pytest.mark.slow
def test_lint_measures_rows_for_the_chosen_base(tmp_path, value, embedded_base, monkeypatch, base_home):
    monkeypatch.setenv("PERSONA_HOME", str(base_home))
    made = create_persona_at(tmp_path / "long", CARD, [Pair("Who?", "word " * 60), Pair("Who are you?", "Me.")])
    got = value("lint", made.path, "--max-length", 40)
    assert got["counts"]["too-long"] == 1
