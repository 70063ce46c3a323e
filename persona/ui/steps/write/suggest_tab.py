"""Write, tab Suggest: pairs proposed by another model, added or discarded one by one."""

import difflib
from html import escape
from typing import Any

import gradio as gr

from persona.errors import InputError, Message, PersonaError
from persona.store import edit_history
from persona.store.edits import PairChange
from persona.store.pairs import Pair
from persona.ui.i18n import t
from persona.ui.page import Page, open_current_persona, show_errors
from persona.ui.widgets import FORWARD_CLICKS_JS
from persona.write import llm_client, suggestions

NO_MODEL_NOTE = (
    "No model is set up for this, and none is needed. To use one, set `PERSONA_LLM_URL` to an OpenAI-compatible "
    "address (for example a local Ollama: `http://127.0.0.1:11434/v1`), `PERSONA_LLM_MODEL` and, if it wants one, "
    "`PERSONA_LLM_KEY`, and start the page again. Pairs are sent there when you press a button here, and only then."
)


Proposal = tuple[Pair, str]  # and the question that it rephrases, "" for none


def propose_pairs(slug: str, number: int, about: str, rephrase: bool) -> tuple[list[Proposal], str]:
    """Proposals and their HTML. rephrase: the question of pair `number`; else new pairs about a topic."""
    endpoint = llm_client.endpoint_from_env()
    if not endpoint:
        raise PersonaError(NO_MODEL_NOTE)
    persona = open_current_persona(slug)
    items, _ = persona.scan()
    if rephrase:
        if not 1 <= number <= len(items):
            raise InputError("Click a pair in the table first.")
        pair = items[number - 1]
        proposals = [(p, pair.instruction) for p in suggestions.suggest_paraphrases(endpoint, pair, number)]
    else:
        if not items:
            raise InputError("Write a few pairs first: the model needs examples of the persona's style.")
        proposals = [(p, "") for p in suggestions.suggest_pairs(endpoint, persona.card(), items, about)]
    return proposals, proposals_html(proposals)


def proposals_html(proposals: list[Proposal]) -> str:
    return "".join(
        f"<div class='mark hint'><span><b>{difference_html(old, p.instruction)}</b><br>{escape(p.output)}</span>"
        f'<button class="tool wide" data-do="take" data-at="{n}">{t("Add")}</button>'
        f'<button class="tool wide" data-do="leave" data-at="{n}">{t("Discard")}</button></div>'
        for n, (p, old) in enumerate(proposals)
    )


def difference_html(old: str, new: str) -> str:
    """`new` with what differs from `old` marked."""
    if not old:
        return f"<ins>{escape(new)}</ins>"
    parts = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind in ("delete", "replace"):
            parts.append(f"<del>{escape(old[a:b])}</del>")
        if kind != "delete":
            parts.append(escape(new[c:d]) if kind == "equal" else f"<ins>{escape(new[c:d])}</ins>")
    return "".join(parts)


def decide_proposal(slug: str, proposals: list[Proposal], event: gr.EventData) -> tuple[list[Proposal], str]:
    """Add or discard one proposal."""
    index = int(event.at)
    if not 0 <= index < len(proposals):
        raise InputError("That proposal is not there any more.")
    if event.do == "take":
        persona = open_current_persona(slug)
        added = PairChange(len(persona.scan()[0]), None, proposals[index][0])
        edit_history.commit(persona, Message("add of a suggested pair"), [added])
    rest = proposals[:index] + proposals[index + 1 :]
    return rest, proposals_html(rest)


def build(page: Page) -> Any:
    """The tab. Returns the event of a proposal that was added or discarded."""
    configured = llm_client.endpoint_from_env() is not None
    gr.Markdown("" if configured else t(NO_MODEL_NOTE), visible=not configured)
    with gr.Row(elem_classes="slim"):
        about = gr.Textbox(label=t("About"), placeholder=t("e.g. being refused, festivals, childhood"), scale=3)
        new = gr.Button(t("Suggest new pairs"), interactive=configured, elem_id="suggest-new")
        rephrase = gr.Button(t("Rephrase the chosen question"), interactive=configured, elem_id="suggest-like")
    proposals = gr.State([])
    listing = gr.HTML(elem_id="proposals", js_on_load=FORWARD_CLICKS_JS)
    for button, is_rephrase in ((new, False), (rephrase, True)):
        button.click(
            show_errors(propose_pairs), [page.slug, page.pair_number, about, gr.State(is_rephrase)],
            [proposals, listing],
            show_progress_on=listing, api_visibility="private",
        )  # fmt: skip
    return listing.click(
        show_errors(decide_proposal),
        [page.slug, proposals],
        [proposals, listing],
        show_progress="hidden",
        api_visibility="private",
    )
