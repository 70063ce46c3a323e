"""A run's settings under the names of other trainers, and which of them each cannot take.

Every field of RunConfig is either in a program's configuration, in the data beside it (IN_THE_DATA), or in NOT_CARRIED,
which the export's README lists. The names are from the programs' sources.
"""

from collections.abc import Sequence
from typing import Any

from persona.template.chat_template import ChatTemplate
from persona.train.config import PATTERN_PREFIX, RunConfig
from persona.train.target_modules import split_names

PROGRAMS = ("LLaMA-Factory", "Axolotl", "Unsloth", "TRL", "ms-swift")
# our template → the name of the same format in LLaMA-Factory, where it has one that ends a reply with the same token
LLAMA_FACTORY_TEMPLATES = {
    "chatml": "chatml", "gemma": "gemma", "internlm": "intern2", "llama-3": "llama3",
    "mistral-v3": "mistral", "phi-3": "phi", "phi-4": "phi4", "qwen2.5": "qwen",
    "smollm2": "smollm2",
}  # fmt: skip
_ATTENTION, _MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
TARGET_LAYERS = {
    "all-linear": _ATTENTION + _MLP, "attention": _ATTENTION, "mlp": _MLP, "attention+mlp": _ATTENTION + _MLP,
}  # fmt: skip
# settings that the data hold (base, template, which pairs are held out), or that the README speaks of (learn_history,
# thinking)
IN_THE_DATA = ("base", "template", "eval_fraction", "max_eval_rows", "learn_history", "thinking")
_ONLY_HERE = ("train_stop_token", "new_pair_repeats", "spread_layers", "diary_probes", "beta", "sft_weight",
              "rehearsal_fraction", "rehearsal_system")  # fmt: skip
NOT_CARRIED = {
    "LLaMA-Factory": (*_ONLY_HERE, "bias", "early_stopping_patience"),
    "Axolotl": (*_ONLY_HERE, "bias", "engine", "report_to"),
    "Unsloth": (*_ONLY_HERE, "early_stopping_patience", "eval_steps", "use_dora", "init_lora_weights", "engine"),
    "TRL": (*_ONLY_HERE, "early_stopping_patience", "bias", "init_lora_weights", "engine"),
    "ms-swift": (*_ONLY_HERE, "early_stopping_patience"),
}
BITS = {"nf4": 4, "int8": 8}
CHAT_SETS = "prompt-completion"  # the folder with what TRL reads
SWIFT_TEMPLATE, SWIFT_PLUGIN = "persona-rendered", "ms_swift_template.py"


def list_lost_settings(program: str, c: RunConfig, is_rendered: bool = False) -> list[str]:
    """The settings of the run, as name=value, that this program's configuration cannot say; defaults are left out.

    is_rendered: as in llama_factory_config.
    """
    lost = [name for name in NOT_CARRIED[program] if getattr(c, name) != RunConfig.model_fields[name].default]
    if program == "LLaMA-Factory":
        lost += ["init_lora_weights"] * (c.init_lora_weights in ("gaussian", "orthogonal"))
        lost += ["target_modules"] * c.target_modules.startswith(PATTERN_PREFIX)
    if program in ("LLaMA-Factory", "ms-swift"):
        lost += ["learn_history"] * (is_rendered and c.learn_history)
    # rendered rows say it; TRL and Unsloth learn all that follows the prompt, as is right where thinking is trained
    if program == "Axolotl" or (program == "LLaMA-Factory" and not is_rendered):
        lost += ["thinking"] * (c.thinking != "none")
    elif program in ("TRL", "Unsloth"):
        lost += ["thinking"] * (c.thinking == "keep")
    if program == "ms-swift":
        lost += ["bias"] * (c.bias == "lora_only")
    return [f"{name}={getattr(c, name)}" for name in lost]


def peft_targets(c: RunConfig) -> list[str] | str:
    """The target_modules of PEFT: names of layers, or a regular expression."""
    if c.target_modules.startswith(PATTERN_PREFIX):
        return c.target_modules.removeprefix(PATTERN_PREFIX).strip()
    return TARGET_LAYERS.get(c.target_modules) or [m.strip() for m in c.target_modules.split(",")]


def training_arguments(c: RunConfig) -> dict[str, Any]:
    """What transformers' TrainingArguments take but the warm-up, by their names, which LLaMA-Factory and TRL share."""
    return {
        "per_device_train_batch_size": c.batch_size, "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "num_train_epochs": c.epochs, "max_steps": c.max_steps, "learning_rate": c.learning_rate,
        "lr_scheduler_type": c.lr_scheduler_type, "optim": c.optim, "adam_beta1": c.adam_beta1,
        "adam_beta2": c.adam_beta2, "max_grad_norm": c.max_grad_norm, "weight_decay": c.weight_decay,
        **({"neftune_noise_alpha": c.neftune_noise_alpha} if c.neftune_noise_alpha else {}), **_number_format(c),
        **({"save_steps": c.save_steps} if c.save_steps else {}), **_kept_step(c),
        "save_total_limit": c.save_total_limit, **({"tf32": True} if c.tf32 else {}), "seed": c.seed,
        "logging_steps": c.logging_steps, "report_to": c.report_to,
    }  # fmt: skip


