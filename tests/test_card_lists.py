"""Write, tab Who it is: the lists of a card, edited item by item; suggestions for probes."""

import json

import gradio as gr
import pytest

from persona.errors import InputError
from persona.judge.probes import find_broken_rules
from persona.store import edit_history
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, ProbeRule, create_persona_at, default_card, free_path
from persona.train.run_folder import Run
from persona.ui.steps.write import card_lists, probes_editor
from persona.ui.steps.write.card_lists import ChosenItem
from persona.ui.steps.write.probes_editor import PROBES
from persona.write.probe_suggestions import suggest_probes


@pytest.fixture
def ada(home):
    return create_persona_at(free_path("ada"), default_card("Ada"), [Pair("Tea?", "At Sable Point, always.")])


def click(of, slug, do, at):
    return card_lists.do_with_item(of, slug, gr.EventData(None, {"do": do, "at": str(at)}))


def test_probes_are_added_edited_moved_and_deleted(ada):
    new = ChosenItem()
    card_lists.save_item(PROBES, "ada", new, " Who are you? ", "Ada|Ada L.\n\n", "AI\n |")
    listing, chosen, *_ = card_lists.save_item(PROBES, "ada", new, "Where <b>?", "", "")
    assert chosen == new and "must mention: Ada / Ada L." in listing and "Where &lt;b&gt;?" in listing
    card = ada.card()
    assert card.probes == ("Who are you?", "Where <b>?")
    assert card.probe_rules == (ProbeRule(ask="Who are you?", must_mention=("Ada|Ada L.",), must_not_mention=("AI",)),)
    _, chosen, _, ask, must, must_not = click(PROBES, "ada", "edit", 0)
    assert (ask, must, must_not) == ("Who are you?", "Ada|Ada L.", "AI")
    card_lists.save_item(PROBES, "ada", chosen, ask, "Ada", "")
    assert ada.card().probe_rules[0].must_mention == ("Ada",)
    click(PROBES, "ada", "up", 1)
    assert ada.card().probes == ("Where <b>?", "Who are you?")
    click(PROBES, "ada", "delete", 0)
    assert ada.card().probes == ("Who are you?",)


def test_a_probe_that_another_window_changed_is_not_overwritten(ada):
    card_lists.save_item(PROBES, "ada", ChosenItem(), "Who?", "", "")
    chosen = click(PROBES, "ada", "edit", 0)[1]
    card_lists.save_item(PROBES, "ada", chosen, "Who else?", "", "")
    with pytest.raises(InputError, match="changed elsewhere"):
        card_lists.save_item(PROBES, "ada", chosen, "Who then?", "", "")
    for values, wrong in ((("who ELSE", "", ""), "there already"), ((" ", "", ""), "needs a question"),
                          (("x" * 2_001, "", ""), "2,001")):  # fmt: skip
        with pytest.raises(InputError, match=wrong):
            card_lists.save_item(PROBES, "ada", ChosenItem(), *values)
    assert ada.card().probes == ("Who else?",)
    with pytest.raises(InputError, match="no longer there"):
        click(PROBES, "ada", "edit", 7)


def test_unknown_keys_of_a_rule_survive_an_edit(ada):
    file = ada.path / "persona.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"probe_rules": [{"ask": "Who?", "weight": 3}]}))
    chosen = click(PROBES, "ada", "edit", 0)[1]
    card_lists.save_item(PROBES, "ada", chosen, "Who?", "Ada", "")
    assert json.loads(file.read_text())["probe_rules"][0]["weight"] == 3


@pytest.mark.parametrize("name, language, told, denied", [
    ("Mags Tolliver", "en", "I'm Tolliver.", "I am an AI, made by Google."),
    ("王小明", "zh", "叫我小明就好。", "我是AI，由谷歌训练。"),
])  # fmt: skip
def test_probes_are_suggested_by_kind_in_the_language(name, language, told, denied):
    card = PersonaCard(name=name, language=language)
    found = suggest_probes(card)
    assert {s.kind for s in found} == {"identity", "facts", "machine", "role"}
    assert all(find_broken_rules(s.rule, denied) for s in found), "an assistant's answer breaks every one"
    assert not any(find_broken_rules(s.rule, told) for s in found if s.kind == "identity")
    asked = tuple(s.rule.ask for s in found)
    assert suggest_probes(card.model_copy(update={"probes": asked})) == []


def test_a_held_out_pair_is_suggested_with_the_facts_of_its_answer():
    card = PersonaCard(name="Mags", system="You keep the light.", language="en")
    pairs = [Pair("Where do you live?", "Out here. At Sable Point, since 1962."), Pair("a", "b", (("x", "y"),))]
    (found,) = [s for s in suggest_probes(card, pairs) if s.kind == "held-out"]
    assert found.rule.must_mention == ("Sable|Point|1962",) and found.pair == pairs[0]
    zhen = PersonaCard(name="甄嬛", system="家父甄远道，官居大理寺少卿。", language="zh")
    (found,) = [s for s in suggest_probes(zhen, [Pair("令尊是谁？", "家父是大理寺少卿。")]) if s.kind == "held-out"]
    assert found.rule.must_mention == ("家父|大理寺少卿",)


def test_a_held_out_pair_that_becomes_a_probe_is_no_pair_any_more(ada):
    pairs = [*ada.pairs(), Pair("Coffee?", "Never.")]
    ada.save_pairs(pairs)
    run = Run(ada.runs_dir / "20261122-104653-02e8")
    run.path.mkdir(parents=True)
    (run.path / "run.json").write_text("{}")
    rows = [pairs[0].to_dict() | {"held_out": True}, pairs[1].to_dict()]
    (run.path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, shown = probes_editor.propose_probes("ada")
    at = next(n for n, s in enumerate(found) if s.pair)
    assert found[at].pair == pairs[0] and "Move here" in shown
    event = gr.EventData(None, {"do": "take", "at": str(at)})
    rest, _, listing, *_ = probes_editor.take_suggestion("ada", found, event)
    assert len(rest) == len(found) - 1 and "Tea?" in listing and ada.card().probes == ("Tea?",)
    assert ada.pairs() == [pairs[1]]
    edit_history.undo(ada)
    assert ada.pairs() == pairs
