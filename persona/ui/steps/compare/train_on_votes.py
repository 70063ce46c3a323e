"""Step 4, tab Blind vote: a run that learns from this visitor's votes and corrections, and the vote on what it made.

Before it starts, both answers of a preference are shown with the label masks that they are learned with.
"""

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.compare import blind_votes, conversation_store, kept_answers, preference_sources
from persona.errors import Message, PersonaError
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.share.open_adapter import open_parent
from persona.store import deployment
from persona.store.preferences import PreferenceSet
from persona.train import launcher, prepare
from persona.ui import voice_picker
from persona.ui.chosen import Chosen, ChosenView
from persona.ui.i18n import localized, t
from persona.ui.navigation import COMPARE, TRAIN
from persona.ui.notices import show_warning
from persona.ui.page import QUIET, SHOWING, Page, on_latest, open_current_persona, show_errors
from persona.ui.steps.train import run_on_zerogpu
from persona.ui.widgets import mask_html

MAX_NOTED = 5  # preferences that a notice lists
BLIND_TAB = "blind"  # id of the tab
UNLEARNED = Message("<b>learned</b>: the model is trained to write this less often")
SOURCES = {
    "vote": "a blind vote",
    "correction": "a correction",
    "preference": "an imported file",
    "regenerated": "a choice among regenerated answers",
}


class TrainView(NamedTuple):
    """The components, or the values of offer() for them."""

    button: Any
    about: Any
    preview: Any  # the accordion of the masks
    number: Any  # of the preference that is shown, from 1


class _Controls(NamedTuple):
    """The components that build() makes."""

    view: TrainView
    sft: gr.Checkbox
    masks: tuple[gr.HTML, gr.HTML, gr.HTML]  # what is shown, the better answer, the worse one


def build_button() -> gr.Button:
    return gr.Button(
        t("Train on my votes"), size="sm", scale=0, min_width=260, interactive=False, elem_id="train-on-votes"
    )


def build(button: gr.Button) -> _Controls:
    """What stands below the row of the button."""
    about = gr.HTML(elem_id="votes-to-train-on")
    with gr.Accordion(t("What it learns from"), open=False, visible=False, elem_id="votes-preview") as preview:
        with gr.Row(equal_height=True):
            number = gr.Number(1, precision=0, label=t("Preference"), scale=0, min_width=140)
            sft = gr.Checkbox(
                True, label=t("Learn the chosen answers themselves too (SFT term)"), scale=2, elem_id="sft-term",
                info=t("On, as measured: without it DPO can make the chosen answers less likely too."),
            )  # fmt: skip
        head = gr.HTML()
        with gr.Row():
            with gr.Column(min_width=320):
                chosen = gr.HTML(elem_id="chosen-mask")
            with gr.Column(min_width=320):
                rejected = gr.HTML(elem_id="rejected-mask")
    return _Controls(TrainView(button, about, preview, number), sft, (head, chosen, rejected))


def connect(
    page: Page, browser_key: gr.BrowserState, controls: _Controls, opened: Sequence[Any], saved: Sequence[Any]
) -> None:
    """opened: events after which there may be another adapter. saved: those that save a vote or a correction."""
    view, who = controls.view, [browser_key, page.slug, page.adapter]
    renew: dict[str, Any] = {"fn": show_errors(offer), "inputs": who, "outputs": view, **QUIET}
    on_latest(opened, **renew)
    for event in saved:
        event.success(**renew)
    gr.on(
        [view.preview.expand, view.number.input], show_errors(show_masks), [*who, view.number], [*controls.masks],
        **SHOWING,
    )  # fmt: skip
    started = view.button.click(
        show_errors(train_on_votes), [*who, controls.sft], [page.steps, page.shown_step, page.shown_run], **QUIET
    )
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
    kept = kept_answers.read_choices(log)
    return preference_sources.collect_preferences(persona, blind_votes.read_blind_questions(log), talks, kept)