def rendered_set(key: str) -> str:
    """LLaMA-Factory's name of a data set of rendered texts."""
    return f"{key}-rendered"


def llama_factory_config(
    c: RunConfig, base: str, sets: Sequence[str], template: ChatTemplate, is_rendered: bool = False
) -> dict[str, Any]:
    """The run's settings under LLaMA-Factory's names.

    is_rendered: the sets are also there as rendered texts, which it takes as they are; without them a template that it
    does not know is left to the tokenizer's.
    """
    known_template = "empty" if is_rendered else LLAMA_FACTORY_TEMPLATES.get(template.name)
    sets = [rendered_set(key) for key in sets] if is_rendered else sets
    layers = peft_targets(c)
    targets = "all" if c.target_modules == "all-linear" or isinstance(layers, str) else ",".join(layers)
    rounds = c.init_lora_weights.partition("niter_")[2]
    return {
        "model_name_or_path": base,
        "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": c.lora_r, "lora_alpha": c.lora_alpha, "lora_dropout": c.lora_dropout, "lora_target": targets,
        "use_rslora": c.use_rslora, "use_dora": c.use_dora,
        **({"additional_target": ",".join(saved)} if (saved := split_names(c.modules_to_save)) else {}),
        **({"pissa_init": True, "pissa_iter": int(rounds or -1), "pissa_convert": True} if c.is_pissa else {}),
        **({"quantization_bit": bits} if (bits := BITS.get(c.quantization)) else {}),
        **({"enable_liger_kernel": True} if c.engine == "liger" else {}),
        **({"use_unsloth": True} if c.engine == "unsloth" else {}),
        "dataset_dir": ".", "dataset": sets[0],
        **({"eval_dataset": sets[1], **_evaluation(c)} if len(sets) > 1 else {}),
        **({"template": known_template} if known_template else {}),
        "cutoff_len": c.max_length, "mask_history": not c.learn_history,
        **({"packing": True, "neat_packing": True} if c.packing else {}),
        **({"train_sampling_strategy": "group_by_length"} if c.group_by_length else {}),
        "disable_gradient_checkpointing": not c.gradient_checkpointing,
        "output_dir": f"output/{sets[0]}", **training_arguments(c), **_warmup(c),
    }  # fmt: skip


def axolotl_config(c: RunConfig, base: str, sets: Sequence[str], template: ChatTemplate) -> dict[str, Any]:
    """The run's settings under Axolotl's names, with the text of the chat template."""

    def data(key: str) -> dict[str, Any]:
        return {
            "path": f"{key}.messages.jsonl", "ds_type": "json", "type": "chat_template", "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"}, "message_field_training": "weight",
            "roles_to_train": ["assistant"], "train_on_eos": "turn",
        }  # fmt: skip

    return {
        "base_model": base,
        **({"load_in_4bit": True} if c.quantization == "nf4" else {}),
        **({"load_in_8bit": True} if c.quantization == "int8" else {}),
        "adapter": "qlora" if c.quantization == "nf4" else "lora",
        "lora_r": c.lora_r, "lora_alpha": c.lora_alpha, "lora_dropout": c.lora_dropout,
        **({"lora_target_linear": True} if c.target_modules == "all-linear"
           else {"lora_target_modules": peft_targets(c)}),
        "peft_use_rslora": c.use_rslora, "peft_use_dora": c.use_dora,
        **({} if c.init_lora_weights == "default" else {"peft_init_lora_weights": c.init_lora_weights}),
        **({"lora_modules_to_save": saved} if (saved := split_names(c.modules_to_save)) else {}),
        "chat_template": "jinja", "chat_template_jinja": template.text,
        "datasets": [data(sets[0])],
        **({"test_datasets": [data(sets[1]) | {"split": "train"}]} if len(sets) > 1 else {}),
        "sequence_len": c.max_length, "sample_packing": c.packing, "output_dir": f"output/{sets[0]}",
        "micro_batch_size": c.batch_size, "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "learning_rate": c.learning_rate, "num_epochs": c.epochs,
        **({"max_steps": c.max_steps} if c.max_steps > 0 else {}),
        "optimizer": c.optim, "adam_beta1": c.adam_beta1, "adam_beta2": c.adam_beta2, "max_grad_norm": c.max_grad_norm,
        "lr_scheduler": c.lr_scheduler_type, **_warmup(c), "weight_decay": c.weight_decay,
        **({"neftune_noise_alpha": c.neftune_noise_alpha} if c.neftune_noise_alpha else {}), **_number_format(c),
        **({"tf32": True} if c.tf32 else {}), "group_by_length": c.group_by_length,
        "gradient_checkpointing": c.gradient_checkpointing,
        **({"eval_steps": c.eval_steps} if c.eval_steps else {}),
        **({"save_steps": c.save_steps} if c.save_steps else {}), "save_total_limit": c.save_total_limit,
        **({"early_stopping_patience": c.early_stopping_patience} if c.early_stopping_patience else {}),
        **_kept_step(c), "seed": c.seed, "logging_steps": c.logging_steps,
    }  # fmt: skip


