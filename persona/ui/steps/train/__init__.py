"""Step 3, Train: choose the settings, start, watch, stop. A reloaded tab finds its run again."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from persona.errors import InputError, Message, RunError, join
from persona.store import deployment
from persona.train import gpu_slices, launcher, queue, run_folder, settings_file, snapshots
from persona.train.config import PRESETS, RunConfig
from persona.train.parent import Parent, adopt_settings, require_same_base
from persona.train.progress import RunProgress
from persona.train.run_folder import Run
from persona.ui import navigation, next_steps, voice_picker
from persona.ui.i18n import t
from persona.ui.navigation import COMPARE, TRAIN
from persona.ui.notices import show_info
from persona.ui.page import (
    QUIET,
    SHOWING,
    Page,
    RenderSettings,
    on_latest,
    open_current_persona,
    open_page_renderer,
    show_errors,
)
from persona.ui.steps.train import further, ledger, lora_lesson, run_view, settings_form
from persona.ui.steps.train.plan_view import plan_html
from persona.ui.steps.train.run_view import RunView
from persona.ui.widgets import FORWARD_CLICKS_JS

MAX_PROBLEMS = 5  # that a refusal names


def on_start(slug: str, preset: str, *form: Any, parent_id: str = "") -> str:
    """Create a run and queue it; it starts at once when nothing else trains. Returns the run's name.

    form: the RenderSettings and the expert settings. parent_id: the adapter to go on from. Raises PersonaError for what
    the steps before would refuse: a base or template, or pairs that cannot be trained on.
    """
    persona = open_current_persona(slug)
    config, parent = settings_form.form_to_config(preset, *form), further.open_parent(parent_id)
    fixed = further.fixed_settings(config) if parent else set()
    if parent:
        config = adopt_settings(config, parent, fixed)
    require_trainable(slug, config, parent)
    run, _ = launcher.create_fitted_run(persona, config, fixed, parent)
    launcher.start_run(run)
    return run.name


def require_trainable(slug: str, config: RunConfig, parent: Parent | None = None) -> None:
    """Check what Write and Template check, and that the adapter to go on from is of the same base and template.

    Raises PersonaError with what is wrong, for pairs with the first rows.
    """
    persona = open_current_persona(slug)
    items = persona.pairs()
    launcher.require_trainable_pairs(persona, items)
    settings = RenderSettings(config.base, config.template, config.max_length, config.learn_history, config.thinking)
    base, renderer = open_page_renderer(slug, settings)
    if parent:
        require_same_base(parent, base, renderer.template.text)
    examples = enumerate(renderer.iterate_examples(items), 1)
    wrong = [Message("pair {row}: {why}", row=row, why=why) for row, e in examples for why in e.problems]
    if wrong:
        raise InputError(
            "{problems}\nThis cannot be trained on ({n} problems). Step 2 shows the rows.",
            problems=join("\n", wrong[:MAX_PROBLEMS]),
            n=f"{len(wrong):,}",
        )


def on_resume(slug: str, name: str) -> str:
    run = _require_run(slug, name)
    launcher.start_run(run)
    return run.name


def on_retry_smaller(slug: str, name: str) -> str:
    """Start again with the smaller settings that the failed run proposes. Returns the name of the new run."""
    run = _require_run(slug, name)
    return launcher.retry_smaller(open_current_persona(slug), run).name


def on_stop(slug: str, name: str) -> str:
    """Stop, or take from the queue, the run that the page shows. Returns the name of the run to show now."""
    run = find_run(slug, name)
    if run is None:
        return ""
    if launcher.stop_run(run):
        show_info(t("Removed from the queue; Resume puts it back."))
    else:
        show_info(t("Stopping after this step; the best adapter so far is kept."))
    return run.name


def run_on_zerogpu(slug: str, name: str) -> Iterator[str]:
    if run := find_run(slug, name):
        yield from gpu_slices.train_in_slices(run)


def use_snapshot(slug: str, name: str, event: gr.EventData) -> None:
    """Make the adapter of the clicked step the run's adapter."""
    if run := find_run(slug, name):
        step = int(event._data["step"])
        snapshots.select_snapshot(run, step)
        show_info(t("The adapter of step {step} is this run's adapter now.", step=step))


def find_run(slug: str, name: str) -> Run | None:
    """The run called `name`, else the persona's active run, else its newest."""
    if not slug:
        return None
    persona = open_current_persona(slug)
    runs = run_folder.list_runs(persona)
    named = next((run for run in runs if run.name == name), None)
    return named or launcher.find_active_run([persona]) or (runs[0] if runs else None)


def _require_run(slug: str, name: str) -> Run:
    run = find_run(slug, name)
    if run is None:
        raise RunError("There is no run to resume.")
    return run


