"""Step 3, the view of a run: state, charts and samples during training, from the run's events."""

import math
from html import escape
from typing import Any, NamedTuple, Self

import gradio as gr
import pandas as pd

from persona.errors import PersonaError
from persona.judge import rehearsal_gain, training_gain, verdict
from persona.judge.report_model import Interval
from persona.train import oom_recovery, snapshots
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.train.run_folder import Run
from persona.ui.i18n import localized, t
from persona.ui.navigation import start_label
from persona.ui.steps.train import further
from persona.ui.widgets import countdown_html, facts_html, format_duration, progress_bar_html

LOSS_COLUMNS = ["step", "loss", "on"]
STATUS_LABELS = {
    "queued": "Waiting", "starting": "Getting ready", "running": "Training", "done": "Done", "stopped": "Stopped",
    "failed": "Failed", "interrupted": "Interrupted",
}  # fmt: skip


class Chart(NamedTuple):
    """A small chart: its title, its lines by their names in RunProgress.curves, and what one unit of it stands for.

    expected: the name of a planned value in RunProgress.expected, which is a line too. limits: of its values.
    """

    title: str
    lines: dict[str, str]
    unit: float = 1.0
    expected: str = ""
    limits: list[float | None] | None = None


CHARTS = {
    "learning_rate": Chart("Learning rate", {"learning_rate": "this run"}),
    "tokens_per_s": Chart("Tokens per second", {"tokens_per_s": "this run"}, expected="tokens_per_s"),
    "memory": Chart("Memory, GB", {"memory": "now", "peak_memory": "peak", "gpu_memory": "whole GPU"}, 1e9, "memory"),
    "load": Chart("Load, %", {"cpu_load": "this run", "machine_load": "whole CPU", "gpu_load": "whole GPU"}),
    "temperature": Chart("Temperature, °C", {"gpu_temperature": "GPU"}),
}
PREFERENCE_CHARTS = {  # of a run on preferences, beside its loss
    "reward_margin": Chart("Reward margin", {"reward_margin": "this run"}),
    "accuracy": Chart("Held-out preferred, %", {"held_out_accuracy": "this run"}, 0.01, limits=[0, 100]),
    "chosen": Chart("Loss of chosen, held out", {"chosen_nll": "this run"}),
}
STEP_FORMAT = ",~r"  # 1,000, and 1 where the default is 1.0
CHART_COLUMNS = ["step", "value", "line"]
SMOOTHED_CURVES = ("reward_margin", "tokens_per_s", "cpu_load", "machine_load", "gpu_load")
# short names: a phone's legend has room for four
LINE_COLORS = {"this run": "#059669", "now": "#059669", "peak": "#0284c7", "whole CPU": "#d97706",
               "whole GPU": "#9333ea", "GPU": "#9333ea", "plan": "#a8a29e"}  # fmt: skip
# On a short axis the chart also marks parts of a step, and has no option against it. For the run's state, once
WHOLE_STEPS_JS = """
const step = element.closest("#step-train");
new MutationObserver(() => {
  for (const mark of step.querySelectorAll("[aria-label^='X-axis'] .role-axis-label text"))
    mark.style.visibility = Number.isInteger(Number(mark.textContent.replaceAll(",", ""))) ? "" : "hidden";
}).observe(step, { childList: true, subtree: true });
"""


class RunView(NamedTuple):
    """What the step shows of a run: its components, or what update_run_view gives each of them."""

    status: Any
    loss: Any
    reward_margin: Any  # PREFERENCE_CHARTS
    accuracy: Any
    chosen: Any
    curves: Any
    learning_rate: Any
    tokens_per_second: Any
    memory: Any
    load: Any
    temperature: Any
    samples: Any
    vote_again: Any  # after a run on preferences
    start: Any
    stop: Any
    resume: Any
    retry_smaller: Any
    runs: Any
    timer: Any
    name: Any  # of the run that is shown
    mark: Any  # what is shown: an update with the same mark would change nothing
    training: Any  # the folder of the run that trains now, "" for none: whether a run that is started now waits

    @classmethod
    def unchanged(cls) -> Self:
        return cls(*[gr.skip() for _ in cls._fields])


