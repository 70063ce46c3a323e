"""Step 4, the blind vote: two answers without names, a choice, and how sure the count is."""

import random
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from persona import corrections, preferences, votes
from persona.errors import Message, PersonaError
from persona.talks import Answer
from persona.ui import voices
from persona.ui.common import QUIET, Page, bars_html, open_current, shown, to_save
from persona.ui.line import in_line
from persona.ui.opening import opening
from persona.ui.talking import sampling_of
from persona.ui.words import localized, t
from persona.votes import Book, Question, Side

CHOICES = {"left": "← Left is better", "tie": "Equally good", "bad": "Both bad", "right": "Right is better →"}


def book_of(slug: str, chosen: str, key: str) -> Book:
    return votes.open_book(voices.place(slug, chosen), key)


def another(chosen: str) -> str:
    """One of the persona's probes, drawn anew each time."""
    probes = () if (chosen or "").startswith("server/") else voices.find(chosen).card.probes
    return random.choice(probes) if probes else ""


def ask(said: str, key: str, slug: str, chosen: str, rival: str, strength: float, *knobs: float) -> Iterator[tuple]:
    """Both answers, on sides that were drawn. Yields (left, right, question id, status, four buttons, reveal).

    Nothing is shown before both are complete: which of them ends first would tell who is who.
    """
    sampling, book = sampling_of(knobs), book_of(slug, chosen, key)
    for words in opening(chosen):
        yield _page("", "", "", words, False)
    cast = voices.cast(slug, chosen, [rival], strength)
    sides = [Side(v) for v in cast.voices]
    question = votes.ask(book, said, sides, cast.card.system, {"seed": sampling.seed})
    order = [cast.voices.index(side.voice) for side in (question.left, question.right)]
    drawn = replace(cast, speakers=tuple(cast.speakers[n] for n in order), voices=tuple(cast.voices[n] for n in order))
    for replies in drawn.answer([(), ()], said, sampling):
        longest = max(r.tokens for r in replies)
        status = t("Both are writing: {n} of at most {most} tokens", n=longest, most=sampling.max_new_tokens)
        yield _page("", "", "", status, False)
    if wrong := next((r.error for r in replies if r.error), ""):
        raise PersonaError(Message.of(wrong))
    answers = [Answer(s.voice, r.text, r.tokens, r.ended)
               for s, r in zip((question.left, question.right), replies, strict=True)]  # fmt: skip
    told = votes.blind(votes.answered(book, question.id, answers))
    yield _page(told["left"], told["right"], told["question"], t("Which one is she?"), True)


def _page(left: str, right: str, question: str, status: str, ready: bool) -> tuple:
    buttons = [gr.Button(interactive=ready) for _ in CHOICES]
    return (_answer(left), _answer(right), question, status, *buttons, "", gr.Row(visible=False))


def _answer(text: str) -> str:
    return f"<div class='card answer'>{escape(text.strip()) or '<span class=quiet>…</span>'}</div>"


def vote(choice: str, question: str, key: str, slug: str, chosen: str) -> tuple:
    """Keep the vote; say who was who. Returns (status, four buttons, reveal, corrections row)."""
    voted = votes.vote(book_of(slug, chosen, key), question, choice)
    names = "".join(
        f"<div><span class='quiet'>{side}</span> <b>{escape(voices.spoken(s.voice.label))}</b></div>"
        for side, s in ((t("left"), voted.left), (t("right"), voted.right))
    )
    buttons = [gr.Button(interactive=False) for _ in CHOICES]
    return (
        t("Voted."), *buttons, f"<div class='reveal'>{names}</div>{tally_html(slug, chosen, key)}",
        gr.Row(visible=bool(slug)),
    )  # fmt: skip


def tally_html(slug: str, chosen: str, key: str) -> str:
    """Win rate with its interval for every two voices that were voted on, and how many more votes would settle it."""
    found = votes.contests(votes.questions(book_of(slug, chosen, key))) if chosen and key else []
    if not found:
        return f"<div class='quiet'>{t('No votes yet. Ask a question; the names are shown after the vote.')}</div>"
    return "".join(map(_contest, found))


def _contest(c: votes.Tally) -> str:
    first, second = voices.spoken(c.first.label), voices.spoken(c.second.label)
    counts = {first: c.wins, second: c.losses, t("equally good"): c.ties, t("both bad"): c.both_bad}
    bars = bars_html([(words, count, str(count)) for words, count in counts.items()])
    two = {"first": escape(first), "second": escape(second)}
    head = t("<b>{first}</b> against <b>{second}</b>, {n} votes", **two, n=c.votes)
    if c.votes == 1:
        head = t("<b>{first}</b> against <b>{second}</b>, 1 vote", **two)
    return (
        f"<div class='card'>{head}{bars}<p>{_rate(c, first)}{escape(localized(c.outlook))}</p>"
        f"<p class='quiet'>{escape(localized(c.sides))}</p></div>"
    )


