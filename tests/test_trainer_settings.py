"""A run's settings in the configurations of other trainers: none is dropped without a word."""

import ast

import pytest
from cases import check_each

from persona.share.exports import new_output, trainer_settings
from persona.template.chat_template import read_template
from persona.train.config import RunConfig, make_config

OTHER_VALUES = {"lr_scheduler_type": "linear", "optim": "adafactor", "target_modules": "attention", "dtype": "bfloat16",
                "init_lora_weights": "pissa", "quantization": "nf4", "engine": "liger", "report_to": "trackio",
                "lora_dropout": 0.1, "max_steps": 9, "bias": "all", "modules_to_save": "lm_head",
                "rehearsal_fraction": 0.2}  # fmt: skip


@pytest.mark.slow
def test_every_setting_is_in_a_configuration_or_named_as_lost(tmp_path):
    """For each program: a setting that is changed changes its file, or is listed in the README."""
    template, sets = read_template("chatml"), ["d", "d-held-out"]

    def configurations(c: RunConfig) -> dict[str, str]:
        script = new_output.render_template_file(
            "unsloth.py.jinja", unverified="x", base="a/b", c=c, sets=sets, targets=trainer_settings.peft_targets(c),
            arguments=trainer_settings.training_arguments(c))  # fmt: skip
        ast.parse(script)
        return {"LLaMA-Factory": str(trainer_settings.llama_factory_config(c, "a/b", sets, template)),
                "Axolotl": str(trainer_settings.axolotl_config(c, "a/b", sets, template)), "Unsloth": script,
                "TRL": str(trainer_settings.trl_config(c, "a/b", True)),
                "ms-swift": str(trainer_settings.ms_swift_config(c, "a/b", sets))}  # fmt: skip

    usual = make_config()

    def check(name):
        default = getattr(usual, name)
        value = OTHER_VALUES.get(name, not default if isinstance(default, bool) else default)
        if value == default:
            value = default / 2 if isinstance(default, float) and default else default + 1
        changed = make_config(**{name: value})
        for program, text in configurations(changed).items():
            lost = [x.partition("=")[0] for x in trainer_settings.list_lost_settings(program, changed)]
            assert (text != configurations(usual)[program]) != (name in lost), program

    check_each([n for n in RunConfig.model_fields if n not in trainer_settings.IN_THE_DATA], check)
    lost = {p: trainer_settings.list_lost_settings(p, usual) for p in trainer_settings.PROGRAMS}
    assert not lost["LLaMA-Factory"] and not lost["Axolotl"]
    pattern = make_config(target_modules=r"re:.*\.q_proj", init_lora_weights="gaussian")
    assert trainer_settings.list_lost_settings("LLaMA-Factory", pattern) == [
        "init_lora_weights=gaussian", r"target_modules=re:.*\.q_proj"]  # fmt: skip
    assert trainer_settings.peft_targets(pattern) == r".*\.q_proj"
    assert trainer_settings.peft_targets(make_config(target_modules="mlp")) == ["gate_proj", "up_proj", "down_proj"]
