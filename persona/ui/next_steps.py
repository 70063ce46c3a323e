"""What a verdict offers to do next: a button for each step, shown in step 4 and connected where it leads."""

from collections.abc import Sequence
from typing import get_args

import gradio as gr

from persona.judge.report_model import NextStep
from persona.train.config import RunConfig
from persona.ui.i18n import t

LABELS: dict[NextStep, str] = {
    "interview": "Answer the interview", "epochs": "Train with more passes", "rehearsal": "Train with rehearsal",
    "base": "Choose a larger base",
}  # fmt: skip
STEPS: tuple[NextStep, ...] = get_args(NextStep)
REHEARSAL_FRACTION = 0.2  # that the button sets
MOST_EPOCHS = 1000.0


def make_buttons() -> dict[NextStep, gr.Button]:
    """The buttons, hidden and not yet rendered."""
    return {
        step: gr.Button(t(LABELS[step]), size="sm", scale=0, min_width=190, visible=False, render=False,
                        elem_id=f"next-{step}")
        for step in STEPS
    }  # fmt: skip


def show_buttons(steps: Sequence[str]) -> list[gr.Button]:
    """The updates of the buttons, in the order of STEPS."""
    return [gr.Button(visible=step in steps) for step in STEPS]


def double_epochs(config: RunConfig) -> float:
    """The passes that the verdict proposes after a run with these settings."""
    return min(MOST_EPOCHS, 2 * config.epochs)
