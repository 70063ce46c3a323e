"""Step 2, Template: which base, which chat template, and what exactly is learned."""

from dataclasses import replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona.errors import Message, PersonaError, TemplateError, join
from persona.models import base, bundled, catalogue, stop_token
from persona.store import persona_folder
from persona.store.files import write_atomic
from persona.template import chat_template, compatibility, render, sandbox, select
from persona.ui import navigation
from persona.ui.i18n import CHINESE, language, localize, localized, t
from persona.ui.page import QUIET, TRAIN, Page, open_current_persona, renderer_for, show_errors
from persona.ui.widgets import bars_html, facts_html, mask_html, problems_html

OWN_TEMPLATE_FILE = "template.jinja"  # in the persona's folder
HISTOGRAM_BARS = 28  # of the histogram
CLEAR_DIFFERENCE_NATS = 0.1  # nats per token; less is within what another choice of pairs would change


def make_template_settings() -> tuple[gr.Dropdown, gr.Dropdown, gr.Number, gr.Checkbox]:
    """The choices of this step, made before the steps because several of them read these."""
    return (
        gr.Dropdown(
            base_dropdown_choices(),
            value=bundled.DEFAULT_BASE,
            label=t("Base model"),
            allow_custom_value=True,
            elem_id="base",
            info=t("Or type any Hub id, modelscope:ORG/NAME, a folder or a .gguf file"),
            render=False,
        ),
        gr.Dropdown(
            ["auto", *chat_template.shipped_templates()],
            value="auto",
            label=t("Chat template"),
            info=t("auto: the base's own format"),
            elem_id="template",
            render=False,
        ),
        gr.Number(
            render.MAX_LENGTH,
            label=t("Longest row, in tokens"),
            precision=0,
            render=False,
            minimum=render.MAX_LENGTH_RANGE[0],
            maximum=render.MAX_LENGTH_RANGE[1],
            info=t("Longer rows are refused, never cut"),
        ),
        gr.Checkbox(False, label=t("Learn the replies of earlier turns too"), render=False),
    )


def base_dropdown_choices() -> list[tuple[str, str]]:
    """(label, name) of the bases to choose from."""
    made = []
    for name, title, about in base.list_base_choices():
        label = Message("{title} ({about})", title=title, about=about) if about else Message.of(title)
        made.append((localize(label, label.translated(CHINESE)), name))
    return made


def show_pair(
    slug: str, number: int, *chosen: Any, progress: gr.Progress = gr.Progress()
) -> tuple[str, str, str, str, Any]:
    """Base facts, template facts, the chosen pair's mask, its raw text, and the pair's number in range."""
    items = open_current_persona(slug).pairs()
    if not items:
        raise PersonaError("There are no pairs yet. Write some in the first step.")
    known = catalogue.find_known_model(str(chosen[0] or ""))
    progress(None, desc=t("Loading the base model's tokenizer (about a minute the first time) …") if not known else t(
        "Loading {id}; if it is not on this machine, it is downloaded first: {about} …", id=known.id,
        about=localized(known.about),
    ))  # fmt: skip
    found, renderer = renderer_for(slug, *chosen, progress=progress)
    number = min(max(1, int(number or 1)), len(items))
    example = renderer.render_example(items[number - 1])
    card = f"<div class='card'>{mask_html(renderer, example)}</div>"
    return base_html(found), template_html(found, renderer), card, example.text, number


def base_html(found: base.Base) -> str:
    licence = escape(found.licence or t("licence not stated"))
    if found.licence_url:
        licence = f'<a href="{escape(found.licence_url)}" target="_blank" rel="noopener">{licence}</a>'
    shape = found.config().get("text_config") or found.config()
    layers, words = (shape.get(k, "?") for k in ("num_hidden_layers", "vocab_size"))
    words = f"{words:,}" if isinstance(words, int) else escape(str(words))  # a config from outside says what it likes
    known = catalogue.find_known_model(found.id)
    facts = t("<b>{id}</b> · {size} MB · {layers} layers · vocabulary {words} · {licence}", id=escape(found.id),
              size=f"{found.size / 1e6:,.0f}", layers=escape(str(layers)), words=words, licence=licence)  # fmt: skip
    return f'<div class="quiet">{facts}</div>' + (known_model_html(known) if known else "")


def known_model_html(known: catalogue.KnownModel) -> str:
    memory = t("Memory, roughly, in bfloat16: {chat} GB to chat, {train} GB to train.", chat=f"{known.chat_gb:.0f}",
               train=f"{known.train_gb:.0f}")  # fmt: skip
    return f'<div class="quiet">{escape(known.zh if language() == "zh" else known.en)} {memory}</div>'


def template_html(found: base.Base, renderer: render.Renderer) -> str:
    stop = escape(renderer.tokenizer.decode([renderer.stop_id]))
    about = escape(t(renderer.template.about))
    name = escape(renderer.template.name)
    system = f"<div class='hint'>{note}</div>" if (note := system_prompt_note(renderer)) else ""
    unknown = (
        problems_html([stop_token.explain_untrained_stop(found, renderer)])
        if stop_token.explain_untrained_stop(found, renderer)
        else ""
    )
    ends = t("<b>{name}</b>, a reply ends with <code>{stop}</code>.", name=name, stop=stop)
    return f'<div class="quiet">{ends} {about}</div>{system}{unknown}'


