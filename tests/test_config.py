"""Settings that can be right: bounds, presets, and what is said of those that are not."""

import json

import pytest
from cases import check_each

from persona.errors import InputError
from persona.train.config import PRESETS, RunConfig, make_config


def test_a_bad_setting_is_named_with_its_value():
    cases = [
        ("max_length", 7),
        ("max_length", 32_769),
        ("max_length", "long"),
        ("max_length", 10.5),
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("max_steps", -2),
        ("learning_rate", 0),
        ("learning_rate", 1.1),
        ("learning_rate", float("nan")),
        ("lora_r", 0),
        ("lora_alpha", 0),
        ("lora_dropout", 1.0),
        ("quantization", "int4"),
        ("batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("dtype", "float8"),
        ("eval_fraction", 0.51),
        ("eval_fraction", -0.1),
        ("early_stopping_patience", -1),
        ("seed", -1),
        ("max_grad_norm", -1),
        ("adam_beta2", 1.0),
        ("max_eval_rows", -1),
        ("eval_steps", -1),
        ("save_total_limit", 0),
        ("seed", 2**32),
        ("base", None),
        ("learn_history", "perhaps"),
    ]

    def check(name, value):
        with pytest.raises(InputError) as e:
            make_config(**{name: value})
        assert f"{name}={value!r}: " in str(e.value)

    check_each(cases, check)


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(InputError, match=r"lora_r=0: .*; seed=-1: "):
        make_config(lora_r=0, seed=-1)


def test_an_unknown_setting_is_refused_and_the_known_ones_listed():
    with pytest.raises(InputError, match=r"learning_rat=1: .*mean learning_rate\?\)\. Settings are: base, template, "):
        make_config(learning_rat=1)


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="'fast': no such preset. Choose one of quick, balanced, thorough"):
        make_config("fast")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_valid_and_changes_go_on_top(preset):
    changes, about = PRESETS[preset]
    config = make_config(preset)
    assert about and all(getattr(config, name) == value for name, value in changes.items())
    changed = make_config(preset, epochs=1.5, seed=7)
    assert (changed.epochs, changed.seed) == (1.5, 7)
    assert changed.lora_r == config.lora_r


def test_settings_survive_the_run_folder_and_cannot_be_changed():
    config = make_config("thorough", target_modules="attention")
    assert RunConfig.model_validate(json.loads(json.dumps(config.model_dump()))) == config
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
