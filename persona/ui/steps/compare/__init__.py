"""Step 4, Compare: the same question to several voices at the same time."""

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from persona.compare.session import MAX_COLUMNS, MAX_STRENGTH
from persona.errors import PersonaError
from persona.models.sampling import Sampling
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.store import persona_folder
from persona.ui import navigation, voice_picker
from persona.ui.i18n import localized, t
from persona.ui.page import QUIET, Page, open_current_persona, show_errors
from persona.ui.steps.compare import blind_vote_tab, judge_tab, questions_tab
from persona.ui.steps.compare.chat_tab import build_chat_tab


def open_zip(file: str | None, slug: str) -> gr.Dropdown:
    if not file:
        return gr.skip()
    chosen = voice_picker.add_zip(file)  # first: the list is of what is there
    return gr.Dropdown(voice_picker.list_choices(slug), value=chosen)


def open_link(text: str, slug: str) -> gr.Dropdown:
    """An adapter from the Hub: checked and downloaded, then chosen."""
    chosen = voice_picker.add_link(text.strip())
    return gr.Dropdown(voice_picker.list_choices(slug), value=chosen)


def open_shared_link(link: str, slug: str) -> gr.Dropdown:
    """The same for an address that the page was opened with: of the Hub alone, never of this machine's folders."""
    chosen = voice_picker.add_hub_adapter(link.strip())
    return gr.Dropdown(voice_picker.list_adapters(slug), value=chosen)


def refresh_adapters(slug: str, chosen: str, others: list[str]) -> tuple[gr.Dropdown, gr.Dropdown]:
    """The lists anew; what was chosen stays if it is still there, else the newest."""
    found = voice_picker.list_choices(slug)
    ids = [i for _, i in found]
    now = chosen if chosen in ids else (ids[0] if ids else None)
    beside = voice_picker.list_other_voices(slug, now or "")
    kept = [v for v in others or [] if v in {i for _, i in beside} or _is_blend(v)]
    return gr.Dropdown(found, value=now), _others_dropdown(beside, now, kept)


def _is_blend(voice: str) -> bool:
    return AdapterRef.parse_id(voice).kind is RefKind.BLEND


def _others_dropdown(found: list[tuple[str, str]], chosen: str | None, kept: list[str]) -> gr.Dropdown:
    blends = [(localized(voice_picker.voice_label(v, chosen or "")), v) for v in kept if _is_blend(v)]
    rest = [v for v in found if v[1] != chosen]
    return gr.Dropdown([*rest, *blends], value=[v for v in kept if v != chosen])


def add_blend(slug: str, chosen: str, others: list[str], other: str, part: float) -> gr.Dropdown:
    """One more voice: the persona and another adapter at once, by weight."""
    if not other:
        raise PersonaError("Choose a second adapter to blend with.")
    kept = [*(others or []), str(AdapterRef.blend_with(part, AdapterRef.parse_id(other)))]
    return _others_dropdown(
        voice_picker.list_other_voices(slug, chosen), chosen, list(dict.fromkeys(kept))[-(MAX_COLUMNS - 1) :]
    )


def describe_adapter(chosen: str) -> tuple[Any, str]:
    """Her probes as questions to click, and what is known of the adapter."""
    if not chosen or voice_picker.is_remote(chosen):
        return gr.Dataset(samples=[]), f"<div class='quiet'>{t('A model on another server.')}</div>" if chosen else ""
    a = voice_picker.find_adapter(chosen)
    figures = a.facts.get("figures")
    known = {"name": escape(a.card.name), "base": escape(a.base_id), "template": escape(a.template.name)}
    about = t("{name} on {base}, template {template}", **known)
    if isinstance(figures, dict) and all(isinstance(figures.get(k), float) for k in ("base_nll", "adapter_nll")):
        before, after = (f"{figures[k]:.2f}" for k in ("base_nll", "adapter_nll"))
        about = t("{name} on {base}, template {template} · held-out loss {before} → {after}", **known, before=before,
                  after=after)  # fmt: skip
    return gr.Dataset(samples=[[p] for p in a.card.probes[:8]]), f"<div class='quiet'>{about}</div>"


SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
)  # of a card's sampling, in the page's order


def card_sampling(chosen: str, *knobs: float) -> list[float]:
    """The KNOBS as her author would have them, else as they stand."""
    here = chosen and not voice_picker.is_remote(chosen)
    own = voice_picker.find_card(chosen).sampling.chosen() if here else {}
    return [own.get(name, value) for name, value in zip(SAMPLING_FIELDS, knobs, strict=True)]


def save_sampling(slug: str, *knobs: float) -> None:
    """The KNOBS become her author's: a shared link, a file and the page open with them."""
    persona_folder.update_card(
        open_current_persona(slug), lambda _: {"sampling": dict(zip(SAMPLING_FIELDS, knobs, strict=True))}
    )
    gr.Info(t("Saved in the persona's card, which opens with this sampling, here and from what you share."))


