"""Step 4, tab Chat: one question to several voices; the conversation is saved turn by turn."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from persona.compare import conversation, conversation_store, corrections
from persona.compare.conversation import Conversation, ConversationAnswer, VoiceRecord
from persona.compare.conversation_store import ConversationStore
from persona.compare.session import MAX_COLUMNS
from persona.errors import PersonaError
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.ui import voice_picker
from persona.ui.buttons import cancel_then, disable_after, download_on_click
from persona.ui.i18n import localized, t
from persona.ui.model_queue import ModelTurn, model_work, wait_in_queue
from persona.ui.navigation import COMPARE
from persona.ui.notices import show_info
from persona.ui.page import QUIET, SHOWING, Page, on_latest, open_current_persona, show_errors
from persona.ui.steps.compare import keep_answer
from persona.ui.steps.compare.base_note import CHOOSE_BASE_JS, choose_base
from persona.ui.steps.compare.controls import SamplingSettings, Selection
from persona.ui.steps.compare.conversation_view import (
    ConversationView,
    Messages,
    book_note,
    choose_greeting,
    chosen_greeting,
    column_messages,
    column_voices,
    conversation_dropdown,
    delete_chosen_conversation,
    exchange_messages,
    export_conversation,
    greeting_note,
    hide_greetings,
    is_unchanged_thinking,
    latest_conversation,
    load_conversation,
    open_conversation_store,
    read_chatbot_text,
    reply_note,
    require_turn,
    room_note,
    show_conversation,
    turn_of_message,
)
from persona.ui.steps.compare.loading import report_loading

CHATBOT_IDS = ("chat-base", "chat-persona", "chat-third", "chat-fourth")
CHAT_HEIGHT = "var(--chat-height)"  # of FIT_CHAT_JS; on a phone of theme.css

FIT_CHAT_JS = (Path(__file__).parent / "chat_height.js").read_text(encoding="utf-8")

# on a phone the answers would come out of sight
SHOW_ANSWERS_JS = """() => {
  const answers = document.getElementById("chat-persona"), box = document.getElementById("composer");
  const { top, bottom } = answers.getBoundingClientRect();
  if (top < 0 || bottom > box.getBoundingClientRect().top)
    document.getElementById("columns").scrollIntoView({ block: "start" });
}"""


class ChatUpdate(NamedTuple):
    """What a handler that streams answers updates: the components, or the values for them."""

    chatbots: Sequence[Any] = (gr.skip(),) * MAX_COLUMNS
    notes: Sequence[Any] = (gr.skip(),) * MAX_COLUMNS  # under the columns
    question: Any = gr.skip()
    stop: Any = gr.skip()
    status: Any = gr.skip()
    conversation_id: Any = gr.skip()

    def flat(self) -> tuple[Any, ...]:
        """As Gradio takes it."""
        return *self.chatbots, *self.notes, self.question, self.stop, self.status, self.conversation_id


# ---- handlers that ask. controls: a Selection, then the SamplingSettings

Steps = Iterator[tuple | ModelTurn]


def _read_controls(controls: Sequence[Any]) -> tuple[Selection, SamplingSettings]:
    size = len(Selection._fields)
    return Selection(*controls[:size]), SamplingSettings(*controls[size:])


def send_after_greeting(question: str, greeting: int | None, *controls: Any) -> Steps:
    """A new turn; greeting: the number of the one that was chosen for a new conversation."""
    yield from send_message(question, *controls, greeting=greeting)


def send_message(question: str, *controls: Any, greeting: int | None = None) -> Steps:
    """A new turn: saved first, then answered."""
    if not question.strip():
        raise PersonaError("Write something to say first.")
    selection, settings = _read_controls(controls)
    store = open_conversation_store(selection)
    settings.to_sampling()  # a value out of range is refused before anything is saved
    chat = load_conversation(selection)
    if chat:
        chat = conversation_store.add_turn(store, chat, question)
    else:
        chat = conversation_store.start_conversation(store, question, chosen_greeting(greeting, selection))
    yield from answer_last_turn(store, chat, selection, settings)


def regenerate_answers(*controls: Any) -> Steps:
    """Other answers to the last turn, by another seed. The earlier ones stay on disk."""
    selection, settings = _read_controls(controls)
    chat = load_conversation(selection)
    if not chat or not chat.turns:
        raise PersonaError("There is no answer to regenerate yet. Say something first.")
    yield from answer_last_turn(open_conversation_store(selection), chat, selection, settings)


def edit_message(event: gr.EditData, column: int, *controls: Any) -> Steps:
    """An edited question is asked again, and what followed it is hidden; an edited answer becomes a pair."""
    selection, settings = _read_controls(controls)
    index = event.index[0] if isinstance(event.index, list | tuple) else event.index
    voices = column_voices(selection)
    shown = column_messages(load_conversation(selection), voices, selection)[column]
    text = read_chatbot_text(str(event.value))
    if is_unchanged_thinking(shown, int(index), text):
        return
    number, is_answer = turn_of_message(shown, int(index))
    if is_answer:
        message = localized(correct_answer(number, voices[column], text, selection))
        show_info(t("{message} Undo it in step 1.", message=message))
        chatbots = list(ChatUpdate().chatbots)
        chatbots[: len(voices)] = map(gr.Chatbot, column_messages(load_conversation(selection), voices, selection))
        yield ChatUpdate(chatbots, status=message, conversation_id=selection.conversation_id).flat()
        return
    store, chat = open_conversation_store(selection), require_turn(selection, number)
    chat = conversation_store.edit_turn(store, chat, chat.turns[number].id, text)
    yield from answer_last_turn(store, chat, selection, settings)


def correct_answer(number: int, voice: VoiceRecord, text: str, selection: Selection) -> str:
    """Add a pair with `text` as the answer of turn `number`. Returns a message for the user."""
    persona = open_current_persona(selection.slug)
    chat = require_turn(selection, number)
    pair = corrections.pair_from_turn(chat, chat.turns[number].id, voice.column, text)
    return corrections.append_correction(persona, pair).message


def answer_last_turn(
    store: ConversationStore, chat: Conversation, selection: Selection, settings: SamplingSettings
) -> Steps:
    """Answer the last turn, in a turn on the model; another server's answers need none."""
    for text in report_loading(selection.adapter_id, settings.quantization):
        yield ChatUpdate(question="", stop=gr.Button(interactive=True), status=text, conversation_id=chat.id).flat()
    work = (store, chat, selection, settings)
    if voice_picker.is_remote(selection.adapter_id):
        yield from stream_answers(*work)
    else:
        rows = len(voice_picker.column_order(selection.adapter_id, selection.other_voices))
        batch_key = voice_picker.batch_key(selection.adapter_id, settings.quantization)
        yield ModelTurn(stream_answers, work, batch_key=batch_key, rows=rows)


