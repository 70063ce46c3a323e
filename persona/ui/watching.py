"""Step 3, watching a run: what its events say, as charts, words and the diary."""

import math
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from persona import moments
from persona.progress import ACTIVE, Progress
from persona.runs import Run
from persona.ui.common import duration, facts_html
from persona.ui.translation import translated

PLOT_COLUMNS = ["step", "loss", "on"]
WORDS = {
    "queued": "Waiting", "starting": "Getting ready", "running": "Training", "done": "Done", "stopped": "Stopped",
    "failed": "Failed", "interrupted": "Interrupted",
}  # fmt: skip
# name in Progress.curves → title, and what one unit of the chart is
CURVES = {
    "learning_rate": ("Learning rate", 1.0),
    "tokens_per_s": ("Tokens per second", 1.0),
    "memory": ("Memory, GB", 1e9),
}


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
    words = escape(WORDS[p.status] + (f": {translated(p.message)}" if p.message else ""))
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
    if p.result.get("tokens_per_s") is not None:
        facts.append(("tokens per second", f"{p.result['tokens_per_s']:.0f}"))
    kind = {"done": "good", "failed": "problem", "interrupted": "problem"}.get(p.status, "hint")
    return (
        f'<div class="card"><div class="{kind}" role="status">{words}</div>'
        f'<div class="bar" role="progressbar" aria-valuenow="{share:.0%}"><div style="width:{share:.1%}"></div></div>'
        f'{facts_html(facts)}{verdict(p)}<div class="quiet">Run {escape(run.name)}</div></div>'
    )


def verdict(p: Progress) -> str:
    """One sentence on whether it learned, from the held-out pairs alone."""
    if p.status not in ("done", "stopped") or p.base_nll is None or p.adapter_nll is None:
        return ""
    gain = p.base_nll - p.adapter_nll
    if gain < 0.05:
        return (
            '<div class="problem">Nothing measurable was learned: on pairs it never saw, it is no better than the '
            "base. Train longer, raise the learning rate, or look at the mask in step 2.</div>"
        )
    kept = f" The adapter is that of step {p.chosen}." if p.chosen and p.chosen != p.step else ""
    times = math.exp(min(gain, 99))
    return (
        f'<div class="good">It learned: to the words of replies it never saw, it now gives {times:.1f} times the '
        f"probability that the base gives, word piece by word piece.{kept}</div>"
    )


def curves(progress: Progress) -> list[gr.LinePlot]:
    """The small charts: learning rate, speed, memory."""
    made = []
    for name, (title, unit) in CURVES.items():
        points = progress.curves.get(name, [])
        values = smooth(points) if name == "tokens_per_s" else points
        made.append(gr.LinePlot(pd.DataFrame([(s, v / unit) for s, v in values], columns=["step", title])))
    return made


def diary_html(run: Run | None, p: Progress) -> str:
    """The answers of every evaluation, newest first, each with its held-out loss and a way to choose it."""
    if run is None or not p.diary:
        return ""
    nlls, kept, last = dict(p.held_out), set(moments.steps(run)), max(step for step, _ in p.diary)
    scored = {s: nll for s, nll in nlls.items() if s}
    best = min(scored, key=lambda s: (scored[s], s), default=None)
    pages = []
    for step, answers in reversed(p.diary):
        marks = "".join(
            f"<em class='{kind}'>{words}</em>"
            for kind, words, true in (
                ("mine", "the adapter", step == p.chosen),
                ("low", "lowest held-out loss", step == best),
                ("", "the base, before any training", step == 0),
            )
            if true
        )
        loss = f"held-out loss {nlls[step]:.2f}" if step in nlls else ""
        button = ""
        if step in kept and step != p.chosen and p.status not in ACTIVE:
            button = f"<button class='tool' data-do='use' data-step='{step}'>Make this the adapter</button>"
        said = "".join(_answer(a) for a in answers)
        opened = " open" if step in (0, last, p.chosen) else ""
        pages.append(
            f"<details class='moment'{opened}><summary><b>Step {step}</b> <span>{loss}</span> {marks}</summary>"
            f"<dl>{said}</dl>{button}</details>"
        )
    return (
        "<div class='diary' data-testid='diary'><h4>Diary</h4><p class='quiet'>The same questions at every evaluation, "
        f"with the same dice: what changes is she.</p>{''.join(pages)}</div>"
    )


def _answer(a: dict[str, Any]) -> str:
    cut = "" if a.get("ended") else "<span class='quiet' title='It reached the limit of a diary line'> …</span>"
    text = escape(a.get("text", "").strip()) or "<span class='quiet'>(nothing)</span>"
    return f"<dt>{escape(a.get('probe', ''))}</dt><dd>{text}{cut}</dd>"
