"""Step 4, Compare: the same question to several voices at the same time."""

import secrets
from dataclasses import replace
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.compare.session import MAX_COLUMNS, MAX_STRENGTH
from persona.errors import PersonaError
from persona.models.sampling import Sampling
from persona.share import open_adapter
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.share.open_adapter import read_supplement
from persona.store import persona_folder, quotas
from persona.store.files import slugify
from persona.template.chat_template import shipped_templates
from persona.ui import navigation, voice_picker
from persona.ui.chosen import Chosen, ChosenView
from persona.ui.i18n import localized, t
from persona.ui.navigation import COMPARE, SHARE
from persona.ui.notices import show_info
from persona.ui.page import QUIET, Page, on_latest, open_current_persona, show_errors
from persona.ui.steps.compare import blind_vote_tab, judge_tab, questions_tab, train_on_votes
from persona.ui.steps.compare.chat_tab import build_chat_tab
from persona.ui.steps.compare.controls import CARD_SAMPLING, SamplingSettings
from persona.ui.steps.compare.loading import describe_opening
from persona.ui.steps.train import further

MAX_PROBES = 8  # shown as questions to click


def open_zip(file: str | None, chosen: Chosen, template: str | None = "", base: str | None = "") -> ChosenView:
    """template, base: of an adapter that does not say them itself."""
    if not file:
        return ChosenView.unchanged()
    opened = voice_picker.add_zip(file, read_supplement(template or "", (base or "").strip()))
    return ChosenView.showing(Chosen(chosen.persona, opened, by_hand=True))


def open_link(text: str, chosen: Chosen, template: str | None = "", base: str | None = "") -> ChosenView:
    """Download and check an adapter from the Hub, then choose it. template, base: as for open_zip()."""
    opened = voice_picker.add_link(text.strip(), read_supplement(template or "", (base or "").strip()))
    return ChosenView.showing(Chosen(chosen.persona, opened, by_hand=True))


class VoicesView(NamedTuple):
    """The voices that can stand beside the chosen adapter: the components, or the values for them."""

    other_voices: Any
    blend_with: Any


def refresh_voices(slug: str, adapter_id: str | None, other_voices: list[str], blend_with: str | None) -> VoicesView:
    """The voices there are now; what was selected stays if it still exists."""
    others = voice_picker.list_other_voices(slug, adapter_id or "")
    adapters = voice_picker.list_adapters(slug)
    known = {i for _, i in others}
    kept = [v for v in other_voices or [] if v in known or _is_blend_of(adapters, v)]
    blends = [v for v in adapters if v[1] != adapter_id]
    blend = gr.Dropdown(blends, value=blend_with if blend_with in {i for _, i in blends} else None)
    return VoicesView(_others_dropdown(others, adapter_id, kept), blend)


def _is_blend(voice: str) -> bool:
    return AdapterRef.parse_id(voice).kind is RefKind.BLEND


def _is_blend_of(adapters: list[tuple[str, str]], voice: str) -> bool:
    """Whether it blends one of these adapters, given as (label, id)."""
    return _is_blend(voice) and str(AdapterRef.parse_id(voice).parts[1]) in {i for _, i in adapters}


def _others_dropdown(voices: list[tuple[str, str]], adapter_id: str | None, selected: list[str]) -> gr.Dropdown:
    """The voices beside the chosen adapter, and the blends that are selected."""
    blends = [(localized(voice_picker.voice_label(v, adapter_id or "")), v) for v in selected if _is_blend(v)]
    others = [v for v in voices if v[1] != adapter_id]
    return gr.Dropdown([*others, *blends], value=[v for v in selected if v != adapter_id])


def add_blend(slug: str, adapter_id: str, other_voices: list[str], blend_with: str, weight: float) -> gr.Dropdown:
    """One more voice: the chosen adapter by `weight` and another one by the rest, at once."""
    if not blend_with:
        raise PersonaError("Choose a second adapter to blend with.")
    blend = str(AdapterRef.blend_with(weight, AdapterRef.parse_id(blend_with)))
    selected = list(dict.fromkeys([*(other_voices or []), blend]))
    voices = voice_picker.list_other_voices(slug, adapter_id)
    return _others_dropdown(voices, adapter_id, selected[-(MAX_COLUMNS - 1) :])


