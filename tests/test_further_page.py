"""Step 3, going on from an adapter: the choices, the presets, what the plan says, and what is refused."""

import json

import pytest
from tiny_models import write_adapter

from persona.errors import AdapterError, InputError
from persona.share.adapter_ref import AdapterRef
from persona.share.open_adapter import open_adapter, opened_dir
from persona.store.pairs import Pair, write_pairs
from persona.store.persona_folder import PersonaCard, create_persona_at, free_path
from persona.train import launcher
from persona.train.config import make_config
from persona.train.progress import EventReplay
from persona.train.run_folder import list_runs
from persona.ui.chosen import Chosen
from persona.ui.steps import compare
from persona.ui.steps import train as page
from persona.ui.steps.train import further, run_view, settings_form
from persona.ui.steps.train.plan_view import plan_html
from persona.ui.steps.write.lint_tab import findings_html
from persona.write.lint.summary import summarize_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]  # an adapter is written for each
PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(20)]


@pytest.fixture
def mags(tiny_gemma):
    """A persona with an adapter that was made elsewhere."""
    persona = create_persona_at(free_path("mags"), PersonaCard(name="Mags", language="en"), PAIRS)
    folder = opened_dir() / "light"
    write_adapter(tiny_gemma, folder, template="alpaca-en", target_modules=["q_proj", "v_proj"])
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"base": {"id": "tiny-gemma"}, "config": {}}))
    return persona


def form(tiny_gemma, preset="further"):
    return [preset, str(tiny_gemma), "auto", 512, False, "none", *settings_form.preset_values(preset)]


def test_an_adapter_to_go_on_from_brings_its_preset(mags):
    assert [v for _, v in further.list_parents(mags.slug)] == ["", "opened/light"]
    radio, *values = further.choose_preset(mags.slug, "opened/light", "quick")
    assert (radio.value, values) == ("further", settings_form.preset_values("further"))
    assert len(radio.choices) == 4
    radio, *values = further.choose_preset(mags.slug, "", "further")
    assert (radio.value, values) == ("quick", settings_form.preset_values("quick")) and len(radio.choices) == 3
    radio, *values = further.choose_preset(mags.slug, "", "balanced")
    assert len(radio.choices) == 3 and all("value" not in v for v in values), "a preset of its own stays"
    _, shown, dropdown = further.go_on_from(mags.slug, "opened/light")
    assert (shown, dropdown.value) == (2, "opened/light")
    again = further.refresh_parents(mags.slug, "run/another/x")
    assert again.value == "" and again.visible, "another persona's"


def test_plan_and_check_say_of_how_many_conversations_the_replies_are(mags, tiny_gemma):
    said = [(f"q{n}", f"a{n}") for n in range(12)]
    pairs = [Pair(*said[n], tuple(said[n - n % 6 : n])) for n in range(12)]
    write_pairs(mags.pairs_file, pairs)
    wanted = "12 replies in 2 conversations."
    assert wanted in plan_html(mags.slug, *form(tiny_gemma))
    assert wanted in findings_html(pairs, [], summarize_dataset(pairs, mags.card(), []), 0)
    assert "replies in" not in findings_html(PAIRS, [], summarize_dataset(PAIRS, mags.card(), []), 0)


def test_the_plan_says_what_is_new_and_what_is_taken_over(mags, tiny_gemma, monkeypatch):
    text = plan_html(mags.slug, *form(tiny_gemma), parent_id="opened/light")
    assert "none counts as new" in text and "rank, target modules and kind of LoRA are this adapter" in text
    first = launcher.create_run(mags, make_config(base=str(tiny_gemma)))
    write_adapter(tiny_gemma, first.adapter, template="alpaca-en")
    facts = json.loads((first.adapter / "run.json").read_text())
    (first.adapter / "run.json").write_text(json.dumps(facts | {"base": {"id": "tiny-gemma"}}))
    write_pairs(mags.pairs_file, [*PAIRS, Pair("new", "pair")])
    parent_id = f"run/{mags.slug}/{first.name}"
    text = plan_html(mags.slug, *form(tiny_gemma), parent_id=parent_id)
    assert "1 new pair, each learned 12 times an epoch, 18 old ones; 2 held out" in text
    assert "19 pairs to learn from, 2 held out to measure on; 8 steps" in text, "18 + 12 rows, 4 a step"
    roles = [further.pair_role_html(mags.slug, n, *form(tiny_gemma), parent_id=parent_id) for n in range(1, 23)]
    assert sum("is known" in r for r in roles) == 18 and sum("stays held out" in r for r in roles) == 2
    assert "this pair is new: an epoch learns from it 12 times" in roles[20] and roles[21] == ""
    assert further.pair_role_html(mags.slug, 1, *form(tiny_gemma), parent_id="opened/light") == "", "nobody knows"
    monkeypatch.setattr(launcher, "start_run", lambda run: None)
    name = page.on_start(mags.slug, *form(tiny_gemma), parent_id=parent_id)
    run = next(r for r in list_runs(mags) if r.name == name)
    assert run.manifest()["parent"]["adapter"] == parent_id
    assert (run.config().lora_r, run.config().new_pair_repeats) == (4, 12)


