"""Step 2: what is known of a base and a template, the lengths of rows, and how likely the base finds each template."""

from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from persona.models import base, catalogue, stop_token, zerogpu
from persona.template import placeholders, render, select
from persona.ui.i18n import language, t
from persona.ui.page import RenderSettings, open_current_persona, open_page_renderer, show_errors
from persona.ui.widgets import bars_html, problems_html

HISTOGRAM_BARS = 28
CLEAR_DIFFERENCE_NATS = 0.1  # nats per token; another choice of pairs changes the loss by less


def base_html(model: base.Base) -> str:
    """Size, layers, vocabulary and licence of a base, with what the catalogue knows of it."""
    licence = escape(model.licence or t("licence not stated"))
    if model.licence_url:
        licence = f'<a href="{escape(model.licence_url)}" target="_blank" rel="noopener">{licence}</a>'
    config = model.config().get("text_config") or model.config()
    layers, vocabulary = (config.get(k, "?") for k in ("num_hidden_layers", "vocab_size"))
    # a config from outside can hold anything
    vocabulary = f"{vocabulary:,}" if isinstance(vocabulary, int) else escape(str(vocabulary))
    known = catalogue.find_known_model(model.id)
    facts = t(
        "<b>{id}</b> · {size} MB · {layers} layers · vocabulary {words} · {licence}",
        id=escape(model.id), size=f"{model.size / 1e6:,.0f}", layers=escape(str(layers)), words=vocabulary,
        licence=licence,
    )  # fmt: skip
    return f'<div class="quiet">{facts}</div>' + (known_model_html(known) if known else "")


def known_model_html(known: catalogue.KnownModel) -> str:
    memory = t("Memory, roughly, in bfloat16: {chat} GB to chat, {train} GB to train.", chat=f"{known.chat_gb:.0f}",
               train=f"{known.train_gb:.0f}")  # fmt: skip
    return f'<div class="quiet">{escape(known.zh if language() == "zh" else known.en)} {memory}</div>'


def template_html(model: base.Base, renderer: render.Renderer) -> str:
    """The template's name, stop token and description, and what is special about it for this base and prompt."""
    stop = escape(renderer.tokenizer.decode([renderer.stop_id]))
    about = escape(t(renderer.template.about))
    name = escape(renderer.template.name)
    system = f"<div class='hint'>{note}</div>" if (note := system_prompt_note(renderer)) else ""
    untrained = stop_token.explain_untrained_stop(model, renderer)
    warning = problems_html([untrained]) if untrained else ""
    ends = t("<b>{name}</b>, a reply ends with <code>{stop}</code>.", name=name, stop=stop)
    return f'<div class="quiet">{ends} {about}</div>{system}{warning}'


def system_prompt_note(renderer: render.Renderer) -> str:
    """What becomes of the system prompt in a format without a system role; "" where it has one."""
    if not renderer.system.strip():
        return ""
    prompt = replace(renderer, system=placeholders.SYSTEM).render_prompt([], placeholders.USERS[0]).text
    folded = replace(renderer, system="").render_prompt([], f"{placeholders.SYSTEM}\n\n{placeholders.USERS[0]}").text
    if placeholders.SYSTEM not in prompt:
        return t("This format has no place for a system prompt: yours is left out.")
    return t("This format has no system role: your system prompt opens the first question.") if prompt == folded else ""


def length_histogram_html(lengths: list[int], limit: int) -> str:
    """A histogram of row lengths in tokens, with a dashed line at the limit."""
    top = max([*lengths, 1])
    top = max(top, limit) if limit < 2 * top else top
    width = max(1, -(-top // HISTOGRAM_BARS))
    counts = [0] * HISTOGRAM_BARS
    for n in lengths:
        counts[min(HISTOGRAM_BARS - 1, (n - 1) // width)] += 1

    def bar(n: int, count: int) -> str:
        kind = "none" if not count else "long" if n * width >= limit else "fits"
        title = t("{first}–{last} token(s): {n} pair(s)", first=n * width + 1, last=(n + 1) * width, n=f"{count:,}")
        return f'<div class="{kind}" style="height:{100 * count / max([*counts, 1]):.0f}%" title="{title}"></div>'

    bars = "".join(bar(n, count) for n, count in enumerate(counts))
    line = (
        f'<div class="limit" style="left:{100 * limit / (HISTOGRAM_BARS * width):.1f}%"></div>'
        if limit < HISTOGRAM_BARS * width
        else ""
    )
    figures = {"longest": f"{max([*lengths, 0]):,}", "limit": f"{limit:,}"}
    about = t("Lengths of the rows: up to {longest} tokens, {limit} are allowed.", **figures)
    if line:
        about = t("Lengths of the rows: up to {longest} tokens, {limit} are allowed (dashed line).", **figures)
    return f'<div class="lengths" role="img" aria-label="{about}">{bars}{line}</div><div class="quiet">{about}</div>'


def score_with_base(slug: str, *inputs: Any, progress: gr.Progress = gr.Progress()) -> str:
    """The untrained base's loss on the replies under the chosen template and under others. inputs: RenderSettings."""
    progress(None, desc=t("Loading the base and scoring some of your pairs …"))
    open_page_renderer(slug, RenderSettings(*inputs), progress)  # a download takes no time of a GPU
    chosen, scored = _score_templates(slug, RenderSettings(*inputs))
    bars = bars_html(
        [(t("{name} (chosen)", name=name) if name == chosen else name, nll, f"{nll:.2f}") for name, nll in scored]
    )
    (best, least), chosen_nll = scored[0], dict(scored)[chosen]
    if chosen_nll - least < CLEAR_DIFFERENCE_NATS:
        words = t("The chosen template suits this base: no other template gives your pairs a clearly lower loss.")
    else:
        words = t(
            "With this template the base has a loss of {chosen} on your pairs, with “{best}” {least}: it knows that "
            "format better. Is the chosen template made for this base?",
            chosen=f"{chosen_nll:.2f}",
            best=escape(best),
            least=f"{least:.2f}",
        )
    unit = t("Loss of the untrained base in nats per learned token; lower is better.")
    return f"<div class='card'><div>{words}</div>{bars}<div class='quiet'>{unit}</div></div>"


@zerogpu.request_gpu(zerogpu.GRANTED_SECONDS)
@show_errors
def _score_templates(slug: str, settings: RenderSettings) -> tuple[str, list[tuple[str, float]]]:
    """The name of the chosen template; (name, nats per learned token) of each template, the best first."""
    from persona.compare import session
    from persona.judge import template_scores

    persona = open_current_persona(slug)
    model, renderer = open_page_renderer(slug, settings)
    own = select.choose_template(renderer.tokenizer, persona.card().language)
    return renderer.template.name, template_scores.score_templates(
        session.open_model(model), renderer, own, persona.pairs()
    )
