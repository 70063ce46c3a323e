"""Who is chosen, without a browser: one persona with its own adapter, its address, and what may be given away of it."""

import os
import shutil
from types import SimpleNamespace

import gradio as gr
import pytest
from tiny_models import write_adapter

from persona.errors import PersonaError
from persona.store import persona_folder
from persona.store.files import read_json, to_json, write_atomic
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.train import launcher
from persona.train.config import make_config
from persona.ui import app, chosen, voice_picker
from persona.ui.chosen import Chosen
from persona.ui.navigation import TRAIN, WRITE
from persona.ui.steps import compare, share, template
from persona.ui.steps import train as train_step

PAIRS = [Pair(f"Which clock is number {n}?", f"Otto's clock {n}.") for n in range(6)]


@pytest.fixture
def run(home, tiny_llama):
    """The run of Otto, who has an adapter; Ada has none."""
    otto = persona_folder.create_persona("otto", PersonaCard(name="Otto"))
    otto.save_pairs(PAIRS)
    persona_folder.create_persona("ada", PersonaCard(name="Ada")).save_pairs(PAIRS[:3])
    run = launcher.create_run(otto, make_config("quick"))
    write_adapter(tiny_llama, run.adapter, card=PersonaCard(name="Otto"))
    return run


def test_a_switch_never_keeps_the_adapter_of_another(run):
    ottos = f"run/otto/{run.name}"
    assert Chosen.newest_of("otto") == Chosen("otto", ottos)
    opened = Chosen("otto", "opened/x", by_hand=True)
    for before in (Chosen.newest_of("otto"), opened):
        view = chosen.choose_persona("ada", before)
        assert (view.chosen, view.slug, view.adapter, view.adapter_list.value) == (Chosen("ada"), "ada", "", None)
    view = chosen.choose_persona("otto", Chosen("ada"))
    assert view.adapter == view.adapter_list.value == ottos
    assert ottos in [value for _, value in view.adapter_list.choices]
    assert opened.renewed() == Chosen("otto", ottos), "what was opened is gone"
    with pytest.raises(PersonaError):
        chosen.choose_persona("nobody", Chosen("ada"))


def test_an_address_leads_where_it_says(run, monkeypatch):
    ottos = f"run/otto/{run.name}"
    for who, step in ((Chosen(), "write"), (Chosen("ada"), "train"), (Chosen("otto", ottos), "share"),
                      (Chosen("otto", ottos, by_hand=True), "compare")):  # fmt: skip
        query = {name: value for name, value in chosen.page_address(who, step).items() if value}
        assert chosen.read_address(query) == who and query.get("step", "write") == step
    linked = Chosen(adapter="opened/zhen", by_hand=True, link="ann/zhen@0123abc")
    assert chosen.page_address(linked, "compare") == {"persona": "ann/zhen@0123abc", "adapter": "", "step": ""}
    assert chosen.is_share_link({"persona": linked.link}) and not chosen.is_share_link({"persona": "otto"})
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    assert chosen.read_address({"persona": "<b>"}) == Chosen() and "&lt;b&gt;" in said[0]


def test_personas_of_the_same_name_are_told_apart(run):
    second = persona_folder.create_persona("otto", PersonaCard(name="Otto"))
    labels = {value: label for label, value in chosen.persona_dropdown("").choices}
    assert labels["ada"] == "Ada"
    assert "6 pairs" in labels["otto"] and "0 pairs" in labels[second.slug] and labels["otto"].startswith("Otto · ")


def test_what_leaves_is_named_by_its_button_and_goes_with_another(run):
    offer = share.offer_adapter(f"run/otto/{run.name}", "")
    assert all(button.value.count("Otto, run of ") for button in (offer.make, offer.push, offer.export))
    assert offer.offered == f"run/otto/{run.name}" and offer.repo.placeholder == "you/otto"
    card = read_json(run.adapter / "persona.json", "a card")
    write_atomic(run.adapter / "persona.json", to_json({**card, "name": "甄嬛"}))
    offer = share.offer_adapter(f"run/otto/{run.name}", "")
    assert offer.repo.placeholder == "you/otto", "the Hub takes no Chinese in a name"
    gone = share.offer_adapter("", offer.offered)
    assert (gone.offered, gone.made.visible, gone.exported.visible, gone.pushed, gone.link) == (
        "",
        False,
        False,
        "",
        "",
    )
    assert not any(button.interactive for button in (gone.make, gone.push, gone.export))


def test_a_refused_template_gives_way_and_start_refuses_it_too(run, tiny_llama, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    accepted = template.RenderSettings(str(tiny_llama), "chatml", 512, False)
    *_, settings_template, _, _, thinking, kept = template.show_settings(
        "otto", 1, accepted, str(tiny_llama), "gemma", 512, False, "none"
    )
    assert not thinking.visible, "this base cannot"
    assert kept == accepted and settings_template.value == "chatml" and "the template chatml" in said[0]
    with pytest.raises(PersonaError):
        train_step.require_trainable("otto", make_config("quick", base=str(tiny_llama), template="gemma"))
    with pytest.raises(PersonaError):
        train_step.require_trainable("otto", make_config("quick", base="ann/there-is-no-such-base"))
    train_step.require_trainable("otto", make_config("quick", base=str(tiny_llama), template="chatml"))


def test_a_bare_address_opens_who_was_worked_on_last_even_while_another_trains(run, monkeypatch):
    monkeypatch.setattr(launcher, "restart_waiting_runs", lambda: None)
    active = run
    monkeypatch.setattr(launcher, "find_active_run", lambda personas: next(
        (active for p in personas if active and p.slug == active.persona_slug), None))  # fmt: skip

    def opened(saved: str | None) -> tuple[str, int]:
        tab = app.restore_tab(saved, SimpleNamespace(query_params={}))
        return tab.slug, tab.shown_step

    assert opened("ada") == ("ada", WRITE) and opened("") == ("", WRITE), "as this browser was left"
    assert opened("otto") == ("otto", TRAIN)
    for edited, slug, step in ((2e9, "ada", WRITE), (3e9, "otto", TRAIN)):
        os.utime(persona_folder.find_persona(slug).pairs_file, (edited, edited))
        assert opened(None) == opened("gone") == (slug, step), "edited last"
    active = None
    assert opened(None) == ("otto", WRITE)


def test_another_personas_adapter_is_said_to_be_opened_beside_the_chosen_one(run, home, tiny_llama):
    write_adapter(tiny_llama, home / "adapters/zhen", card=PersonaCard(name="甄嬛"))
    about = compare.describe_adapter("otto", "opened/zhen")[1]
    assert "甄嬛 is opened beside Otto" in about and "becomes a pair of Otto" in about
    persona_folder.update_card(persona_folder.find_persona("otto"), lambda _: {"name": "Otto the Elder"})
    for slug, adapter_id in (("otto", f"run/otto/{run.name}"), ("", "opened/zhen")):
        assert "beside" not in compare.describe_adapter(slug, adapter_id)[1], adapter_id


def test_a_run_that_another_window_has_deleted_is_said_to_be_gone(run):
    shutil.rmtree(run.path)
    with pytest.raises(PersonaError, match=f"^{run.name}: this run is not there"):
        voice_picker.find_adapter(f"run/otto/{run.name}")
