"""Settings by the names of PEFT, TRL, transformers and Unsloth: what they become, and what of them is refused."""

import pytest
from cases import check_each

from persona.errors import InputError
from persona.train.aliases import ALIASES, FIXED, SAME_AS, resolve_aliases
from persona.train.config import PRESETS, RunConfig, make_config
from persona.train.settings_file import read_settings

# a name with a value → the field and its value
TAKEN = [
    ("r", "8", "lora_r", 8),
    ("num_train_epochs", 2, "epochs", 2.0),
    ("per_device_train_batch_size", "4", "batch_size", 4),
    ("warmup_ratio", "0.03", "warmup", 0.03),
    ("warmup_steps", 10, "warmup", 10.0),
    ("max_seq_length", 1024, "max_length", 1024),
    ("fp16", True, "dtype", "float16"),
    ("bf16", "True", "dtype", "bfloat16"),
    ("bf16", False, "dtype", "auto"),
    ("dtype", None, "dtype", "auto"),
    ("torch_dtype", "torch.bfloat16", "dtype", "bfloat16"),
    ("bnb_4bit_compute_dtype", "float16", "dtype", "float16"),
    ("load_in_4bit", "true", "quantization", "nf4"),
    ("load_in_8bit", True, "quantization", "int8"),
    ("load_in_8bit", None, "quantization", "none"),
    ("optim", "adamw_bnb_8bit", "optim", "adamw_8bit"),
    ("optim", "paged_adamw", "optim", "paged_adamw_32bit"),
    ("target_modules", ["q_proj", "v_proj"], "target_modules", "q_proj,v_proj"),
    ("target_modules", "all-linear", "target_modules", "all-linear"),
    ("init_lora_weights", True, "init_lora_weights", "default"),
    ("report_to", ["wandb"], "report_to", "wandb"),
    ("report_to", [], "report_to", "none"),
    ("neftune_noise_alpha", None, "neftune_noise_alpha", 0.0),
    ("train_sampling_strategy", "SamplingStrategy.RANDOM", "group_by_length", False),
    ("use_gradient_checkpointing", "unsloth", "gradient_checkpointing", True),
    ("activation_checkpointing", "false", "gradient_checkpointing", False),
    ("use_liger_kernel", True, "engine", "liger"),
    ("random_state", 3407, "seed", 3407),
    ("model_name_or_path", "a/b", "base", "a/b"),
    ("max_eval_samples", 50, "max_eval_rows", 50),
]


def test_a_name_of_another_library_is_the_setting():
    def check(name, value, field, want):
        assert getattr(make_config(**{name: value}), field) == want
        assert getattr(RunConfig(**{name: value}), field) == want, "without a preset too"

    check_each(TAKEN, check)


def test_a_value_that_holds_here_anyway_is_taken_and_changes_nothing():
    taken = {name: next(iter(accepted)) for name, (accepted, _) in FIXED.items() if accepted}
    assert make_config(**taken) == make_config()
    assert make_config(bnb_4bit_use_double_quant=True, group_by_length=True, save_strategy="steps") == make_config()
    assert make_config(batch_size=4, per_device_eval_batch_size="4", seed=1, data_seed=1).batch_size == 4


