"""Step 3, Train: choose how, start, watch, stop; a reloaded tab finds the run again."""

import math
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from persona import folder, hardware, launch, planning, runs, waiting
from persona.config import PRESETS, RunConfig
from persona.errors import PersonaError, RunError
from persona.progress import ACTIVE, Progress
from persona.runs import Run
from persona.ui import settings
from persona.ui.common import COMPARE, QUIET, Page, duration, facts_html, open_current, shown

PLOT_COLUMNS = ["step", "loss", "on"]
WORDS = {
    "queued": "Waiting", "starting": "Getting ready", "running": "Training", "done": "Done", "stopped": "Stopped",
    "failed": "Failed", "interrupted": "Interrupted",
}  # fmt: skip


def plan_html(slug: str, preset: str, *form: Any) -> str:
    """What Start would do, in words: steps, pairs, device, memory, time. Says why when it cannot be started."""
    try:
        config, persona = settings.to_config(preset, *form), open_current(slug)
        pairs = persona.pairs()
        if len(pairs) < runs.MIN_PAIRS:
            return (
                f'<div class="hint">{len(pairs)} pairs; a run needs at least {runs.MIN_PAIRS}. Write more first.</div>'
            )
        machine = hardware.this_machine()
        seen = planning.outlook(persona, config, pairs, machine, hardware.free_memory(machine))
    except PersonaError as e:
        return f'<div class="problem">{escape(str(e))}</div>'
    about = escape(PRESETS[preset][1])
    if seen is None:
        reason = hardware.make_plan(machine, config.dtype).reason
        return (
            f'<div class="quiet">{about}<br>{len(pairs)} pairs. {escape(reason)} Memory and time can be told once '
            "the base is on this disk; step 2 fetches it.</div>"
        )
    return (
        f'<div class="quiet">{about}<br>{seen.train_rows} pairs to learn from, {seen.held_out} held out to '
        f"measure on; {seen.steps} steps{_time(seen)}. {escape(seen.plan.reason)}<br>{_memory(seen)}</div>"
        f"{_too_large(config, seen)}"
    )


def _time(seen: planning.Outlook) -> str:
    if seen.seconds is None:
        return ""
    minutes = math.ceil(seen.seconds / 60)
    words = f"{minutes} minute{'s' if minutes > 1 else ''}" if minutes < 90 else f"{seen.seconds / 3600:.1f} hours"
    known = "at the speed of your last such run" if seen.from_run else "by a quick measurement of this machine"
    return f", <b>about {words}</b> {known}"


def _memory(seen: planning.Outlook) -> str:
    m, plan = seen.plan.memory, seen.plan
    parts = {"weights": m.weights, "LoRA and optimizer": m.training, "activations": m.activations,
             "logits": m.logits, "runtime": m.runtime}  # fmt: skip
    items = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items())
    return f"Memory: about <b>{m.total / 1e9:.1f} GB</b> of {plan.limit / 1e9:.1f} GB that it may use ({items})."


def _too_large(config: RunConfig, seen: planning.Outlook) -> str:
    """What to choose when the run will not fit."""
    plan, free = seen.plan, f"{seen.plan.limit / 1e9:.1f} GB"
    if plan.fits and plan.quantization == config.quantization:
        return ""
    others = f"Choose a smaller base, close other programs, or shorten the longest rows (about {seen.longest} tokens)"
    if plan.fits:
        return (
            f'<div class="problem">This base does not fit into {free} as it is, even one row at a time. With its '
            f"weights quantized (quantization={plan.quantization}) it would. Else: {others}.</div>"
        )
    return (
        f'<div class="problem">This will not fit: the smallest way (batch {plan.batch_size}, '
        f"quantization {plan.quantization}) needs {plan.memory.total / 1e9:.1f} GB, {free} can be used. "
        f"{others}.</div>"
    )


def fit(persona: folder.Persona, config: RunConfig) -> RunConfig:
    """The settings as the plan that the page shows would run them."""
    machine = hardware.this_machine()
    seen = planning.outlook(persona, config, persona.pairs(), machine, hardware.free_memory(machine))
    return planning.fitted(config, seen.plan) if seen else config


