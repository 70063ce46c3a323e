"""Step 3, going on from an adapter: which one, what the run takes over from it, and what became better or worse."""

from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any

import gradio as gr

from persona.errors import PersonaError
from persona.judge import preference_verdict, training_gain, verdict
from persona.share import open_adapter
from persona.share.adapter_ref import AdapterRef
from persona.train.config import ALL_PRESETS, FURTHER, PRESETS, RunConfig
from persona.train.parent import Parent, describe_pairs, repeat_new, split_since
from persona.train.progress import RunProgress
from persona.train.run_folder import Run, RunRow
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.navigation import TRAIN
from persona.ui.page import QUIET, Page, on_latest, open_current_persona, show_errors
from persona.ui.steps.train import settings_form


def list_parents(slug: str, chosen: str = "") -> list[tuple[str, str]]:
    """(label, id) of what a run can go on from: nothing, the adapters on this machine, snapshots of the newest runs."""
    bases = {voice for _, voice in voice_picker.list_bases()}
    voices = [choice for choice in voice_picker.list_other_voices(slug) if choice[1] not in bases]
    if chosen and chosen not in {voice for _, voice in voices}:
        voices.insert(0, (chosen, chosen))  # a snapshot of an older run
    return [(t("Nothing: a new adapter"), ""), *voices]


def open_parent(adapter_id: str) -> Parent | None:
    """The adapter that the page has chosen to go on from. Raises PersonaError for one that is not there or damaged."""
    return open_adapter.open_parent(AdapterRef.parse_id(adapter_id)) if adapter_id else None


def fixed_settings(config: RunConfig) -> set[str]:
    """The settings of step 2 that the visitor chose: an adapter with others is refused, not followed."""
    chosen = {"template": config.template != "auto", "thinking": config.thinking != "none"}
    return {"base"} | {name for name, is_chosen in chosen.items() if is_chosen}


def with_parent(handler: Callable) -> Callable:
    """Make a handler of the form one of the chosen adapter's id and the form: what it gets by keyword `parent_id`."""

    @wraps(handler)
    def call(parent_id: str | None, *form: Any) -> Any:
        return handler(*form, parent_id=parent_id or "")

    return call


def build() -> gr.Dropdown:
    return gr.Dropdown(
        [(t("Nothing: a new adapter"), "")], value="", label=t("Go on from"), elem_id="go-on-from",
        visible=False,
        info=t("An adapter to train further, on its base and template: the new pairs count more, and what it held out "
               "stays held out"),
    )  # fmt: skip


def connect(page: Page, parent: gr.Dropdown, preset: gr.Radio, expert_settings: list[gr.components.Component]) -> None:
    """Keep the choices up to date, the presets with them, and what step 2 says of its pair."""
    form = [page.slug, page.previewed_pair, preset, *page.render_settings, *expert_settings]
    on_latest(
        [page.previewed_pair.change, page.shown_step.change, parent.change, page.slug.change],
        show_errors(with_parent(pair_role_html)), [parent, *form], page.pair_role, **QUIET,
    )  # fmt: skip
    on_latest(
        [page.slug.change, page.shown_step.change], show_errors(refresh_parents), [page.slug, parent], parent, **QUIET
    )
    on_latest(
        parent.change, show_errors(choose_preset), [page.slug, parent, preset], [preset, *expert_settings], **QUIET
    )


def refresh_parents(slug: str, chosen: str | None) -> gr.Dropdown:
    is_own = chosen and (not chosen.startswith("run/") or chosen.startswith(f"run/{slug}/"))
    kept = chosen if chosen and is_own else ""
    choices = list_parents(slug, kept)
    return gr.Dropdown(choices, value=kept, visible=len(choices) > 1)


def choose_preset(slug: str, parent_id: str | None, preset: str) -> list[Any]:
    """The presets for a run with or without a parent, one of them chosen, and its settings."""
    names = ALL_PRESETS if parent_id else PRESETS
    choices = [(t(p.capitalize()), p) for p in names]
    if parent_id and preset != FURTHER:
        return [gr.Radio(choices, value=FURTHER), *settings_form.preset_values(FURTHER)]
    if preset in names:
        return [gr.Radio(choices), *[gr.skip() for _ in settings_form.EXPERT_FIELDS]]
    kept, *values = settings_form.kept_form(slug)
    return [gr.Radio(choices, value=kept), *values]


def go_on_from(slug: str, adapter_id: str) -> list[Any]:
    """Open step 3 with this adapter to go on from. Returns the steps, the shown step and the dropdown's value."""
    open_parent(adapter_id)  # a model of another server, or a damaged one: refused here
    parents = gr.Dropdown(list_parents(slug, adapter_id), value=adapter_id, visible=True)
    return [gr.Walkthrough(selected=TRAIN), TRAIN, parents]