def active_runs_radio(run: Run | None) -> gr.Radio:
    """This persona's runs that train or wait, to choose which one is shown; hidden when there is no choice."""
    if run is None:
        return gr.Radio([], visible=False)
    training, waiting = queue.find_training_run(), queue.list_waiting_runs()
    labels = {r.name: t("{run}: training", run=r.name) if r == training else t("{run}: waiting", run=r.name)
              for r in [*([training] if training else []), *waiting] if r.path.parent == run.path.parent}  # fmt: skip
    labels.setdefault(run.name, run.name)
    return gr.Radio([(label, name) for name, label in labels.items()], value=run.name, visible=len(labels) > 1)


def update_run_view(slug: str, name: str, shown_mark: str) -> RunView:
    """The state of the run called `name`, or of the one to show instead.

    Called every second while a run is active; nothing is sent again when the page shows `shown_mark` already.
    """
    launcher.reap_children()
    run = find_run(slug, name)
    progress = queue.read_run_progress(run) if run else RunProgress(status="done")
    runs, training = active_runs_radio(run), queue.find_training_run()
    mark = (
        f"{slug} {run and run.name} {progress.status} {progress.message} {progress.step} {len(progress.samples)} "
        f"{progress.chosen} {runs.choices} {training and training.path} {run and run.is_asked_to_stop()} "
        f"{run and (run.path / 'report.json').exists()}"
    )
    if mark == shown_mark:
        return RunView.unchanged()
    shown_name = gr.skip() if run is None or run.name == name else run.name  # stays when the next run starts
    return run_view.make_run_view(run, progress, runs, training, shown_name, mark)


def update_plan(shown: str, slug: str, preset: str, *form: Any, parent_id: str = "") -> str:
    """plan_html; what the form says is kept with the persona `shown`, whose it is."""
    settings_form.keep_form(shown, preset, *form[len(RenderSettings._fields) :])
    return plan_html(slug, preset, *form, parent_id=parent_id)


def propose_rehearsal() -> list[Any]:
    """Open the step with rehearsal switched on. Returns the steps, the shown step and the setting."""
    return [gr.Walkthrough(selected=TRAIN), TRAIN, next_steps.REHEARSAL_FRACTION]


def propose_epochs(adapter_id: str) -> list[Any]:
    """Open the step with twice the epochs of the adapter's run. Returns the steps, the shown step and the setting."""
    config = run_folder.Run(voice_picker.find_adapter(adapter_id).path.parent).config()
    return [gr.Walkthrough(selected=TRAIN), TRAIN, next_steps.double_epochs(config)]


class _Controls(NamedTuple):
    """The components of the step before a run is started."""

    preset: gr.Radio
    parent: gr.Dropdown
    plan: gr.HTML
    shown: gr.Textbox  # whose form it is; the browser sends it with the form
    expert_settings: list[gr.components.Component]
    lesson: tuple[gr.HTML, gr.CheckboxGroup]


def build(page: Page) -> tuple[gr.HTML, gr.Dropdown]:
    """The step. Returns the component that shows the state of the run, and the adapter to go on from."""
    gr.Markdown(
        t("### Train a LoRA on the pairs\nTraining runs in its own process: you can close or reload this page.")
    )
    preset = gr.Radio(
        [(t(p.capitalize()), p) for p in PRESETS], value=settings_file.FIRST_PRESET, label=t("Preset"), elem_id="preset"
    )
    parent = further.build()
    plan = gr.HTML(elem_id="plan")
    lesson = lora_lesson.build()
    with gr.Accordion(t("Expert settings"), open=False, elem_id="expert"):
        controls = _Controls(
            preset,
            parent,
            plan,
            gr.Textbox("", visible=False),
            settings_form.build(settings_file.FIRST_PRESET),
            lesson,
        )
    view = _build_run_view(page)
    runs = ledger.build(page, view.name, parent)
    navigation.build_next_button(t("Next: Compare →"), COMPARE, page)
    _connect_events(page, controls, view, runs)
    return view.status, parent


def _build_run_view(page: Page) -> RunView:
    with gr.Row():
        start = gr.Button(t("Start training"), variant="primary", elem_id="start-training")
        stop = gr.Button(t("Stop"), interactive=False, elem_id="stop-training")
        resume = gr.Button(t("Resume"), visible=False, elem_id="resume-training")
        retry_smaller = gr.Button(t("Lower and resume"), variant="primary", visible=False, elem_id="lower-and-resume")
        page.vote_again.render()
    runs = gr.Radio([], label=t("Active runs"), visible=False, elem_id="active-runs")
    status = gr.HTML(elem_id="train-status", js_on_load=run_view.WHOLE_STEPS_JS)
    loss = gr.LinePlot(
        pd.DataFrame(columns=run_view.LOSS_COLUMNS), x="step", y="loss", color="on", height=280, elem_id="loss-plot",
        visible=False,
    )  # fmt: skip
    with gr.Row():
        reward_margin, accuracy, chosen = _build_charts(run_view.PREFERENCE_CHARTS, min_width=250)
    title = t("Learning rate, speed, memory, load")
    with gr.Accordion(title, open=False, visible=False, elem_id="curves") as curves, gr.Row():
        learning_rate, tokens_per_second, memory, load, temperature = _build_charts(run_view.CHARTS, min_width=400)
    samples = gr.HTML(elem_id="samples", js_on_load=FORWARD_CLICKS_JS)
    timer = gr.Timer(1.0, active=False)
    return RunView(
        status,
        loss,
        reward_margin,
        accuracy,
        chosen,
        curves,
        learning_rate,
        tokens_per_second,
        memory,
        load,
        temperature,
        samples,
        page.vote_again,
        start,
        stop,
        resume,
        retry_smaller,
        runs,
        timer,
        page.shown_run,
        gr.State(""),
        gr.Textbox("", visible="hidden"),  # the change of a State is not seen after an event without the queue
    )