def save_blend(
    adapter_id: str, blend_with: str | None, weight: float, strength: float, rank: float | None, chosen: Chosen
) -> ChosenView:
    """Keep the blend, or without a second adapter the chosen one at its strength, as an adapter of its own; choose it.

    rank: to reduce it to; 0 or None: exact.
    """
    quotas.require_disk_quota()
    first = AdapterRef.parse_id(adapter_id)
    ref = replace(first, strength=strength)
    if blend_with:
        other = replace(AdapterRef.parse_id(blend_with), strength=1 - weight)
        ref = AdapterRef(RefKind.BLEND, parts=(replace(first, strength=weight), other))
    name = f"{slugify(voice_picker.find_card(adapter_id).name)}-blend-{secrets.token_hex(3)}"
    made = open_adapter.save_blend(ref, open_adapter.opened_dir() / name, int(rank or 0))
    show_info(t("Saved as {name}: rank {rank}, and {percent} % of the update is missing.", name=name, rank=made.rank,
                percent=f"{100 * made.error:.1f}"))  # fmt: skip
    return ChosenView.showing(Chosen(chosen.persona, str(AdapterRef(RefKind.OPENED, name)), by_hand=True))


def describe_adapter(slug: str, adapter_id: str) -> tuple[gr.Dataset, str]:
    """Questions to click, those that it was not trained on, and what is known of the adapter."""
    if not adapter_id:
        return gr.Dataset(samples=[], visible=False), ""
    if voice_picker.is_remote(adapter_id):
        return gr.Dataset(samples=[], visible=False), f"<div class='quiet'>{t('A model on another server.')}</div>"
    adapter = voice_picker.find_adapter(adapter_id)
    facts = {
        "name": escape(adapter.card.name), "base": escape(adapter.base_id), "template": escape(adapter.template.name),
    }  # fmt: skip
    about = t("{name} on {base}, template {template}", **facts)
    figures = adapter.facts.get("figures")
    if isinstance(figures, dict) and all(isinstance(figures.get(k), float) for k in ("base_nll", "adapter_nll")):
        before, after = (f"{figures[k]:.2f}" for k in ("base_nll", "adapter_nll"))
        about = t("{name} on {base}, template {template} · held-out loss during training {before} → {after}", **facts,
                  before=before, after=after)  # fmt: skip
    return offer_questions(adapter_id), f"<div class='quiet'>{about}</div>{_beside_html(slug, adapter_id)}"


def _beside_html(slug: str, adapter_id: str) -> str:
    """Where goes what is said to an adapter that is another persona's; "" for the persona's own."""
    other = voice_picker.find_card(adapter_id).name
    name = persona_folder.find_persona(slug).card().name if slug else other
    if name == other:
        return ""
    note = t(
        "{other} is opened beside {name}: conversations and votes are kept with {name}, and an answer that you correct "
        "becomes a pair of {name}.", other=escape(other), name=escape(name),
    )  # fmt: skip
    return f'<div class="mark hint">{note}</div>'


def refresh_when_shown(
    shown_step: int, slug: str, adapter_id: str | None, other_voices: list[str], blend_with: str | None,
    quantization: str,
) -> tuple[Any, ...]:  # fmt: skip
    """What may have changed while another step was shown: a VoicesView, the probes, the facts, how the base is opened.

    Nothing where this step is not the one shown.
    """
    if shown_step != COMPARE:
        return (gr.skip(),) * 5
    return (
        *refresh_voices(slug, adapter_id, other_voices, blend_with),
        *describe_adapter(slug, adapter_id or ""),
        describe_opening(adapter_id, quantization),
    )


def offer_questions(adapter_id: str | None) -> gr.Dataset:
    """Questions to click, those that the adapter was not trained on."""
    if not adapter_id or voice_picker.is_remote(adapter_id):
        return gr.Dataset(samples=[], visible=False)
    questions = voice_picker.unseen_questions(adapter_id)[:MAX_PROBES]
    of_run = AdapterRef.parse_id(adapter_id).kind is RefKind.RUN
    label = t("Questions kept out of the training") if of_run else t("Questions to try")
    return gr.Dataset(samples=[[question] for question in questions], label=label, visible=bool(questions))


def card_sampling(adapter_id: str, *values: float) -> list[float]:
    """CARD_SAMPLING of the adapter's card; what the card leaves open keeps its present value."""
    is_local = adapter_id and not voice_picker.is_remote(adapter_id)
    card = voice_picker.find_card(adapter_id).sampling.chosen() if is_local else {}
    return [card.get(name, value) for name, value in zip(CARD_SAMPLING, values, strict=True)]


def show_adapter(
    slug: str, adapter_id: str | None, other_voices: list[str], blend_with: str | None, *sampling: float
) -> tuple[Any, ...]:
    """The adapter, and what depends on it: a VoicesView, its probes and facts, and CARD_SAMPLING."""
    return (
        adapter_id or "",
        *refresh_voices(slug, adapter_id, other_voices, blend_with),
        *describe_adapter(slug, adapter_id or ""),
        *card_sampling(adapter_id or "", *sampling),
    )


def save_sampling(slug: str, *values: float) -> None:
    """Save the sampling in the persona's card: a shared link, a file and the page open with it."""
    sampling = dict(zip(CARD_SAMPLING, values, strict=True))
    persona_folder.update_card(open_current_persona(slug), lambda _: {"sampling": sampling})
    show_info(t("Saved in the persona's card, which opens with this sampling, here and from what you share."))