def _answer_seconds(_: Any, __: Any, selection: Selection, settings: SamplingSettings) -> float:
    return settings.gpu_seconds(1 + len(selection.other_voices or ()))


@model_work(_answer_seconds)
def stream_answers(
    store: ConversationStore, chat: Conversation, selection: Selection, settings: SamplingSettings
) -> Iterator[tuple]:
    """Stream the answers to the last turn as ChatUpdates, and save them, also those that Stop cuts off."""
    sampling, turn = settings.to_sampling(), chat.turns[-1]
    comparison = voice_picker.open_comparison(
        selection.slug, selection.adapter_id, selection.other_voices, settings.strength, settings.quantization
    )
    records = comparison.records
    histories = [conversation.prompt_history(chat, turn.id, record.column) for record in records]
    same_prompt = len({(r.system, h) for r, h in zip(records, histories, strict=True)}) == 1
    before = column_messages(replace(chat, turns=chat.turns[:-1]), records, selection)
    replies: list[Generation] = [Generation() for _ in records]
    shown: list[Generation | None] = [None for _ in records]
    columns = comparison.render(histories, turn.said, sampling)
    books = [greeting_note(chat) + room_note(c.left_out) + book_note(c.prompt.entries) for c in columns]
    try:
        for replies in comparison.answer(histories, turn.said, sampling, columns):
            update = _stream_update(before, turn.said, records, replies, shown, books, sampling.max_new_tokens)
            shown = [*replies]
            status = _speed_status(replies, same_prompt, sampling)
            yield update._replace(question="", status=status).flat()
    finally:
        if any(reply.text or reply.thinking for reply in replies):
            answers = [ConversationAnswer(v, r.text, r.tokens, r.ended, r.thinking)
                       for v, r in zip(records, replies, strict=True)]  # fmt: skip
            conversation_store.add_answers(store, chat, turn.id, answers, asdict(sampling))
    status = t("{status} · done", status=_speed_status(replies, same_prompt, sampling))
    if comparison.model and comparison.model.placed.reason:
        status += f" · {localized(comparison.model.placed.reason)}"
    yield ChatUpdate(question="", status=status, conversation_id=chat.id).flat()