def start(slug: str, preset: str, *form: Any) -> str:
    """Create the run and put it in line; it starts at once when nothing else trains. Returns the run's name."""
    persona = open_current(slug)
    run = runs.create_run(persona, fit(persona, settings.to_config(preset, *form)))
    launch.start(run)
    return run.name


def resume(slug: str, name: str) -> str:
    run = find(slug, name)
    if run is None:
        raise RunError("There is no run to resume.")
    launch.start(run)
    return run.name


def stop(slug: str, name: str) -> str:
    """Stop, or cancel, the run that the page shows. Returns the name of the run to show now."""
    run = find(slug, name)
    if run is None:
        return ""
    if launch.stop(run):
        gr.Info("Taken out of the line; Resume puts it back.")
    else:
        gr.Info("Stopping after this step; the best adapter so far is kept.")
    return run.name


def find(slug: str, name: str) -> Run | None:
    """The run called `name`, else this persona's that trains now, else its newest."""
    if not slug:
        return None
    persona = open_current(slug)
    found = runs.list_runs(persona)
    named = next((r for r in found if r.name == name), None)
    return named or launch.active_run([persona]) or (found[0] if found else None)


def under_way(run: Run | None) -> gr.Radio:
    """This persona's runs that train or wait, to choose which one is shown; hidden where there is no choice."""
    if run is None:
        return gr.Radio([], visible=False)
    now, line = waiting.training(), waiting.line()
    names = {r.name: f"{r.name}: {'training' if r == now else 'waiting'}"
             for r in [*([now] if now else []), *line] if r.path.parent == run.path.parent}  # fmt: skip
    names.setdefault(run.name, run.name)
    return gr.Radio([(text, name) for name, text in names.items()], value=run.name, visible=len(names) > 1)


def watch(slug: str, name: str, seen: str) -> tuple:
    """State of the run for the page; nothing is sent again that the page has already."""
    launch.reap()
    run = find(slug, name)
    progress = waiting.progress(run) if run else Progress(status="done")
    choice, busy = under_way(run), waiting.training() is not None
    mark = (
        f"{slug} {run and run.name} {progress.status} {progress.message} {progress.step} {len(progress.held_out)} "
        f"{choice.choices} {busy}"
    )
    active = run is not None and progress.status in ACTIVE
    if mark == seen:
        return (gr.skip(),) * 9
    resumable = run is not None and progress.status in ("stopped", "failed", "interrupted")
    return (
        status_html(run, progress), plot(progress), gr.Button("Train after it" if busy else "Start training"),
        gr.Button("Cancel" if progress.status == "queued" else "Stop", interactive=active),
        gr.Button(visible=resumable), choice, gr.Timer(active=active or busy),
        gr.skip() if run is None or run.name == name else run.name, mark,  # what is shown stays so when the next begins
    )  # fmt: skip


def plot(progress: Progress) -> gr.LinePlot:
    train = [(s, loss, "train") for s, loss in smooth(progress.train)]
    held = [(s, loss, "held-out") for s, loss in progress.held_out]
    points = pd.DataFrame(train + held, columns=PLOT_COLUMNS)
    return gr.LinePlot(points, visible=bool(len(points)))


def smooth(points: list[tuple[int, float]], window: int = 5) -> list[tuple[int, float]]:
    """Mean of the last `window` steps: a batch of eight rows is a noisy witness."""
    losses = [loss for _, loss in points]
    return [
        (step, sum(losses[max(0, n - window + 1) : n + 1]) / min(n + 1, window)) for n, (step, _) in enumerate(points)
    ]


