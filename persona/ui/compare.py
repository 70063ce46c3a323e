"""Step 4, Compare: the same question to several voices at the same time."""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from persona import folder
from persona.chat import MAX_COLUMNS, MAX_STRENGTH
from persona.errors import PersonaError
from persona.sampling import Sampling
from persona.ui import asking, blind, judging, talking, voices, way
from persona.ui.common import QUIET, SHARE, Page, open_current, shown
from persona.ui.line import in_line
from persona.ui.words import localized, t

COLUMNS = ("chat-base", "chat-persona", "chat-third", "chat-fourth")


def open_zip(file: str | None, slug: str) -> gr.Dropdown:
    if not file:
        return gr.skip()
    chosen = voices.open_zip(file)  # first: the list is of what is there
    return gr.Dropdown(voices.choices(slug), value=chosen)


def open_link(text: str, slug: str) -> gr.Dropdown:
    """An adapter from the Hub: checked and downloaded, then chosen."""
    chosen = voices.open_link(text.strip())
    return gr.Dropdown(voices.choices(slug), value=chosen)


def open_shared(link: str, slug: str) -> gr.Dropdown:
    """The same for an address that the page was opened with: of the Hub alone, never of this machine's folders."""
    chosen = voices.open_shared(link.strip())
    return gr.Dropdown(voices.adapters(slug), value=chosen)


def refresh(slug: str, chosen: str, others: list[str]) -> tuple[gr.Dropdown, gr.Dropdown]:
    """The lists anew; what was chosen stays if it is still there, else the newest."""
    found = voices.choices(slug)
    ids = [i for _, i in found]
    now = chosen if chosen in ids else (ids[0] if ids else None)
    beside = voices.beside(slug, now or "")
    kept = [v for v in others or [] if v in {i for _, i in beside} or v.startswith("blend/")]
    return gr.Dropdown(found, value=now), _beside(beside, now, kept)


def _beside(found: list[tuple[str, str]], chosen: str | None, kept: list[str]) -> gr.Dropdown:
    blends = [(voices.spoken(voices.label(v, chosen or "")), v) for v in kept if v.startswith("blend/")]
    rest = [v for v in found if v[1] != chosen]
    return gr.Dropdown([*rest, *blends], value=[v for v in kept if v != chosen])


def add_blend(slug: str, chosen: str, others: list[str], other: str, part: float) -> gr.Dropdown:
    """One more voice: the persona and another adapter at once, by weight."""
    if not other:
        raise PersonaError("Choose a second adapter to blend with.")
    kept = [*(others or []), f"blend/{part:.2f}/{other}"]
    return _beside(voices.beside(slug, chosen), chosen, list(dict.fromkeys(kept))[-(MAX_COLUMNS - 1) :])


def introduce(chosen: str) -> tuple[Any, str]:
    """Her probes as questions to click, and what is known of the adapter."""
    if not chosen or chosen.startswith("server/"):
        return gr.Dataset(samples=[]), f"<div class='quiet'>{t('A model of another server.')}</div>" if chosen else ""
    a = voices.find(chosen)
    figures = a.facts.get("figures")
    known = {"name": escape(a.card.name), "base": escape(a.base_id), "template": escape(a.template.name)}
    about = t("{name} on {base}, template {template}", **known)
    if isinstance(figures, dict) and all(isinstance(figures.get(k), float) for k in ("base_nll", "adapter_nll")):
        before, after = (f"{figures[k]:.2f}" for k in ("base_nll", "adapter_nll"))
        about = t("{name} on {base}, template {template} · held-out loss {before} → {after}", **known, before=before,
                  after=after)  # fmt: skip
    return gr.Dataset(samples=[[p] for p in a.card.probes[:8]]), f"<div class='quiet'>{about}</div>"


KNOBS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # of a card's sampling, in the page's order


def drawn(chosen: str, *knobs: float) -> list[float]:
    """The KNOBS as her author would have them, else as they stand."""
    here = chosen and not chosen.startswith("server/")
    own = voices.card_of(chosen).sampling.chosen() if here else {}
    return [own.get(name, value) for name, value in zip(KNOBS, knobs, strict=True)]


def keep_drawing(slug: str, *knobs: float) -> None:
    """The KNOBS become her author's: a shared link, a file and the page open with them."""
    folder.edit_card(open_current(slug), lambda _: {"sampling": dict(zip(KNOBS, knobs, strict=True))})
    gr.Info(t("Kept in her card: she is opened with this sampling, here and from what you share."))