def make_run_view(
    run: Run | None, progress: RunProgress, runs: gr.Radio, training: Run | None, name: Any, mark: str
) -> RunView:
    """The values of the view. training: the run that trains now, be it this one or another."""
    learning_rate, tokens_per_second, memory, load, temperature = chart_plots(progress)
    reward_margin, accuracy, chosen = chart_plots(progress, PREFERENCE_CHARTS)
    active = run is not None and progress.status in ACTIVE_STATUSES
    stoppable = run is not None and active and not run.is_asked_to_stop()
    resumable = run is not None and progress.status in ("stopped", "failed", "interrupted")
    start = start_label(waits=training is not None)
    changes = localized(oom_recovery.describe_changes(progress.smaller_settings))
    return RunView(
        status=run_status_html(run, progress) if run else no_run_html(start),
        loss=loss_plot(progress),
        reward_margin=reward_margin,
        accuracy=accuracy,
        chosen=chosen,
        curves=gr.Accordion(visible=bool(progress.curves)),
        learning_rate=learning_rate,
        tokens_per_second=tokens_per_second,
        memory=memory,
        load=load,
        temperature=temperature,
        samples=samples_html(run, progress),
        start=gr.Button(start),
        stop=gr.Button(
            t("Cancel") if progress.status == "queued" else t("Stop"),
            interactive=stoppable,
            variant="stop" if stoppable else "secondary",
        ),
        resume=gr.Button(visible=resumable, variant="primary" if progress.status == "stopped" else "secondary"),
        retry_smaller=gr.Button(changes, visible=bool(progress.smaller_settings)),
        runs=runs,
        timer=gr.Timer(active=active or training is not None),
        name=name,
        mark=mark,
        training=str(training.path) if training else "",
        vote_again=gr.Button(visible=progress.status == "done" and "accuracy_after" in progress.result),
    )


def loss_plot(progress: RunProgress) -> gr.LinePlot:
    """The losses. Titles are given here and not in build(): the browser does not translate those of a chart."""
    train, held = t("train"), t("held-out")
    unit = t("loss of preferences") if progress.learns_preferences else t("loss (nats per token)")
    rows = [(s, loss, train) for s, loss in smooth(progress.train)]
    if not progress.learns_preferences:  # theirs is another loss, with a chart of its own
        rows += [(s, loss, held) for s, loss in further.held_out_curve(progress)]
    if rows:  # held out at step 0 comes first, and a chart draws no line that was not among its first points
        rows.insert(0, (0, math.nan, train))
    points = pd.DataFrame(rows, columns=LOSS_COLUMNS)
    return gr.LinePlot(points, visible=bool(rows), title=t("Loss: lower is better"), x_title=t("step"),
                       x_lim=step_axis(progress), x_axis_format=STEP_FORMAT, y_title=unit,
                       color_title=t("pairs"), color_map={train: "#a8a29e", held: "#059669"})  # fmt: skip


def step_axis(progress: RunProgress) -> list[float | None]:
    """The range of a chart's steps: those of the run."""
    return [0, max(1, progress.steps, progress.step)]


def smooth(points: list[tuple[int, float]], window: int = 5) -> list[tuple[int, float]]:
    """Mean of the last `window` points: the loss of one batch of eight rows is noisy."""
    losses = [loss for _, loss in points]
    return [
        (step, sum(losses[max(0, n - window + 1) : n + 1]) / min(n + 1, window)) for n, (step, _) in enumerate(points)
    ]


def no_run_html(start: str) -> str:
    """What stands in the place of a run's state. start: the button that starts one."""
    return f'<div class="card quiet">{t("No run yet. Choose a preset and press {button}.", button=start)}</div>'