class _Adapters(NamedTuple):
    """The components that choose who answers."""

    other_voices: gr.Dropdown
    about: gr.HTML
    zip_upload: gr.UploadButton
    address: gr.Textbox
    open_address: gr.Button
    template: gr.Dropdown  # of an adapter that does not say it itself
    base: gr.Textbox
    blend_with: gr.Dropdown
    blend_weight: gr.Slider
    add_blend: gr.Button
    blend_rank: gr.Number
    save_blend: gr.Button
    opening: gr.HTML  # says that an adapter is being opened


def build(page: Page, browser_key: gr.BrowserState, go_on_from: gr.Dropdown) -> None:
    """The step. go_on_from: of step 3, the adapter that its next run goes on from."""
    other_voices, about = _build_voices(page, go_on_from)
    settings = _make_sampling_settings()
    listed = gr.State("")  # the adapter whose other voices are listed
    with gr.Tabs(elem_id="compare-tabs", overflow_behavior="wrap") as tabs:
        with gr.Tab(t("Chat"), id="chat"):
            probes = build_chat_tab(page, browser_key, other_voices, settings, listed)
        with gr.Tab(t("Blind vote"), id=train_on_votes.BLIND_TAB) as tab:
            blind_vote_tab.build(page, browser_key, settings, [tab.select, page.adapter.change])
        with gr.Tab(t("A list of questions"), id="list"):
            questions_tab.build(page, other_voices, settings)
        with gr.Tab(t("Did it learn?"), id="judge") as tab:
            judge_tab.build(page, browser_key, settings.quantization, tab.select)
    train_on_votes.connect_vote_again(page, tabs)
    # below the tabs, so that the answers come first
    adapters = _build_adapters(other_voices, about)
    save, opening = _build_sampling(settings)
    on_latest(
        [page.adapter.change, settings.quantization.change], show_errors(describe_opening),
        [page.adapter, settings.quantization], opening, **QUIET,
    )  # fmt: skip
    save.click(show_errors(save_sampling), [page.slug, *settings.of_card()], None, **QUIET)
    navigation.build_next_button(t("Next: Share →"), SHARE, page)
    _connect_adapters(page, adapters, probes, settings, listed, opening)


def _build_voices(page: Page, go_on_from: gr.Dropdown) -> tuple[gr.Dropdown, gr.HTML]:
    """The chosen adapter and the other voices; returns these, and what is known of the adapter."""
    with gr.Row(equal_height=True):
        page.adapter_list.render()
        other_voices = gr.Dropdown(
            voice_picker.list_bases(),
            value=[voice_picker.BASE_WITH_PROMPT], multiselect=True, max_choices=MAX_COLUMNS - 1, scale=4,
            elem_id="compare-with", min_width=300, label=t("Compare with (up to 3)"),
        )  # fmt: skip
    with gr.Row(equal_height=True):
        about = gr.HTML(elem_id="about-adapter")
        further.build_button(page, go_on_from)
    return other_voices, about


def _build_adapters(other_voices: gr.Dropdown, about: gr.HTML) -> _Adapters:
    with gr.Accordion(t("Open or blend adapters"), open=False, elem_id="open-adapters"):
        with gr.Row(equal_height=True):
            zip_upload = gr.UploadButton(
                t("Open an adapter zip"), file_types=[".zip"], scale=0, min_width=190, elem_id="open-zip"
            )
            address = gr.Textbox(show_label=False, scale=3, elem_id="open-link",
                                 placeholder=t("USER/NAME on the Hub, a share link, or a folder"))  # fmt: skip
            open_address = gr.Button(t("Open"), scale=0, min_width=90)
        with gr.Row(equal_height=True):
            templates = [(t("its own"), ""), *((name, name) for name in shipped_templates())]
            template = gr.Dropdown(templates, value="", label=t("Chat template"), scale=2, elem_id="open-template",
                                   info=t("that it was trained with, if it brings none"))  # fmt: skip
            base = gr.Textbox(label=t("Base"), scale=2, elem_id="open-base", placeholder=t("its own"),
                              info=t("if it names none, or a folder of another machine"))  # fmt: skip
        with gr.Row(equal_height=True):
            blend_with = gr.Dropdown([], label=t("Blend with"), scale=2, elem_id="blend-with")
            blend_weight = gr.Slider(0, 1, 0.5, step=0.05, label=t("Blend weight"), scale=2)
            add_blend = gr.Button(t("Add the blend"), scale=0, min_width=130, elem_id="add-blend")
            blend_rank = gr.Number(0, precision=0, label=t("Reduce to rank"), info=t("0: exact"), min_width=120)
            keep = gr.Button(t("Keep it as an adapter"), scale=0, min_width=190, elem_id="save-blend")
        opening = gr.HTML(elem_classes="quiet", elem_id="adapter-opening", padding=False)
    return _Adapters(
        other_voices, about, zip_upload, address, open_address, template, base, blend_with, blend_weight, add_blend,
        blend_rank, keep, opening,
    )  # fmt: skip