def shown_talk(slug: str, chosen: str, others: Sequence[str], key: str, talk_id: str) -> tuple:
    """A conversation in its columns; an empty one greets. Columns of voices that are not chosen now are not shown."""
    if not chosen:
        return (*_boxes(2), *[gr.Chatbot([]) for _ in range(MAX_COLUMNS)], *[""] * MAX_COLUMNS)
    talk = talking.talk_of(slug, chosen, key, talk_id)
    labels = _labels(chosen, others)
    bots = talking.columns(talk, labels)
    if talk is None and not chosen.startswith("server/"):
        a = voices.find(chosen)
        mine = 1 if len(labels) > 1 else 0
        greeting = escape(a.card.greeting) or t("Say something")
        bots[mine] = gr.Chatbot([], label=voices.spoken(labels[mine]), placeholder=greeting)
    return (*_boxes(len(labels)), *bots, *[""] * MAX_COLUMNS)


def _boxes(count: int) -> list[gr.Column]:
    return [gr.Column(visible=n < count) for n in range(MAX_COLUMNS)]


def _labels(chosen: str, others: Sequence[str]) -> list[str]:
    """The columns' names as voices.cast will give them, without opening a model."""
    rest = [voices.label(v, chosen) for v in list(others or [])[: MAX_COLUMNS - 1]]
    rest.insert(1 if rest else 0, voices.label(chosen, chosen))
    return rest


def edited(event: gr.EditData, key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str, column: int,
           strength: float, *knobs: float):  # fmt: skip
    """An earlier question said otherwise is asked anew; an answer said otherwise becomes a pair."""
    index = event.index[0] if isinstance(event.index, list | tuple) else event.index
    number, of_answer = divmod(int(index), 2)
    skip = (gr.skip(),) * (2 * MAX_COLUMNS + 1)
    if of_answer:
        label = _labels(chosen, others)[column]
        message = localized(talking.correct(number, label, str(event.value), key, slug, chosen, talk_id))
        gr.Info(escape(t("{message} Undo is in step 1.", message=message)))
        yield (*skip, message, talk_id)
        return
    yield from talking.reworded(number, str(event.value), key, slug, chosen, others, talk_id, strength, *knobs)


def build(page: Page, step: gr.Step, key: gr.BrowserState) -> None:
    gr.Markdown(t("### One question, several voices\nAll answer from one batch, with the same dice."))
    with gr.Row(equal_height=True):
        page.adapter.render()
        others = gr.Dropdown(
            [(t("Base, with her prompt"), voices.PROMPTED), (t("Base alone, without a prompt"), voices.ALONE)],
            value=[voices.PROMPTED], multiselect=True, max_choices=MAX_COLUMNS - 1, scale=4, elem_id="beside",
            min_width=300,
            label=t("Beside her, up to three"),
        )  # fmt: skip
    about = gr.HTML()
    with gr.Accordion(t("Open or blend adapters"), open=False, elem_id="open-adapters"), gr.Row(equal_height=True):
        zipped = gr.UploadButton(t("Open an adapter zip"), file_types=[".zip"], scale=0, min_width=190,
                                 elem_id="open-zip")  # fmt: skip
        address = gr.Textbox(show_label=False, scale=3, elem_id="open-link",
                             placeholder=t("USER/NAME on the Hub, a share link, or a folder"))  # fmt: skip
        fetch = gr.Button(t("Open"), scale=0, min_width=90)
        second = gr.Dropdown([], label=t("Blend her with"), scale=2, elem_id="blend-with")
        part = gr.Slider(0, 1, 0.5, step=0.05, label=t("Her share"), scale=2)
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
        keep = gr.Button(t("Keep this sampling for her"), scale=0, min_width=200, elem_id="keep-sampling")
    keep.click(shown(keep_drawing), [page.slug, *knobs[:5]], None, **QUIET)
    page.adapter.change(shown(drawn), [page.adapter, *knobs[:5]], knobs[:5], **QUIET)
    with gr.Tabs(elem_id="compare-tabs", overflow_behavior="wrap"):
        with gr.Tab(t("Talk"), id="talk"):
            probes = _talk(page, step, key, others, strength, knobs)
        with gr.Tab(t("Blind vote"), id="blind") as tab:
            blind.build(page, key, strength, knobs, [tab.select, page.adapter.change])
        with gr.Tab(t("A list of questions"), id="list"):
            asking.build(page, others, strength, knobs)
        with gr.Tab(t("Did it learn?"), id="judge") as tab:
            judging.build(page, [tab.select, page.adapter.change])
    go = gr.Button(t("Next: Share →"), variant="primary", scale=0, min_width=170, elem_id="to-share")

    gr.on([page.slug.change, step.select], shown(refresh), [page.slug, page.adapter, others], [page.adapter, others],
          **QUIET)  # fmt: skip
    page.adapter.change(shown(introduce), page.adapter, [probes, about], **QUIET)
    page.adapter.input(shown(refresh), [page.slug, page.adapter, others], [page.adapter, others], **QUIET)
    gr.on([page.adapter.change, step.select], lambda s, a: gr.Dropdown([v for v in voices.adapters(s) if v[1] != a]),
          [page.slug, page.adapter], second, **QUIET)  # fmt: skip
    zipped.upload(shown(open_zip), [zipped, page.slug], page.adapter, api_visibility="private")
    gr.on([fetch.click, address.submit], shown(open_link), [address, page.slug], page.adapter, api_visibility="private")
    mixed.click(shown(add_blend), [page.slug, page.adapter, others, second, part], others, **QUIET)
    go.click(shown(partial(way.open_step, SHARE)), page.slug, page.steps, **QUIET)


