"""Step 3, the expert settings: a control for each field of RunConfig, with the label and help that the field gives."""

import contextlib
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin

import gradio as gr

from persona.errors import PersonaError
from persona.store import persona_folder
from persona.template.render import MAX_LENGTH
from persona.train import settings_file
from persona.train.config import PRESETS, RunConfig, make_config
from persona.ui.i18n import t

EXPERT_FIELDS = tuple(name for name, setting in RunConfig.model_fields.items() if setting.json_schema_extra)
TEMPLATE_STEP_FIELDS = ("base", "template", "max_length", "learn_history", "thinking")  # chosen there


def _metadata(name: str) -> dict[str, str]:
    return cast(dict[str, str], RunConfig.model_fields[name].json_schema_extra)


def setting_group(name: str) -> str:
    """The heading of the form under which the setting stands."""
    return _metadata(name)["group"]


def setting_label(name: str) -> str:
    return str(RunConfig.model_fields[name].title)


def setting_help(name: str) -> str:
    """What a setting does, and when to change it."""
    return f"{RunConfig.model_fields[name].description} → {_metadata(name)['when']}"


SETTING_GROUPS = tuple(dict.fromkeys(setting_group(name) for name in EXPERT_FIELDS))


def make_control(name: str, value: Any) -> gr.components.Component:
    """The control of one field, by its type. Its help is the field's description, and when to change it."""
    definition = RunConfig.model_fields[name]
    kind = definition.annotation
    shared: dict[str, Any] = {
        "label": t(setting_label(name)),
        "info": t(setting_help(name)),
        "elem_id": f"set-{name.replace('_', '-')}", "min_width": 220,
    }  # fmt: skip
    if kind is bool:
        return gr.Checkbox(value, **shared)
    if get_origin(kind) is Literal:
        return gr.Dropdown(list(get_args(kind)), value=value, **shared)
    if kind is str:
        return gr.Dropdown(definition.examples, value=value, allow_custom_value=True, **shared)
    assert kind in (int, float) and not isinstance(kind, UnionType), name
    return gr.Number(value, precision=0 if kind is int else None, **shared)


def build(preset: str) -> list[gr.components.Component]:
    """The drawer, filled with what the preset says; in the order of EXPERT_FIELDS."""
    config = make_config(preset)
    made = []
    for group in SETTING_GROUPS:
        gr.Markdown(f"**{t(group)}**")
        with gr.Row():
            made += [make_control(n, getattr(config, n)) for n in EXPERT_FIELDS if setting_group(n) == group]
    return made


def preset_values(preset: str) -> list[Any]:
    """The values of the drawer for a preset."""
    config = make_config(preset)
    return [getattr(config, name) for name in EXPERT_FIELDS]


def keep_form(slug: str, preset: str, *values: Any) -> None:
    """Keep what the form says with the persona `slug`.

    Not where a setting is wrong, which the plan says; and not the preset of a run that goes on from an adapter.
    """
    if preset not in PRESETS:
        return
    with contextlib.suppress(PersonaError):
        config, own = make_config(preset, **_changes(values)), make_config(preset)
        changed = {name: getattr(config, name) for name in EXPERT_FIELDS if getattr(config, name) != getattr(own, name)}
        if slug:
            settings_file.write_chosen_settings(persona_folder.find_persona(slug), preset, changed)


def restore_form(slug: str, shown: str, preset: str, *values: Any) -> list[Any]:
    """The form of the persona `slug`, as it was left; that of the persona `shown` before is kept.

    Returns the slug, the preset and the values, in the order of EXPERT_FIELDS.
    """
    if slug == shown:
        return [slug, preset, *values]
    keep_form(shown, preset, *values)
    return [slug, *kept_form(slug)]


def kept_form(slug: str) -> list[Any]:
    """The preset and the values, in the order of EXPERT_FIELDS, that were kept with the persona."""
    preset, changed = settings_file.FIRST_PRESET, dict[str, Any]()
    if slug:
        with contextlib.suppress(PersonaError):
            preset, changed = settings_file.read_chosen_settings(persona_folder.find_persona(slug))
    config = make_config(preset, **changed)
    return [preset, *(getattr(config, name) for name in EXPERT_FIELDS)]


def describe_deviations(config: RunConfig, preset: str) -> str:
    """The expert settings that are not the preset's, as "label: value (preset's value)"; "" for none."""
    own = make_config(preset)
    return "; ".join(
        t("{setting}: {value} (preset: {own})", setting=t(setting_label(name)), value=getattr(config, name),
          own=getattr(own, name))
        for name in EXPERT_FIELDS if getattr(config, name) != getattr(own, name)
    )  # fmt: skip


def _changes(values: Sequence[Any]) -> dict[str, Any]:
    given = dict(zip(EXPERT_FIELDS, values, strict=True))
    return {name: value for name, value in given.items() if value is not None and value != ""}


def form_to_config(
    preset: str, base: str, template: str, max_length: float, learn_history: bool, thinking: str, *values: Any
) -> RunConfig:
    """The page → RunConfig. An emptied field is the preset's. Raises InputError naming every field that is wrong."""
    changes = _changes(values)
    chosen = {"base": base or None, "template": template or "auto", "max_length": int(max_length or MAX_LENGTH),
              "thinking": thinking}  # fmt: skip
    changes |= {name: value for name, value in chosen.items() if value} | {"learn_history": bool(learn_history)}
    return make_config(preset, **changes)
