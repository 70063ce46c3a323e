"""Step 3, the expert drawer: every setting of a run as a control, made from RunConfig's own fields and descriptions."""

from types import UnionType
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from persona.config import RunConfig, make_config
from persona.render import MAX_LENGTH
from persona.ui.knobs import help_of
from persona.ui.words import t

GROUPS: dict[str, tuple[str, ...]] = {
    "Pace": ("epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup", "batch_size",
             "gradient_accumulation_steps", "optim", "weight_decay", "neftune_noise_alpha"),
    "Adapter": ("lora_r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights", "use_rslora", "use_dora",
                "train_stop_token"),
    "Memory and speed": ("quantization", "dtype", "gradient_checkpointing", "packing", "engine"),
    "Measuring": ("eval_fraction", "diary_probes", "early_stopping_patience", "save_steps", "seed", "report_to"),
}  # fmt: skip
EXPERT = tuple(name for names in GROUPS.values() for name in names)
STEP_TWO = ("base", "template", "max_length", "learn_history")  # chosen there
CHOICES = {"target_modules": ["all-linear", "attention", "mlp", "attention+mlp"]}  # any other may be typed
WORDS = {"lora_r": "LoRA rank (r)", "lora_alpha": "LoRA alpha", "lora_dropout": "LoRA dropout", "optim": "Optimizer",
         "use_rslora": "rsLoRA", "use_dora": "DoRA", "init_lora_weights": "LoRA's first draw", "dtype": "Number format",
         "lr_scheduler_type": "Learning-rate schedule", "eval_fraction": "Held out", "report_to": "Tracker",
         "neftune_noise_alpha": "NEFTune noise", "diary_probes": "Diary: probes",
         "early_stopping_patience": "Early stopping after", "save_steps": "Save every so many steps",
         "engine": "Fast kernels",
         "train_stop_token": "Train the stop token's row"}  # fmt: skip


def control(name: str, value: Any) -> gr.components.Component:
    """The control of one field, by its type. Its help is the field's description, and when to change it."""
    field = RunConfig.model_fields[name]
    kind = field.annotation
    shared: dict[str, Any] = {
        "label": t(WORDS.get(name, name.replace("_", " ").capitalize())),
        "info": t(help_of(name, str(field.description))),
        "elem_id": f"set-{name.replace('_', '-')}", "min_width": 220,
    }  # fmt: skip
    if kind is bool:
        return gr.Checkbox(value, **shared)
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), value=value, **shared)
    if kind is str:
        return gr.Dropdown(CHOICES[name], value=value, allow_custom_value=True, **shared)
    assert kind in (int, float) and not isinstance(kind, UnionType), name
    return gr.Number(value, precision=0 if kind is int else None, **shared)


def build(preset: str) -> list[gr.components.Component]:
    """The drawer, filled with what the preset says; in the order of EXPERT."""
    config = make_config(preset)
    made = []
    for group, names in GROUPS.items():
        gr.Markdown(f"**{t(group)}**")
        with gr.Row():
            made += [control(name, getattr(config, name)) for name in names]
    return made


def of_preset(preset: str) -> list[Any]:
    """The values of the drawer for a preset."""
    config = make_config(preset)
    return [getattr(config, name) for name in EXPERT]


def to_config(preset: str, base: str, template: str, max_length: float, learn_history: bool, *values: Any) -> RunConfig:
    """The page → RunConfig. An emptied field is the preset's. Raises InputError naming every field that is wrong."""
    given = dict(zip(EXPERT, values, strict=True))
    changes = {name: value for name, value in given.items() if value is not None and value != ""}
    chosen = {"base": base or None, "template": template or "auto", "max_length": int(max_length or MAX_LENGTH)}
    changes |= {name: value for name, value in chosen.items() if value} | {"learn_history": bool(learn_history)}
    return make_config(preset, **changes)
