"""Step 4, tab Chat: the saved conversations, and their messages as the columns show them."""

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.compare import conversation, conversation_store, corrections
from persona.compare.conversation import Conversation, Turn, VoiceRecord
from persona.compare.conversation_store import ConversationStore
from persona.compare.session import MAX_COLUMNS
from persona.errors import InputError, PersonaError
from persona.models.generate import Generation
from persona.store import files, persona_folder
from persona.template.character_prompt import resolve_greeting
from persona.train.run_folder import present_card
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.page import download_path
from persona.ui.steps.compare.base_note import base_note_html
from persona.ui.steps.compare.controls import Selection
from persona.ui.widgets import markdown_text, problems_html

CORRECTION_MARK = "\n\n✎ "  # between a correction and what is said of it

Messages = list[dict[str, Any]]
Corrections = Mapping[tuple[str, tuple[tuple[str, str], ...]], tuple[int, str]]  # as corrections.find_corrections


class ConversationView(NamedTuple):
    """The columns of a conversation: the components, or the values for them."""

    columns: Sequence[Any]
    chatbots: Sequence[Any]
    notes: Sequence[Any] = ("",) * MAX_COLUMNS
    bases: Sequence[Any] = ("",) * MAX_COLUMNS  # what a base is, under its column
    greetings: Any = None  # of a new conversation, to choose from

    def flat(self) -> tuple[Any, ...]:
        return *self.columns, *self.chatbots, *self.notes, *self.bases, self.greetings


def open_conversation_store(selection: Selection) -> ConversationStore:
    folder = voice_picker.conversation_dir(selection.slug, selection.adapter_id)
    return conversation_store.open_store(folder, selection.browser_key)


def load_conversation(selection: Selection) -> Conversation | None:
    """The chosen conversation; None for a new one."""
    if not selection.conversation_id:
        return None
    return conversation_store.read_conversation(open_conversation_store(selection), selection.conversation_id)


def require_turn(selection: Selection, number: int) -> Conversation:
    """The chosen conversation. Raises PersonaError when it has no turn `number` (from 0)."""
    chat = load_conversation(selection)
    if not chat or number >= len(chat.turns):
        raise PersonaError("This turn is no longer there. Reload the page.")
    return chat


def show_conversation(*inputs: Any) -> tuple:
    """A ConversationView. A new conversation shows the persona's greeting; voices not chosen now are not shown."""
    selection = Selection(*inputs)
    if not selection.adapter_id:
        empty = [gr.Chatbot([], label=t("Persona") if n else t("Base"), placeholder=t("Train it first") if n else "")
                 for n in range(MAX_COLUMNS)]  # fmt: skip
        return ConversationView(_column_visibility(2), empty, greetings=gr.Radio([], visible=False)).flat()
    chat, voices = load_conversation(selection), column_voices(selection)
    chatbots, say = [gr.Chatbot([]) for _ in range(MAX_COLUMNS)], t("Say something to all")
    notes, bases = [""] * MAX_COLUMNS, [""] * MAX_COLUMNS
    for n, (voice, messages) in enumerate(zip(voices, column_messages(chat, voices, selection), strict=True)):
        chatbots[n] = gr.Chatbot(messages, label=localized(voice.label), placeholder=say)
        notes[n] = greeting_note(chat) + _circles_note(chat.turns[-1], voice) if chat and chat.turns else ""
        if voice.kind != "adapter":
            bases[n] = base_note_html(voice_picker.find_adapter(selection.adapter_id))
    greetings = gr.Radio([], visible=False)
    if chat is None and not voice_picker.is_remote(selection.adapter_id):
        texts = _greetings(selection.adapter_id)
        chatbots[_persona_column(voices)] = _greeting_chatbot(voices, texts[0] if texts else t("Say something"))
        choices = [(conversation.shorten_title(text), n) for n, text in enumerate(texts)]
        greetings = gr.Radio(choices, value=None, visible=bool(texts))
    return ConversationView(_column_visibility(len(voices)), chatbots, notes, bases, greetings).flat()


def choose_greeting(number: int, *inputs: Any) -> list[Any]:
    """The Chatbots of a new conversation that begins with this greeting."""
    selection = Selection(*inputs)
    texts, voices = _greetings(selection.adapter_id), column_voices(selection)
    chatbots: list[Any] = [gr.skip()] * MAX_COLUMNS
    if not selection.conversation_id and number in range(len(texts)):
        chatbots[_persona_column(voices)] = _greeting_chatbot(voices, texts[number])
    return chatbots


def chosen_greeting(number: Any, selection: Selection) -> str:
    """The greeting that was chosen for a new conversation; "" where none was."""
    if not isinstance(number, int) or voice_picker.is_remote(selection.adapter_id):
        return ""
    texts = _greetings(selection.adapter_id)
    return texts[number] if number in range(len(texts)) else ""