def run_status_html(run: Run, p: RunProgress) -> str:
    """State, progress bar, figures and verdict of a run."""
    state = t(STATUS_LABELS[p.status])
    text = escape(t("{state}: {message}", state=state, message=localized(p.message)) if p.message else state)
    if p.status == "stopped" and p.step and not p.message:
        text = t("Stopped at step {step} of {steps}. Resume goes on from there.", step=p.step, steps=p.steps)
    is_early = p.status == "done" and p.step < p.steps
    if is_early:
        text = t(
            "Done at step {step} of {steps}: the held-out pairs were getting no better.", step=p.step, steps=p.steps
        )
    if p.status == "running" and run.is_asked_to_stop():
        text = t("Stopping after this step and its evaluation …")
    best = min((nll for step, nll in p.held_out if step), default=None)
    facts = [(t("step"), f"{p.step} / {p.steps}" if p.steps else "…")]
    if p.status in ACTIVE_STATUSES:
        facts.append((t("time left"), countdown_html(run.name, p.ends)))
    else:
        facts.append((t("time taken"), format_duration(p.elapsed)))
    facts.append((t("in training steps"), format_duration(p.seconds)))
    if p.start_nll is not None:
        facts.append((t("held-out loss, before"), f"{p.start_nll:.2f}"))
    if p.base_nll is not None:
        facts.append((t("held-out loss, base"), f"{p.base_nll:.2f}"))
    if best is not None:
        facts.append((t("held-out loss, best"), f"{best:.2f}"))
    if p.result.get("tokens_per_s") is not None:
        facts.append((t("tokens per second"), f"{p.result['tokens_per_s']:.0f}"))
    kind = {"done": "good", "failed": "problem", "interrupted": "problem"}.get(p.status, "hint")
    return (
        f'<div class="card"><div class="{kind}" role="status">{text}</div>'
        f"{progress_bar_html(1.0 if is_early else p.step / p.steps if p.steps else 0.0)}"
        f"{facts_html(facts)}{training_verdict_html(p, _is_last_by_settings(run, p))}"
        f"{further.change_html(p) if p.status in ('done', 'stopped') else further.warning_html(p)}"
        f"{rehearsal_html(run, p)}"
        f'<div class="quiet">{t("Run {name}", name=escape(run.name))}{further.origin_html(run, p)}</div></div>'
    )


def _is_last_by_settings(run: Run, p: RunProgress) -> bool:
    """Whether the settings made the last step the adapter; a run that ended early has its best one."""
    if p.chosen is None or p.chosen < p.steps:
        return False
    try:
        return not run.config().load_best_model_at_end
    except PersonaError:  # deleted meanwhile, or damaged
        return False


def training_verdict_html(p: RunProgress, is_last_by_settings: bool = False) -> str:
    """Whether it learned, by the loss on the held-out pairs; "" before the end, and for a run on preferences."""
    if p.learns_preferences or p.status not in ("done", "stopped") or p.base_nll is None or p.adapter_nll is None:
        return ""
    gain, interval, rows = p.base_nll - p.adapter_nll, training_gain.estimate_gain(p), training_gain.count_held_out(p)
    if rows is not None and verdict.is_too_few(rows, interval):
        return f'<div class="hint">{_too_few_text(rows, interval)}</div>'
    if gain < 0.05 or (interval and interval.low <= 0):
        text = t(
            "Nothing measurable was learned: on the held-out pairs it is no better than the base. Train "
            "longer, raise the learning rate, or look at the mask in step 2."
        )
        return f'<div class="problem">{text}</div>'
    text = t(
        "It learned: in the held-out replies, each token is on average {times} times as likely as under the base.",
        times=f"{_times(gain):.1f}",
    )
    if rows is not None and rows < verdict.FEW_ROWS:
        text += " " + t("Measured on {rows} held-out pair(s) only: take the figures as rough.", rows=rows)
    return f'<div class="good">{text} {chosen_step_text(p, is_last_by_settings)}</div>'


def rehearsal_html(run: Run, p: RunProgress) -> str:
    """What rehearsal has cost and saved; "" before the end, and for a run that rehearses nothing."""
    text = rehearsal_gain.describe_rehearsal(run, p) if p.status in ("done", "stopped") else ""
    return f'<div class="quiet" data-testid="rehearsal">{escape(localized(text))}</div>' if text else ""


def _too_few_text(rows: int, gain: Interval | None) -> str:
    text = t("Too few to tell whether it learned: it was measured on {n} held-out pair(s).", n=rows)
    if rows == 1:
        text = t("Too few to tell whether it learned: it was measured on a single held-out pair.")
    elif gain and rows >= verdict.MIN_ROWS:
        text = t(
            "Too few to tell whether it learned: on {n} held-out pair(s) a token became between {low} and {high} times "
            "as likely, and 1 is no gain.",
            n=rows,
            low=f"{_times(gain.low):.2f}",
            high=f"{_times(gain.high):.2f}",
        )
    return f"{text} {escape(localized(verdict.TOO_FEW_ADVICE))}"


def _times(gain: float) -> float:
    return math.exp(min(gain, 99))


