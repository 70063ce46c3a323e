"""Step 2, Template: which base, which chat template, and what exactly is learned."""

from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import BaseError, Message, PersonaError, TemplateError, join
from persona.models import base, bundled, catalogue, stop_token
from persona.store import persona_folder
from persona.store.files import write_atomic
from persona.template import chat_template, compatibility, placeholders, render, sandbox, select
from persona.ui import navigation
from persona.ui.i18n import CHINESE, language, localize, localized, t
from persona.ui.navigation import TEMPLATE, TRAIN
from persona.ui.page import QUIET, Page, RenderSettings, open_current_persona, open_page_renderer, show_errors
from persona.ui.widgets import bars_html, facts_html, mask_html, problems_html

OWN_TEMPLATE_FILE = "template.jinja"  # in the persona's folder
HISTOGRAM_BARS = 28
CLEAR_DIFFERENCE_NATS = 0.1  # nats per token; another choice of pairs changes the loss by less


class PairView(NamedTuple):
    """One pair as the model sees it: components, or the values of show_pair for them."""

    base_facts: Any
    template_facts: Any
    mask: Any
    raw_text: Any
    number: Any


NO_PAIR = PairView("", "", "", "", 1)


def make_template_settings() -> RenderSettings:
    """The components of this step's settings, made before the steps because several of them read these."""
    return RenderSettings(
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
    choices = []
    for name, title, about in base.list_base_choices():
        label = Message("{title} ({about})", title=title, about=about) if about else Message.of(title)
        choices.append((localize(label, label.translated(CHINESE)), name))
    return choices


def show_pair(slug: str, number: int, *inputs: Any, progress: gr.Progress = gr.Progress()) -> PairView:
    """The pair `number` (from 1; the nearest that exists). inputs: the RenderSettings."""
    settings = RenderSettings(*inputs)
    pairs = open_current_persona(slug).pairs()
    if not pairs:
        raise PersonaError("There are no pairs yet. Write some in the first step.")
    known = catalogue.find_known_model(str(settings.base or ""))
    progress(None, desc=t("Loading the base model's tokenizer (about a minute the first time) …") if not known else t(
        "Loading {id}; if it is not on this machine, it is downloaded first: {about} …", id=known.id,
        about=localized(known.about),
    ))  # fmt: skip
    model, renderer = open_page_renderer(slug, settings, progress)
    number = min(max(1, int(number or 1)), len(pairs))
    example = renderer.render_example(pairs[number - 1])
    mask = f"<div class='card'>{mask_html(renderer, example)}</div>"
    return PairView(base_html(model), template_html(model, renderer), mask, example.text, number)


def turn_to_pair(slug: str, number: int, *inputs: Any) -> PairView:
    """show_pair, or nothing while there is none."""
    return show_pair(slug, number, *inputs) if slug and open_current_persona(slug).pairs() else NO_PAIR


def show_step(
    shown_step: int,
    slug: str,
    number: int,
    accepted: RenderSettings,
    *inputs: Any,
    progress: gr.Progress = gr.Progress(),
) -> tuple[Any, ...]:
    """show_settings, unless another step is shown."""
    if shown_step != TEMPLATE:
        return *PairView(*[gr.skip() for _ in NO_PAIR]), *[gr.skip() for _ in inputs], accepted
    return show_settings(slug, number, accepted, *inputs, progress=progress)


def show_settings(
    slug: str, number: int, accepted: RenderSettings, *inputs: Any, progress: gr.Progress = gr.Progress()
) -> tuple[Any, ...]:
    """A PairView, the RenderSettings and the accepted ones. Settings that are refused give way to those accepted last.

    inputs: the RenderSettings as they are chosen now. Nothing is shown while there is no pair to show.
    """
    settings, unchanged = RenderSettings(*inputs), RenderSettings(*[gr.skip() for _ in inputs])
    if not slug or not open_current_persona(slug).pairs():
        return *NO_PAIR, *unchanged, accepted
    try:
        return *show_pair(slug, number, *settings, progress=progress), *unchanged, settings
    except (BaseError, TemplateError) as e:
        if settings == accepted:
            raise
        accepted = accepted._replace(template=find_template(slug, accepted.template))
        shown = show_pair(slug, number, *accepted, progress=progress)
        back = t("Nothing was changed: the base is still {base}, the template {template}.", base=accepted.base,
                 template=Path(accepted.template).name)  # fmt: skip
        problem = escape(localized(e.message)).replace("\n", "<br>")
        gr.Warning(f"{problem}<br>{escape(back)}", title=t("That was refused"))
        return *shown, *accepted._replace(template=template_dropdown(slug, accepted.template)), accepted


def show_persona(
    shown_step: int, slug: str, accepted: RenderSettings, *inputs: Any, progress: gr.Progress = gr.Progress()
) -> tuple[Any, ...]:
    """show_settings for a persona that was just opened, with its own template if it has one.

    Nothing of the persona before stays, and nothing is rendered while another step is shown.
    """
    template = template_dropdown(slug, "own")
    settings = RenderSettings(*inputs)._replace(template=find_template(slug, "own"))
    if shown_step != TEMPLATE:
        return *NO_PAIR, *RenderSettings(*[gr.skip() for _ in inputs])._replace(template=template), accepted
    shown = show_settings(slug, 1, accepted, *settings, progress=progress)
    view, chosen = PairView(*shown[: len(NO_PAIR)]), RenderSettings(*shown[len(NO_PAIR) : -1])
    return *view, *chosen._replace(template=template), shown[-1]


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


def score_with_base(slug: str, *inputs: Any, progress: gr.Progress = gr.Progress()) -> str:
    """The untrained base's loss on the replies under the chosen template and under others. inputs: RenderSettings."""
    from persona.compare import session
    from persona.judge import template_scores

    persona = open_current_persona(slug)
    progress(None, desc=t("Loading the base and scoring some of your pairs …"))
    model, renderer = open_page_renderer(slug, RenderSettings(*inputs), progress)
    own = select.choose_template(renderer.tokenizer, persona.card().language)
    scored = template_scores.score_templates(session.open_model(model), renderer, own, persona.pairs())
    chosen = renderer.template.name
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


def adopt_template(slug: str, text: str, *inputs: Any) -> tuple[gr.Dropdown, str]:
    """Check the user's own template against the base, save it with the persona, and select it.

    inputs: the RenderSettings. Raises TemplateError, with nothing saved.
    """
    settings = RenderSettings(*inputs)
    persona = open_current_persona(slug)
    if not text.strip():
        raise PersonaError("Paste a template first, or start from the chosen one.")
    _, renderer = open_page_renderer(slug, settings._replace(template="auto"))
    template = chat_template.ChatTemplate("your own", text)
    if problems := compatibility.find_incompatibilities(renderer.tokenizer, template):
        raise TemplateError(join("\n", problems))
    write_atomic(persona.path / OWN_TEMPLATE_FILE, text)
    good = t("It fits this base. It is saved with the persona, and selected.")
    return template_dropdown(slug, "own"), f"<div class='good'>{good}</div>"


def chosen_template_text(slug: str, *inputs: Any) -> str:
    """The source of the chosen template. inputs: the RenderSettings."""
    return open_page_renderer(slug, RenderSettings(*inputs))[1].template.text


def read_template_upload(file: str) -> str:
    """The text of an uploaded template. Raises TemplateError when the file is far too large for one."""
    path = Path(file)
    if path.stat().st_size > 4 * sandbox.MAX_TEMPLATE:
        raise TemplateError("{name}: too large for a chat template.", name=path.name)
    return path.read_text(encoding="utf-8", errors="replace")


def list_templates(slug: str) -> list[tuple[str, str]]:
    """(label, value) of the templates to choose from; the persona's own is a path."""
    choices = [("auto", "auto"), *((name, name) for name in chat_template.shipped_templates())]
    own = persona_folder.find_persona(slug).path / OWN_TEMPLATE_FILE if slug else None
    if own and own.is_file():
        choices.insert(1, (t("your own"), str(own)))
    return choices


def find_template(slug: str, chosen: str) -> str:
    """`chosen` if it can be chosen for this persona, else "auto"; "own" is the persona's own template."""
    own = str(persona_folder.find_persona(slug).path / OWN_TEMPLATE_FILE) if slug else ""
    value = own if chosen == "own" else chosen
    return value if value in [v for _, v in list_templates(slug)] else "auto"


def template_dropdown(slug: str, chosen: str) -> gr.Dropdown:
    """The templates to choose from, `chosen` selected ("own": the persona's own template)."""
    return gr.Dropdown(list_templates(slug), value=find_template(slug, chosen))


def check_shown_persona(shown_step: int, slug: str, *inputs: Any) -> str:
    """check_all_pairs, unless another step is shown."""
    return check_all_pairs(slug, *inputs) if shown_step == TEMPLATE else ""


def check_all_pairs(slug: str, *inputs: Any) -> str:
    """Render every pair: totals, and the rows that cannot be trained on. inputs: the RenderSettings."""
    if not slug or not (pairs := open_current_persona(slug).pairs()):
        return ""
    _, renderer = open_page_renderer(slug, RenderSettings(*inputs))
    examples = list(renderer.iterate_examples(pairs))
    tokens, learned = sum(len(e.input_ids) for e in examples), sum(e.learned for e in examples)
    problems = [
        Message("pair {row}: {why}", row=row, why=why) for row, e in enumerate(examples, 1) for why in e.problems
    ]
    facts = facts_html([
        (t("pairs"), f"{len(pairs):,}"),
        (t("tokens"), f"{tokens:,}"),
        (t("learned"), f"{learned / max(1, tokens):.0%}"),
        (t("longest row"), f"{max((len(e.input_ids) for e in examples), default=0):,}"),
    ])  # fmt: skip
    if problems:
        more = [t("… and {n} more", n=len(problems) - 10)] if len(problems) > 10 else []
        verdict = problems_html(problems[:10] + more)
    else:
        good = t("Every pair can be trained on: the reply and its stop token are learned, nothing is cut.")
        verdict = f'<div class="good">{good}</div>'
    lengths = length_histogram_html([len(e.input_ids) for e in examples], renderer.max_length)
    figures = f"<details><summary>{t('Figures')}</summary>{facts}{lengths}</details>"
    return f"<div class='card'>{verdict}{figures}</div>"


class _Controls(NamedTuple):
    """The components of the step beside the render settings."""

    view: PairView
    back: gr.Button
    forward: gr.Button
    totals: gr.HTML
    score: gr.Button
    scores: gr.HTML
    own_template: gr.Code
    start_from_chosen: gr.Button
    upload: gr.UploadButton
    use: gr.Button
    use_result: gr.HTML


def build(page: Page) -> None:
    controls = _build_layout(page.render_settings)
    navigation.build_next_button(t("Next: Train →"), TRAIN, page)
    _connect_events(page, controls)


def _build_layout(settings: RenderSettings) -> _Controls:
    gr.Markdown(
        t(
            "### What the model will learn\nEvery pair becomes one text, in which the model reads the grey part and "
            "learns to write the green part. Everything is chosen for you: have a look at a pair, then go on to Train."
        )
    )
    settings.base.render()
    with gr.Row(elem_classes="slim"):
        number = gr.Number(1, label=t("Pair"), precision=0, minimum=1, elem_id="pair-number", scale=0, min_width=110)
        back = gr.Button(t("← Previous"), scale=0, min_width=150)
        forward = gr.Button(t("Next →"), scale=0, min_width=150)
    mask = gr.HTML(elem_id="mask")
    totals = gr.HTML(elem_id="totals")
    with gr.Accordion(t("Details"), open=False, elem_id="template-details"):
        base_facts = gr.HTML()
        settings.template.render()
        template_facts = gr.HTML()
        with gr.Row():
            settings.max_length.render()
            settings.learn_history.render()
        raw = gr.Code(language=None, wrap_lines=True, interactive=False, label=t("Exactly what the tokenizer gets"))
        score = gr.Button(t("Score it with the base"), scale=0, min_width=230, elem_id="score")
        scores = gr.HTML(elem_id="scored")
        own_template = _build_own_template()
    view = PairView(base_facts, template_facts, mask, raw, number)
    return _Controls(view, back, forward, totals, score, scores, *own_template)


def _build_own_template() -> tuple[gr.Code, gr.Button, gr.UploadButton, gr.Button, gr.HTML]:
    with gr.Accordion(t("Your own template"), open=False):
        gr.Markdown(
            t(  # the browser takes the first closing brace for the end of the text
                "Jinja, as in `tokenizer_config.json`, with <code>&#123;% generation %&#125;</code> … "
                "<code>&#123;% endgeneration %&#125;</code> around the reply and its stop token. It is checked before "
                "it is used, and runs in a sandbox."
            ),
            elem_classes="quiet",
        )
        text = gr.Code(
            language="jinja2", label=t("Template"), lines=8, max_lines=24, wrap_lines=True, elem_id="own-template"
        )
        with gr.Row():
            start_from_chosen = gr.Button(t("Start from the chosen one"))
            upload = gr.UploadButton(t("Upload a .jinja file"), file_types=[".jinja", ".j2", ".txt"])
            use = gr.Button(t("Check and use it"), variant="primary", elem_id="use-template")
        return text, start_from_chosen, upload, use, gr.HTML()


def _connect_events(page: Page, c: _Controls) -> None:
    settings, number = page.render_settings, c.view.number
    accepted = gr.State(RenderSettings(*(setting.value for setting in settings)))
    outputs = [*c.view, *settings, accepted]
    last: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}
    gr.on(
        [page.shown_step.change, *(setting.change for setting in settings)], show_errors(show_step),
        [page.shown_step, page.slug, number, accepted, *settings], outputs, show_progress_on=[c.view.mask], **last,
    ).success(
        show_errors(check_shown_persona), [page.shown_step, page.slug, *settings], c.totals,
        show_progress_on=[c.totals], **last,
    )  # fmt: skip
    page.slug.change(
        show_errors(show_persona), [page.shown_step, page.slug, accepted, *settings], outputs,
        show_progress_on=[c.view.mask], **last,
    ).success(
        show_errors(check_shown_persona), [page.shown_step, page.slug, *settings], c.totals,
        show_progress_on=[c.totals], **last,
    )  # fmt: skip
    number.change(
        show_errors(turn_to_pair), [page.slug, number, *settings], c.view, trigger_mode="always_last", **QUIET
    )
    page.pair_number.change(lambda n: n, page.pair_number, number, **QUIET)
    c.back.click(lambda n: max(1, int(n or 1) - 1), number, number, **QUIET)
    c.forward.click(lambda n: int(n or 1) + 1, number, number, **QUIET)
    c.score.click(
        show_errors(score_with_base), [page.slug, *settings], c.scores,
        api_visibility="private", show_progress_on=c.scores,
    )  # fmt: skip
    c.start_from_chosen.click(show_errors(chosen_template_text), [page.slug, *settings], c.own_template, **QUIET)
    c.upload.upload(show_errors(read_template_upload), c.upload, c.own_template, **QUIET)
    c.use.click(
        show_errors(adopt_template), [page.slug, c.own_template, *settings], [settings.template, c.use_result],
        api_visibility="private",
    )  # fmt: skip
