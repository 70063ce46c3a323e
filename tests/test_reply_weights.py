"""A reply of weight 0 is context: on disk, imported, exported, rendered, checked, and ticked in the table."""

import json
from dataclasses import replace

import pytest
from cases import check_each
from rendering import decode, renderer_of

from persona.errors import InputError
from persona.store import edit_history, persona_folder
from persona.store.edits import PairChange, join_pairs, split_pair
from persona.store.pairs import Pair, find_unfinished, own_exchanges, parse_pair, scan_pairs
from persona.store.persona_folder import PersonaCard
from persona.template.render import IGNORE_INDEX
from persona.ui.i18n import as_language
from persona.ui.steps.write import import_tab, pairs_table
from persona.ui.steps.write.lint_tab import findings_html
from persona.ui.steps.write.pairs_status import pairs_status_html
from persona.write import importers, lint
from persona.write.importers import registry, text_source
from persona.write.lint.summary import summarize_dataset

TALK = Pair("e", "f", (("a", "b"), ("c", "d")), weights=(0, 1, 1))


def read(path, format=""):
    source = text_source.open_source(path)
    return list(registry.read_source(source, format or registry.detect_format(source), importers.ImportOptions()))


def test_weights_on_disk(tmp_path):
    file = tmp_path / "pairs.jsonl"
    row = {"instruction": "e", "output": "f", "history": [["a", "b"], ["c", "d"]]}
    file.write_text(f"{json.dumps(row | {'weights': [0, 1, 1]})}\n{json.dumps(row | {'weights': [1, 1, 1]})}\n")
    assert scan_pairs(file) == ([TALK, replace(TALK, weights=())], [])
    assert TALK.to_dict()["weights"] == [0, 1, 1] and "weights" not in replace(TALK, weights=()).to_dict()
    for wrong in ([0, 1], [0, 1, 2], [True, 1, 1], "011", 0, [0, 1, "1"]):
        with pytest.raises(InputError, match="'weights' is not 3 numbers"):
            parse_pair(row | {"weights": wrong})


def test_weights_of_other_programs(tmp_path):
    row = {
        "messages": [{"role": role, "content": x} for x, role in zip("abcdef", ("user", "assistant") * 3, strict=True)]
    }
    row["messages"][1]["weight"] = 0
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    pairs = [item for item in read(tmp_path / "x.jsonl") if isinstance(item, Pair)]
    assert [(p.instruction, p.weights) for p in pairs] == [("c", (0, 1)), ("e", (0, 1, 1))]


@pytest.mark.parametrize("format", ["alpaca", "messages", "sharegpt", "table"])
def test_an_export_gives_the_same_pairs_back(format, tmp_path):
    pairs = [
        TALK,
        replace(TALK, weights=()),
        replace(TALK, weights=(1, 1, 0)),
        Pair("x", "y"),
        replace(TALK, weights=(0, 0, 1)),
    ]
    file = registry.write_pairs_as(pairs, format, tmp_path / f"x{registry.get_importer(format).SUFFIX}")
    found = [replace(p, source="") for p in read(file, format) if isinstance(p, Pair)]
    assert found == pairs


def test_a_table_with_other_weights_leaves_them_out(tmp_path):
    (tmp_path / "x.csv").write_text("question,answer,weights\na,b,2.5\nc,d,heavy\ne,f,\n")
    found = read(tmp_path / "x.csv")
    assert [p.weights for p in found if isinstance(p, Pair)] == [()] * 3
    assert sum("'weights' left out" in getattr(i, "what", "") for i in found) == 2


