"""Step 3, Train: choose how, start, watch, stop; a reloaded tab finds the run again."""

import math
from collections.abc import Iterator
from functools import partial
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from persona.errors import PersonaError, RunError
from persona.models import hardware
from persona.store import deployment, persona_folder
from persona.train import gpu_slices, launcher, oom_recovery, queue, run_folder, snapshots
from persona.train import plan as train_plan
from persona.train.config import PRESETS, RunConfig
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.train.run_folder import Run
from persona.ui import navigation
from persona.ui.i18n import localized, t
from persona.ui.page import COMPARE, QUIET, Page, open_current_persona, show_errors
from persona.ui.steps.train import run_view, settings_form
from persona.ui.widgets import FORWARD_CLICKS_JS


def plan_html(slug: str, preset: str, *form: Any) -> str:
    """What Start would do, in words: steps, pairs, device, memory, time. Says why when it cannot be started."""
    try:
        config, persona = settings_form.form_to_config(preset, *form), open_current_persona(slug)
        pairs = persona.pairs()
        if len(pairs) < launcher.MIN_PAIRS:
            few = t(
                "{n} pairs; a run needs at least {least}. Write more first.", n=len(pairs), least=launcher.MIN_PAIRS
            )
            return f'<div class="hint">{few}</div>'
        seen = train_plan.estimate_on_this_machine(persona, config, pairs)
    except PersonaError as e:
        return f'<div class="problem">{escape(localized(e.message))}</div>'
    about = escape(t(PRESETS[preset][1]))
    if seen is None:
        reason = localized(hardware.plan_device(hardware.this_machine(), config.dtype).reason)
        unknown = t("{n} pairs. {reason} Memory and time can be told once the base is on this disk; step 2 fetches it.",
                    n=len(pairs), reason=escape(reason))  # fmt: skip
        return f'<div class="quiet">{about}<br>{unknown}</div>'
    return (
        f'<div class="quiet">{about}<br>{_steps_text(seen)} {escape(localized(seen.plan.reason))}<br>'
        f"{_memory_text(seen)}</div>"
        f"{_too_large_html(config, seen)}"
    )


def _steps_text(seen: train_plan.TrainingEstimate) -> str:
    """How many pairs and steps, and about how long that takes."""
    rows = {"learn": seen.train_rows, "held": seen.held_out, "steps": seen.steps}
    if seen.seconds is None:
        return t("{learn} pairs to learn from, {held} held out to measure on; {steps} steps.", **rows)
    minutes = math.ceil(seen.seconds / 60)
    time = t("{n} hours", n=f"{seen.seconds / 3600:.1f}")
    if minutes < 90:
        time = t("1 minute") if minutes == 1 else t("{n} minutes", n=minutes)
    if seen.from_run:
        return t("{learn} pairs to learn from, {held} held out to measure on; {steps} steps, <b>about {time}</b> at "
                 "the speed of your last such run.", **rows, time=time)  # fmt: skip
    return t("{learn} pairs to learn from, {held} held out to measure on; {steps} steps, <b>about {time}</b> by a "
             "quick measurement of this machine.", **rows, time=time)  # fmt: skip


def _memory_text(seen: train_plan.TrainingEstimate) -> str:
    m, plan = seen.plan.memory, seen.plan
    sizes = {"all": m.total, "limit": plan.limit, "weights": m.weights, "training": m.training,
             "activations": m.activations, "logits": m.logits, "runtime": m.runtime}  # fmt: skip
    return t(
        "Memory: about <b>{all} GB</b> of {limit} GB that it may use (weights {weights}, LoRA and optimizer "
        "{training}, activations {activations}, logits {logits}, runtime {runtime}).",
        **{name: f"{size / 1e9:.1f}" for name, size in sizes.items()},
    )


def _too_large_html(config: RunConfig, seen: train_plan.TrainingEstimate) -> str:
    """What to choose when the run will not fit."""
    plan, free = seen.plan, f"{seen.plan.limit / 1e9:.1f}"
    if plan.fits and plan.quantization == config.quantization:
        return ""
    others = t("Choose a smaller base, close other programs, or shorten the longest rows (about {n} tokens).",
               n=seen.longest)  # fmt: skip
    if plan.fits:
        words = t(
            "This base does not fit into {free} GB as it is, even one row at a time. With its weights quantized "
            "(quantization={how}) it would. Or else:",
            free=free, how=plan.quantization,
        )  # fmt: skip
    else:
        words = t(
            "This will not fit: the smallest way (batch {batch}, quantization {how}) needs {need} GB, {free} GB can be "
            "used.",
            batch=plan.batch_size, how=plan.quantization, need=f"{plan.memory.total / 1e9:.1f}", free=free,
        )  # fmt: skip
    return f'<div class="problem">{words} {others}</div>'


