"""Step 2, Template: which base, which chat template, and what exactly is learned."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import BaseError, Message, PersonaError, TemplateError, join
from persona.models import base, bundled, catalogue, open_renderer
from persona.template import chat_template, render
from persona.ui import navigation
from persona.ui.i18n import CHINESE, localize, localized, t
from persona.ui.navigation import TEMPLATE, TRAIN
from persona.ui.page import (
    QUIET,
    SHOWING,
    Page,
    RenderSettings,
    in_lane,
    on_latest,
    open_current_persona,
    open_page_renderer,
    run_in_order,
    show_errors,
)
from persona.ui.steps.template.facts import base_html, length_histogram_html, score_with_base, template_html
from persona.ui.steps.template.own_template import (
    adopt_template,
    build_own_template,
    chosen_template_text,
    find_template,
    read_template_upload,
    template_dropdown,
)
from persona.ui.widgets import FORWARD_CLICKS_JS, facts_html, mask_html, problems_html


class PairView(NamedTuple):
    """One pair as the model sees it: components, or the values of show_pair for them."""

    base_facts: Any
    template_facts: Any
    mask: Any
    raw_text: Any
    number: Any


NO_PAIR = PairView("", "", "", "", 1)
MAX_REFUSED_PAIRS = 10  # that are named


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
            label=t("Longest row, in tokens (max_length)"),
            precision=0,
            render=False,
            info=t("Longer rows are refused, never cut"),
            elem_id="max-length",
        ),
        gr.Checkbox(False, label=t("Learn the replies of earlier turns too"), render=False),
        gr.Radio(
            [
                (t("None: it answers as a persona speaks"), "none"),
                (t("Keep: it goes on thinking by itself, and learns the reply alone"), "keep"),
                (t("Train: it learns the thinking that the pairs hold, too"), "train"),
            ],
            value="none",
            label=t("Thinking"),
            info=t("This base can reason in a <think> block before it answers"),
            visible=False,
            render=False,
            elem_id="thinking",
        ),
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
        settings, shown = _show_chosen(slug, number, settings, accepted, progress)
        return *shown, *unchanged._replace(thinking=_thinking_radio(slug, settings)), settings
    except (BaseError, TemplateError) as e:
        if settings == accepted:
            raise
        accepted = accepted._replace(template=find_template(slug, accepted.template))
        shown = show_pair(slug, number, *accepted, progress=progress)
        back = t("Nothing was changed: the base is still {base}, the template {template}.", base=accepted.base,
                 template=Path(accepted.template).name)  # fmt: skip
        problem = escape(localized(e.message)).replace("\n", "<br>")
        gr.Warning(f"{problem}<br>{escape(back)}")
        radio = _thinking_radio(slug, accepted)
        return *shown, *accepted._replace(template=template_dropdown(slug, accepted.template), thinking=radio), accepted


def _show_chosen(
    slug: str, number: int, settings: RenderSettings, accepted: RenderSettings, progress: gr.Progress
) -> tuple[RenderSettings, PairView]:
    """The settings and their view. With another base or template than accepted, thinking is given up if it must be."""
    try:
        return settings, show_pair(slug, number, *settings, progress=progress)
    except TemplateError:
        if settings.thinking == "none" or settings[:2] == accepted[:2]:
            raise
    settings = settings._replace(thinking="none")
    return settings, show_pair(slug, number, *settings, progress=progress)


def _thinking_radio(slug: str, settings: RenderSettings) -> gr.Radio:
    """The choice of what a run does with thinking, where the base can think."""
    model, renderer = open_page_renderer(slug, settings)
    return gr.Radio(value=settings.thinking, visible=open_renderer.can_think(model, renderer))


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


def check_shown_persona(shown_step: int, slug: str, *inputs: Any) -> tuple[str, int]:
    """check_all_pairs, unless another step is shown."""
    return check_all_pairs(slug, *inputs) if shown_step == TEMPLATE else ("", 0)


def check_all_pairs(slug: str, *inputs: Any) -> tuple[str, int]:
    """Render every pair: totals and the rows that cannot be trained on, as HTML, and how many those are.

    inputs: the RenderSettings.
    """
    if not slug or not (pairs := open_current_persona(slug).pairs()):
        return "", 0
    _, renderer = open_page_renderer(slug, RenderSettings(*inputs))
    examples = list(renderer.iterate_examples(pairs))
    tokens, learned = sum(len(e.input_ids) for e in examples), sum(e.learned for e in examples)
    refused = {row: e.problems for row, e in enumerate(examples, 1) if e.problems}
    facts = facts_html([
        (t("pairs"), f"{len(pairs):,}"),
        (t("tokens"), f"{tokens:,}"),
        (t("learned"), f"{learned / max(1, tokens):.0%}"),
        (t("longest row"), f"{max((len(e.input_ids) for e in examples), default=0):,}"),
    ])  # fmt: skip
    if refused:
        verdict = "".join(_refused_pair_html(row, why) for row, why in list(refused.items())[:MAX_REFUSED_PAIRS])
        if (more := len(refused) - MAX_REFUSED_PAIRS) > 0:
            verdict += problems_html([t("… and {n} more", n=more)])
        if any(len(e.input_ids) > renderer.max_length for e in examples):
            verdict += f"<button class='tool' data-do='setting'>{t('Change the longest row')}</button>"
    else:
        good = t("Every pair can be trained on: the reply and its stop token are learned, nothing is cut.")
        verdict = f'<div class="good">{good}</div>'
    lengths = length_histogram_html([len(e.input_ids) for e in examples], renderer.max_length)
    figures = f"<details><summary>{t('Figures')}</summary>{facts}{lengths}</details>"
    return f"<div class='card'>{verdict}{figures}</div>", len(refused)


def _refused_pair_html(row: int, why: Sequence[str]) -> str:
    """What is wrong with a pair, and a button that shows the pair."""
    problems = problems_html([join("\n", [Message("pair {row}: {why}", row=row, why=w) for w in why])])
    return f"{problems}<button class='tool' data-do='pair' data-row='{row}'>{t('Show pair {n}', n=row)}</button>"


def show_refused(event: gr.EventData) -> tuple[Any, Any]:
    """The number of the clicked pair, or the opened details for the clicked setting."""
    if event._data["do"] == "pair":
        return int(event._data["row"]), gr.skip()
    return gr.skip(), gr.Accordion(open=True)


# once the details are open, or the pair is asked for
SHOW_REFUSED_JS = """() => requestAnimationFrame(() => {
  const setting = document.querySelector("#max-length input");
  if (setting?.offsetParent) setting.focus();
  else document.querySelector("#pair-number")?.scrollIntoView({ block: "center" });
})"""


class _Controls(NamedTuple):
    """The components of the step beside the render settings."""

    view: PairView
    back: gr.Button
    forward: gr.Button
    totals: gr.HTML
    details: gr.Accordion
    score: gr.Button
    scores: gr.HTML
    own_template: gr.Code
    start_from_chosen: gr.Button
    upload: gr.UploadButton
    use: gr.Button
    use_result: gr.HTML


def build(page: Page) -> None:
    controls = _build_layout(page)
    navigation.build_next_button(t("Next: Train →"), TRAIN, page)
    _connect_events(page, controls)


def _build_layout(page: Page) -> _Controls:
    settings, number = page.render_settings, page.previewed_pair
    gr.Markdown(
        t(
            "### What the model will learn\nEvery pair becomes one text, in which the model reads the grey part and "
            "learns to write the green part. Everything is chosen for you: have a look at a pair, then go on to Train."
        )
    )
    settings.base.render()
    with gr.Row(elem_classes="slim turn"):
        number.render()
        back = gr.Button(t("← Previous"), scale=0, min_width=120)
        forward = gr.Button(t("Next →"), scale=0, min_width=90)
    mask = gr.HTML(elem_id="mask")
    page.pair_role.render()
    totals = gr.HTML(elem_id="totals", js_on_load=FORWARD_CLICKS_JS)
    with gr.Accordion(t("Details"), open=False, elem_id="template-details") as details:
        base_facts = gr.HTML()
        settings.template.render()
        template_facts = gr.HTML()
        with gr.Row():
            settings.max_length.render()
            settings.learn_history.render()
        settings.thinking.render()
        raw = gr.Code(language=None, wrap_lines=True, interactive=False, label=t("Exactly what the tokenizer gets"))
        score = gr.Button(t("Score it with the base"), scale=0, min_width=230, elem_id="score")
        scores = gr.HTML(elem_id="scored")
        own_template = build_own_template()
    view = PairView(base_facts, template_facts, mask, raw, number)
    return _Controls(view, back, forward, totals, details, score, scores, *own_template)


def _connect_events(page: Page, c: _Controls) -> None:
    settings, number = page.render_settings, c.view.number
    accepted = gr.State(RenderSettings(*(setting.value for setting in settings)))
    outputs = [*c.view, *settings, accepted]
    last: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private"}
    lane = in_lane("template")
    on_latest(
        [page.shown_step.change, *(setting.change for setting in settings)],
        run_in_order(show_errors(show_step), "template"), [page.shown_step, page.slug, number, accepted, *settings],
        outputs, show_progress_on=[c.view.mask], **last, **lane,
    ).success(
        show_errors(check_shown_persona), [page.shown_step, page.slug, *settings], [c.totals, page.untrainable],
        show_progress_on=[c.totals], **last,
    )  # fmt: skip
    on_latest(
        page.slug.change, run_in_order(show_errors(show_persona), "template"),
        [page.shown_step, page.slug, accepted, *settings], outputs, show_progress_on=[c.view.mask], **last, **lane,
    ).success(
        show_errors(check_shown_persona), [page.shown_step, page.slug, *settings], [c.totals, page.untrainable],
        show_progress_on=[c.totals], **last,
    )  # fmt: skip
    number.change(
        run_in_order(show_errors(turn_to_pair), "template"), [page.slug, number, *settings], c.view, **SHOWING, **lane
    )
    page.pair_number.change(lambda n: n, page.pair_number, number, **QUIET)
    c.back.click(lambda n: max(1, int(n or 1) - 1), number, number, **QUIET)
    c.forward.click(lambda n: int(n or 1) + 1, number, number, **QUIET)
    refused = c.totals.click(show_refused, None, [number, c.details], **QUIET)
    refused.then(None, None, None, js=SHOW_REFUSED_JS, **QUIET)
    c.score.click(
        show_errors(score_with_base), [page.slug, *settings], c.scores,
        api_visibility="private", show_progress_on=c.scores,
    )  # fmt: skip
    c.start_from_chosen.click(show_errors(chosen_template_text), [page.slug, *settings], c.own_template, **QUIET)
    c.upload.upload(show_errors(read_template_upload), c.upload, c.own_template, **QUIET)
    c.use.click(
        show_errors(adopt_template), [page.slug, c.own_template, *settings], [settings.template, c.use_result],
        **QUIET,
    )  # fmt: skip
