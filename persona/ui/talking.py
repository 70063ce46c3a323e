"""Step 4, the conversation: one question, several voices, kept on disk turn by turn."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from persona import corrections, files, shelf, talks
from persona.chat import MAX_COLUMNS
from persona.decode import Reply
from persona.errors import InputError, PersonaError
from persona.sampling import Sampling
from persona.shelf import Shelf
from persona.talks import Answer, Talk
from persona.ui import voices
from persona.ui.common import open_current, to_save
from persona.ui.opening import opening
from persona.ui.words import localized, t

Messages = list[dict[str, Any]]


def sampling_of(knobs: Sequence[float]) -> Sampling:
    """temperature, top-p, top-k, min-p, repetition penalty, longest reply, seed → Sampling."""
    temperature, top_p, top_k, min_p, penalty, longest, seed = knobs
    return Sampling(
        float(temperature), float(top_p), int(top_k or 0), float(min_p), float(penalty), int(seed or 0), int(longest)
    )


def open_shelf(slug: str, chosen: str, key: str) -> Shelf:
    return shelf.open_shelf(voices.place(slug, chosen), key)


def messages(talk: Talk | None, label: str) -> Messages:
    """One column of a conversation, for a Chatbot. A turn that this column did not answer shows why as three dots."""
    shown = []
    for turn in talk.turns if talk else ():
        text = talks.text_of(turn, label)
        shown += [{"role": "user", "content": turn.said}, {"role": "assistant", "content": text or "…"}]
    return shown


def columns(talk: Talk | None, cast_labels: Sequence[str]) -> list[Any]:
    """The four chatbots: those in use with their label and messages, the others empty."""
    made = []
    for n in range(MAX_COLUMNS):
        if n < len(cast_labels):
            made.append(gr.Chatbot(messages(talk, cast_labels[n]), label=voices.spoken(cast_labels[n])))
        else:
            made.append(gr.Chatbot([]))
    return made


def note_of(reply: Reply, limit: int) -> str:
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


def talk_of(slug: str, chosen: str, key: str, talk_id: str) -> Talk | None:
    return shelf.read(open_shelf(slug, chosen, key), talk_id) if talk_id else None


def say(said: str, key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str, strength: float,
        *knobs: float) -> Iterator[tuple]:  # fmt: skip
    """A new turn: on disk first, then answered."""
    if not said.strip():
        raise PersonaError("Write something to say first.")
    place = open_shelf(slug, chosen, key)
    sampling = sampling_of(knobs)
    talk = talk_of(slug, chosen, key, talk_id)
    talk = shelf.say(place, talk, said) if talk else shelf.start(place, said)
    yield from answer(place, talk, slug, chosen, others, strength, sampling)


def again(key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str, strength: float,
          *knobs: float) -> Iterator[tuple]:  # fmt: skip
    """Other answers to the last turn: the next seed. The earlier ones stay on disk."""
    talk = talk_of(slug, chosen, key, talk_id)
    if not talk or not talk.turns:
        raise PersonaError("There is nothing to answer again yet. Say something first.")
    yield from answer(open_shelf(slug, chosen, key), talk, slug, chosen, others, strength, sampling_of(knobs))


def reworded(number: int, said: str, key: str, slug: str, chosen: str, others: Sequence[str], talk_id: str,
             strength: float, *knobs: float) -> Iterator[tuple]:  # fmt: skip
    """An earlier turn said otherwise: what followed leaves the view. number: of the turn, from 0."""
    place, talk = open_shelf(slug, chosen, key), talk_of(slug, chosen, key, talk_id)
    if not talk or number >= len(talk.turns):
        raise PersonaError("This turn is no longer there. Reload the page.")
    talk = shelf.edit(place, talk, talk.turns[number].id, said)
    yield from answer(place, talk, slug, chosen, others, strength, sampling_of(knobs))


def answer(
    place: Shelf, talk: Talk, slug: str, chosen: str, others: Sequence[str], strength: float, sampling: Sampling
) -> Iterator[tuple]:
    """Stream the answers to the last turn of `talk`, and keep them, also what was said before a Stop.

    Yields (four chatbots, four notes, text box, status, the conversation's id).
    """
    turn = talk.turns[-1]
    waiting = [gr.skip()] * MAX_COLUMNS
    for words in opening(chosen):
        yield (*waiting, *waiting, "", words, talk.id)
    cast = voices.cast(slug, chosen, others, strength)
    labels = [v.label for v in cast.voices]
    histories = [talks.history(talk, turn.id, label) for label in labels]
    same = len({(v.system, h) for v, h in zip(cast.voices, histories, strict=True)}) == 1
    before = replace(talk, turns=talk.turns[:-1])
    replies: list[Reply] = [Reply() for _ in labels]
    try:
        for replies in cast.answer(histories, turn.said, sampling):
            bots = [_live(messages(before, label), turn.said, r) for label, r in zip(labels, replies, strict=True)]
            yield _frame(bots, replies, labels, sampling, _status(replies, same, sampling), talk.id)
    finally:
        if any(r.text for r in replies):
            answers = [Answer(v, r.text, r.tokens, r.ended) for v, r in zip(cast.voices, replies, strict=True)]
            shelf.answer(place, talk, turn.id, answers, _figures(sampling))
    yield (*waiting, *waiting, "", t("{status} · done", status=_status(replies, same, sampling)), talk.id)


def _live(earlier: Messages, said: str, reply: Reply) -> Messages:
    now = [{"role": "user", "content": said}, {"role": "assistant", "content": reply.text or "…"}]
    return [*earlier, *now]


def _frame(bots: list[Messages], replies: Sequence[Reply], labels: Sequence[str], sampling: Sampling, status: str,
           talk_id: str) -> tuple:  # fmt: skip
    idle = MAX_COLUMNS - len(bots)
    shown = [gr.Chatbot(b, label=voices.spoken(label)) for b, label in zip(bots, labels, strict=True)]
    notes = [note_of(r, sampling.max_new_tokens) for r in replies]
    return (*shown, *[gr.skip()] * idle, *notes, *[""] * idle, "", status, talk_id)


def _status(replies: Sequence[Reply], same: bool, sampling: Sampling) -> str:
    pace = f"{sum(r.tokens for r in replies) / max(*(r.seconds for r in replies), 1e-9):.1f}"
    if same:
        return t("{pace} tokens/s together · same prompt, same dice, seed {seed}", pace=pace, seed=sampling.seed)
    return t("{pace} tokens/s together · each with its own prompt and conversation, same dice, seed {seed}", pace=pace,
             seed=sampling.seed)  # fmt: skip


def _figures(s: Sampling) -> dict[str, float]:
    return {"temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "min_p": s.min_p,
            "repetition_penalty": s.repetition_penalty, "seed": s.seed, "max_new_tokens": s.max_new_tokens}  # fmt: skip


def correct(number: int, label: str, text: str, key: str, slug: str, chosen: str, talk_id: str) -> str:
    """What she should have said becomes a pair. Returns what happened, in words."""
    persona = open_current(slug)
    talk = talk_of(slug, chosen, key, talk_id)
    if not talk or number >= len(talk.turns):
        raise PersonaError("This turn is no longer there. Reload the page.")
    pair = corrections.of_turn(talk, talk.turns[number].id, label, text)
    return corrections.add(persona, pair).message


def listing(slug: str, chosen: str, key: str, talk_id: str) -> gr.Dropdown:
    """This visitor's conversations, newest first."""
    try:
        found = shelf.listing(open_shelf(slug, chosen, key)) if key and chosen else []
    except InputError:  # a key from an older browser: it has no conversations
        found = []
    named = [(t("New conversation"), ""), *((f"{x.title or t('Untitled')} · {_day(x.changed)}", x.id) for x in found)]
    return gr.Dropdown(named, value=talk_id if talk_id in {x.id for x in found} else "")


def latest(slug: str, chosen: str, key: str) -> str:
    """The conversation to open: the newest that this very adapter took part in; "" for a new one."""
    if not (key and chosen):
        return ""
    label = voices.label(chosen, chosen)
    for talk in shelf.listing(open_shelf(slug, chosen, key)):
        if any(a.voice.label == label for t in talk.turns for a in t.answers):
            return talk.id
    return ""


def _day(seconds: float) -> str:
    return time.strftime(t(voices.DAY), time.localtime(seconds))


def export(slug: str, chosen: str, key: str, talk_id: str) -> str:
    """The conversation as JSON lines of OpenAI messages, one line a column."""
    talk = talk_of(slug, chosen, key, talk_id)
    if talk is None:
        raise PersonaError("There is no conversation to export yet. Say something first.")
    path = to_save(f"{files.slug(talk.title)[:40] or 'conversation'}.jsonl")
    path.write_text("".join(talks.export(talk)), encoding="utf-8")
    return str(path)


def forget(slug: str, chosen: str, key: str, talk_id: str) -> None:
    if talk_id:
        shelf.delete(open_shelf(slug, chosen, key), talk_id)