def test_a_reply_of_weight_0_is_never_learned():
    every = renderer_of("gemma", learn_history=True)
    last = replace(every, learn_history=False)
    others = replace(every, learned_elsewhere=own_exchanges([Pair("c", "d"), replace(TALK, weights=(1, 1, 0))]))

    def check(renderer, weights, learned):
        pair = Pair("e", "Fox.", (("a", "Bear."), ("c", "Dog.")), weights=weights)
        example = renderer.render_example(pair)
        ids = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORE_INDEX]
        text = decode(renderer, ids)
        assert [word for word in ("Bear", "Dog", "Fox") if word in text] == learned
        assert bool(example.problems) == (not learned)

    check_each([
        (every, (), ["Bear", "Dog", "Fox"]), (every, (0, 1, 1), ["Dog", "Fox"]), (every, (1, 1, 0), ["Bear", "Dog"]),
        (last, (0, 1, 1), ["Fox"]), (last, (1, 1, 0), []), (every, (0, 0, 0), []), (others, (0, 1, 1), ["Dog", "Fox"]),
    ], check)  # fmt: skip
    assert "the last one has the weight 0" in last.render_example(replace(TALK, weights=(1, 1, 0))).problems[0]
    assert own_exchanges([TALK, Pair("x", "y", weights=(0,))]) == {("e", "f")}


def test_a_pair_that_teaches_nothing_is_an_error():
    pairs = [TALK, replace(TALK, weights=(0, 0, 0))]
    assert [row for row, _ in find_unfinished(pairs)] == [2]
    found = [f for f in lint.lint_pairs(pairs, PersonaCard(name="x")) if f.rule == "unfinished"]
    assert [(f.severity, f.pairs) for f in found] == [("error", (2,))] and "ticked" in found[0].message


def test_split_and_join_keep_weights():
    assert [p.weights for p in split_pair(TALK)] == [(0,), (0, 1), (0, 1, 1)]
    assert join_pairs(Pair("x", "y", weights=(0,)), TALK).weights == (0, 0, 1, 1)
    assert join_pairs(Pair("x", "y"), Pair("z", "w")).weights == ()


def test_a_tick_in_the_table_is_saved_and_undone(tmp_path):
    persona = persona_folder.create_persona_at(
        tmp_path / "p", PersonaCard(name="x"), [Pair("q", "r"), replace(TALK, weights=())]
    )
    event = {"do": "weight", "row": 2, "key": "1", "saw": list("abcdef")}
    assert pairs_table.apply_edit(persona, event) == 2
    assert persona.pairs()[1].weights == (1, 0, 1)
    html = pairs_table.table_html(persona.pairs(), [0, 1], pairs_table.TableView())
    assert html.count('aria-checked="true"') == 2 and html.count('aria-checked="false"') == 1
    edit_history.undo(persona)
    assert persona.pairs()[1].weights == ()
    edit_history.commit(persona, "x", [PairChange(0, Pair("q", "r"), Pair("q", "r", system="s"))])
    assert pairs_table.apply_edit(persona, {"do": "duplicate", "row": 1, "saw": ["s", "q", "r"]}) == 2, (
        "as the page sends it"
    )
    edit_history.undo(persona)
    with pytest.raises(InputError, match="changed elsewhere"):
        pairs_table.apply_edit(persona, event | {"saw": ["a"]})
    with pytest.raises(InputError, match="not an edit"):
        pairs_table.apply_edit(persona, event | {"key": "9"})


def test_replies_are_counted_by_their_conversations():
    first, second = Pair("a", "b"), Pair("c", "d", (("a", "b"),))
    summary = summarize_dataset([first, second], PersonaCard(name="x"), [])
    assert "2 replies in 1 conversation<" in pairs_status_html([first, second])
    assert "2 replies in 1 conversation. " in findings_html([first, second], [], summary, 0)
    assert import_tab.import_report_html(importers.ImportReport(2, 2, 0, 0, [], {}, 1)).count("in 1 conversation.") == 1
    with as_language("zh"):
        assert "<b>1 段对话中的 2 条回复</b>，" in pairs_status_html([first, second])
    assert "2 pairs" in pairs_status_html([first, Pair("x", "y")])
    assert registry.count_conversations([first, second, Pair("x", "y"), second]) == 3