def _stream_update(
    before: Sequence[Messages], question: str, records: Sequence[VoiceRecord], replies: Sequence[Generation],
    shown: Sequence[Generation | None], books: Sequence[str], limit: int,
) -> ChatUpdate:  # fmt: skip
    """The columns with the replies so far; those that are as they were shown, having ended or not, are left alone."""
    chatbots, notes = list(ChatUpdate().chatbots), list(ChatUpdate().notes)
    for n, (record, reply) in enumerate(zip(records, replies, strict=True)):
        if reply != shown[n]:
            goes_on = not (reply.text or reply.ended or reply.tokens >= limit)
            messages = [*before[n], *exchange_messages(question, reply.text, reply.thinking, goes_on)]
            chatbots[n] = gr.Chatbot(messages, label=localized(record.label))
            notes[n] = books[n] + reply_note(
                reply, limit, voice_picker.is_base_circling(record, reply.text, reply.ended)
            )
    return ChatUpdate(chatbots, notes)


def _speed_status(replies: Sequence[Generation], same_prompt: bool, sampling: Sampling) -> str:
    pace = f"{sum(r.tokens for r in replies) / max(*(r.seconds for r in replies), 1e-9):.1f}"
    if same_prompt:
        return t("{pace} tokens/s in total · same prompt, same random seed {seed}", pace=pace, seed=sampling.seed)
    return t(
        "{pace} tokens/s in total · each with its own prompt and conversation, same random seed {seed}",
        pace=pace,
        seed=sampling.seed,
    )


def renew_conversations(shown_step: int, *selection: Any) -> Any:
    """conversation_dropdown() where this step is the one shown: another window may have added some."""
    return conversation_dropdown(*selection) if shown_step == COMPARE else gr.skip()


# ---- layout and events


class _Controls(NamedTuple):
    """The components of the tab."""

    columns: list[gr.Column]
    update: ChatUpdate
    bases: list[gr.HTML]
    send: gr.Button
    regenerate: gr.Button
    probes: gr.Dataset
    conversations: gr.Dropdown
    greetings: gr.Radio
    new: gr.Button
    export: gr.Button
    delete: gr.Button
    keep: keep_answer.KeepView


def build_chat_tab(
    page: Page, browser_key: gr.BrowserState, other_voices: gr.Dropdown, settings: SamplingSettings, listed: gr.State
) -> gr.Dataset:
    """The tab. Returns the list of probes, which are questions to click.

    listed: the adapter whose voices `other_voices` lists; it changes after them.
    """
    controls = _build_layout()
    selection = Selection(
        browser_key, page.slug, page.adapter, other_voices, conversation_id=controls.update.conversation_id
    )
    _connect_questions(controls, selection, settings)
    _connect_conversations(controls, page, selection, listed)
    for note in controls.bases:
        note.click(
            show_errors(choose_base), page.chosen, [page.render_settings.base, page.steps, page.shown_step], **QUIET
        )
    return controls.probes


def _build_layout() -> _Controls:
    columns, chatbots, notes, bases = [], [], [], []
    with gr.Row(elem_id="columns"):
        for n, elem_id in enumerate(CHATBOT_IDS):
            with gr.Column(min_width=250, visible=n < 2) as column:
                columns.append(column)
                chatbots.append(gr.Chatbot(
                    label=t("Persona") if n else t("Base"), elem_id=elem_id, height=CHAT_HEIGHT, buttons=["copy"],
                    render_markdown=False, latex_delimiters=[], editable="all",
                    placeholder=t("Train it first") if n == 1 else t("Say something to all"),
                ))  # fmt: skip
                notes.append(gr.HTML(elem_id=f"{elem_id}-note"))
                bases.append(gr.HTML(js_on_load=CHOOSE_BASE_JS))
    greetings = gr.Radio([], label=t("Greeting of a new conversation"), visible=False, elem_id="greetings",
                         info=t("The model reads the one that you choose as what the persona said first."))  # fmt: skip
    keep = keep_answer.build()
    with gr.Column(elem_id="composer"):  # stays in sight (theme.css)
        status = gr.HTML(elem_classes="quiet status", elem_id="chat-status", js_on_load=FIT_CHAT_JS)
        with gr.Row():
            question = gr.Textbox(show_label=False, container=False, placeholder=t("Say something to all"), scale=6,
                                  min_width=100, elem_id="say")  # fmt: skip
            send = gr.Button(t("Send"), variant="primary", scale=1, min_width=70, elem_id="send")
            stop = gr.Button(t("Stop"), variant="stop", scale=1, min_width=70, interactive=False, elem_id="stop-chat")
    probes = gr.Dataset(components=[question], samples=[], label=t("Questions to try"), visible=False, elem_id="probes")
    with gr.Row(elem_classes="slim"):
        conversations = gr.Dropdown([(t("New conversation"), "")], value="", scale=4, elem_id="conversations",
                                    label=t("Conversations (only you see them)"))  # fmt: skip
        regenerate = gr.Button(t("Regenerate"), scale=0, min_width=130, elem_id="regenerate")
        new = gr.Button(t("New"), scale=0, min_width=80, elem_id="new-talk")
        export = gr.Button(t("Export"), scale=0, min_width=90, elem_id="export-talk")
        delete = gr.Button(t("Delete"), scale=0, min_width=80, elem_id="delete-talk")
    update = ChatUpdate(chatbots, notes, question, stop, status, gr.State(""))
    return _Controls(
        columns, update, bases, send, regenerate, probes, conversations, greetings, new, export, delete, keep
    )