def fit_settings(persona: persona_folder.Persona, config: RunConfig) -> tuple[RunConfig, float | None]:
    """The settings as the plan that the page shows would run them, and the seconds it expects, where known."""
    seen = train_plan.estimate_on_this_machine(persona, config, persona.pairs())
    return (train_plan.apply_plan(config, seen.plan), seen.seconds) if seen else (config, None)


def start_run(slug: str, preset: str, *form: Any) -> str:
    """Create the run and put it in line; it starts at once when nothing else trains. Returns the run's name."""
    persona = open_current_persona(slug)
    config, seconds = fit_settings(persona, settings_form.form_to_config(preset, *form))
    run = launcher.create_run(persona, config)
    queue.record_expected_seconds(run, seconds)
    launcher.start_run(run)
    return run.name


def resume_run(slug: str, name: str) -> str:
    run = find_run(slug, name)
    if run is None:
        raise RunError("There is no run to resume.")
    launcher.start_run(run)
    return run.name


def run_on_zerogpu(slug: str, name: str) -> Iterator[str]:
    if run := find_run(slug, name):
        yield from gpu_slices.train_in_slices(run)


def restart_smaller(slug: str, name: str) -> str:
    """Go on with what the failure proposed. Returns the name of the run that was started."""
    run = find_run(slug, name)
    if run is None:
        raise RunError("There is no run to go on with.")
    return launcher.start_with_remedy(open_current_persona(slug), run).name


def stop_run(slug: str, name: str) -> str:
    """Stop, or cancel, the run that the page shows. Returns the name of the run to show now."""
    run = find_run(slug, name)
    if run is None:
        return ""
    if launcher.stop_run(run):
        gr.Info(t("Taken out of the line; Resume puts it back."))
    else:
        gr.Info(t("Stopping after this step; the best adapter so far is kept."))
    return run.name


def use_snapshot(slug: str, name: str, event: gr.EventData) -> None:
    """Another moment of the run becomes its adapter."""
    if run := find_run(slug, name):
        step = int(event._data["step"])
        snapshots.select_snapshot(run, step)
        gr.Info(t("The adapter of step {step} is this run's adapter now.", step=step))


def find_run(slug: str, name: str) -> Run | None:
    """The run called `name`, else this persona's that trains now, else its newest."""
    if not slug:
        return None
    persona = open_current_persona(slug)
    found = run_folder.list_runs(persona)
    named = next((r for r in found if r.name == name), None)
    return named or launcher.find_active_run([persona]) or (found[0] if found else None)


def active_runs_radio(run: Run | None) -> gr.Radio:
    """This persona's runs that train or wait, to choose which one is shown; hidden where there is no choice."""
    if run is None:
        return gr.Radio([], visible=False)
    now, line = queue.find_training_run(), queue.list_waiting_runs()
    names = {r.name: t("{run}: training", run=r.name) if r == now else t("{run}: waiting", run=r.name)
             for r in [*([now] if now else []), *line] if r.path.parent == run.path.parent}  # fmt: skip
    names.setdefault(run.name, run.name)
    return gr.Radio([(text, name) for name, text in names.items()], value=run.name, visible=len(names) > 1)


def update_run_view(slug: str, name: str, seen: str) -> tuple:
    """State of the run for the page; nothing is sent again that the page has already."""
    launcher.reap_children()
    run = find_run(slug, name)
    progress = queue.read_run_progress(run) if run else RunProgress(status="done")
    choice, busy = active_runs_radio(run), queue.find_training_run() is not None
    mark = (
        f"{slug} {run and run.name} {progress.status} {progress.message} {progress.step} {len(progress.diary)} "
        f"{progress.chosen} {choice.choices} {busy}"
    )
    active = run is not None and progress.status in ACTIVE_STATUSES
    if mark == seen:
        return (gr.skip(),) * 14
    resumable = run is not None and progress.status in ("stopped", "failed", "interrupted")
    return (
        run_view.run_status_html(run, progress), run_view.loss_plot(progress), *run_view.curve_plots(progress),
        run_view.samples_html(run, progress), gr.Button(t("Train after it") if busy else t("Start training")),
        gr.Button(t("Cancel") if progress.status == "queued" else t("Stop"), interactive=active),
        gr.Button(visible=resumable),
        gr.Button(localized(oom_recovery.describe_changes(progress.remedy)), visible=bool(progress.remedy)), choice,
        gr.Timer(active=active or busy),
        gr.skip() if run is None or run.name == name else run.name, mark,  # what is shown stays so when the next begins
    )  # fmt: skip