def _rate(c: votes.Tally, first: str) -> str:
    if c.rate.value is None:
        return ""
    words = t("{name} wins <b>{rate}</b> of the decided votes (95 % interval {low} to {high}).", name=escape(first),
              rate=f"{c.rate.value:.0%}", low=f"{c.rate.low:.0%}", high=f"{c.rate.high:.0%}")  # fmt: skip
    return f"{words} "


def to_pairs(question: str, own: str, key: str, slug: str, chosen: str) -> str:
    """The better answer, or one written by hand, becomes a pair."""
    found = _find(question, key, slug, chosen)
    return localized(corrections.add(open_current(slug), corrections.of_vote(found, own.strip())).message)


def _find(question: str, key: str, slug: str, chosen: str) -> Question:
    for q in votes.questions(book_of(slug, chosen, key)):
        if q.id == question and q.choice:
            return q
    raise PersonaError("Vote first: then the answer can go to the pairs.")


def export(key: str, slug: str, chosen: str) -> str:
    """The votes as preference rows for TRL's DPOTrainer."""
    made = preferences.preferences(votes.questions(book_of(slug, chosen, key)))
    if not made.rows:
        raise PersonaError("No vote prefers one answer yet, so there is nothing to export. Vote left or right first.")
    path = to_save("preferences.jsonl")
    path.write_text("".join(preferences.dumps(made.rows)), encoding="utf-8")
    return str(path)


def build(page: Page, key: gr.State, strength: gr.Slider, knobs: list[Any], opened: list[Any]) -> None:
    """opened: events on which the tally is shown anew."""
    gr.Markdown(t("Two answers, no names, sides drawn by lot. Vote, then see who was who: the only fair taste test."))
    with gr.Row(elem_classes="slim"):
        said = gr.Textbox(
            label=t("Question"), placeholder=t("Ask both"), scale=5, min_width=260, elem_id="blind-question"
        )
        draw = gr.Button(t("Another question"), scale=1, min_width=150)
        rival = gr.Dropdown([(t("Base, with her prompt"), voices.PROMPTED)], value=voices.PROMPTED, scale=2,
                            min_width=200, label=t("Against"), elem_id="blind-rival")  # fmt: skip
        begin = gr.Button(t("Ask both"), variant="primary", scale=1, min_width=120, elem_id="blind-ask")
    status = gr.HTML(elem_classes="quiet status", elem_id="blind-status")
    with gr.Row():
        left = gr.HTML(elem_id="blind-left")
        right = gr.HTML(elem_id="blind-right")
    with gr.Row():
        buttons = {choice: gr.Button(t(words), interactive=False, min_width=140, elem_id=f"vote-{choice}")
                   for choice, words in CHOICES.items()}  # fmt: skip
    question = gr.State("")
    reveal = gr.HTML(elem_id="blind-reveal")
    with gr.Row(visible=False) as after:
        own = gr.Textbox(label=t("What she should have said (empty: the better answer as it is)"), scale=4)
        send = gr.Button(t("Add to the pairs"), scale=1, min_width=140, elem_id="vote-to-pairs")
    download = gr.DownloadButton(t("Export votes for DPO (JSON lines)"), size="sm", scale=0, elem_id="export-votes")

    draw.click(shown(another), page.adapter, said, **QUIET)
    everything = [left, right, question, status, *buttons.values(), reveal, after]
    gr.on(
        [begin.click, said.submit], in_line(ask, everything, status),
        [said, key, page.slug, page.adapter, rival, strength, *knobs], everything,
        concurrency_limit=None, **QUIET,
    )  # fmt: skip
    for choice, button in buttons.items():
        button.click(
            shown(lambda q, k, s, a, choice=choice: vote(choice, q, k, s, a)), [question, key, page.slug, page.adapter],
            [status, *buttons.values(), reveal, after], **QUIET,
        )  # fmt: skip
    send.click(shown(to_pairs), [question, own, key, page.slug, page.adapter], status, **QUIET)
    download.click(shown(export), [key, page.slug, page.adapter], download, api_visibility="private")
    gr.on(opened, shown(lambda s, a, k: (tally_html(s, a, k), _rivals(s, a))), [page.slug, page.adapter, key],
          [reveal, rival], **QUIET)  # fmt: skip


def _rivals(slug: str, chosen: str) -> gr.Dropdown:
    return gr.Dropdown([v for v in voices.beside(slug, chosen) if v[1] != chosen])