def greeting_note(chat: Conversation) -> str:
    """Under the columns of a conversation that began with a greeting: which one."""
    said = t("Began with: {greeting}", greeting=conversation.shorten_title(chat.greeting))
    return f"<div class='quiet'>{escape(said)}</div>" if chat.greeting else ""


def hide_greetings(*inputs: Any) -> gr.Radio:
    """Once the conversation has begun there is none to choose."""
    return gr.Radio(visible=False) if Selection(*inputs).conversation_id else gr.skip()


def _persona_column(voices: Sequence[VoiceRecord]) -> int:
    return 1 if len(voices) > 1 else 0


def _greeting_chatbot(voices: Sequence[VoiceRecord], text: str) -> gr.Chatbot:
    label = localized(voices[_persona_column(voices)].label)
    return gr.Chatbot([], label=label, placeholder=markdown_text(text))


def _greetings(adapter_id: str) -> list[str]:
    """The greetings of the chosen adapter's persona as they are now, macros resolved."""
    adapter = voice_picker.find_adapter(adapter_id)
    card = present_card(adapter.path, adapter.card)
    return [resolve_greeting(card, text, adapter_id) for text in card.greetings]


def _circles_note(turn: Turn, voice: VoiceRecord) -> str:
    answer = next((a for a in turn.answers if a.voice.column == voice.column), None)
    circling = answer and voice_picker.is_base_circling(voice, answer.text, answer.ended)
    return f"<div class='quiet'>{t('stopped: it went round in circles')}</div>" if circling else ""


def column_messages(chat: Conversation | None, voices: Sequence[VoiceRecord], selection: Selection) -> list[Messages]:
    """Every column of a conversation, for its Chatbot, with the answers marked that the author has corrected.

    A pair does not say whose answer it corrects. That of a first turn, which is the same in all columns, is marked in
    the chosen adapter's column.
    """
    persona = persona_folder.find_persona(selection.slug) if selection.slug else None
    corrected = corrections.find_corrections(persona) if persona else {}
    later = {(said, history): pair for (said, history), pair in corrected.items() if any(user for user, _ in history)}
    chosen = voice_picker.voice_record(selection.adapter_id, selection.adapter_id).column
    return [chatbot_messages(chat, voice.column, corrected if voice.column == chosen else later) for voice in voices]


def _column_visibility(count: int) -> list[gr.Column]:
    return [gr.Column(visible=n < count) for n in range(MAX_COLUMNS)]


def column_voices(selection: Selection) -> list[VoiceRecord]:
    """The voices of the columns as open_comparison orders them, without opening a model."""
    ids = voice_picker.column_order(selection.adapter_id, selection.other_voices)
    return [voice_picker.voice_record(voice, selection.adapter_id) for voice in ids]


def chatbot_messages(chat: Conversation | None, column: str, corrected: Corrections) -> Messages:
    """One column of a conversation, for a Chatbot: two messages a turn, whatever became of it."""
    messages: Messages = []
    for turn in chat.turns if chat else ():
        history = conversation.prompt_history(chat, turn.id, column) if chat else ()
        thinking = next((a.thinking for a in turn.answers if a.voice.column == column), "")
        shown = _shown_answer(turn, column, corrected.get((turn.said, history)))
        messages += exchange_messages(turn.said, shown, thinking)
    return messages


def is_unchanged_thinking(messages: Messages, index: int, edited: str) -> bool:
    """Whether a column's message is thinking: a Chatbot hands it back with an edited answer. Raises PersonaError where
    it was edited itself.
    """
    if index >= len(messages) or "metadata" not in messages[index]:
        return False
    if edited.strip() != read_chatbot_text(messages[index]["content"]).strip():
        raise PersonaError("Thinking cannot be corrected: no later answer reads it. Edit the answer below it.")
    return True


def turn_of_message(messages: Messages, index: int) -> tuple[int, bool]:
    """The turn, from 0, that a column's message belongs to, and whether it is the answer."""
    number, is_answer = divmod(index - sum("metadata" in m for m in messages[:index]), 2)
    return number, bool(is_answer)


def _shown_answer(turn: Turn, column: str, correction: tuple[int, str] | None) -> str:
    """The answer, or its correction with both told apart, or why there is none; "" where it may still come."""
    text = conversation.answer_text(turn, column)
    if text and correction:
        row, output = correction
        about = t("Your correction, pair {row}. The answer was: {answer}", row=row, answer=text.strip())
        return f"{output}{CORRECTION_MARK}{about}"
    if text or not turn.answers:
        return text
    asked = any(answer.voice.column == column for answer in turn.answers)
    return t("(no answer)") if asked else t("(not asked: this voice was added later)")