REFUSED = [
    ({"fp16": True, "bf16": True}, "fp16=True and bf16=True contradict each other: both are dtype."),
    ({"r": 8, "lora_r": 16}, "r=8 and lora_r=16 contradict each other: both are lora_r."),
    ({"load_in_4bit": True, "quantization": "int8"}, "load_in_4bit=True and quantization=int8 contradict"),
    ({"warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_ratio=0.1 and warmup_steps=5 contradict"),
    ({"warmup_ratio": 5}, "warmup_ratio=5: it is a share of the steps"),
    ({"bf16": "perhaps"}, "bf16='perhaps': write true or false"),
    ({"bnb_4bit_quant_type": "fp4"}, "bnb_4bit_quant_type='fp4': 4 bits are always nf4 here"),
    ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential': rows are taken in random order"),
    ({"bias": "some"}, "bias='some': Input should be 'none', 'all' or 'lora_only'"),
    ({"lora_bias": True}, "lora_bias=True: B has no bias here"),
    ({"output_dir": "out"}, "output_dir='out': a run lies in its persona's folder"),
    ({"per_device_eval_batch_size": 16}, "per_device_eval_batch_size=16: it is always the same as batch_size here"),
    ({"truncation": True}, "truncation=True: rows are never cut"),
    ({"padding": "max_length"}, "padding='max_length': rows are padded to the longest one of their batch"),
    ({"use_fast": False}, "use_fast=False: the mask is made from"),
    ({"inference_mode": True}, "inference_mode=True: a run trains its LoRA"),
    ({"device_map": "balanced"}, "device_map='balanced': spread_layers=true spreads"),
    ({"seed": 1, "data_seed": 2}, "data_seed=2: it is always the same as seed"),
    ({"num_train_epochs": "many"}, "num_train_epochs='many': Input should be a valid number"),
    ({"r": 0, "optim": "galore"}, "r=0: Input should be greater than or equal to 1"),
    ({"optim": "galore_adamw"}, "optim='galore_adamw': Input should be"),
    ({"num_epochs": 3}, "num_epochs=3: no such setting (did you mean num_train_epochs?)"),
    ({"lora_rank": 3}, "lora_rank=3: no such setting (did you mean lora_r?)"),
    ({"flux": 3}, "flux=3: no such setting."),
]


def test_what_cannot_be_had_is_refused_under_the_name_that_was_written():
    def check(settings, why):
        with pytest.raises(InputError) as e:
            make_config(**settings)
        assert why in str(e.value), e.value

    check_each(REFUSED, check)


def test_two_names_that_agree_are_no_contradiction():
    config = make_config(load_in_4bit=True, bf16=True, bnb_4bit_compute_dtype="bfloat16", fp16=False)
    assert (config.dtype, config.quantization) == ("bfloat16", "nf4")


def test_the_table_is_sound():
    assert {a.field for a in ALIASES.values()} | set(SAME_AS.values()) <= set(RunConfig.model_fields)
    assert not ({*FIXED, *SAME_AS} & {*RunConfig.model_fields, *ALIASES})
    for preset in PRESETS:
        dumped = make_config(preset).model_dump()
        assert resolve_aliases(dumped) == dumped, "our own names and values stay as they are"


# ---- a file of settings


def test_a_file_of_settings(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("# a comment\nr: 8\nlearning_rate: 2e-4\ntarget_modules: [q_proj, v_proj]\nbf16: true\n")
    want = make_config(lora_r=8, learning_rate=2e-4, target_modules="q_proj,v_proj", dtype="bfloat16")
    assert make_config(**read_settings(file)) == want
    file = tmp_path / "settings.json"
    file.write_text('{"r": 8, "learning_rate": 2e-4, "target_modules": ["q_proj", "v_proj"], "bf16": true}')
    assert make_config(**read_settings(file)) == want


BAD_FILES = [
    ("a.yaml", "r: 8\nlearning_rat: 1\n", "a.yaml: learning_rat=1: no such setting (did you mean learning_rate?)"),
    ("a.yaml", "num_train_epochs: many\n", "a.yaml: num_train_epochs='many': Input should be a valid number"),
    ("a.yaml", "fp16: true\nbf16: true\n", "a.yaml: fp16=True and bf16=True contradict each other"),
    ("a.yaml", "peft:\n  r: 8\n", "a.yaml: peft={'r': 8}: no such setting"),
    ("a.yaml", "r: 8\n  lora_alpha: [\n", "a.yaml line 2, column "),
    ("a.yaml", "- r\n", "a.yaml: not a list of settings"),
    ("a.yaml", "", "a.yaml: not a list of settings"),
    ("a.yaml", "1: 2\n", "a.yaml: not a list of settings"),
    ("a.json", '{"r": 8,}', "a.json line 1, column "),
    ("a.json", '{"base": {"r": 8}}', "a.json: base={'r': 8}: "),
    ("a.yaml", None, "a.yaml: no such file"),
]


def test_what_is_wrong_with_a_file_of_settings(tmp_path):
    def check(name, text, why):
        file = tmp_path / name
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        with pytest.raises(InputError) as e:
            read_settings(file)
        assert f"{tmp_path}/{why}" in str(e.value), e.value

    check_each(BAD_FILES, check)