def status_html(run: Run | None, p: Progress) -> str:
    if run is None:
        return '<div class="card quiet">No run yet. Choose a preset and press Start.</div>'
    words = escape(WORDS[p.status] + (f": {p.message}" if p.message else ""))
    share = p.step / p.steps if p.steps else 0.0
    best = min((nll for step, nll in p.held_out if step), default=None)
    facts = [("step", f"{p.step} / {p.steps}" if p.steps else "…")]
    if p.status in ACTIVE:
        facts.append(("time left", duration(p.left)))
    facts.append(("trained for", duration(p.seconds)))
    if p.base_nll is not None:
        facts.append(("held-out loss, base", f"{p.base_nll:.2f}"))
    if best is not None:
        facts.append(("held-out loss, best", f"{best:.2f}"))
    if p.result:
        facts.append(("tokens per second", f"{p.result['tokens_per_s']:.0f}"))
    kind = {"done": "good", "failed": "problem", "interrupted": "problem"}.get(p.status, "hint")
    return (
        f'<div class="card"><div class="{kind}" role="status">{words}</div>'
        f'<div class="bar" role="progressbar" aria-valuenow="{share:.0%}"><div style="width:{share:.1%}"></div></div>'
        f'{facts_html(facts)}{verdict(p)}<div class="quiet">Run {escape(run.name)}</div></div>'
    )


def verdict(p: Progress) -> str:
    """One sentence on whether it learned, from the held-out pairs alone."""
    if p.status not in ("done", "stopped") or p.base_nll is None or not p.result:
        return ""
    gain = p.base_nll - p.result["adapter_nll"]
    if gain < 0.05:
        return (
            '<div class="problem">Nothing measurable was learned: on pairs it never saw, it is no better than the '
            "base. Train longer, raise the learning rate, or look at the mask in step 2.</div>"
        )
    best = min(p.held_out, key=lambda x: x[1])
    kept = f" The best moment was step {best[0]}; that adapter is kept." if best[0] < p.step else ""
    times = math.exp(gain)
    return (
        f'<div class="good">It learned: to the words of replies it never saw, it now gives {times:.1f} times the '
        f"probability that the base gives, word piece by word piece.{kept}</div>"
    )


def build(page: Page, step: gr.Step) -> None:
    gr.Markdown("### Train a LoRA on the pairs\nIt runs in a process of its own: close or reload this page freely.")
    preset = gr.Radio([(p.capitalize(), p) for p in PRESETS], value="quick", label="How thoroughly", elem_id="preset")
    plan = gr.HTML(elem_id="plan")
    with gr.Accordion("Expert settings", open=False, elem_id="expert"):
        form = settings.build("quick")
    with gr.Row():
        begin = gr.Button("Start training", variant="primary", elem_id="start-training")
        halt = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop-training")
        again = gr.Button("Resume", visible=False, elem_id="resume-training")
    which = gr.Radio([], label="Under way", visible=False, elem_id="which-run")
    status = gr.HTML(elem_id="train-status")
    chart = gr.LinePlot(
        pd.DataFrame(columns=PLOT_COLUMNS), x="step", y="loss", color="on", height=280, y_title="loss (nats per token)",
        color_map={"train": "#a8a29e", "held-out": "#059669"}, title="Loss: lower is better", elem_id="loss-plot",
        visible=False,
    )  # fmt: skip
    go = gr.Button("Next: Compare →", variant="primary", scale=0, min_width=170, elem_id="to-compare")
    timer = gr.Timer(1.0, active=False)
    name, seen = gr.State(""), gr.State("")

    shared = [page.base, page.template, page.max_length, page.learn_history]
    watching = {"fn": shown(watch), "inputs": [page.slug, name, seen],
                "outputs": [status, chart, begin, halt, again, which, timer, name, seen], **QUIET}  # fmt: skip
    gr.on([begin.click], shown(start), [page.slug, preset, *shared, *form], name, **QUIET).success(**watching)
    again.click(shown(resume), [page.slug, name], name, **QUIET).success(**watching)
    halt.click(shown(stop), [page.slug, name], name, **QUIET).success(**watching)
    which.input(lambda chosen: chosen, which, name, **QUIET).success(**watching)
    timer.tick(**watching, queue=False)
    gr.on([page.slug.change, step.select], **watching)
    preset.change(settings.of_preset, preset, form, **QUIET)
    changed = [preset.change, step.select, page.base.change, page.max_length.change, *(f.change for f in form)]
    gr.on(changed, shown(plan_html), [page.slug, preset, *shared, *form], plan, trigger_mode="always_last", **QUIET)
    go.click(lambda: gr.Walkthrough(selected=COMPARE), None, page.steps, **QUIET)