def build(page: Page, step: gr.Step) -> gr.HTML:
    """The step. Returns where the state of the run is shown."""
    gr.Markdown(t("### Train a LoRA on the pairs\nIt runs in a process of its own: close or reload this page freely."))
    preset = gr.Radio(
        [(t(p.capitalize()), p) for p in PRESETS], value="quick", label=t("How thoroughly"), elem_id="preset"
    )
    plan = gr.HTML(elem_id="plan")
    with gr.Accordion(t("Expert settings"), open=False, elem_id="expert"):
        form = settings_form.build("quick")
    with gr.Row():
        begin = gr.Button(t("Start training"), variant="primary", elem_id="start-training")
        halt = gr.Button(t("Stop"), variant="stop", interactive=False, elem_id="stop-training")
        again = gr.Button(t("Resume"), visible=False, elem_id="resume-training")
        lower = gr.Button(t("Lower and resume"), variant="primary", visible=False, elem_id="lower-and-resume")
    which = gr.Radio([], label=t("Under way"), visible=False, elem_id="which-run")
    status = gr.HTML(elem_id="train-status")
    chart = gr.LinePlot(
        pd.DataFrame(columns=run_view.LOSS_COLUMNS), x="step", y="loss", color="on", height=280, elem_id="loss-plot",
        visible=False,
    )  # fmt: skip
    with gr.Accordion(t("Learning rate, speed, memory"), open=False, elem_id="curves"), gr.Row():
        small = [gr.LinePlot(pd.DataFrame(columns=["step", name]), x="step", y=name, height=170,
                             min_width=240, elem_id=f"curve-{name.replace('_', '-')}")
                 for name in run_view.CURVES]  # fmt: skip
    pages = gr.HTML(elem_id="diary", js_on_load=FORWARD_CLICKS_JS)
    go = gr.Button(t("Next: Compare →"), variant="primary", scale=0, min_width=170, elem_id="to-compare")
    timer = gr.Timer(1.0, active=False)
    name, seen = gr.State(""), gr.State("")

    shared = [page.base, page.template, page.max_length, page.learn_history]
    following = {
        "fn": show_errors(update_run_view), "inputs": [page.slug, name, seen],
        "outputs": [status, chart, *small, pages, begin, halt, again, lower, which, timer, name, seen], **QUIET,
    }  # fmt: skip
    begun = gr.on([begin.click], show_errors(start_run), [page.slug, preset, *shared, *form], name, **QUIET)
    resumed = again.click(show_errors(resume_run), [page.slug, name], name, **QUIET)
    lowered = lower.click(show_errors(restart_smaller), [page.slug, name], name, **QUIET)
    for event in (begun, resumed, lowered):
        event.success(**following)
        if deployment.has_zerogpu():  # no process of its own there: this event trains, the page watches the run as ever
            event.success(show_errors(run_on_zerogpu), [page.slug, name], name, **QUIET)
    halt.click(show_errors(stop_run), [page.slug, name], name, **QUIET).success(**following)
    which.input(lambda chosen: chosen, which, name, **QUIET).success(**following)
    pages.click(show_errors(use_snapshot), [page.slug, name], None, **QUIET).success(**following)
    timer.tick(**following, queue=False)
    gr.on([page.slug.change, step.select], **following)
    preset.change(settings_form.preset_values, preset, form, **QUIET)
    changed = [preset.change, step.select, page.base.change, page.max_length.change, *(f.change for f in form)]
    gr.on(
        changed, show_errors(plan_html), [page.slug, preset, *shared, *form], plan, trigger_mode="always_last", **QUIET
    )
    go.click(show_errors(partial(navigation.open_step, COMPARE)), page.slug, page.steps, **QUIET)
    return status