def _make_sampling_settings() -> SamplingSettings:
    """The sampling controls, made before the tabs that read them and rendered after."""
    default = Sampling()
    return SamplingSettings(
        strength=gr.Slider(0, MAX_STRENGTH, 1.0, step=0.05, label=t("Strength"), elem_id="strength", min_width=200,
                           info=t("0: the base, 1: as trained"), render=False),
        temperature=gr.Slider(0, 1.5, default.temperature, step=0.05, label=t("Temperature"),
                              info=t("0: the likeliest token"), min_width=200, elem_id="temperature", render=False),
        top_p=gr.Slider(0.1, 1, default.top_p, step=0.05, label="Top-p", min_width=200, render=False),
        top_k=gr.Number(default.top_k, label="Top-k", info=t("0: all"), precision=0, min_width=120,
                        render=False),
        min_p=gr.Slider(0, 0.5, default.min_p, step=0.01, label="Min-p", info=t("0: off"), min_width=200, render=False),
        repetition_penalty=gr.Slider(1, 2, default.repetition_penalty, step=0.05, label=t("Repetition penalty"),
                                     info=t("1: none"), min_width=200, render=False),
        max_new_tokens=gr.Slider(16, 2048, default.max_new_tokens, step=16, label=t("Longest reply, in tokens"),
                                 min_width=200, elem_id="longest", render=False),
        seed=gr.Number(default.seed, label=t("Seed"), info=t("the same for all"), precision=0,
                       min_width=120, elem_id="seed", render=False),
        quantization=gr.Dropdown(
            [(t("Automatic"), "auto"), (t("Full precision"), "none"), (t("4 bits (nf4)"), "nf4"),
             (t("8 bits (int8)"), "int8")],
            value="auto", label=t("Quantization"), min_width=200, elem_id="quantization", render=False,
            info=t("Of the base in memory. Automatic: as trained; without a GPU in full precision, if that fits"),
        ),
    )  # fmt: skip


def _build_sampling(settings: SamplingSettings) -> tuple[gr.Button, gr.HTML]:
    """The sampling controls; returns the button that saves them in the persona's card, and how the base is opened."""
    with gr.Accordion(t("Strength and sampling, the same for all"), open=False, elem_id="sampling"):
        with gr.Row():
            for control in settings:
                control.render()
            save = gr.Button(t("Save this sampling in the card"), scale=0, min_width=260, elem_id="save-sampling")
        return save, gr.HTML(elem_id="opening")


def _connect_adapters(
    page: Page, c: _Adapters, probes: gr.Dataset, settings: SamplingSettings, listed: gr.State, opening: gr.HTML
) -> None:
    voices = VoicesView(c.other_voices, c.blend_with)
    inputs = [page.slug, page.adapter, *voices]
    # there may be new adapters, other probes, and the run's adapter may be that of another step
    on_latest(
        page.shown_step.change, show_errors(refresh_when_shown), [page.shown_step, *inputs, settings.quantization],
        [*voices, probes, c.about, opening], **QUIET,
    )  # fmt: skip
    page.adapter.change(
        show_errors(show_adapter), [*inputs, *settings.of_card()],
        [listed, *voices, probes, c.about, *settings.of_card()], **QUIET,
    )  # fmt: skip
    say_opening: dict[str, Any] = {"fn": lambda: t("Opening …"), "inputs": None, "outputs": c.opening, **QUIET}
    opened: list[Any] = [
        c.zip_upload.upload(**say_opening).then(
            show_errors(open_zip), [c.zip_upload, page.chosen, c.template, c.base], page.chosen_view(), **QUIET
        ),
        gr.on([c.open_address.click, c.address.submit], **say_opening).then(
            show_errors(open_link), [c.address, page.chosen, c.template, c.base], page.chosen_view(), **QUIET
        ),
    ]
    for event in opened:
        for ended in (event.then, event.failure):  # which leaves persona and adapter as they were
            ended(lambda: "", None, c.opening, **QUIET)
    c.save_blend.click(
        show_errors(save_blend),
        [page.adapter, c.blend_with, c.blend_weight, settings.strength, c.blend_rank, page.chosen],
        page.chosen_view(),
        **QUIET,
    )
    c.add_blend.click(
        show_errors(add_blend),
        [page.slug, page.adapter, c.other_voices, c.blend_with, c.blend_weight],
        c.other_voices,
        **QUIET,
    )
