"""Step 4, tab Chat: after Regenerate, which of the two answers stays; the choice is a preference to learn from."""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.compare import blind_votes, conversation_store, kept_answers
from persona.compare.blind_votes import VoteLog
from persona.compare.conversation import Conversation, ConversationAnswer
from persona.errors import PersonaError
from persona.ui import voice_picker
from persona.ui.i18n import t
from persona.ui.page import QUIET, show_errors
from persona.ui.steps.compare.controls import Selection
from persona.ui.steps.compare.conversation_view import load_conversation, open_conversation_store


class KeepView(NamedTuple):
    """The components, or the values for them."""

    box: Any
    about: Any
    earlier: Any  # the two answers
    later: Any
    buttons: Any  # the row of the two that choose
    undo: Any
    choice: Any  # id of the choice that undo takes back


def start_regeneration(seed: float | None, *inputs: Any) -> tuple[int, int]:
    """The next seed, and the number of the answers that are shown until then; 0 for none."""
    chat = load_conversation(Selection(*inputs))
    return int(seed or 0) + 1, chat.turns[-1].answered if chat and chat.turns else 0


def offer(number: int, *inputs: Any) -> KeepView:
    """The two answers of the chosen adapter to choose between. number: of the answers that were shown before."""
    found = _find_answers(number, Selection(*inputs))
    if found is None:
        return _hidden()
    nothing = f"<span class='quiet'>{t('(nothing)')}</span>"
    before, now = (f"<div class='card answer'>{escape(a.text.strip()) or nothing}</div>" for a in found[1:])
    about = f"<b>{t('Which answer stays? The choice is kept as a preference to train on.')}</b>"
    return KeepView(gr.Column(visible=True), about, before, now, gr.Row(visible=True), gr.Button(visible=False), "")


def keep(is_later: bool, number: int, *inputs: Any) -> KeepView:
    """Record which one stays, and show it in the conversation."""
    selection = Selection(*inputs)
    found = _find_answers(number, selection)
    if found is None:
        raise PersonaError("These two answers are no longer there. Regenerate once more.")
    chat, earlier, later = found
    kept, rejected = (later, earlier) if is_later else (earlier, later)
    choice = kept_answers.record_choice(_vote_log(selection), chat, kept, rejected)
    if not is_later:
        conversation_store.show_branch(open_conversation_store(selection), chat, number)
    about = t("Kept as a preference; “Train on my votes” in the tab Blind vote learns from it. The other answer stays "
              "on disk.")  # fmt: skip
    view = _hidden()._replace(box=gr.Column(visible=True), about=f"<div class='quiet'>{about}</div>", choice=choice.id)
    return view._replace(undo=gr.Button(visible=True))


def undo(choice_id: str, *inputs: Any) -> KeepView:
    """Take the choice back; the conversation stays as it is shown."""
    kept_answers.undo_choice(_vote_log(Selection(*inputs)), choice_id)
    return _hidden()


def _hidden() -> KeepView:
    return KeepView(gr.Column(visible=False), "", "", "", gr.Row(visible=False), gr.Button(visible=False), "")


def _find_answers(
    number: int, selection: Selection
) -> tuple[Conversation, ConversationAnswer, ConversationAnswer] | None:
    """The conversation, and the chosen adapter's answer before and now; None where there is nothing to choose."""
    chat = load_conversation(selection)
    if chat is None or not (selection.adapter_id or "").startswith("run/"):  # votes change an adapter of a run
        return None
    column = voice_picker.voice_record(selection.adapter_id, selection.adapter_id).column
    found = kept_answers.find_answers(open_conversation_store(selection), chat, column, number)
    return (chat, *found) if found else None


def _vote_log(selection: Selection) -> VoteLog:
    folder = voice_picker.conversation_dir(selection.slug, selection.adapter_id)
    return blind_votes.open_vote_log(folder, selection.browser_key)


def build() -> KeepView:
    with gr.Column(visible=False, elem_id="keep-answer") as box:
        about = gr.HTML()
        with gr.Row():
            earlier, later = gr.HTML(), gr.HTML()
        with gr.Row() as buttons:
            gr.Button(t("Keep the earlier one"), min_width=140, elem_id="keep-earlier")
            gr.Button(t("Keep the new one"), min_width=140, elem_id="keep-later")
        undo_button = gr.Button(t("Take the choice back"), size="sm", visible=False, elem_id="undo-keep")
    return KeepView(box, about, earlier, later, buttons, undo_button, gr.State(""))


def connect(
    view: KeepView, selection: Selection, number: gr.State, regenerated: Any, other: Sequence[Any], show: dict[str, Any]
) -> None:
    """number: of the answers that were shown before. regenerated: the event that makes new ones.

    other: events after which there is nothing to choose. show: shows the conversation anew.
    """
    regenerated.success(show_errors(offer), [number, *selection], view, **QUIET)
    for is_later, button in enumerate(view.buttons.children):
        button.click(show_errors(partial(keep, bool(is_later))), [number, *selection], view, **QUIET).success(**show)
    view.undo.click(show_errors(undo), [view.choice, *selection], view, **QUIET)
    gr.on(other, None, None, view.box, js="() => ({ visible: false, __type__: 'update' })", **QUIET)
