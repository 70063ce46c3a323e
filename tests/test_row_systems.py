"""System prompts of rows: kept with a pair, rendered and masked instead of the persona's, exported and edited."""

import json

import pytest
from rendering import renderer_of

from persona.store.edits import replace_in_pairs, split_pair
from persona.store.pairs import Pair, parse_pair
from persona.template.render import IGNORE_INDEX
from persona.ui.steps.write import pairs_table
from persona.write.importers import ImportOptions
from persona.write.importers.registry import detect_format, get_importer, read_source, write_pairs_as
from persona.write.importers.text_source import open_source

PAIRS = [
    Pair("Hi", "Ahoy."),
    Pair("Why?", "It rains.", (("Hi", "Ahoy."),), "x", "Be <dry>."),
    Pair("So?", "So.", (), "y", "Be loud."),
]


def read(file):
    source = open_source(file)
    found = read_source(source, detect_format(source), ImportOptions())
    return [(p.instruction, p.system) for p in found if isinstance(p, Pair)]


def test_a_pair_keeps_its_system_prompt():
    assert [parse_pair(json.loads(json.dumps(p.to_dict()))) for p in PAIRS] == PAIRS
    assert "system" not in PAIRS[0].to_dict(), "as before"
    assert (
        split_pair(PAIRS[1])[0].system
        == "Be <dry>."
        == split_pair(Pair("a", "One. Two.", (), "", "Be <dry>."))[1].system
    )
    (change,) = replace_in_pairs(PAIRS, "loud", "soft")
    assert change.new.system == "Be soft."


@pytest.mark.parametrize("name", ["alpaca", "messages", "sharegpt", "table"])
def test_it_goes_out_and_comes_back(tmp_path, name):
    importer = get_importer(name)
    file = write_pairs_as(PAIRS, name, tmp_path / f"out{importer.SUFFIX}")
    found = [p for p in importer.read(open_source(file), ImportOptions()) if isinstance(p, Pair)]
    assert [(p.instruction, p.system) for p in found][-2:] == [("Why?", "Be <dry>."), ("So?", "Be loud.")]
    assert found[0] == PAIRS[0]


def turns(said, system=None):
    talk = [{"role": "user", "content": said}, {"role": "assistant", "content": "x"}]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *talk]}


@pytest.mark.parametrize("rows, wanted", [
    ([turns("a", "S"), turns("b", "T"), turns("c")], ["S", "T", ""]), ([turns("a", "S"), turns("b", "S")], ["", ""]),
    ([{"instruction": q, "output": "x", "input": "", "system": s} for q, s in (("a", "S"), ("b", "T"))], ["S", "T"]),
    ([{"instruction": q, "output": "x", "input": "", "system": "S"} for q in "ab"], ["", ""]),
])  # fmt: skip
def test_a_system_prompt_that_differs_is_kept_and_a_common_one_is_the_personas(tmp_path, rows, wanted):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [system for _, system in read(tmp_path / "a.jsonl")] == wanted


@pytest.mark.parametrize("template", ["chatml", "gemma"])
def test_it_is_rendered_and_masked_instead_of_the_personas(template):
    renderer = renderer_of(template, "Be Mags.")
    example = renderer.render_example(PAIRS[1])
    assert "Be <dry>." in example.text and "Be Mags." not in example.text and not example.problems
    assert "dry" not in renderer.tokenizer.decode([x for x in example.labels if x != IGNORE_INDEX])
    prompt = renderer.render_prompt(PAIRS[1].history, PAIRS[1].instruction, PAIRS[1].system)
    assert example.input_ids[: len(prompt.ids)] == prompt.ids
    assert "Be Mags." in renderer.render_example(PAIRS[0]).text


def test_it_is_seen_and_edited_in_the_table():
    shown = pairs_table.table_html(PAIRS, [0, 1, 2], pairs_table.TableView())
    assert shown.count('data-field="system"') == 2 and "Be &lt;dry&gt;." in shown
    assert pairs_table._replace_text(PAIRS[1], "system", "Be <dry>.", "").system == ""
    assert pairs_table.select_rows(pairs_table.TableView(query="loud"), PAIRS, []) == [2]
