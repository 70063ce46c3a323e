"""Step 3, the expert drawer: when to touch a setting. What it does is said by RunConfig itself."""

from types import UnionType
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from persona.template.render import MAX_LENGTH
from persona.train.config import RunConfig, make_config
from persona.ui.i18n import t

WHEN_TO_CHANGE: dict[str, str] = {
    "epochs": "More when she is still too much like the base, fewer when she repeats her pairs word by word.",
    "max_steps": "Set it to try something out in a minute.",
    "learning_rate": "Halve it when the held-out loss jumps or rises, double it when nothing is learned.",
    "lr_scheduler_type": "Leave it, unless you compare with a run made elsewhere.",
    "warmup": "More when the loss jumps in the first steps.",
    "batch_size": "Lower it first when memory runs out; higher is calmer, and slower per step.",
    "gradient_accumulation_steps": "Raise it as you lower the batch size: then the training stays the same.",
    "optim": "Leave it on a CPU; 8 bits save memory on a GPU.",
    "weight_decay": "Leave it at 0.",
    "neftune_noise_alpha": "Try 5 when her answers are copies of her pairs.",
    "lora_r": "32 for many hundred pairs with much to know; 8 for a small set.",
    "lora_alpha": "Keep it at twice the rank.",
    "lora_dropout": "0.05 when she learns her pairs by heart.",
    "target_modules": "Leave it; attention alone is a smaller adapter that learns less.",
    "init_lora_weights": "Leave it; pissa learns faster in the first steps.",
    "use_rslora": "Only with a rank of 64 and more.",
    "use_dora": "Leave it off where you want to compare side by side quickly.",
    "train_stop_token": "When step 2 says that this base never learned to stop.",
    "quantization": "When the base does not fit into the memory of your GPU.",
    "dtype": "Leave it; float32 when the loss becomes “nan”.",
    "gradient_checkpointing": "When memory runs out and a smaller batch is not enough.",
    "packing": "Leave it on a CPU.",
    "engine": "Leave it on a CPU.",
    "eval_fraction": "0 only when every pair counts: then nobody can tell whether she learned.",
    "diary_probes": "0 makes a run a little faster; more lets you hear more of her.",
    "early_stopping_patience": "3 to 6 for long runs.",
    "save_steps": "Set it when a run takes hours and the power may fail.",
    "seed": "Another one to see how much of a result is chance.",
    "report_to": "When you keep the charts of all your runs in one place.",
}


def setting_help(name: str, description: str) -> str:
    """What a setting does, and when to change it."""
    return f"{description} → {WHEN_TO_CHANGE[name]}"


SETTING_GROUPS: dict[str, tuple[str, ...]] = {
    "Pace": ("epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup", "batch_size",
             "gradient_accumulation_steps", "optim", "weight_decay", "neftune_noise_alpha"),
    "Adapter": ("lora_r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights", "use_rslora", "use_dora",
                "train_stop_token"),
    "Memory and speed": ("quantization", "dtype", "gradient_checkpointing", "packing", "engine"),
    "Measuring": ("eval_fraction", "diary_probes", "early_stopping_patience", "save_steps", "seed", "report_to"),
}  # fmt: skip
EXPERT_FIELDS = tuple(name for names in SETTING_GROUPS.values() for name in names)
TEMPLATE_STEP_FIELDS = ("base", "template", "max_length", "learn_history")  # chosen there
SUGGESTED_VALUES = {"target_modules": ["all-linear", "attention", "mlp", "attention+mlp"]}  # any other may be typed
SETTING_LABELS = {
    "lora_r": "LoRA rank (r)",
    "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout",
    "optim": "Optimizer",
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "init_lora_weights": "LoRA's first draw",
    "dtype": "Number format",
    "lr_scheduler_type": "Learning-rate schedule",
    "eval_fraction": "Held out",
    "report_to": "Tracker",
    "neftune_noise_alpha": "NEFTune noise",
    "diary_probes": "Diary: probes",
    "early_stopping_patience": "Early stopping after",
    "save_steps": "Save every so many steps",
    "engine": "Fast kernels",
    "train_stop_token": "Train the stop token's row",
}


def make_control(name: str, value: Any) -> gr.components.Component:
    """The control of one field, by its type. Its help is the field's description, and when to change it."""
    field = RunConfig.model_fields[name]
    kind = field.annotation
    shared: dict[str, Any] = {
        "label": t(SETTING_LABELS.get(name, name.replace("_", " ").capitalize())),
        "info": t(setting_help(name, str(field.description))),
        "elem_id": f"set-{name.replace('_', '-')}", "min_width": 220,
    }  # fmt: skip
    if kind is bool:
        return gr.Checkbox(value, **shared)
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), value=value, **shared)
    if kind is str:
        return gr.Dropdown(SUGGESTED_VALUES[name], value=value, allow_custom_value=True, **shared)
    assert kind in (int, float) and not isinstance(kind, UnionType), name
    return gr.Number(value, precision=0 if kind is int else None, **shared)


def build(preset: str) -> list[gr.components.Component]:
    """The drawer, filled with what the preset says; in the order of EXPERT."""
    config = make_config(preset)
    made = []
    for group, names in SETTING_GROUPS.items():
        gr.Markdown(f"**{t(group)}**")
        with gr.Row():
            made += [make_control(name, getattr(config, name)) for name in names]
    return made


def preset_values(preset: str) -> list[Any]:
    """The values of the drawer for a preset."""
    config = make_config(preset)
    return [getattr(config, name) for name in EXPERT_FIELDS]


def form_to_config(
    preset: str, base: str, template: str, max_length: float, learn_history: bool, *values: Any
) -> RunConfig:
    """The page → RunConfig. An emptied field is the preset's. Raises InputError naming every field that is wrong."""
    given = dict(zip(EXPERT_FIELDS, values, strict=True))
    changes = {name: value for name, value in given.items() if value is not None and value != ""}
    chosen = {"base": base or None, "template": template or "auto", "max_length": int(max_length or MAX_LENGTH)}
    changes |= {name: value for name, value in chosen.items() if value} | {"learn_history": bool(learn_history)}
    return make_config(preset, **changes)
