"""Thinking on the page and in exports: where the switch is shown, and what is said of the mode."""

import json
from pathlib import Path

import pytest
from conftest import family_tokenizer
from rendering import SHIPPED
from tiny_models import FACTS

from persona.errors import InputError
from persona.models import model_card
from persona.models.base import Base
from persona.share.exports import material, trainer_configs, trainer_settings
from persona.store import edit_history, edits, persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.store.thinking import join_thinking
from persona.template.render import IGNORE_INDEX, Renderer
from persona.train.config import make_config
from persona.train.run_folder import RunRow
from persona.ui.page import RenderSettings, open_page_renderer
from persona.ui.steps import template
from persona.ui.steps.template.own_template import adopt_template, chosen_template_text
from persona.ui.steps.train import further, settings_form

CARD = PersonaCard(name="Mags", system="Be dry.", language="en")
PAIRS = [Pair("Who are you?", join_thinking("They ask.", "Mags.")), Pair("And now?", "It blows.")]


@pytest.fixture
def mags():
    persona = persona_folder.create_persona("Mags", CARD)
    edit_history.commit(persona, "Two pairs", edits.diff_pairs([], PAIRS))
    return persona


def show(slug, accepted, chosen):
    """(the radio, the settings that are accepted now)"""
    *_, radio, kept = template.show_settings(slug, 1, accepted, *chosen)
    return radio, kept


def test_the_switch_is_there_where_the_base_can_think(mags, tiny_thinker, tiny_llama):
    first = RenderSettings(str(tiny_llama), "chatml", 512, False)
    radio, kept = show(mags.slug, first, first)
    assert (radio.visible, radio.value) == (False, "none")
    thinker = RenderSettings(str(tiny_thinker), "auto", 512, False, "keep")
    radio, kept = show(mags.slug, first, thinker)
    assert (radio.visible, radio.value, kept) == (True, "keep", thinker)
    radio, kept = show(mags.slug, thinker, thinker._replace(base=str(tiny_llama), template="chatml"))
    assert (radio.visible, radio.value, kept) == (False, "none", first), "another base that cannot gives it up"
    radio, kept = show(mags.slug, thinker, thinker._replace(template="chatml"))
    assert (radio.visible, kept.thinking, kept.template) == (False, "none", "chatml")


def test_an_own_template_keeps_the_switch(mags, tiny_thinker):
    settings = RenderSettings(str(tiny_thinker), "auto", 512, False, "train")
    text = chosen_template_text(mags.slug, *settings)
    assert "set thinking = 'train'" in text
    dropdown, _ = adopt_template(mags.slug, text, *settings)
    own = settings._replace(template=dropdown.value, thinking="keep")
    assert open_page_renderer(mags.slug, own)[1].template.thinking == "keep"


def test_a_mode_that_is_none_of_the_three_is_refused(mags, tiny_thinker):
    settings = RenderSettings(str(tiny_thinker), "auto", 512, False, "keep' -%}{{ 1 }}")
    with pytest.raises(InputError, match="choose one of none, keep, train"):
        open_page_renderer(mags.slug, settings)


def test_what_the_page_chooses_is_what_runs():
    values = settings_form.preset_values("quick")
    for mode in ("none", "keep", "train"):
        config = settings_form.form_to_config("quick", "", "auto", 512, False, mode, *values)
        assert config.thinking == mode and ("thinking" in further.fixed_settings(config)) == (mode != "none")


def test_the_model_card_says_the_mode():
    for mode, words in (("none", None), ("keep", "as its base does by itself"), ("train", "It was trained to think")):
        facts = {**FACTS, "config": {**FACTS["config"], "thinking": mode}}
        run = {"base": Base("a/b", Path("b"), "r1", "MIT").to_dict(), "template": "qwen3", **facts}
        text = model_card.render_model_card(CARD, run)
        assert ("<think>" in text) == (words is not None) and (words is None or words in text)


def test_rows_for_other_trainers_follow_the_mode(tmp_path, tiny_thinker, monkeypatch):
    tokenizer = family_tokenizer(SHIPPED["qwen3"].text)
    monkeypatch.setattr(trainer_configs, "find_local_base", lambda _: Base("a/b", tiny_thinker))
    monkeypatch.setattr(trainer_configs, "load_tokenizer", lambda _: tokenizer)
    for mode in ("none", "keep", "train"):
        chosen = SHIPPED["qwen3"].with_thinking(mode)
        made = material.ExportMaterial(
            CARD, [RunRow(p, False) for p in PAIRS], make_config(thinking=mode), "a/b", chosen
        )
        trainer_configs.export_dataset(made, folder := tmp_path / mode)
        rows = json.loads((folder / f"{mode}.rendered.json").read_text("utf-8"))
        for row, pair in zip(rows, PAIRS, strict=True):
            example = Renderer(tokenizer, chosen, CARD.system).render_example(pair)
            ids = [tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("instruction", "output")]
            count = sum(map(len, ids))
            assert ids[0] + ids[1] == example.input_ids[:count], mode
            assert [IGNORE_INDEX] * len(ids[0]) + ids[1] == example.labels[:count], mode
        plain = json.loads((folder / f"{mode}.json").read_text("utf-8"))[0]["output"]
        assert plain == (PAIRS[0].output if mode != "none" else "Mags.")
        readme = (folder / "README.md").read_text("utf-8")
        assert (f"thinking={mode}" in readme) == (mode != "none")
        lost = {name for name in trainer_settings.PROGRAMS
                if f"thinking={mode}" in trainer_settings.list_lost_settings(name, made.config, True)}  # fmt: skip
        assert lost == {"none": set(), "keep": {"Axolotl", "TRL", "Unsloth"}, "train": {"Axolotl"}}[mode]
        unrendered = trainer_settings.list_lost_settings("LLaMA-Factory", made.config)
        assert (f"thinking={mode}" in unrendered) == (mode != "none")