def build_button(page: Page, parent: gr.Dropdown) -> gr.Button:
    """The button beside an adapter that goes on from it."""
    button = gr.Button(t("Train further"), size="sm", scale=0, min_width=150, elem_id="train-further")
    button.click(show_errors(go_on_from), [page.slug, page.adapter], [page.steps, page.shown_step, parent], **QUIET)
    return button


# ---- in words


def pair_role_html(slug: str, number: float | None, preset: str, *form: Any, parent_id: str = "") -> str:
    """What a run that goes on from the adapter does with a pair; "" for a run from a new adapter.

    number: of the pair, from 1. form: the RenderSettings and the expert settings. Nothing is said while these do not go
    together: the plan in step 3 says why.
    """
    if not slug or not parent_id:
        return ""
    try:
        parent = open_parent(parent_id)
        config = settings_form.form_to_config(preset, *form)
        rows = split_since(open_current_persona(slug).pairs(), parent, config)
    except PersonaError:
        return ""
    if parent is None or parent.rows is None or not number or not 1 <= number <= len(rows):
        return ""
    row, name = rows[int(number) - 1], escape(parent.name)
    if row.held_out:
        text = t("Going on from {adapter}, this pair stays held out: nothing is learned from it.", adapter=name)
    elif row.is_new:
        text = t("Going on from {adapter}, this pair is new: an epoch learns from it {n} times.", adapter=name,
                 n=config.new_pair_repeats)  # fmt: skip
    elif int(number) - 1 in repeat_new(rows, config.new_pair_repeats):
        text = t("Going on from {adapter}, this pair is known: an epoch learns from it once.", adapter=name)
    else:
        text = t("Going on from {adapter}, this pair is known: other known ones stand for it.", adapter=name)
    return f'<div class="quiet">{text}</div>'


def plan_text(parent: Parent, rows: list[RunRow], repeats: int) -> str:
    """What a run takes over from the adapter, and which pairs are new, as HTML."""
    kept = t("Base, template, rank, target modules and kind of LoRA are this adapter's; the optimizer starts fresh.")
    return f"<b>{escape(localized(describe_pairs(rows, parent, repeats)))}</b> {kept}"


def origin_html(run: Run, p: RunProgress) -> str:
    """What a run goes on from, and of a run on preferences, how many there are; "" for a new adapter."""
    try:
        manifest = run.manifest()
    except PersonaError:  # deleted meanwhile, or damaged: what opens the run says so
        return ""
    parent = manifest.get("parent")
    if not isinstance(parent, dict):
        return ""
    name = voice_picker.adapter_label(str(parent.get("adapter")))
    text = t("goes on from {adapter}", adapter=name)
    if manifest.get("kind") == "preferences" and p.plan:
        text = t("learns from {n} preference(s), {held_out} more held out; goes on from {adapter}",
                 n=p.plan.get("rows"), held_out=p.plan.get("held_out"), adapter=name)  # fmt: skip
    return f" · {escape(text)}"


def start_label(p: RunProgress) -> str:
    """What the samples of step 0 were answered by."""
    return t("the base, before any training") if p.start_nll is None else t("the adapter that it goes on from")


def held_out_curve(p: RunProgress) -> list[tuple[int, float]]:
    """(step, held-out NLL), from what the run begins with: the base, or the adapter that it goes on from."""
    return p.held_out if p.start_nll is None else [(0, p.start_nll), *(point for point in p.held_out if point[0])]


def change_html(p: RunProgress) -> str:
    """Held-out NLL before and after training further, with the intervals; "" for a run without a parent."""
    if preferred := preference_verdict.describe_preferences(p):
        kind = preference_verdict.rate_preferences(p)
        return f'<div class="{kind}" data-testid="preferences">{escape(localized(preferred))}</div>'
    change = training_gain.estimate_change(p)
    if change is None:
        return ""
    kind = "problem" if change.is_worse else "hint" if change.rows < verdict.MIN_ROWS else "good"
    text = t("Trained further: {change}", change=localized(training_gain.describe_change(change)))
    return f'<div class="{kind}" data-testid="further">{escape(text)}</div>'


def warning_html(p: RunProgress) -> str:
    """While a run on preferences trains: that the chosen answers become less likely; "" otherwise."""
    warning = preference_verdict.warn_while_running(p)
    return f'<div class="problem" data-testid="preferences">{escape(localized(warning))}</div>' if warning else ""