def trl_config(c: RunConfig, base: str, has_held_out: bool) -> dict[str, Any]:
    """The run's settings under the names of TRL's command line."""
    layers = "all-linear" if c.target_modules == "all-linear" else peft_targets(c)
    if isinstance(layers, list) and len(layers) == 1:  # TRL takes a list of one as a pattern
        layers = rf".*\.{layers[0]}"
    return {
        "model_name_or_path": base, "chat_template_path": "chat_template.jinja",
        "dataset_name": CHAT_SETS, "assistant_only_loss": True, "max_length": c.max_length, "packing": c.packing,
        **(_evaluation(c) | {"dataset_test_split": "test"} if has_held_out else {}),
        "use_peft": True, "lora_r": c.lora_r, "lora_alpha": c.lora_alpha, "lora_dropout": c.lora_dropout,
        "lora_target_modules": layers, "use_rslora": c.use_rslora, "use_dora": c.use_dora,
        **({"lora_modules_to_save": saved} if (saved := split_names(c.modules_to_save)) else {}),
        **({"load_in_4bit": True} if c.quantization == "nf4" else {}),
        **({"load_in_8bit": True} if c.quantization == "int8" else {}),
        **({"train_sampling_strategy": "group_by_length"} if c.group_by_length else {}),
        "activation_checkpointing": c.gradient_checkpointing, "output_dir": "output/trl", **training_arguments(c),
        "warmup_steps": c.warmup,
    }  # fmt: skip


def ms_swift_config(c: RunConfig, base: str, sets: Sequence[str]) -> dict[str, Any]:
    """The run's settings under ms-swift's names. The sets are the rendered texts; SWIFT_PLUGIN has the template."""
    layers, files = peft_targets(c), [f"{key}.rendered.json" for key in sets]
    if c.target_modules == "all-linear":
        layers = ["all-linear"]
    return {
        "model": base, "use_hf": True, "tuner_type": "lora", "template": SWIFT_TEMPLATE,
        "external_plugins": [SWIFT_PLUGIN], "dataset": files[:1],
        **(_evaluation(c) | {"val_dataset": files[1:]} if len(files) > 1 else {}),
        "lora_rank": c.lora_r, "lora_alpha": c.lora_alpha, "lora_dropout": c.lora_dropout,
        "lora_bias": "none" if c.bias == "lora_only" else c.bias,
        **({"target_modules": layers} if isinstance(layers, list) else {"target_regex": layers}),
        "use_rslora": c.use_rslora, "use_dora": c.use_dora,
        **({} if c.init_lora_weights == "default" else {"init_weights": c.init_lora_weights}),
        **({"modules_to_save": saved} if (saved := split_names(c.modules_to_save)) else {}),
        **({"quant_method": "bnb", "quant_bits": bits} if (bits := BITS.get(c.quantization)) else {}),
        **({"use_liger_kernel": True} if c.engine == "liger" else {}),
        **({"tuner_backend": "unsloth"} if c.engine == "unsloth" else {}),
        "max_length": c.max_length, "packing": c.packing, "gradient_checkpointing": c.gradient_checkpointing,
        **({"train_sampling_strategy": "group_by_length"} if c.group_by_length else {}),
        "output_dir": "output/ms-swift", **training_arguments(c), "warmup_steps": c.warmup,
    }  # fmt: skip


def _evaluation(c: RunConfig) -> dict[str, Any]:
    return {"eval_strategy": "steps", "eval_steps": c.eval_steps} if c.eval_steps else {"eval_strategy": "epoch"}


def _warmup(c: RunConfig) -> dict[str, Any]:
    return {"warmup_ratio": c.warmup} if c.warmup < 1 else {"warmup_steps": round(c.warmup)}


def _kept_step(c: RunConfig) -> dict[str, bool]:
    return {} if c.load_best_model_at_end else {"load_best_model_at_end": False}


def _number_format(c: RunConfig) -> dict[str, bool]:
    return {} if c.dtype == "auto" else {"bf16": c.dtype == "bfloat16", "fp16": c.dtype == "float16"}
