"""Step 2, Template: which base, which chat template, and what exactly is learned."""

from html import escape
from typing import Any

import gradio as gr

from persona import base, render, templates
from persona.base import EMBEDDED
from persona.errors import PersonaError
from persona.ui.common import (
    QUIET,
    TRAIN,
    Page,
    facts_html,
    mask_html,
    open_current,
    problems_html,
    renderer_for,
    shown,
)


def settings() -> tuple[gr.Dropdown, gr.Dropdown, gr.Number, gr.Checkbox]:
    """The choices of this step, made before the steps because several of them read these."""
    names = [(f"{e.about}" + ("" if base.is_installed(e) else " (not installed)"), e.name) for e in EMBEDDED.values()]
    return (
        gr.Dropdown(names, value=base.DEFAULT, label="Base model", allow_custom_value=True, elem_id="base",
                    info="Embedded, or type a Hub id, a folder or a .gguf file", render=False),
        gr.Dropdown(["auto", *templates.shipped_templates()], value="auto", label="Chat template", elem_id="template",
                    info="auto: the base's own format", render=False),
        gr.Number(512, label="Longest row, in tokens", precision=0, minimum=8, maximum=32_768, render=False,
                  info="Longer rows are refused, never cut"),
        gr.Checkbox(False, label="Learn the replies of earlier turns too", render=False),
    )  # fmt: skip


def look(slug: str, number: int, *chosen: Any, progress: gr.Progress = gr.Progress()) -> tuple[str, str, str, str, Any]:
    """Base facts, template facts, the chosen pair's mask, its raw text, and the pair's number in range."""
    items = open_current(slug).pairs()
    if not items:
        raise PersonaError("There are no pairs yet. Write some in the first step.")
    progress(None, desc="Opening the base model's tokenizer (the first time about a minute) …")
    found, renderer = renderer_for(slug, *chosen)
    number = min(max(1, int(number or 1)), len(items))
    example = renderer.example(items[number - 1])
    card = f"<div class='card'>{mask_html(renderer, example)}</div>"
    return base_html(found), template_html(renderer), card, example.text, number


def base_html(found: base.Base) -> str:
    licence = escape(found.licence or "licence not stated")
    if found.licence_url:
        licence = f'<a href="{escape(found.licence_url)}" target="_blank" rel="noopener">{licence}</a>'
    shape = found.config().get("text_config") or found.config()
    return (
        f'<div class="quiet"><b>{escape(found.id)}</b> · {found.size / 1e6:,.0f} MB · '
        f"{shape.get('num_hidden_layers', '?')} layers · vocabulary {shape.get('vocab_size', 0):,} · {licence}</div>"
    )


def template_html(renderer: render.Renderer) -> str:
    stop = escape(renderer.tokenizer.decode([renderer.stop_id]))
    about = escape(renderer.template.about)
    name = escape(renderer.template.name)
    return f'<div class="quiet"><b>{name}</b>, a reply ends with <code>{stop}</code>. {about}</div>'


def check(slug: str, *chosen: Any) -> str:
    """Render every pair: totals, and each row that could not be trained on."""
    items = open_current(slug).pairs()
    _, renderer = renderer_for(slug, *chosen)
    examples = [renderer.example(p) for p in items]
    tokens, learned = sum(len(e.input_ids) for e in examples), sum(e.learned for e in examples)
    wrong = [f"pair {row}: {why}" for row, e in enumerate(examples, 1) for why in e.problems]
    facts = facts_html([
        ("pairs", f"{len(items):,}"),
        ("tokens", f"{tokens:,}"),
        ("learned", f"{learned / max(1, tokens):.0%}"),
        ("longest row", f"{max((len(e.input_ids) for e in examples), default=0):,}"),
    ])  # fmt: skip
    if wrong:
        more = [f"… and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        verdict = problems_html(wrong[:10] + more)
    else:
        good = "Every pair can be trained on: the reply and its stop token are learned, nothing is cut."
        verdict = f'<div class="good">{good}</div>'
    return f"<div class='card'>{facts}{verdict}</div>"


def build(page: Page, step: gr.Step) -> None:
    gr.Markdown("### What the model will learn, token by token\nThe same function prepares the training and the chat.")
    with gr.Row():
        with gr.Column(min_width=260):
            page.base.render()
            base_facts = gr.HTML()
        with gr.Column(min_width=260):
            page.template.render()
            template_facts = gr.HTML()
    with gr.Accordion("More choices", open=False), gr.Row():
        page.max_length.render()
        page.learn_history.render()
    with gr.Row(elem_classes="slim"):
        number = gr.Number(1, label="Pair", precision=0, minimum=1, elem_id="pair-number", scale=0, min_width=110)
        back = gr.Button("← Previous", scale=0, min_width=150)
        forward = gr.Button("Following →", scale=0, min_width=150)
    mask = gr.HTML(elem_id="mask")
    with gr.Accordion("The raw text", open=False):
        raw = gr.Code(language=None, wrap_lines=True, interactive=False, label="Exactly what the tokenizer gets")
    totals = gr.HTML(elem_id="totals")
    go = gr.Button("Next: Train →", variant="primary", scale=0, min_width=170, elem_id="to-train")

    chosen = [page.base, page.template, page.max_length, page.learn_history]
    looking = {"fn": shown(look), "inputs": [page.slug, number, *chosen],
               "outputs": [base_facts, template_facts, mask, raw, number], "api_visibility": "private"}  # fmt: skip
    gr.on([step.select, *(c.change for c in chosen)], **looking, show_progress_on=[mask]).success(
        shown(check), [page.slug, *chosen], totals, api_visibility="private", show_progress_on=[totals]
    )
    number.change(**looking, show_progress="hidden")
    page.pair.change(lambda n: n, page.pair, number, **QUIET)
    back.click(lambda n: max(1, int(n or 1) - 1), number, number, **QUIET)
    forward.click(lambda n: int(n or 1) + 1, number, number, **QUIET)
    go.click(lambda: gr.Walkthrough(selected=TRAIN), None, page.steps, **QUIET)