def test_another_base_or_template_is_refused_before_the_start(mags, tiny_gemma, tiny_llama):
    other = [*form(tiny_gemma)]
    other[1] = str(tiny_llama)
    assert "this run is on tiny-llama" in plan_html(mags.slug, *other, parent_id="opened/light")
    with pytest.raises(InputError, match="was trained on tiny-gemma, and this run is on tiny-llama"):
        page.on_start(mags.slug, *other, parent_id="opened/light")
    other = [*form(tiny_gemma)]
    other[2] = "alpaca-zh"
    with pytest.raises(InputError, match="with the template alpaca-en, and this run has another"):
        page.on_start(mags.slug, *other, parent_id="opened/light")
    assert list_runs(mags) == []


def replayed(after: list[float]):
    replay = EventReplay()
    for event in [
        {"event": "plan", "steps": 4, "held_out": 10, "held_out_learned": [10] * 10},
        {"event": "eval", "step": 0, "nll": 5.0, "rows": [50.0] * 10},
        {"event": "start", "step": 0, "nll": 3.0, "rows": [30.0] * 10},
        {"event": "step", "step": 4, "seconds": 60.0, "loss": 2.0},
        {"event": "eval", "step": 4, "nll": sum(after) / 100, "rows": after},
        {"event": "chosen", "step": 4}, {"event": "state", "state": "done"},
    ]:  # fmt: skip
        replay.add(event)
    return replay.progress()


def test_the_result_is_shown_before_and_after(tmp_path):
    p = replayed([30.0 + n % 3 - 1 for n in range(10)])
    said = further.change_html(p)
    assert "before 3.000 [3.000, 3.000], after 2.990" in said and "no worse than chance" in said and "good" in said
    assert "it has lost something" in further.change_html(replayed([34.0, *[33.0] * 9]))
    assert further.held_out_curve(p) == [(0, 3.0), (4, 2.99)]
    assert run_view.loss_plot(p).value["data"] and further.start_label(p) == "the adapter that it goes on from"
    assert p.base_nll == 5.0 and "It learned" in run_view.training_verdict_html(p)


def test_an_adapter_at_a_strength_or_a_blend_is_kept_and_chosen(mags, tiny_gemma):
    view = compare.save_blend("opened/light", None, 0.5, 0.7, 0, Chosen(mags.slug))
    kept = open_adapter(AdapterRef.parse_id(view.adapter))
    assert view.adapter.startswith("opened/mags-blend-") and view.chosen.by_hand
    assert kept.facts["blend"]["parts"] == [{"adapter": "opened/light", "weight": 0.7}]
    write_adapter(tiny_gemma, opened_dir() / "dark", template="alpaca-en", seed=2)
    view = compare.save_blend("opened/light", view.adapter, 0.25, 1.0, 3, Chosen(mags.slug))
    kept = open_adapter(AdapterRef.parse_id(view.adapter))
    assert [p["weight"] for p in kept.facts["blend"]["parts"]] == [0.25, 0.75] and kept.settings["r"] == 3
    with pytest.raises(AdapterError, match="trained on tiny-gemma, the first one on someone/tiny"):
        compare.save_blend("opened/dark", "opened/light", 0.5, 1.0, 0, Chosen(mags.slug))
