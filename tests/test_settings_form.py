"""The expert drawer: every setting of a run is on the page, and what is chosen there is what runs."""

import json

import gradio as gr
import pytest
from cases import check_each

from persona.errors import InputError
from persona.store import persona_folder
from persona.store.persona_folder import PersonaCard
from persona.train import settings_file
from persona.train.config import PRESETS, RunConfig, make_config
from persona.ui.steps.train import settings_form


def page(preset="quick", **changes) -> RunConfig:
    values = [
        changes.get(name, value)
        for name, value in zip(settings_form.EXPERT_FIELDS, settings_form.preset_values(preset), strict=True)
    ]
    return settings_form.form_to_config(preset, "", "auto", 512, False, "none", *values)


def test_every_setting_is_on_the_page():
    assert sorted([*settings_form.EXPERT_FIELDS, *settings_form.TEMPLATE_STEP_FIELDS]) == sorted(RunConfig.model_fields)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_drawer_untouched_is_the_preset(preset):
    assert page(preset) == make_config(preset)


OTHER = {"epochs": 2.5, "max_steps": 9, "learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup": 4.0,
         "batch_size": 3, "gradient_accumulation_steps": 2, "optim": "adafactor", "weight_decay": 0.1,
         "neftune_noise_alpha": 5.0, "lora_r": 4, "lora_alpha": 9, "lora_dropout": 0.1, "target_modules": "attention",
         "init_lora_weights": "gaussian", "use_rslora": True, "use_dora": True, "train_stop_token": True,
         "quantization": "nf4", "dtype": "float32", "gradient_checkpointing": True, "spread_layers": True, "packing": True,
         "engine": "liger", "save_steps": 7, "logging_steps": 10, "adam_beta1": 0.8, "adam_beta2": 0.95, "max_grad_norm": 0.3,
         "max_eval_rows": 9, "eval_steps": 5, "save_total_limit": 1, "eval_fraction": 0.2, "diary_probes": 1,
         "early_stopping_patience": 3, "seed": 5, "report_to": "tensorboard", "new_pair_repeats": 4, "beta": 0.2, "sft_weight": 0.5,
         "load_best_model_at_end": False, "group_by_length": False, "tf32": True, "bias": "all", "modules_to_save": "lm_head",
         "rehearsal_fraction": 0.2, "rehearsal_system": True}  # fmt: skip


def test_what_is_chosen_is_what_runs_and_nothing_else_changes():
    def check(name):
        assert page(**{name: OTHER[name]}) == make_config("quick", **{name: OTHER[name]})
        assert page(**{name: None}) == make_config("quick")

    check_each(settings_form.EXPERT_FIELDS, check)


def test_each_control_is_of_its_fields_kind_and_says_why():
    with gr.Blocks():
        made = settings_form.build("balanced")
    assert [c.elem_id for c in made] == [f"set-{name.replace('_', '-')}" for name in settings_form.EXPERT_FIELDS]
    assert all(c.label and " → " in c.info for c in made), "what it does, and when to change it"
    kinds = {name: type(c).__name__ for name, c in zip(settings_form.EXPERT_FIELDS, made, strict=True)}
    assert (kinds["use_dora"], kinds["dtype"], kinds["optim"], kinds["epochs"]) == (
        "Checkbox", "Dropdown", "Dropdown", "Number",
    )  # fmt: skip
    assert [c.value for c in made] == settings_form.preset_values("balanced")


def test_the_form_belongs_to_its_persona(home):
    """Whoever was shown before, and after a restart: the settings that were left there, else the defaults."""
    for name in ("mags", "otto"):
        persona_folder.create_persona(name, PersonaCard(name=name))
    default = ["quick", *settings_form.preset_values("quick")]
    mags = ["thorough", *settings_form.preset_values("thorough")]
    mags[1 + settings_form.EXPERT_FIELDS.index("max_steps")] = 10
    shown, *form = settings_form.restore_form("mags", "", *default)
    assert form == default
    for slug, form_left, expected in [
        ("otto", mags, default), ("mags", default, mags), ("", mags, default), ("otto", default, default), ("mags", default, mags),
    ]:  # fmt: skip
        shown, *form = settings_form.restore_form(slug, shown, *form_left)
        assert (shown, form) == (slug, expected), slug
    assert settings_form.restore_form("mags", shown, *mags) == ["mags", *mags], "the same persona again"
    file = persona_folder.find_persona("mags").path / "settings.json"
    assert json.loads(file.read_text()) == {"preset": "thorough", "config": {"max_steps": 10}}
    assert settings_file.read_settings(file) == {"max_steps": 10}, "which the command line takes too"
    settings_form.keep_form("mags", "quick", *["nonsense" for _ in settings_form.EXPERT_FIELDS])
    assert "thorough" in file.read_text(), "what is wrong is not kept"
    for wrong in ("{", '{"preset": "slow"}', '{"preset": "quick", "config": {"max_steps": "x"}}'):
        file.write_text(wrong)
        assert settings_form.restore_form("mags", "", *default) == ["mags", *default], wrong


def test_what_deviates_from_the_preset_is_said_beside_it():
    assert settings_form.describe_deviations(make_config("balanced"), "balanced") == ""
    changed = settings_form.describe_deviations(make_config("quick", max_steps=10, lora_r=8), "quick")
    assert changed == "Max steps: 10 (preset: -1); LoRA rank (r): 8 (preset: 32)"
    assert not any(word in about for _, about in PRESETS.values() for word in ("minute", "hour", "second")), (
        "no promise"
    )


def test_every_wrong_field_is_named():
    with pytest.raises(InputError, match=r"learning_rate=-1.*lora_r=0"):
        page(learning_rate=-1, lora_r=0)
