"""Step 4, Compare: base and persona answer the same question at the same time."""

import time
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona import adapter, chat, files, folder, hub, runs, share, space
from persona.errors import PersonaError
from persona.ui.common import QUIET, SHARE, Page, shown

Chat = list[dict[str, Any]]


def choices(slug: str) -> list[tuple[str, str]]:
    """(label, id) of the adapters to choose from: this persona's runs, newest first, then opened ones."""
    found = []
    if slug:
        card = folder.by_slug(slug).card()
        for run in runs.list_runs(folder.by_slug(slug)):
            if run.adapter.is_dir():
                found.append((f"{card.name}, {when(run.name)}", f"run/{slug}/{run.name}"))
    for path in sorted(opened_dir().glob("*/adapter_config.json")):
        found.append((f"{path.parent.name} (opened)", f"opened/{path.parent.name}"))
    return found


def when(run: str) -> str:
    """20261122-031500-a1b2 → 22 Nov 03:15"""
    try:
        return time.strftime("%d %b %H:%M", time.strptime(run[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return run


def opened_dir() -> Path:
    return files.home() / "adapters"


def find(chosen: str) -> adapter.Adapter:
    """The adapter behind an id. The id comes from a browser, so each part of it is checked as a plain name."""
    kind, _, rest = (chosen or "").partition("/")
    if kind == "run":
        slug, _, run = rest.partition("/")
        return adapter.check(files.inside(folder.by_slug(slug).runs_dir, run) / "adapter")
    if kind == "opened":
        return adapter.check(files.inside(opened_dir(), rest))
    raise PersonaError("There is no adapter yet. Train one in the step before, or open a zip here.")


def open_zip(file: str | None, slug: str) -> gr.Dropdown:
    if not file:
        return gr.skip()
    path = share.unpack(Path(file), opened_dir())
    return gr.Dropdown(choices(slug), value=f"opened/{path.name}")


def open_link(text: str, slug: str) -> gr.Dropdown:
    """An adapter from the Hub: checked and downloaded, then chosen."""
    path = share.keep(hub.pull(hub.Link.parse(text)), opened_dir())
    if what := hub.outlook(adapter.check(path)):
        gr.Info(what, duration=None)
    return gr.Dropdown(choices(slug), value=f"opened/{path.name}")


def refresh(slug: str, chosen: str) -> gr.Dropdown:
    """The list anew; what was chosen stays if it is still there, else the newest."""
    found = choices(slug)
    ids = [i for _, i in found]
    return gr.Dropdown(found, value=chosen if chosen in ids else (ids[0] if ids else None))


def introduce(chosen: str) -> tuple[Any, Any, Any, str]:
    """Placeholders with her greeting, her probes as questions to click, and what is known of the adapter."""
    if not chosen:
        return gr.skip(), gr.skip(), gr.Dataset(samples=[]), ""
    a = find(chosen)
    figures = a.facts.get("figures", {})
    learned = ""
    if isinstance(figures.get("base_nll"), float) and isinstance(figures.get("adapter_nll"), float):
        learned = f" · held-out loss {figures['base_nll']:.2f} → {figures['adapter_nll']:.2f}"
    about = f"{escape(a.card.name)} on {escape(a.base_id)}, template {escape(a.template.name)}{learned}"
    return (
        gr.Chatbot(placeholder="The base model, untouched", label=f"Base: {a.base_id}"),
        gr.Chatbot(placeholder=escape(a.card.greeting) or "Say something", label=f"Persona: {a.card.name}"),
        gr.Dataset(samples=[[p] for p in a.card.probes[:8]]),
        f"<div class='quiet'>{about}</div>",
    )


def drawn(chosen: str, temperature: float, top_p: float) -> tuple[float, float]:
    """The two knobs as her author would have them, else as they stand."""
    own = find(chosen).card.sampling.chosen() if chosen else {}
    return own.get("temperature", temperature), own.get("top_p", top_p)


def plain(content: Any) -> str:
    """Chatbot hands content back as a list of blocks; templates read text."""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if block.get("type") == "text")


def turns(messages: Chat) -> list[tuple[str, str]]:
    """Finished (user, reply) turns; a turn without an answer is left out."""
    texts = [(m["role"], plain(m["content"])) for m in messages]
    pairs = zip(texts[::2], texts[1::2], strict=False)
    return [(u, r) for (ru, u), (rr, r) in pairs if ru == "user" and rr == "assistant" and r.strip()]


def talk(
    said: str, left: Chat, right: Chat, chosen: str, strength: float, temperature: float, top_p: float, longest: float,
    seed: float,
) -> Iterator[tuple]:  # fmt: skip
    """Stream both columns. Yields (left, right, box, status)."""
    if not said.strip():
        raise PersonaError("Write something to say first.")
    sampling = chat.Sampling(float(temperature), float(top_p), seed=int(seed or 0), max_new_tokens=int(longest))
    yield gr.skip(), gr.skip(), gr.skip(), "Opening the model …"
    a = find(chosen)
    own = {k: v for k, v in a.card.sampling.chosen().items() if k in ("top_k", "repetition_penalty")}  # without a knob
    sampling = replace(sampling, **own)
    voices = chat.open_voices(chat.base_of(a))
    name = voices.attach(a)
    renderer = chat.renderer_of(a, voices.tokenizer)
    columns = [
        chat.Column(voice, renderer.prompt(turns(history), said))
        for voice, history in ((chat.BASE, left), (name, right))
    ]
    same = "same prompt" if columns[0].prompt.ids == columns[1].prompt.ids else "each with its own conversation so far"
    start, first = time.perf_counter(), 0.0
    for replies in chat.stream(voices, columns, sampling, renderer.stop_id, float(strength)):
        now = time.perf_counter() - start
        first = first or now
        pace = sum(r.tokens for r in replies) / max(now, 1e-9)
        status = f"{pace:.1f} tokens/s together, first after {first:.1f} s · {same}, seed {sampling.seed}"
        yield (
            [*left, *turn(said, replies[0])], [*right, *turn(said, replies[1])], "",
            status,
        )  # fmt: skip
    cut = [who for who, r in zip(("base", "persona"), replies, strict=True) if not r.ended]
    note = f" · {' and '.join(cut)} reached the limit of {sampling.max_new_tokens} tokens" if cut else ""
    yield gr.skip(), gr.skip(), "", f"{status} · done{note}"


def turn(said: str, reply: chat.Reply) -> Chat:
    return [{"role": "user", "content": said}, {"role": "assistant", "content": reply.text or "…"}]


def build(page: Page, step: gr.Step) -> None:
    gr.Markdown("### One question, two voices\nBoth answer from one batch, with the same prompt and the same dice.")
    with gr.Row(equal_height=True):
        page.adapter.render()
        zipped = gr.UploadButton("Open an adapter zip", file_types=[".zip"], scale=0, min_width=230, elem_id="open-zip")
    about = gr.HTML()
    with gr.Row():
        bot: dict[str, Any] = {"height": 380, "buttons": ["copy"], "render_markdown": False, "min_width": 280}
        left = gr.Chatbot(label="Base", elem_id="chat-base", placeholder="The base model, untouched", **bot)
        right = gr.Chatbot(label="Persona", elem_id="chat-persona", placeholder="Train it first", **bot)
    status = gr.HTML(elem_classes="quiet status", elem_id="chat-status")
    with gr.Row(equal_height=True):
        box = gr.Textbox(show_label=False, placeholder="Say something to both", scale=6, elem_id="say")
        send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
        halt = gr.Button("Stop", variant="stop", scale=1, min_width=90)
        clear = gr.Button("Clear", scale=1, min_width=90)
    probes = gr.Dataset(components=[box], samples=[], label="Questions kept out of the training", elem_id="probes")
    with gr.Accordion("Sampling", open=False), gr.Row():
        knobs = [
            gr.Slider(0, 1.5, 1.0, step=0.05, label="Strength", info="0: the base, 1: as trained"),
            gr.Slider(0, 1.5, 0.4, step=0.05, label="Temperature", info="0: always the likeliest token"),
            gr.Slider(0.1, 1, 0.9, step=0.05, label="Top-p"),
            gr.Slider(16, 512, 128, step=16, label="Longest reply, in tokens"),
            gr.Number(0, label="Seed", info="the same for both", precision=0, minimum=0),
        ]
    go = gr.Button("Next: Share →", variant="primary", scale=0, min_width=170, elem_id="to-share")

    gr.on([page.slug.change, step.select], shown(refresh), [page.slug, page.adapter], page.adapter, **QUIET)
    page.adapter.change(shown(introduce), page.adapter, [left, right, probes, about], **QUIET).then(
        lambda: ([], []), None, [left, right], **QUIET
    ).then(shown(drawn), [page.adapter, *knobs[1:3]], knobs[1:3], **QUIET)
    zipped.upload(shown(open_zip), [zipped, page.slug], page.adapter, api_visibility="private")
    probes.click(lambda row: row[0], probes, box, **QUIET)
    talking = gr.on(
        [box.submit, send.click], space.gpu(60)(shown(talk)), [box, left, right, page.adapter, *knobs],
        [left, right, box, status],
        concurrency_id="model", concurrency_limit=1, **QUIET,
    )  # fmt: skip
    halt.click(lambda: "Stopped", None, status, cancels=[talking], **QUIET)
    clear.click(lambda: ([], [], ""), None, [left, right, status], cancels=[talking], **QUIET)
    go.click(lambda: gr.Walkthrough(selected=SHARE), None, page.steps, **QUIET)
