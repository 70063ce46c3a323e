"""Step 3, watching a run: what its events say, as charts, words and the diary."""

import math
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from persona.train import snapshots
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.train.run_folder import Run
from persona.ui.i18n import localized, t
from persona.ui.widgets import facts_html, format_duration

LOSS_COLUMNS = ["step", "loss", "on"]
STATUS_LABELS = {
    "queued": "Waiting", "starting": "Getting ready", "running": "Training", "done": "Done", "stopped": "Stopped",
    "failed": "Failed", "interrupted": "Interrupted",
}  # fmt: skip
# name in Progress.curves → title, and what one unit of the chart is
CURVES = {
    "learning_rate": ("Learning rate", 1.0),
    "tokens_per_s": ("Tokens per second", 1.0),
    "memory": ("Memory, GB", 1e9),
}


def loss_plot(progress: RunProgress) -> gr.LinePlot:
    """The losses. Its words are given here and not in build(): the browser translates none in a chart."""
    train, held = t("train"), t("held-out")
    points = pd.DataFrame(
        [(s, loss, train) for s, loss in smooth(progress.train)] + [(s, loss, held) for s, loss in progress.held_out],
        columns=LOSS_COLUMNS,
    )
    return gr.LinePlot(points, visible=bool(len(points)), title=t("Loss: lower is better"), x_title=t("step"),
                       y_title=t("loss (nats per token)"), color_title=t("pairs"),
                       color_map={train: "#a8a29e", held: "#059669"})  # fmt: skip


def smooth(points: list[tuple[int, float]], window: int = 5) -> list[tuple[int, float]]:
    """Mean of the last `window` steps: a batch of eight rows is a noisy witness."""
    losses = [loss for _, loss in points]
    return [
        (step, sum(losses[max(0, n - window + 1) : n + 1]) / min(n + 1, window)) for n, (step, _) in enumerate(points)
    ]


def run_status_html(run: Run | None, p: RunProgress) -> str:
    if run is None:
        return f'<div class="card quiet">{t("No run yet. Choose a preset and press Start.")}</div>'
    state = t(STATUS_LABELS[p.status])
    words = escape(t("{state}: {message}", state=state, message=localized(p.message)) if p.message else state)
    share = p.step / p.steps if p.steps else 0.0
    best = min((nll for step, nll in p.held_out if step), default=None)
    facts = [(t("step"), f"{p.step} / {p.steps}" if p.steps else "…")]
    if p.status in ACTIVE_STATUSES:
        facts.append((t("time left"), format_duration(p.left)))
    facts.append((t("trained for"), format_duration(p.seconds)))
    if p.base_nll is not None:
        facts.append((t("held-out loss, base"), f"{p.base_nll:.2f}"))
    if best is not None:
        facts.append((t("held-out loss, best"), f"{best:.2f}"))
    if p.result.get("tokens_per_s") is not None:
        facts.append((t("tokens per second"), f"{p.result['tokens_per_s']:.0f}"))
    kind = {"done": "good", "failed": "problem", "interrupted": "problem"}.get(p.status, "hint")
    return (
        f'<div class="card"><div class="{kind}" role="status">{words}</div>'
        f'<div class="bar" role="progressbar" aria-label="{t("Progress")}" aria-valuenow="{share * 100:.0f}">'
        f'<div style="width:{share:.1%}"></div></div>'
        f"{facts_html(facts)}{training_verdict_html(p)}"
        f'<div class="quiet">{t("Run {name}", name=escape(run.name))}</div></div>'
    )


def training_verdict_html(p: RunProgress) -> str:
    """One sentence on whether it learned, from the held-out pairs alone."""
    if p.status not in ("done", "stopped") or p.base_nll is None or p.adapter_nll is None:
        return ""
    gain = p.base_nll - p.adapter_nll
    if gain < 0.05:
        words = t(
            (
                "Nothing measurable was learned: on the held-out pairs it is no better than the base. Train "
                "longer, raise the learning rate, or look at the mask in step 2."
            )
        )
        return f'<div class="problem">{words}</div>'
    words = t(
        ("It learned: in the held-out replies, each token is on average {times} times as likely as under the base."),
        times=f"{math.exp(min(gain, 99)):.1f}",
    )
    if p.chosen and p.chosen != p.step:
        words += " " + t("The adapter is that of step {step}.", step=p.chosen)
    return f'<div class="good">{words}</div>'


def curve_plots(progress: RunProgress) -> list[gr.LinePlot]:
    """The small charts: learning rate, speed, memory."""
    made = []
    for name, (title, unit) in CURVES.items():
        points = progress.curves.get(name, [])
        values = smooth(points) if name == "tokens_per_s" else points
        frame = pd.DataFrame([(s, v / unit) for s, v in values], columns=["step", name])
        made.append(gr.LinePlot(frame, title=t(title), x_title=t("step"), y_title=t(title)))
    return made


def samples_html(run: Run | None, p: RunProgress) -> str:
    """The answers of every evaluation, newest first, each with its held-out loss and a way to choose it."""
    if run is None or not p.diary:
        return ""
    nlls, kept, last = dict(p.held_out), set(snapshots.list_snapshot_steps(run)), max(step for step, _ in p.diary)
    scored = {s: nll for s, nll in nlls.items() if s}
    best = min(scored, key=lambda s: (scored[s], s), default=None)
    pages = []
    for step, answers in reversed(p.diary):
        marks = "".join(
            f"<em class='{kind}'>{words}</em>"
            for kind, words, true in (
                ("mine", t("the adapter"), step == p.chosen),
                ("low", t("lowest held-out loss"), step == best),
                ("", t("the base, before any training"), step == 0),
            )
            if true
        )
        loss = t("held-out loss {nll}", nll=f"{nlls[step]:.2f}") if step in nlls else ""
        button = ""
        if step in kept and step != p.chosen and p.status not in ACTIVE_STATUSES:
            button = f"<button class='tool' data-do='use' data-step='{step}'>{t("Use this step's adapter")}</button>"
        said = "".join(_sample_html(a) for a in answers)
        opened = " open" if step in (0, last, p.chosen) else ""
        pages.append(
            f"<details class='moment'{opened}><summary><b>{t('Step {step}', step=step)}</b> <span>{loss}</span> "
            f"{marks}</summary>"
            f"<dl>{said}</dl>{button}</details>"
        )
    about = t(("The same questions at every evaluation, with the same random seed: only the adapter changes."))
    return (
        f"<div class='diary' data-testid='diary'><h4>{t('Samples during training')}</h4><p class='quiet'>{about}</p>"
        f"{''.join(pages)}</div>"
    )


def _sample_html(a: dict[str, Any]) -> str:
    why = t("It reached the length limit of a sample")
    cut = "" if a.get("ended") else f'<span class="quiet" title="{why}"> …</span>'
    text = escape(a.get("text", "").strip()) or f"<span class='quiet'>{t('(nothing)')}</span>"
    return f"<dt>{escape(a.get('probe', ''))}</dt><dd>{text}{cut}</dd>"