def _build_charts(charts: Iterable[str], min_width: int) -> list[gr.LinePlot]:
    """charts: their names."""
    return [
        gr.LinePlot(pd.DataFrame(columns=run_view.CHART_COLUMNS), x="step", y="value", color="line", height=200,
                    min_width=min_width, visible=False, elem_id=f"curve-{name.replace('_', '-')}")
        for name in charts
    ]  # fmt: skip


def _connect_next_steps(page: Page, c: _Controls) -> None:
    """The buttons of a verdict in step 4 that lead to this step."""
    fields = settings_form.EXPERT_FIELDS
    shown = [page.steps, page.shown_step]
    page.next_steps["rehearsal"].click(
        propose_rehearsal, None, [*shown, c.expert_settings[fields.index("rehearsal_fraction")]], **QUIET
    )
    page.next_steps["epochs"].click(
        show_errors(propose_epochs), page.adapter, [*shown, c.expert_settings[fields.index("epochs")]], **QUIET
    )


def _connect_events(
    page: Page, c: _Controls, view: RunView, runs: tuple[ledger.LedgerView, gr.Accordion, gr.Button]
) -> None:
    slug, settings, name = page.slug, page.render_settings, view.name
    form = [slug, c.preset, *settings, *c.expert_settings]
    update: dict[str, Any] = {
        "fn": show_errors(update_run_view), "inputs": [slug, name, view.mark], "outputs": view, **SHOWING,
    }  # fmt: skip
    start = further.with_parent(on_start)
    started = view.start.click(show_errors(start), [c.parent, *form], name, **QUIET)
    resumed = view.resume.click(show_errors(on_resume), [slug, name], name, **QUIET)
    retried = view.retry_smaller.click(show_errors(on_retry_smaller), [slug, name], name, **QUIET)
    for event in (started, resumed, retried):
        event.success(**update)
        if deployment.has_zerogpu():  # no process of its own there: this event trains, and the page watches the run
            event.success(show_errors(run_on_zerogpu), [slug, name], name, **QUIET)
    view.stop.click(show_errors(on_stop), [slug, name], name, **QUIET).success(**update)
    view.runs.input(lambda name: name, view.runs, name, **SHOWING).success(**update)
    view.samples.click(show_errors(use_snapshot), [slug, name], None, **QUIET).success(**update)
    ledger.connect(page, *runs, view.training, update)
    view.timer.tick(**{**update, "trigger_mode": "once"}, queue=False)
    on_latest([slug.change, page.shown_step.change], **update)
    c.preset.input(settings_form.preset_values, c.preset, c.expert_settings, **SHOWING)
    kept = [c.shown, c.preset, *c.expert_settings]
    restored = on_latest(slug.change, settings_form.restore_form, [slug, *kept], kept, **QUIET)
    plan: dict[str, Any] = {
        "fn": show_errors(further.with_parent(update_plan)), "inputs": [c.parent, c.shown, *form], "outputs": c.plan,
        "trigger_mode": "always_last", **QUIET,
    }  # fmt: skip
    further.connect(page, c.parent, c.preset, c.expert_settings)
    restored.success(**plan)
    changes = [
        c.preset.change,
        c.parent.change,
        page.shown_step.change,
        settings.base.change,
        settings.max_length.change,
    ]
    changes += [view.training.change, *(setting.change for setting in c.expert_settings)]
    on_latest(changes, **plan)
    teach: dict[str, Any] = {"fn": show_errors(lora_lesson.lesson), "inputs": form, "outputs": c.lesson,
                             "trigger_mode": "always_last", **QUIET}  # fmt: skip
    restored.success(**teach)
    on_latest(changes, **teach)
    _connect_next_steps(page, c)
    targets = c.expert_settings[settings_form.EXPERT_FIELDS.index("target_modules")]
    layers = c.lesson[1]
    layers.input(show_errors(lora_lesson.choose_layers), [layers, *form[1:]], targets, **SHOWING).success(**teach)
