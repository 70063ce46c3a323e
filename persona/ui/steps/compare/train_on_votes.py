"""Step 4, tab Blind vote: a run that learns from this visitor's votes and corrections, and the vote on what it made."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from persona.compare import blind_votes, conversation_store, preference_sources
from persona.errors import PersonaError
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.share.open_adapter import open_parent
from persona.store import deployment
from persona.store.preferences import PreferenceSet
from persona.train import launcher
from persona.ui import voice_picker
from persona.ui.chosen import Chosen, ChosenView
from persona.ui.i18n import localized, t
from persona.ui.navigation import COMPARE, TRAIN
from persona.ui.page import QUIET, Page, on_latest, open_current_persona, show_errors
from persona.ui.steps.train import run_on_zerogpu

BLIND_TAB = "blind"  # id of the tab


def build() -> tuple[gr.Button, gr.HTML]:
    """The button, and what is said of it: render the second below the first's row."""
    button = gr.Button(
        t("Train on my votes"), size="sm", scale=0, min_width=180, interactive=False, elem_id="train-on-votes"
    )
    return button, gr.HTML(elem_id="votes-to-train-on", render=False)


def connect(
    page: Page, browser_key: gr.BrowserState, button: gr.Button, about: gr.HTML, opened: Sequence[Any],
    saved: Sequence[Any],
) -> None:  # fmt: skip
    """opened: events after which there may be another adapter. saved: those that save a vote or a correction."""
    renew: dict[str, Any] = {
        "fn": show_errors(offer), "inputs": [browser_key, page.slug, page.adapter], "outputs": [button, about], **QUIET,
    }  # fmt: skip
    on_latest(opened, **renew)
    for event in saved:
        event.success(**renew)
    started = button.click(
        show_errors(train_on_votes), [browser_key, page.slug, page.adapter],
        [page.steps, page.shown_step, page.shown_run], **QUIET,
    )  # fmt: skip
    if deployment.has_zerogpu():  # no process of its own there: this event trains, and step 3 watches the run
        started.success(show_errors(run_on_zerogpu), [page.slug, page.shown_run], page.shown_run, **QUIET)


def connect_vote_again(page: Page, tabs: gr.Tabs) -> None:
    """The button of step 3 that opens the vote on what such a run made."""
    page.vote_again.click(
        show_errors(vote_again), [page.slug, page.shown_run, page.chosen],
        [page.steps, page.shown_step, tabs, *page.chosen_view()], **QUIET,
    )  # fmt: skip


def find_preferences(browser_key: str, slug: str, adapter_id: str) -> PreferenceSet:
    """This visitor's. Raises PersonaError for an adapter that votes cannot change."""
    if not slug or not (adapter_id or "").startswith("run/"):
        raise PersonaError("Choose an adapter of this persona: votes change the adapter that they are about.")
    persona = open_current_persona(slug)
    log = blind_votes.open_vote_log(voice_picker.conversation_dir(slug, adapter_id), browser_key)
    talks = conversation_store.list_conversations(conversation_store.open_store(persona.path, browser_key))
    return preference_sources.collect_preferences(persona, blind_votes.read_blind_questions(log), talks)


def offer(browser_key: str, slug: str, adapter_id: str) -> tuple[gr.Button, str]:
    """The button with the number of preferences, and as HTML why it cannot be pressed and which votes give none."""
    try:
        found = find_preferences(browser_key, slug, adapter_id)
    except PersonaError as e:
        return gr.Button(t("Train on my votes"), interactive=False), _hint(localized(e.message))
    count, least = len(found.preferences), launcher.MIN_PREFERENCES
    about = ""
    if count < least:
        about = _hint(
            t(
                "To train on votes it takes {least} votes or corrections that can be learned from; there are {count}.",
                least=least,
                count=count,
            )
        )
    if found.left_out:
        lines = "".join(f"<li>{escape(localized(text))}</li>" for text in found.left_out)
        title = t("Left out of the training: {n}", n=len(found.left_out))
        about += f"<details class='quiet'><summary>{title}</summary><ul>{lines}</ul></details>"
    label = t("Train on 1 vote or correction") if count == 1 else t("Train on {n} votes and corrections", n=count)
    return gr.Button(label, interactive=count >= least), about


def _hint(text: str) -> str:
    return f"<div class='hint'>{escape(text)}</div>"


def train_on_votes(browser_key: str, slug: str, adapter_id: str) -> list[Any]:
    """Start a run that goes on from the adapter, and open step 3 on it. Returns steps, shown step and run name."""
    found = find_preferences(browser_key, slug, adapter_id)
    parent = open_parent(AdapterRef.parse_id(adapter_id))
    run = launcher.create_preference_run(open_current_persona(slug), found.preferences, parent, {})
    launcher.start_run(run)
    return [gr.Walkthrough(selected=TRAIN), TRAIN, run.name]


def vote_again(slug: str, run_name: str, chosen: Chosen) -> list[Any]:
    """Open the blind vote with the run's adapter chosen; its rival there is the one that it goes on from."""
    adapter_id = str(AdapterRef(RefKind.RUN, slug, run_name))
    view = ChosenView.showing(Chosen(chosen.persona, adapter_id, by_hand=True))
    return [gr.Walkthrough(selected=COMPARE), COMPARE, gr.Tabs(selected=BLIND_TAB), *view]
