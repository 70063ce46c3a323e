"""Step 4, the conversation: one question, several voices, kept on disk turn by turn."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from persona.compare import conversation, conversation_store, corrections
from persona.compare.conversation import Conversation, ConversationAnswer, VoiceRecord
from persona.compare.conversation_store import ConversationStore
from persona.compare.session import MAX_COLUMNS
from persona.errors import InputError, PersonaError
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.store import files
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.model_queue import wait_in_queue
from persona.ui.page import QUIET, Page, download_path, open_current_persona, show_errors
from persona.ui.steps.compare.loading import report_loading

Messages = list[dict[str, Any]]


def sampling_from_controls(knobs: Sequence[float]) -> Sampling:
    """temperature, top-p, top-k, min-p, repetition penalty, longest reply, seed → Sampling."""
    temperature, top_p, top_k, min_p, penalty, longest, seed = knobs
    return Sampling(
        float(temperature), float(top_p), int(top_k or 0), float(min_p), float(penalty), int(seed or 0), int(longest)
    )


def open_conversation_store(slug: str, chosen: str, key: str) -> ConversationStore:
    return conversation_store.open_store(voice_picker.conversation_dir(slug, chosen), key)


def chatbot_messages(talk: Conversation | None, column: str) -> Messages:
    """One column of a conversation, for a Chatbot. A turn that this column did not answer shows why as three dots."""
    shown = []
    for turn in talk.turns if talk else ():
        text = conversation.answer_text(turn, column)
        shown += [{"role": "user", "content": turn.said}, {"role": "assistant", "content": text or "…"}]
    return shown


def chatbot_updates(talk: Conversation | None, voices: Sequence[VoiceRecord]) -> list[Any]:
    """The four chatbots: those in use with their label and messages, the others empty."""
    made = []
    for n in range(MAX_COLUMNS):
        if n < len(voices):
            label = localized(voices[n].label)
            made.append(gr.Chatbot(chatbot_messages(talk, voices[n].column), label=label))
        else:
            made.append(gr.Chatbot([]))
    return made


def reply_note(reply: Generation, limit: int) -> str:
    """Under a column: how fast it is, and how it ended."""
    if reply.error:
        return f"<div class='problem'>{escape(localized(reply.error))}</div>"
    if not reply.tokens:
        return ""
    figures = {"n": reply.tokens, "pace": f"{reply.tokens_per_s:.1f}", "first": f"{reply.first:.1f}"}
    words = t("{n} tokens, {pace}/s, first after {first} s", **figures)
    if not reply.ended and reply.tokens >= limit:
        words = t("{n} tokens, {pace}/s, first after {first} s · reached the limit of {limit}", **figures, limit=limit)
    return f"<div class='quiet'>{words}</div>"


def load_conversation(slug: str, chosen: str, key: str, talk_id: str) -> Conversation | None:
    return (
        conversation_store.read_conversation(open_conversation_store(slug, chosen, key), talk_id) if talk_id else None
    )


def send_message(said: str, key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str, strength: float,
        *knobs: float) -> Iterator[tuple]:  # fmt: skip
    """A new turn: on disk first, then answered."""
    if not said.strip():
        raise PersonaError("Write something to say first.")
    place = open_conversation_store(slug, chosen, key)
    sampling = sampling_from_controls(knobs)
    talk = load_conversation(slug, chosen, key, talk_id)
    talk = (
        conversation_store.add_turn(place, talk, said) if talk else conversation_store.start_conversation(place, said)
    )
    yield from stream_answers(place, talk, slug, chosen, others, strength, sampling)


def regenerate_answers(key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str, strength: float,
          *knobs: float) -> Iterator[tuple]:  # fmt: skip
    """Other answers to the last turn: the next seed. The earlier ones stay on disk."""
    talk = load_conversation(slug, chosen, key, talk_id)
    if not talk or not talk.turns:
        raise PersonaError("There is no answer to regenerate yet. Say something first.")
    yield from stream_answers(
        open_conversation_store(slug, chosen, key), talk, slug, chosen, others, strength, sampling_from_controls(knobs)
    )


def edit_question(number: int, said: str, key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str,
             strength: float, *knobs: float) -> Iterator[tuple]:  # fmt: skip
    """An earlier turn said otherwise: what followed leaves the view. number: of the turn, from 0."""
    place, talk = open_conversation_store(slug, chosen, key), load_conversation(slug, chosen, key, talk_id)
    if not talk or number >= len(talk.turns):
        raise PersonaError("This turn is no longer there. Reload the page.")
    talk = conversation_store.edit_turn(place, talk, talk.turns[number].id, said)
    yield from stream_answers(place, talk, slug, chosen, others, strength, sampling_from_controls(knobs))


def stream_answers(
    place: ConversationStore,
    talk: Conversation,
    slug: str,
    chosen: str,
    others: Sequence[str],
    strength: float,
    sampling: Sampling,
) -> Iterator[tuple]:
    """Stream the answers to the last turn of `talk`, and keep them, also what was said before a Stop.

    Yields (four chatbots, four notes, text box, status, the conversation's id).
    """
    turn = talk.turns[-1]
    waiting = [gr.skip()] * MAX_COLUMNS
    for words in report_loading(chosen):
        yield (*waiting, *waiting, "", words, talk.id)
    cast = voice_picker.open_comparison(slug, chosen, others, strength)
    labels = [v.label for v in cast.voices]
    histories = [conversation.column_history(talk, turn.id, v.column) for v in cast.voices]
    same = len({(v.system, h) for v, h in zip(cast.voices, histories, strict=True)}) == 1
    before = replace(talk, turns=talk.turns[:-1])
    replies: list[Generation] = [Generation() for _ in labels]
    try:
        for replies in cast.answer(histories, turn.said, sampling):
            bots = [
                _with_reply(chatbot_messages(before, v.column), turn.said, r)
                for v, r in zip(cast.voices, replies, strict=True)
            ]
            yield _stream_update(bots, replies, labels, sampling, _speed_status(replies, same, sampling), talk.id)
    finally:
        if any(r.text for r in replies):
            answers = [
                ConversationAnswer(v, r.text, r.tokens, r.ended) for v, r in zip(cast.voices, replies, strict=True)
            ]
            conversation_store.add_answers(place, talk, turn.id, answers, _sampling_record(sampling))
    yield (*waiting, *waiting, "", t("{status} · done", status=_speed_status(replies, same, sampling)), talk.id)


def _with_reply(earlier: Messages, said: str, reply: Generation) -> Messages:
    now = [{"role": "user", "content": said}, {"role": "assistant", "content": reply.text or "…"}]
    return [*earlier, *now]


def _stream_update(
    bots: list[Messages],
    replies: Sequence[Generation],
    labels: Sequence[str],
    sampling: Sampling,
    status: str,
    talk_id: str,
) -> tuple:
    idle = MAX_COLUMNS - len(bots)
    shown = [gr.Chatbot(b, label=localized(label)) for b, label in zip(bots, labels, strict=True)]
    notes = [reply_note(r, sampling.max_new_tokens) for r in replies]
    return (*shown, *[gr.skip()] * idle, *notes, *[""] * idle, "", status, talk_id)


def _speed_status(replies: Sequence[Generation], same: bool, sampling: Sampling) -> str:
    pace = f"{sum(r.tokens for r in replies) / max(*(r.seconds for r in replies), 1e-9):.1f}"
    if same:
        return t("{pace} tokens/s in total · same prompt, same random seed {seed}", pace=pace, seed=sampling.seed)
    return t(("{pace} tokens/s in total · each with its own prompt and conversation, same random seed "
"{seed}"), pace=pace,
             seed=sampling.seed)  # fmt: skip


def _sampling_record(s: Sampling) -> dict[str, float]:
    return {"temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": s.min_p,
            "repetition_penalty": s.repetition_penalty, "seed": s.seed, "max_new_tokens": s.max_new_tokens}  # fmt: skip


def correct_answer(number: int, column: str, text: str, key: str, slug: str, chosen: str, talk_id: str) -> str:
    """What she should have said becomes a pair. Returns what happened, in words."""
    persona = open_current_persona(slug)
    talk = load_conversation(slug, chosen, key, talk_id)
    if not talk or number >= len(talk.turns):
        raise PersonaError("This turn is no longer there. Reload the page.")
    pair = corrections.pair_from_turn(talk, talk.turns[number].id, column, text)
    return corrections.append_correction(persona, pair).message


def conversation_dropdown(slug: str, chosen: str, key: str, talk_id: str) -> gr.Dropdown:
    """This visitor's conversations, newest first."""
    try:
        found = (
            conversation_store.list_conversations(open_conversation_store(slug, chosen, key)) if key and chosen else []
        )
    except InputError:  # a key from an older browser: it has no conversations
        found = []
    named = [
        (t("New conversation"), ""),
        *((f"{x.title or t('Untitled')} · {_format_day(x.changed)}", x.id) for x in found),
    ]
    return gr.Dropdown(named, value=talk_id if talk_id in {x.id for x in found} else "")


def latest_conversation(slug: str, chosen: str, key: str) -> str:
    """The conversation to open: the newest that this very adapter took part in; "" for a new one."""
    if not (key and chosen):
        return ""
    column = voice_picker.voice_record(chosen, chosen).column
    for talk in conversation_store.list_conversations(open_conversation_store(slug, chosen, key)):
        if any(a.voice.column == column for t in talk.turns for a in t.answers):
            return talk.id
    return ""


def _format_day(seconds: float) -> str:
    return time.strftime(t(voice_picker.DATE_FORMAT), time.localtime(seconds))


def export_conversation(slug: str, chosen: str, key: str, talk_id: str) -> str:
    """The conversation as JSON lines of OpenAI messages, one line a column."""
    talk = load_conversation(slug, chosen, key, talk_id)
    if talk is None:
        raise PersonaError("There is no conversation to export yet. Say something first.")
    path = download_path(f"{files.slugify(talk.title)[:40] or 'conversation'}.jsonl")
    path.write_text("".join(conversation.export_messages(talk)), encoding="utf-8")
    return str(path)


def delete_chosen_conversation(slug: str, chosen: str, key: str, talk_id: str) -> None:
    if talk_id:
        conversation_store.delete_conversation(open_conversation_store(slug, chosen, key), talk_id)


CHATBOT_IDS = ("chat-base", "chat-persona", "chat-third", "chat-fourth")


def show_conversation(slug: str, chosen: str, others: Sequence[str], key: str, talk_id: str) -> tuple:
    """A conversation in its columns; an empty one greets. Columns of voices that are not chosen now are not shown."""
    if not chosen:
        return (*_column_visibility(2), *[gr.Chatbot([]) for _ in range(MAX_COLUMNS)], *[""] * MAX_COLUMNS)
    talk = load_conversation(slug, chosen, key, talk_id)
    voices = _column_voices(chosen, others)
    bots = chatbot_updates(talk, voices)
    if talk is None and not voice_picker.is_remote(chosen):
        a = voice_picker.find_adapter(chosen)
        mine = 1 if len(voices) > 1 else 0
        greeting = escape(a.card.greeting) or t("Say something")
        bots[mine] = gr.Chatbot([], label=localized(voices[mine].label), placeholder=greeting)
    return (*_column_visibility(len(voices)), *bots, *[""] * MAX_COLUMNS)


def _column_visibility(count: int) -> list[gr.Column]:
    return [gr.Column(visible=n < count) for n in range(MAX_COLUMNS)]


def _column_voices(chosen: str, others: Sequence[str]) -> list[VoiceRecord]:
    """The voices of the columns as open_comparison orders them, without opening a model."""
    return [voice_picker.voice_record(v, chosen) for v in voice_picker.column_order(chosen, others)]


def edit_message(event: gr.EditData, key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str, column: int,
           strength: float, *knobs: float):  # fmt: skip
    """An earlier question said otherwise is asked anew; an answer said otherwise becomes a pair."""
    index = event.index[0] if isinstance(event.index, list | tuple) else event.index
    number, of_answer = divmod(int(index), 2)
    skip = (gr.skip(),) * (2 * MAX_COLUMNS + 1)
    if of_answer:
        voice = _column_voices(chosen, others)[column]
        message = localized(correct_answer(number, voice.column, str(event.value), key, slug, chosen, talk_id))
        gr.Info(escape(t("{message} Undo it in step 1.", message=message)))
        yield (*skip, message, talk_id)
        return
    yield from edit_question(number, str(event.value), key, slug, chosen, others, talk_id, strength, *knobs)


def build_chat_tab(
    page: Page, step: gr.Step, key: gr.BrowserState, others: gr.Dropdown, strength: gr.Slider, knobs: list[Any]
) -> gr.Dataset:
    """The conversation: columns, what is said, and the conversations of before. Returns the probes to click."""
    with gr.Row(equal_height=True, elem_id="columns"):
        boxes, bots, notes = [], [], []
        for n, elem in enumerate(CHATBOT_IDS):
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
        retry = gr.Button(t("Regenerate"), scale=1, min_width=80, elem_id="again")
    probes = gr.Dataset(components=[box], samples=[], label=t("Questions kept out of the training"), elem_id="probes")
    with gr.Row(elem_classes="slim"):
        talk = gr.Dropdown([(t("New conversation"), "")], value="",
                           label=t("Conversations (only you see them)"), scale=4,
                           elem_id="conversations")  # fmt: skip
        new = gr.Button(t("New"), scale=0, min_width=80, elem_id="new-talk")
        save = gr.DownloadButton(t("Export"), scale=0, min_width=90, elem_id="export-talk")
        drop = gr.Button(t("Delete"), scale=0, min_width=80, elem_id="delete-talk")

    who = [key, page.slug, page.adapter, others]
    output = [*bots, *notes, box, status, talk_id := gr.State("")]
    model: dict[str, Any] = {"concurrency_limit": None, **QUIET}  # they wait in MODEL_QUEUE
    listed = {
        "fn": show_errors(conversation_dropdown),
        "inputs": [page.slug, page.adapter, key, talk_id],
        "outputs": talk,
        **QUIET,
    }
    view = {"fn": show_errors(show_conversation), "inputs": [page.slug, page.adapter, others, key, talk_id],
            "outputs": [*boxes, *bots, *notes], **QUIET}  # fmt: skip

    spoken = gr.on(
        [box.submit, send.click],
        wait_in_queue(send_message, output, status),
        [box, *who, talk_id, strength, *knobs],
        output,
        **model,
    )
    spoken.then(**listed)
    other = retry.click(lambda seed: int(seed or 0) + 1, knobs[-1], knobs[-1], **QUIET).then(
        wait_in_queue(regenerate_answers, output, status), [*who, talk_id, strength, *knobs], output, **model
    )
    running = [spoken, other]
    said_otherwise = wait_in_queue(edit_message, output, status)
    for n, bot in enumerate(bots):
        running.append(bot.edit(said_otherwise, [*who, talk_id, gr.State(n), strength, *knobs], output, **model))
    halt.click(lambda: t("Stopped. What was written so far is kept."), None, status, cancels=running, **QUIET)
    probes.click(lambda row: row[0], probes, box, **QUIET)

    gr.on([new.click, *(bot.clear for bot in bots)], lambda: ("", "", ""), None, [talk_id, talk, status],
          cancels=running, **QUIET).then(**view)  # fmt: skip
    talk.input(lambda t: t or "", talk, talk_id, **QUIET).then(**view)
    drop.click(show_errors(delete_chosen_conversation), [page.slug, page.adapter, key, talk_id], None, **QUIET).success(
        lambda: "", None, talk_id, **QUIET
    ).then(**listed).then(**view)
    save.click(
        show_errors(export_conversation), [page.slug, page.adapter, key, talk_id], save, api_visibility="private"
    )
    gr.on(
        [page.adapter.change, page.slug.change],
        show_errors(latest_conversation),
        [page.slug, page.adapter, key],
        talk_id,
        **QUIET,
    ).then(**listed).then(**view)
    others.change(**view)
    step.select(**listed)
    return probes