def offer(browser_key: str, slug: str, adapter_id: str) -> TrainView:
    """The button with the number of preferences, why it cannot be pressed, and which votes give none.

    The masks are hidden again: they may be those of other preferences.
    """
    try:
        found = find_preferences(browser_key, slug, adapter_id)
    except PersonaError as e:
        button = gr.Button(t("Train on my votes"), interactive=False)
        return TrainView(button, _hint(localized(e.message)), gr.Accordion(visible=False, open=False), 1)
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
    if not {p.pair.source for p in found.preferences} <= {"vote", "correction"}:
        label = t("Train on {n} vote(s), choice(s) and correction(s)", n=count)
    preview = gr.Accordion(visible=bool(count), open=False)
    return TrainView(gr.Button(label, interactive=count >= least), about, preview, gr.Number(1, maximum=max(1, count)))


def show_masks(browser_key: str, slug: str, adapter_id: str, number: float | None) -> tuple[str, str, str]:
    """The preference with this number, or the nearest: what it is, and both answers with their label masks, as HTML."""
    preferences = find_preferences(browser_key, slug, adapter_id).preferences
    if not preferences:
        return "", "", ""
    number = min(max(1, int(number or 1)), len(preferences))
    preference = preferences[number - 1]
    parent = open_parent(AdapterRef.parse_id(adapter_id))
    config = launcher.make_preference_config(parent, {})
    _, renderer = prepare.open_run_renderer(open_current_persona(slug).card(), config, [preference.pair], parent)
    head = t("Preference {n} of {count}, from {source}. Green is what it learns to prefer, or to avoid.", n=number,
             count=len(preferences), source=t(SOURCES[preference.pair.source]))  # fmt: skip
    worse = replace(preference.pair, output=preference.rejected)
    chosen = mask_html(renderer, renderer.render_example(preference.pair))
    rejected = mask_html(renderer, renderer.render_example(worse), UNLEARNED)
    return (
        f"<div class='quiet'>{escape(head)}</div>",
        f"<div class='card'><b>{t('Chosen: becomes likelier')}</b>{chosen}</div>",
        f"<div class='card'><b>{t('Rejected: becomes less likely')}</b>{rejected}</div>",
    )


def _hint(text: str) -> str:
    return f"<div class='hint'>{escape(text)}</div>"


def train_on_votes(browser_key: str, slug: str, adapter_id: str, sft: bool = True) -> list[Any]:
    """Start a run that goes on from the adapter, and open step 3 on it. Returns steps, shown step and run name.

    sft: learn the chosen answers as pairs too. What cannot be trained on is left out, with a notice.
    """
    persona, given = open_current_persona(slug), {} if sft else {"sft_weight": 0.0}
    preferences = find_preferences(browser_key, slug, adapter_id).preferences
    parent = open_parent(AdapterRef.parse_id(adapter_id))
    config = launcher.make_preference_config(parent, given)
    found = prepare.select_trainable(persona.card(), config, preferences, parent)
    if found.left_out:
        texts = " ".join(map(localized, found.left_out[:MAX_NOTED]))
        show_warning(f"{t('Left out of the training: {n}', n=len(found.left_out))}. {texts}")
    run = launcher.create_preference_run(persona, found.preferences, parent, given)
    launcher.start_run(run)
    return [gr.Walkthrough(selected=TRAIN), TRAIN, run.name]


def vote_again(slug: str, run_name: str, chosen: Chosen) -> list[Any]:
    """Open the blind vote with the run's adapter chosen; its rival there is the one that it goes on from."""
    adapter_id = str(AdapterRef(RefKind.RUN, slug, run_name))
    view = ChosenView.showing(Chosen(chosen.persona, adapter_id, by_hand=True))
    return [gr.Walkthrough(selected=COMPARE), COMPARE, gr.Tabs(selected=BLIND_TAB), *view]