def system_prompt_note(renderer: render.Renderer) -> str:
    """What this format does with the system prompt, where it does not simply have the role."""
    asked = replace(renderer, system="Zq0sys").render_prompt([], "Zq1ask").text
    folded = replace(renderer, system="").render_prompt([], "Zq0sys\n\nZq1ask").text
    if not renderer.system.strip():
        return ""
    if "Zq0sys" not in asked:
        return t("This format has no place for a system prompt: yours is left out.")
    return t("This format has no system role: your system prompt opens the first question.") if asked == folded else ""


def length_histogram_html(lengths: list[int], limit: int) -> str:
    """A histogram of row lengths in tokens, with the line of the longest that is allowed."""
    top = max([*lengths, 1])
    top = max(top, limit) if limit < 2 * top else top
    width = max(1, -(-top // HISTOGRAM_BARS))
    counts = [0] * HISTOGRAM_BARS
    for n in lengths:
        counts[min(HISTOGRAM_BARS - 1, (n - 1) // width)] += 1

    def bar(n: int, count: int) -> str:
        kind = "none" if not count else "long" if n * width >= limit else "fits"
        title = t("{first}–{last} tokens: {n} pairs", first=n * width + 1, last=(n + 1) * width, n=f"{count:,}")
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


def score_with_base(slug: str, *chosen: Any, progress: gr.Progress = gr.Progress()) -> str:
    """How likely the base finds the pairs' replies under this template and under others."""
    from persona.compare import session
    from persona.judge import template_scores

    persona = open_current_persona(slug)
    progress(None, desc=t("Loading the base and scoring some of your pairs …"))
    found, renderer = renderer_for(slug, *chosen, progress=progress)
    own = select.choose_template(renderer.tokenizer, persona.card().language)
    scored = template_scores.score_templates(session.open_model(found), renderer, own, persona.pairs())
    mine = renderer.template.name
    bars = bars_html(
        [(t("{name} (chosen)", name=name) if name == mine else name, nll, f"{nll:.2f}") for name, nll in scored]
    )
    (best, least), chosen_nll = scored[0], dict(scored)[renderer.template.name]
    if chosen_nll - least < CLEAR_DIFFERENCE_NATS:
        words = t(("The chosen template suits this base: no other template gives your pairs a clearly lower loss."))
    else:
        words = t(
            ("With this template the base has a loss of {chosen} on your pairs, with “{best}” {least}: it "
"knows that format better. Is the chosen template made for this base?"),
            chosen=f"{chosen_nll:.2f}", best=escape(best), least=f"{least:.2f}",
        )  # fmt: skip
    unit = t("Loss of the untrained base in nats per learned token; lower is better.")
    return f"<div class='card'><div>{words}</div>{bars}<div class='quiet'>{unit}</div></div>"


def adopt_template(slug: str, text: str, *chosen: Any) -> tuple[Any, str]:
    """Check a template of the user's own against the base and their pairs, keep it with the persona, and choose it."""
    persona = open_current_persona(slug)
    if not text.strip():
        raise PersonaError("Paste a template first, or start from the chosen one.")
    _, renderer = renderer_for(slug, chosen[0], "auto", *chosen[2:])
    wrong = compatibility.find_incompatibilities(renderer.tokenizer, chat_template.ChatTemplate("your own", text))
    if wrong:
        raise TemplateError(join("\n", wrong))
    write_atomic(persona.path / OWN_TEMPLATE_FILE, text)
    good = t("It fits this base. It is saved with the persona, and selected.")
    return template_dropdown(slug, "own"), f"<div class='good'>{good}</div>"


def chosen_template_text(slug: str, *chosen: Any) -> str:
    return renderer_for(slug, *chosen)[1].template.text


def read_template_upload(file: str) -> str:
    path = Path(file)
    if path.stat().st_size > 4 * sandbox.MAX_TEMPLATE:
        raise TemplateError("{name}: too large for a chat template.", name=path.name)
    return path.read_text(encoding="utf-8", errors="replace")


def template_dropdown(slug: str, chosen: str) -> gr.Dropdown:
    """The templates to choose from; chosen: "own" is the persona's."""
    own = persona_folder.find_persona(slug).path / OWN_TEMPLATE_FILE if slug else None
    listed = [("auto", "auto"), *((name, name) for name in chat_template.shipped_templates())]
    if own and own.is_file():
        listed.insert(1, (t("your own"), str(own)))
    known = [value for _, value in listed]
    value = str(own) if chosen == "own" and str(own) in known else chosen if chosen in known else "auto"
    return gr.Dropdown(listed, value=value)


def check_all_pairs(slug: str, *chosen: Any) -> str:
    """Render every pair: totals, and each row that could not be trained on."""
    items = open_current_persona(slug).pairs()
    _, renderer = renderer_for(slug, *chosen)
    examples = [renderer.render_example(p) for p in items]
    tokens, learned = sum(len(e.input_ids) for e in examples), sum(e.learned for e in examples)
    wrong = [t("pair {row}: {why}", row=row, why=why) for row, e in enumerate(examples, 1) for why in e.problems]
    facts = facts_html([
        (t("pairs"), f"{len(items):,}"),
        (t("tokens"), f"{tokens:,}"),
        (t("learned"), f"{learned / max(1, tokens):.0%}"),
        (t("longest row"), f"{max((len(e.input_ids) for e in examples), default=0):,}"),
    ])  # fmt: skip
    if wrong:
        more = [t("… and {n} more", n=len(wrong) - 10)] if len(wrong) > 10 else []
        verdict = problems_html(wrong[:10] + more)
    else:
        good = t("Every pair can be trained on: the reply and its stop token are learned, nothing is cut.")
        verdict = f'<div class="good">{good}</div>'
    lengths = length_histogram_html([len(e.input_ids) for e in examples], renderer.max_length)
    return f"<div class='card'>{facts}{lengths}{verdict}</div>"


def build(page: Page, step: gr.Step) -> None:
    gr.Markdown(
        t(("### What the model will learn, token by token\nTraining and chat use the same rendering function."))
    )
    with gr.Row():
        with gr.Column(min_width=260):
            page.base.render()
            base_facts = gr.HTML()
        with gr.Column(min_width=260):
            page.template.render()
            template_facts = gr.HTML()
    with gr.Accordion(t("More choices"), open=False), gr.Row():
        page.max_length.render()
        page.learn_history.render()
    with gr.Row(elem_classes="slim"):
        number = gr.Number(1, label=t("Pair"), precision=0, minimum=1, elem_id="pair-number", scale=0, min_width=110)
        back = gr.Button(t("← Previous"), scale=0, min_width=150)
        forward = gr.Button(t("Next →"), scale=0, min_width=150)
    mask = gr.HTML(elem_id="mask")
    with gr.Accordion(t("Raw text"), open=False):
        raw = gr.Code(language=None, wrap_lines=True, interactive=False, label=t("Exactly what the tokenizer gets"))
    totals = gr.HTML(elem_id="totals")
    with gr.Row():
        weigh = gr.Button(t("Score it with the base"), scale=0, min_width=230, elem_id="score")
    scored = gr.HTML(elem_id="scored")
    with gr.Accordion(t("Your own template"), open=False):
        gr.Markdown(
            t(  # the browser takes the first closing brace for the end of the text
                (
                    "Jinja, as in `tokenizer_config.json`, with <code>&#123;% generation %&#125;</code> … "
                    "<code>&#123;% endgeneration %&#125;</code> around the reply and its stop token. It is "
                    "checked before it is used, and runs in a sandbox."
                )
            ),
            elem_classes="quiet",
        )
        text = gr.Code(
            language="jinja2", label=t("Template"), lines=8, max_lines=24, wrap_lines=True, elem_id="own-template"
        )
        with gr.Row():
            begin = gr.Button(t("Start from the chosen one"))
            upload = gr.UploadButton(t("Upload a .jinja file"), file_types=[".jinja", ".j2", ".txt"])
            use = gr.Button(t("Check and use it"), variant="primary", elem_id="use-template")
        used = gr.HTML()
    go = gr.Button(t("Next: Train →"), variant="primary", scale=0, min_width=170, elem_id="to-train")

    chosen = [page.base, page.template, page.max_length, page.learn_history]
    looking = {"fn": show_errors(show_pair), "inputs": [page.slug, number, *chosen],
               "outputs": [base_facts, template_facts, mask, raw, number], "api_visibility": "private"}  # fmt: skip
    gr.on([step.select, *(c.change for c in chosen)], **looking, show_progress_on=[mask]).success(
        show_errors(check_all_pairs), [page.slug, *chosen], totals, api_visibility="private", show_progress_on=[totals]
    )
    number.change(**looking, show_progress="hidden")
    page.pair.change(lambda n: n, page.pair, number, **QUIET)
    back.click(lambda n: max(1, int(n or 1) - 1), number, number, **QUIET)
    forward.click(lambda n: int(n or 1) + 1, number, number, **QUIET)
    page.slug.change(lambda slug: template_dropdown(slug, "own" if slug else "auto"), page.slug, page.template, **QUIET)
    weigh.click(
        show_errors(score_with_base), [page.slug, *chosen], scored, api_visibility="private", show_progress_on=scored
    )
    begin.click(show_errors(chosen_template_text), [page.slug, *chosen], text, **QUIET)
    upload.upload(show_errors(read_template_upload), upload, text, **QUIET)
    use.click(show_errors(adopt_template), [page.slug, text, *chosen], [page.template, used], api_visibility="private")
    go.click(show_errors(partial(navigation.open_step, TRAIN)), page.slug, page.steps, **QUIET)
