"""Write, tab Pairs, filter by length: drop pairs that are too short or too long, after a look at them."""

from html import escape
from typing import Any

import gradio as gr

from persona.ui.i18n import t
from persona.ui.page import QUIET, SHOWING, Page, in_lane, open_current_persona, run_in_order, show_errors
from persona.ui.steps.write import pairs_tab
from persona.write.length_filter import LengthLimits, describe, drop_outside, find_outside

SHOWN = 20  # pairs of the preview


def _limits(values: tuple[float | None, ...]) -> LengthLimits:
    return LengthLimits(*(int(value or 0) for value in values))


def preview_filter(slug: str, *values: float | None) -> tuple[str, gr.Button]:
    """The pairs that would be dropped, as HTML, and the button. values: the LengthLimits."""
    limits = _limits(values)
    if limits == LengthLimits():
        return "", gr.Button(t("Drop"), interactive=False)
    pairs, _ = open_current_persona(slug).scan()
    dropped = find_outside(pairs, limits)
    rows = "".join(
        f"<div><span class='no'>{change.at + 1}</span><span>{escape(describe(change))}</span></div>"
        for change in dropped[:SHOWN]
    )
    more = t("… and {n} more pair(s)", n=f"{len(dropped) - SHOWN:,}") if len(dropped) > SHOWN else ""
    counts = t("Outside: {n} of {total} pair(s).", n=f"{len(dropped):,}", total=f"{len(pairs):,}")
    html = f"<div class='quiet'>{counts}</div><div class='preview'>{rows}</div><div class='quiet'>{more}</div>"
    label = t("Drop {n} pair(s)", n=f"{len(dropped):,}")
    return html, gr.Button(label, interactive=bool(dropped))


def drop_pairs(slug: str, *values: float | None) -> tuple[str, gr.Button]:
    count = drop_outside(open_current_persona(slug), _limits(values))
    done = t("Dropped {n} pair(s). Undo takes it back.", n=f"{count:,}")
    return f"<div class='good'>{done}</div>", gr.Button(t("Drop"), interactive=False)


def build_length_tab(page: Page, tab: pairs_tab.PairsTab) -> None:
    labels = (t("Shortest answer"), t("Longest answer"), t("Shortest question"), t("Longest question"))
    with gr.Row(elem_classes="slim"):
        limits = [
            gr.Number(0, label=label, precision=0, min_width=140, info=t("in characters; 0: any")) for label in labels
        ]
        button = gr.Button(t("Drop"), interactive=False, scale=0, min_width=200, elem_id="drop-by-length")
    result = gr.HTML(elem_id="length-preview")
    inputs: list[Any] = [page.slug, *limits]
    gr.on(
        [limit.input for limit in limits], run_in_order(show_errors(preview_filter), "length"), inputs,
        [result, button], **SHOWING, **in_lane("length"),
    )  # fmt: skip
    dropped = button.click(
        run_in_order(show_errors(drop_pairs), "length"), inputs, [result, button], **QUIET, **in_lane("length")
    )
    pairs_tab.redraw_after(dropped, tab, page)