def _connect_questions(c: _Controls, selection: Selection, settings: SamplingSettings) -> None:
    question, status, outputs = c.update.question, c.update.status, c.update.flat()
    controls = [*selection, *settings]
    ask: dict[str, Any] = {"outputs": outputs, "concurrency_limit": None, **QUIET}  # they wait in the model's queue
    answered = gr.on(
        [question.submit, c.send.click],
        wait_in_queue(send_after_greeting, outputs, status),
        [question, c.greetings, *controls],
        **ask,
    )
    answered.then(show_errors(conversation_dropdown), [*selection], c.conversations, **QUIET)
    before = gr.State(0)  # number of the answers that were shown before Regenerate
    regenerated = c.regenerate.click(
        show_errors(keep_answer.start_regeneration), [settings.seed, *selection], [settings.seed, before], **QUIET
    ).success(wait_in_queue(regenerate_answers, outputs, status), controls, **ask)
    edit = wait_in_queue(edit_message, outputs, status)
    edited = [bot.edit(edit, [gr.State(n), *controls], **ask) for n, bot in enumerate(c.update.chatbots)]
    running = [answered, regenerated, *edited]
    cancel_then(c.update.stop.click, running, lambda: t("Stopped. What was written so far is kept."), status)
    for event in running:
        disable_after(event, c.update.stop)
    # the columns are another adapter's now: what was written so far is saved, and no other conversation shows it
    selection.adapter_id.change(
        lambda: "", None, selection.conversation_id, cancels=running, trigger_mode="multiple", **QUIET
    ).then(lambda: "", None, status, **SHOWING)
    gr.on([c.send.click, question.submit], None, None, None, js=SHOW_ANSWERS_JS, **QUIET)
    answered.then(show_errors(hide_greetings), [*selection], c.greetings, **QUIET)
    c.greetings.input(show_errors(choose_greeting), [c.greetings, *selection], [*c.update.chatbots], **SHOWING)
    c.probes.click(lambda row: row[0], c.probes, question, **QUIET)
    show: dict[str, Any] = _show_event(c, selection)
    other = [question.submit, c.send.click, c.regenerate.click, c.new.click, c.conversations.input]
    keep_answer.connect(c.keep, selection, before, regenerated, [*other, selection.adapter_id.change], show)
    gr.on([c.new.click, *(bot.clear for bot in c.update.chatbots)], lambda: ("", "", ""), None,
          [selection.conversation_id, c.conversations, status], cancels=running, **QUIET).then(**show)  # fmt: skip
    c.conversations.input(lambda chosen: chosen or "", c.conversations, selection.conversation_id, cancels=running,
                          **SHOWING).then(**show)  # fmt: skip


def _show_event(c: _Controls, selection: Selection) -> dict[str, Any]:
    outputs = ConversationView(c.columns, c.update.chatbots, c.update.notes, c.bases, c.greetings).flat()
    return {"fn": show_errors(show_conversation), "inputs": [*selection], "outputs": outputs, **SHOWING}


def _connect_conversations(c: _Controls, page: Page, selection: Selection, listed: gr.State) -> None:
    inputs, show = [*selection], _show_event(c, selection)
    refresh: dict[str, Any] = {
        "fn": show_errors(conversation_dropdown), "inputs": inputs, "outputs": c.conversations, **SHOWING,
    }  # fmt: skip
    c.delete.click(show_errors(delete_chosen_conversation), inputs, None, **QUIET).success(
        lambda: "", None, selection.conversation_id, **QUIET
    ).then(**refresh).then(**show)
    download_on_click(c.export, export_conversation, inputs)
    listed.change(show_errors(latest_conversation), inputs, selection.conversation_id, **QUIET).then(**refresh).then(
        **show
    )
    selection.other_voices.change(**show)
    on_latest(
        page.shown_step.change, show_errors(renew_conversations), [page.shown_step, *inputs], c.conversations, **QUIET
    )