def chosen_step_text(p: RunProgress, is_last_by_settings: bool = False) -> str:
    """Which step's adapter is the run's, and why not that with the lowest loss; "" where it is simply the last."""
    losses = {step: nll for step, nll in p.held_out if step}
    lowest = min(losses, key=lambda step: (losses[step], step), default=None)
    if not p.chosen or p.chosen == p.step == (lowest or p.step):
        return ""
    text = t("The adapter is that of step {step}.", step=p.chosen)
    if not lowest or lowest >= p.chosen:
        return text
    if is_last_by_settings and p.adapter_nll is not None:
        why = t(
            "Step {lowest} has a lower held-out loss ({best:.2f}; {last:.2f} at the end). The last one is kept, as the "
            "settings say: on a small base it knows more of the facts.",
            lowest=lowest, best=losses[lowest], last=p.adapter_nll,
        )  # fmt: skip
    else:
        why = t(
            "Step {lowest} has a lower held-out loss, but by less than chance alone would make it: of steps that "
            "cannot be told apart the latest is taken, since it has seen more of the pairs.",
            lowest=lowest,
        )
    return f"{text} {why}"


def chart_plots(progress: RunProgress, charts: dict[str, Chart] = CHARTS) -> list[gr.LinePlot]:
    """The small charts; those of a run that has no points for them are hidden."""
    return [_chart_plot(chart, progress) for chart in charts.values()]


def _chart_plot(chart: Chart, progress: RunProgress) -> gr.LinePlot:
    axis = step_axis(progress)
    rows: list[tuple[float | None, float, str]] = []
    for curve, label in chart.lines.items():
        if points := progress.curves.get(curve):
            points = smooth(points) if curve in SMOOTHED_CURVES else points
            rows += [(step, value / chart.unit, label) for step, value in points]
    is_measured = bool(rows)
    if is_measured and chart.expected in progress.expected:
        planned = progress.expected[chart.expected] / chart.unit
        rows += [(step, planned, "plan") for step in axis]
    # gradio draws no line that was not among a chart's first points, so a chart is first drawn with all its lines
    frame = pd.DataFrame([(step, value, t(label)) for step, value, label in rows], columns=CHART_COLUMNS)
    colors = {t(label): LINE_COLORS[label] for label in dict.fromkeys(label for _, _, label in rows)}
    return gr.LinePlot(frame, visible=is_measured, title=t(chart.title), x_title=t("step"), x_lim=axis,
                       x_axis_format=STEP_FORMAT, y_lim=chart.limits, y_title=" ", color_title=" ", color_map=colors,
                       colors_in_legend=list(colors) if len(colors) > 1 else [])  # fmt: skip


def samples_html(run: Run | None, p: RunProgress) -> str:
    """The answers at every evaluation, newest first, each with its held-out loss and a button to use its adapter."""
    if run is None or not p.samples:
        return ""
    nlls, snapshot_steps, last = (
        dict(further.held_out_curve(p)),
        set(snapshots.list_snapshot_steps(run)),
        max(s for s, _ in p.samples),
    )
    best = min((step for step in nlls if step), key=lambda step: (nlls[step], step), default=None)
    pages = []
    for step, answers in reversed(p.samples):
        badges = "".join(
            f"<em class='{kind}'>{label}</em>"
            for kind, label, applies in (
                ("chosen", t("the adapter"), step == p.chosen),
                ("lowest", t("lowest held-out loss"), step == best),
                ("", further.start_label(p), step == 0),
            )
            if applies
        )
        loss = t("held-out loss {nll}", nll=f"{nlls[step]:.2f}") if step in nlls else ""
        button = ""
        if step in snapshot_steps and step != p.chosen and p.status not in ACTIVE_STATUSES:
            button = (
                f"<button class='tool' data-do='use' data-step='{step}'>{t('Use the adapter of this step')}</button>"
            )
        is_open = " open" if step in (0, last, p.chosen) else ""
        pages.append(
            f"<details class='sample'{is_open}><summary><b>{t('Step {step}', step=step)}</b> <span>{loss}</span> "
            f"{badges}</summary><dl>{''.join(map(_sample_html, answers))}</dl>{button}</details>"
        )
    about = t("The same questions at every evaluation, with the same random seed: only the adapter changes.")
    return (
        f"<div class='samples' data-testid='samples'><h4>{t('Samples during training')}</h4>"
        f"<p class='quiet'>{about}</p>{''.join(pages)}</div>"
    )


def _sample_html(a: dict[str, Any]) -> str:
    reason = t("It reached the length limit of a sample")
    cut = "" if a.get("ended") else f'<span class="quiet" title="{reason}"> …</span>'
    text = escape(a.get("text", "").strip()) or f"<span class='quiet'>{t('(nothing)')}</span>"
    return f"<dt>{escape(a.get('probe', ''))}</dt><dd>{text}{cut}</dd>"