def _talk(
    page: Page, step: gr.Step, key: gr.BrowserState, others: gr.Dropdown, strength: gr.Slider, knobs: list[Any]
) -> gr.Dataset:
    """The conversation: columns, what is said, and the conversations of before. Returns the probes to click."""
    with gr.Row(equal_height=True, elem_id="columns"):
        boxes, bots, notes = [], [], []
        for n, elem in enumerate(COLUMNS):
            with gr.Column(min_width=250, visible=n < 2) as column:
                boxes.append(column)
                bots.append(gr.Chatbot(
                    label=t("Persona") if n else t("Base"), elem_id=elem, height=380, buttons=["copy"],
                    render_markdown=False, editable="all",
                    placeholder=t("Train it first") if n == 1 else t("Say something to all"),
                ))  # fmt: skip
                notes.append(gr.HTML(elem_id=f"{elem}-note"))
    status = gr.HTML(elem_classes="quiet status", elem_id="chat-status")
    with gr.Row(elem_classes="slim"):
        box = gr.Textbox(show_label=False, placeholder=t("Say something to all"), scale=6, elem_id="say")
        send = gr.Button(t("Send"), variant="primary", scale=1, min_width=80, elem_id="send")
        halt = gr.Button(t("Stop"), variant="stop", scale=1, min_width=80, elem_id="stop-chat")
        retry = gr.Button(t("Again"), scale=1, min_width=80, elem_id="again")
    probes = gr.Dataset(components=[box], samples=[], label=t("Questions kept out of the training"), elem_id="probes")
    with gr.Row(elem_classes="slim"):
        talk = gr.Dropdown([(t("New conversation"), "")], value="", label=t("Conversations, yours alone"), scale=4,
                           elem_id="conversations")  # fmt: skip
        new = gr.Button(t("New"), scale=0, min_width=80, elem_id="new-talk")
        save = gr.DownloadButton(t("Export"), scale=0, min_width=90, elem_id="export-talk")
        drop = gr.Button(t("Delete"), scale=0, min_width=80, elem_id="delete-talk")

    who = [key, page.slug, page.adapter, others]
    output = [*bots, *notes, box, status, talk_id := gr.State("")]
    model: dict[str, Any] = {"concurrency_limit": None, **QUIET}  # they wait in the line of line.py
    listed = {"fn": shown(talking.listing), "inputs": [page.slug, page.adapter, key, talk_id], "outputs": talk, **QUIET}
    view = {"fn": shown(shown_talk), "inputs": [page.slug, page.adapter, others, key, talk_id],
            "outputs": [*boxes, *bots, *notes], **QUIET}  # fmt: skip

    spoken = gr.on(
        [box.submit, send.click],
        in_line(talking.say, output, status),
        [box, *who, talk_id, strength, *knobs],
        output,
        **model,
    )
    spoken.then(**listed)
    other = retry.click(lambda seed: int(seed or 0) + 1, knobs[-1], knobs[-1], **QUIET).then(
        in_line(talking.again, output, status), [*who, talk_id, strength, *knobs], output, **model
    )
    running = [spoken, other]
    said_otherwise = in_line(edited, output, status)
    for n, bot in enumerate(bots):
        running.append(bot.edit(said_otherwise, [*who, talk_id, gr.State(n), strength, *knobs], output, **model))
    halt.click(lambda: t("Stopped; what was said is kept."), None, status, cancels=running, **QUIET)
    probes.click(lambda row: row[0], probes, box, **QUIET)

    gr.on([new.click, *(bot.clear for bot in bots)], lambda: ("", "", ""), None, [talk_id, talk, status],
          cancels=running, **QUIET).then(**view)  # fmt: skip
    talk.input(lambda t: t or "", talk, talk_id, **QUIET).then(**view)
    drop.click(shown(talking.forget), [page.slug, page.adapter, key, talk_id], None, **QUIET).success(
        lambda: "", None, talk_id, **QUIET
    ).then(**listed).then(**view)
    save.click(shown(talking.export), [page.slug, page.adapter, key, talk_id], save, api_visibility="private")
    gr.on([page.adapter.change, page.slug.change], shown(talking.latest), [page.slug, page.adapter, key], talk_id,
          **QUIET).then(**listed).then(**view)  # fmt: skip
    others.change(**view)
    step.select(**listed)
    return probes