def build(page: Page, step: gr.Step, key: gr.BrowserState) -> None:
    gr.Markdown(
        t("### One question, several voices\nAll answers are generated in one batch, with the same random seed.")
    )
    with gr.Row(equal_height=True):
        page.adapter.render()
        others = gr.Dropdown(
            voice_picker.list_bases(),
            value=[voice_picker.BASE_WITH_PROMPT],
            multiselect=True,
            max_choices=MAX_COLUMNS - 1,
            scale=4,
            elem_id="beside",
            min_width=300,
            label=t("Compare with (up to 3)"),
        )
    about = gr.HTML()
    with gr.Accordion(t("Open or blend adapters"), open=False, elem_id="open-adapters"), gr.Row(equal_height=True):
        zipped = gr.UploadButton(
            t("Open an adapter zip"), file_types=[".zip"], scale=0, min_width=190, elem_id="open-zip"
        )
        address = gr.Textbox(show_label=False, scale=3, elem_id="open-link",
                             placeholder=t("USER/NAME on the Hub, a share link, or a folder"))  # fmt: skip
        fetch = gr.Button(t("Open"), scale=0, min_width=90)
        second = gr.Dropdown([], label=t("Blend with"), scale=2, elem_id="blend-with")
        part = gr.Slider(0, 1, 0.5, step=0.05, label=t("Blend weight"), scale=2)
        mixed = gr.Button(t("Add the blend"), scale=0, min_width=130, elem_id="add-blend")
    with gr.Accordion(t("Strength and sampling, the same for all"), open=False, elem_id="sampling"), gr.Row():
        strength = gr.Slider(0, MAX_STRENGTH, 1.0, step=0.05, label=t("Strength"), elem_id="strength", min_width=200,
                             info=t("0: the base, 1: as trained"))  # fmt: skip
        usual = Sampling()
        knobs: list[Any] = [
            gr.Slider(0, 1.5, usual.temperature, step=0.05, label=t("Temperature"), info=t("0: the likeliest token"),
                      min_width=200),
            gr.Slider(0.1, 1, usual.top_p, step=0.05, label="Top-p", min_width=200),
            gr.Number(usual.top_k, label="Top-k", info=t("0: all"), precision=0, minimum=0, min_width=120),
            gr.Slider(0, 0.5, usual.min_p, step=0.01, label="Min-p", info=t("0: off"), min_width=200),
            gr.Slider(1, 2, usual.repetition_penalty, step=0.05, label=t("Repetition penalty"), info=t("1: none"),
                      min_width=200),
            gr.Slider(16, 512, usual.max_new_tokens, step=16, label=t("Longest reply, in tokens"), min_width=200,
                      elem_id="longest"),
            gr.Number(usual.seed, label=t("Seed"), info=t("the same for all"), precision=0, minimum=0, min_width=120,
                      elem_id="seed"),
        ]  # fmt: skip
        keep = gr.Button(t("Save this sampling in the card"), scale=0, min_width=200, elem_id="keep-sampling")
    keep.click(show_errors(save_sampling), [page.slug, *knobs[:5]], None, **QUIET)
    page.adapter.change(show_errors(card_sampling), [page.adapter, *knobs[:5]], knobs[:5], **QUIET)
    with gr.Tabs(elem_id="compare-tabs", overflow_behavior="wrap"):
        with gr.Tab(t("Chat"), id="talk"):
            probes = build_chat_tab(page, step, key, others, strength, knobs)
        with gr.Tab(t("Blind vote"), id="blind") as tab:
            blind_vote_tab.build(page, key, strength, knobs, [tab.select, page.adapter.change])
        with gr.Tab(t("A list of questions"), id="list"):
            questions_tab.build(page, others, strength, knobs)
        with gr.Tab(t("Did it learn?"), id="judge") as tab:
            judge_tab.build(page, [tab.select, page.adapter.change])
    go = gr.Button(t("Next: Share →"), variant="primary", scale=0, min_width=170, elem_id="to-share")

    gr.on(
        [page.slug.change, step.select],
        show_errors(refresh_adapters),
        [page.slug, page.adapter, others],
        [page.adapter, others],
        **QUIET,
    )
    page.adapter.change(show_errors(describe_adapter), page.adapter, [probes, about], **QUIET)
    page.adapter.input(
        show_errors(refresh_adapters), [page.slug, page.adapter, others], [page.adapter, others], **QUIET
    )
    gr.on(
        [page.adapter.change, step.select],
        lambda s, a: gr.Dropdown([v for v in voice_picker.list_adapters(s) if v[1] != a]),
        [page.slug, page.adapter],
        second,
        **QUIET,
    )
    zipped.upload(show_errors(open_zip), [zipped, page.slug], page.adapter, api_visibility="private")
    gr.on(
        [fetch.click, address.submit],
        show_errors(open_link),
        [address, page.slug],
        page.adapter,
        api_visibility="private",
    )
    mixed.click(show_errors(add_blend), [page.slug, page.adapter, others, second, part], others, **QUIET)
    go.click(show_errors(partial(navigation.open_step, navigation.SHARE)), page.slug, page.steps, **QUIET)