def exchange_messages(question: str, answer: str, thinking: str = "", is_thinking: bool = False) -> Messages:
    """A question and its answer, for a Chatbot; the thinking before it is folded. is_thinking: it goes on."""
    folded = {"title": t("Thinking"), "status": "pending" if is_thinking else "done"}
    thought = [{"role": "assistant", "content": chatbot_text(thinking), "metadata": folded}] if thinking else []
    return [
        {"role": "user", "content": chatbot_text(question)},
        *thought,
        {"role": "assistant", "content": chatbot_text(answer or "…")},
    ]


def chatbot_text(text: str) -> str:
    """For a Chatbot, which takes text for HTML even where it renders no Markdown: it shows `text` as it is."""
    return _HTML.sub(lambda found: escape(found[0]), text)


def read_chatbot_text(edited: str) -> str:
    """The text of a message that was edited in a Chatbot, where it is the HTML of `chatbot_text`, without a mark."""
    return edited.partition(CORRECTION_MARK)[0].replace("&lt;", "<").replace("&amp;", "&")


_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#|\w+;)")  # no more than must be: the copy button copies it


def room_note(left_out: int) -> str:
    """Above what is said of a reply: how much of a long conversation the model no longer reads."""
    if not left_out:
        return ""
    said = t("The conversation is longer than the model can read. Left out of this prompt, the oldest first: {count} "
             "messages with their answers. The system prompt and the greeting stay.", count=left_out)  # fmt: skip
    return f"<div class='quiet'>{escape(said)}</div>"


def book_note(entries: Sequence[str]) -> str:
    """Above what is said of a reply: which entries of the character book joined its prompt."""
    names = ", ".join(entries)
    return f"<div class='quiet'>{escape(t('From the book: {names}', names=names))}</div>" if entries else ""


def reply_note(reply: Generation, limit: int, circling: bool = False) -> str:
    """Under a column: how fast it is, whether it has ended (✓), and why. circling: it was stopped for that."""
    if reply.error:
        return problems_html([reply.error])
    if not reply.tokens:
        return ""
    figures = {"n": reply.tokens, "pace": f"{reply.tokens_per_s:.1f}", "first": f"{reply.first:.1f}"}
    text = t("{n} token(s), {pace}/s, first after {first} s", **figures)
    if reply.thinking and not reply.text and reply.tokens >= limit:
        text = t("{n} tokens, {pace}/s, first after {first} s · the thinking used them all up: raise the limit of "
                 "{limit} for an answer", **figures, limit=limit)  # fmt: skip
    elif not reply.ended and reply.tokens >= limit:
        text = t("{n} tokens, {pace}/s, first after {first} s · reached the limit of {limit}", **figures, limit=limit)
    elif circling:
        text = t("{n} tokens, {pace}/s, first after {first} s · stopped: it went round in circles", **figures)
    finished = reply.ended or circling or reply.tokens >= limit
    return f"<div class='quiet'>{'✓ ' if finished else ''}{text}</div>"


def conversation_dropdown(*inputs: Any) -> gr.Dropdown:
    """This visitor's conversations, newest first."""
    selection, stored = Selection(*inputs), []
    if selection.browser_key and selection.adapter_id:
        with contextlib.suppress(InputError):  # a key from an older browser: it has no conversations
            stored = conversation_store.list_conversations(open_conversation_store(selection))
    choices = [(f"{chat.title or t('Untitled')} · {_format_day(chat.changed)}", chat.id) for chat in stored]
    known = selection.conversation_id in {chat.id for chat in stored}
    return gr.Dropdown([(t("New conversation"), ""), *choices], value=selection.conversation_id if known else "")


def latest_conversation(*inputs: Any) -> str:
    """The id of the newest conversation that the chosen adapter took part in; "" for a new one."""
    selection = Selection(*inputs)
    if not (selection.browser_key and selection.adapter_id):
        return ""
    column = voice_picker.voice_record(selection.adapter_id, selection.adapter_id).column
    for chat in conversation_store.list_conversations(open_conversation_store(selection)):
        if any(answer.voice.column == column for turn in chat.turns for answer in turn.answers):
            return chat.id
    return ""


def _format_day(seconds: float) -> str:
    return time.strftime(t("%d %b %H:%M"), time.localtime(seconds))


def export_conversation(*inputs: Any) -> str:
    """The conversation as JSON lines of OpenAI messages, one line for each column. Returns the file's path."""
    selection = Selection(*inputs)
    chat = load_conversation(selection)
    if chat is None:
        raise PersonaError("There is no conversation to export yet. Say something first.")
    stem = voice_picker.file_stem(selection.adapter_id)
    path = download_path(f"{stem}-{files.slugify(chat.title)[:20] or 'conversation'}.jsonl")
    path.write_text("".join(conversation.export_messages(chat)), encoding="utf-8")
    return str(path)


def delete_chosen_conversation(*inputs: Any) -> None:
    selection = Selection(*inputs)
    if not selection.conversation_id:
        raise PersonaError("There is no conversation to delete: this one is new. Choose one first.")
    conversation_store.delete_conversation(open_conversation_store(selection), selection.conversation_id)
