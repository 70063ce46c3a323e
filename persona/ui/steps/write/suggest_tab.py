"""Write, tab Interview, Suggest: drafts by the base in memory or by a model server, for the author to review."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona.errors import InputError, Message, PersonaError
from persona.models import zerogpu
from persona.store import deployment
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.ui.background import StoppableWork, Stopped
from persona.ui.buttons import run_with_stop
from persona.ui.i18n import t
from persona.ui.page import (
    QUIET,
    SHOWING,
    Page,
    RenderSettings,
    open_current_persona,
    open_page_renderer,
    show_errors,
    visitor_key,
)
from persona.ui.widgets import progress_bar_html
from persona.write import llm_client, review, suggestions
from persona.write.llm_client import LlmEndpoint
from persona.write.suggestions import Passage, Writer

WRITERS = ("The base chosen in step 2", "A model server")
MATERIALS = ("A topic", "The card", "A document")
DRAFT_COUNTS = (5, 100)
NO_SERVER_NOTE = (
    "No model server is set. Set an OpenAI-compatible address below (for example a local Ollama: "
    "http://127.0.0.1:11434/v1), or PERSONA_LLM_URL, PERSONA_LLM_MODEL and PERSONA_LLM_KEY before the start. Pairs are "
    "sent there when you press a button here, and only then."
)
WRITING = StoppableWork(Message("Drafts of yours are being written. Wait until they are done, or stop them."))


def write_drafts(
    slug: str, who: str, material: str, about: str, file: str | None, count: float, *inputs: Any
) -> Iterator[str]:
    """Write drafts and put each into the review as it comes. Yields the progress as HTML. inputs: RenderSettings."""
    persona = open_current_persona(slug)
    passages = _find_passages(persona, material, about, file)
    pairs, wanted = persona.scan()[0], int(count)

    def work(writer: Writer, report: Callable[[int], None]) -> None:
        known = [*pairs, *(item.pair for item in review.read_review(persona))]
        for made, draft in _numbered(suggestions.write_drafts(writer, persona.card(), known, passages, wanted)):
            if draft:
                review.add_to_review(persona, [(draft, "")], in_set=False)
            report(made)

    yield from _work_in_background(persona, who, RenderSettings(*inputs), work, wanted)


def write_paraphrases(slug: str, who: str, number: int, *inputs: Any) -> Iterator[str]:
    """Put other wordings of the question of pair `number` into the review. Yields the progress as HTML."""
    persona = open_current_persona(slug)
    pairs, _ = persona.scan()
    if not 1 <= number <= len(pairs):
        raise InputError("Click a pair in the table first.")

    def work(writer: Writer, report: Callable[[int], None]) -> None:
        made = suggestions.suggest_paraphrases(writer, pairs[number - 1], number)
        why = Message("Other words for pair {row}: {question}", row=number, question=pairs[number - 1].instruction)
        report(review.add_to_review(persona, [(pair, why) for pair in made], in_set=False))

    yield from _work_in_background(persona, who, RenderSettings(*inputs), work, 0)


def _numbered(drafts: Iterator[Pair | None]) -> Iterator[tuple[int, Pair | None]]:
    """Each draft with how many there are."""
    made = 0
    for draft in drafts:
        made += draft is not None
        yield made, draft


def _work_in_background(
    persona: Persona, who: str, settings: RenderSettings, work: Callable[[Writer, Callable[[int], None]], None],
    wanted: int,
) -> Iterator[str]:  # fmt: skip
    """Run work(writer, report) in a thread. Yields the progress. Raises what StoppableWork.running() raises."""
    visitor, made = visitor_key(), 0

    def run(report: Callable[[int], None], is_stopped: Callable[[], bool]) -> None:
        report(0)
        work(_open_writer(persona, who, settings, visitor, is_stopped), report)

    with WRITING.running(visitor, run) as (steps, done):
        yield _progress_html(0, wanted, t("Opening the model …"))
        for made in steps:
            yield _progress_html(made, wanted, t("Writing …"))
    with contextlib.suppress(Stopped):
        done.result()
    waiting = sum(not i.decision for i in review.read_review(persona))
    told = t("{n} new draft(s). {waiting} (waits|wait) under Check.", n=made, waiting=waiting)
    yield f"<div class='good'>{told}</div>"


def _open_writer(
    persona: Persona, who: str, settings: RenderSettings, visitor: str, is_stopped: Callable[[], bool]
) -> Writer:
    if who == WRITERS[1]:
        endpoint = llm_client.current_endpoint()
        if endpoint is None:
            raise PersonaError(NO_SERVER_NOTE)
        return suggestions.server_writer(endpoint)
    from persona.compare import base_writer  # with it comes torch

    base, renderer = open_page_renderer(persona.slug, settings)
    return base_writer.open_base_writer(base, renderer, visitor, is_stopped)


def _find_passages(persona: Persona, material: str, about: str, file: str | None) -> Sequence[Passage]:
    if material == MATERIALS[1]:
        return suggestions.card_passages(persona.card())
    if material == MATERIALS[2]:
        if not file:
            raise InputError("Choose a document first.")
        return suggestions.document_passages(Path(file), Path(file).name)
    return suggestions.topic_passages(about)


def _progress_html(made: int, wanted: int, doing: str) -> str:
    count = t("{n} of {all}", n=made, all=wanted) if wanted else ""
    return f"{progress_bar_html(made / wanted if wanted else 0)}<div class='quiet'>{escape(doing)} {count}</div>"


def stop_writing() -> None:
    WRITING.stop(visitor_key())


def set_server(url: str, model: str, key: str, remember: bool) -> tuple[str, str]:
    """Use this model server until the program ends; an empty address: that of the environment. (notice, empty key)"""
    url = url.strip().rstrip("/")
    endpoint = LlmEndpoint(url, model.strip() or "default", key.strip()) if url else None
    llm_client.set_endpoint(endpoint, bool(remember))
    return server_note(), ""


def server_note() -> str:
    """Which model server is asked."""
    endpoint = llm_client.current_endpoint()
    text = (
        t("Model server: {model} at {url}", model=endpoint.model, url=endpoint.url) if endpoint else t(NO_SERVER_NOTE)
    )
    return f"<div class='quiet'>{escape(text)}</div>"


def _on_gpu(handler: Callable) -> Callable:
    """The handler with a GPU of ZeroGPU where the base is to write."""
    plain = show_errors(handler)
    granted = zerogpu.request_gpu(zerogpu.GRANTED_SECONDS)(plain)

    def handle(slug: str, who: str, *inputs: Any) -> Iterator[str]:
        yield from (plain if who == WRITERS[1] else granted)(slug, who, *inputs)

    return handle


def build(page: Page, opened: Any) -> gr.Button:
    """The section; opened: the event of opening it. Returns the button that leads to the review."""
    with gr.Row(elem_classes="slim"):
        who = gr.Radio(
            [(t(name), name) for name in WRITERS], value=WRITERS[0], label=t("Who writes"), elem_id="who-writes"
        )
        material = gr.Radio(
            [(t(name), name) for name in MATERIALS], value=MATERIALS[0], label=t("From"), elem_id="draft-from"
        )
        count = gr.Slider(*DRAFT_COUNTS, value=20, step=5, label=t("Drafts"), elem_id="draft-count")
    about = gr.Textbox(
        label=t("About"), placeholder=t("e.g. being refused, festivals, childhood"), elem_id="draft-about"
    )
    file = gr.File(label=t("A text, Word, EPUB or HTML file"), type="filepath", height=120, visible=False)
    material.change(
        lambda chosen: (gr.Textbox(visible=chosen == MATERIALS[0]), gr.File(visible=chosen == MATERIALS[2])),
        material, [about, file], **SHOWING,
    )  # fmt: skip
    with gr.Row(elem_classes="slim"):
        write = gr.Button(t("Write drafts"), variant="primary", elem_id="suggest-new")
        rephrase = gr.Button(t("Rephrase the chosen question"), elem_id="suggest-like")
        stop = gr.Button(t("Stop"), interactive=False, elem_id="suggest-stop", scale=0, min_width=100)
        look = gr.Button(t("Review the drafts"), elem_id="suggest-review", scale=0, min_width=210)
    progress = gr.HTML(elem_id="suggest-progress")
    for button, handler, inputs in (
        (write, write_drafts, [page.slug, who, material, about, file, count]),
        (rephrase, write_paraphrases, [page.slug, who, page.pair_number]),
    ):
        running = run_with_stop([button.click], stop, _on_gpu(handler), [*inputs, *page.render_settings], progress)
        running.failure(lambda: "", None, progress, **QUIET)
    stop.click(stop_writing, None, None, **QUIET)
    note = gr.HTML(elem_id="model-server")
    opened(show_errors(server_note), None, note, **SHOWING)
    if not deployment.is_shared_server():
        _build_server(note)
    return look


def _build_server(note: gr.HTML) -> None:
    """The address of a model server, for this machine."""
    with gr.Accordion(t("Set a model server"), open=False):
        gr.Markdown(t("Kept in memory until the program ends, in no file."), elem_classes="quiet")
        with gr.Row(elem_classes="slim"):
            url = gr.Textbox(label=t("Address"), placeholder="http://127.0.0.1:11434/v1", scale=3, elem_id="server-url")
            model = gr.Textbox(label=t("Model"), scale=2, elem_id="server-model")
            key = gr.Textbox(label=t("Key, if it wants one"), type="password", scale=2, elem_id="server-key")
        remember = gr.Checkbox(
            label=t("Remember in the system's keyring (not verified)"), visible=llm_client.has_keyring()
        )
        use = gr.Button(t("Use this server"), size="sm", elem_id="server-use")
    use.click(show_errors(set_server), [url, model, key, remember], [note, key], **QUIET)
