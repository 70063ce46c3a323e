"""Step 4, the blind vote: two answers without names, a choice, and how sure the count is."""

import random
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from persona.compare import blind_votes, corrections, dpo_export
from persona.compare.blind_votes import BlindQuestion, VoteLog, VoteSide
from persona.compare.conversation import ConversationAnswer
from persona.errors import Message, PersonaError
from persona.ui import voice_picker
from persona.ui.i18n import localized, t
from persona.ui.model_queue import wait_in_queue
from persona.ui.page import QUIET, Page, download_path, open_current_persona, show_errors
from persona.ui.steps.compare.chat_tab import sampling_from_controls
from persona.ui.steps.compare.loading import report_loading
from persona.ui.widgets import bars_html

VOTE_CHOICES = {"left": "← Left is better", "tie": "Equally good", "bad": "Both bad", "right": "Right is better →"}


def open_vote_log_of(slug: str, chosen: str, key: str) -> VoteLog:
    return blind_votes.open_vote_log(voice_picker.conversation_dir(slug, chosen), key)


def draw_probe(chosen: str) -> str:
    """One of the persona's probes, drawn anew each time."""
    probes = () if voice_picker.is_remote(chosen) else voice_picker.find_adapter(chosen).card.probes
    return random.choice(probes) if probes else ""


def ask_both(
    said: str, key: str, slug: str, chosen: str, rival: str, strength: float, *knobs: float
) -> Iterator[tuple]:
    """Both answers, on sides that were drawn. Yields (left, right, question id, status, four buttons, reveal).

    Nothing is shown before both are complete: which of them ends first would tell who is who.
    """
    sampling, book = sampling_from_controls(knobs), open_vote_log_of(slug, chosen, key)
    for words in report_loading(chosen):
        yield _panel_update("", "", "", words, False)
    cast = voice_picker.open_comparison(slug, chosen, [rival], strength)
    sides = [VoteSide(v) for v in cast.voices]
    question = blind_votes.draw_question(book, said, sides, cast.card.system, {"seed": sampling.seed})
    order = [cast.voices.index(side.voice) for side in (question.left, question.right)]
    drawn = replace(cast, speakers=tuple(cast.speakers[n] for n in order), voices=tuple(cast.voices[n] for n in order))
    for replies in drawn.answer([(), ()], said, sampling):
        longest = max(r.tokens for r in replies)
        status = t("Both are writing: {n} of at most {most} tokens", n=longest, most=sampling.max_new_tokens)
        yield _panel_update("", "", "", status, False)
    if wrong := next((r.error for r in replies if r.error), ""):
        raise PersonaError(Message.of(wrong))
    answers = [ConversationAnswer(s.voice, r.text, r.tokens, r.ended)
               for s, r in zip((question.left, question.right), replies, strict=True)]  # fmt: skip
    told = blind_votes.redact_question(blind_votes.record_answers(book, question.id, answers))
    yield _panel_update(told["left"], told["right"], told["question"], t("Which one is the persona?"), True)


def _panel_update(left: str, right: str, question: str, status: str, ready: bool) -> tuple:
    buttons = [gr.Button(interactive=ready) for _ in VOTE_CHOICES]
    return (_answer_html(left), _answer_html(right), question, status, *buttons, "", gr.Row(visible=False))


def _answer_html(text: str) -> str:
    return f"<div class='card answer'>{escape(text.strip()) or '<span class=quiet>…</span>'}</div>"


def cast_vote(choice: str, question: str, key: str, slug: str, chosen: str) -> tuple:
    """Keep the vote; say who was who. Returns (status, four buttons, reveal, corrections row)."""
    voted = blind_votes.record_vote(open_vote_log_of(slug, chosen, key), question, choice)
    names = "".join(
        f"<div><span class='quiet'>{side}</span> <b>{escape(voice_picker.record_label(s.voice))}</b></div>"
        for side, s in ((t("left"), voted.left), (t("right"), voted.right))
    )
    buttons = [gr.Button(interactive=False) for _ in VOTE_CHOICES]
    return (
        t("Voted."), *buttons, f"<div class='reveal'>{names}</div>{tally_html(slug, chosen, key)}",
        gr.Row(visible=bool(slug)),
    )  # fmt: skip


def tally_html(slug: str, chosen: str, key: str) -> str:
    """Win rate with its interval for every two voices that were voted on, and how many more votes would settle it."""
    found = (
        blind_votes.tally_all(blind_votes.read_blind_questions(open_vote_log_of(slug, chosen, key)))
        if chosen and key
        else []
    )
    if not found:
        return f"<div class='quiet'>{t('No votes yet. Ask a question; the names are shown after the vote.')}</div>"
    return "".join(map(_tally_card, found))


def _tally_card(c: blind_votes.Tally) -> str:
    first, second = voice_picker.record_label(c.first), voice_picker.record_label(c.second)
    counts = {first: c.wins, second: c.losses, t("equally good"): c.ties, t("both bad"): c.both_bad}
    bars = bars_html([(words, count, str(count)) for words, count in counts.items()])
    two = {"first": escape(first), "second": escape(second)}
    head = t("<b>{first}</b> against <b>{second}</b>, {n} votes", **two, n=c.votes)
    if c.votes == 1:
        head = t("<b>{first}</b> against <b>{second}</b>, 1 vote", **two)
    return (
        f"<div class='card'>{head}{bars}<p>{_rate(c, first)}{escape(localized(c.evidence))}</p>"
        f"<p class='quiet'>{escape(localized(c.side_bias))}</p></div>"
    )


def _rate(c: blind_votes.Tally, first: str) -> str:
    if c.rate.value is None:
        return ""
    words = t("{name} wins <b>{rate}</b> of the decided votes (95 % interval {low} to {high}).", name=escape(first),
              rate=f"{c.rate.value:.0%}", low=f"{c.rate.low:.0%}", high=f"{c.rate.high:.0%}")  # fmt: skip
    return f"{words} "


def add_correction(question: str, own: str, key: str, slug: str, chosen: str) -> str:
    """The better answer, or one written by hand, becomes a pair."""
    found = _find_voted(question, key, slug, chosen)
    return localized(
        corrections.append_correction(
            open_current_persona(slug), corrections.pair_from_vote(found, own.strip())
        ).message
    )


def _find_voted(question: str, key: str, slug: str, chosen: str) -> BlindQuestion:
    for q in blind_votes.read_blind_questions(open_vote_log_of(slug, chosen, key)):
        if q.id == question and q.choice:
            return q
    raise PersonaError("Vote first: then the answer can go to the pairs.")


def export_votes(key: str, slug: str, chosen: str) -> str:
    """The votes as preference rows for TRL's DPOTrainer."""
    made = dpo_export.collect_preferences(blind_votes.read_blind_questions(open_vote_log_of(slug, chosen, key)))
    if not made.rows:
        raise PersonaError("No vote prefers one answer yet, so there is nothing to export. Vote left or right first.")
    path = download_path("preferences.jsonl")
    path.write_text("".join(dpo_export.dump_rows(made.rows)), encoding="utf-8")
    return str(path)


def build(page: Page, key: gr.State, strength: gr.Slider, knobs: list[Any], opened: list[Any]) -> None:
    """opened: events on which the tally is shown anew."""
    gr.Markdown(t("Two answers without names, on random sides. Vote, then see which voice wrote which."))
    with gr.Row(elem_classes="slim"):
        said = gr.Textbox(
            label=t("Question"), placeholder=t("Ask both"), scale=5, min_width=260, elem_id="blind-question"
        )
        draw = gr.Button(t("Another question"), scale=1, min_width=150)
        rival = gr.Dropdown(
            voice_picker.list_bases()[:1],
            value=voice_picker.BASE_WITH_PROMPT,
            scale=2,
            min_width=200,
            label=t("Against"),
            elem_id="blind-rival",
        )
        begin = gr.Button(t("Ask both"), variant="primary", scale=1, min_width=120, elem_id="blind-ask")
    status = gr.HTML(elem_classes="quiet status", elem_id="blind-status")
    with gr.Row():
        left = gr.HTML(elem_id="blind-left")
        right = gr.HTML(elem_id="blind-right")
    with gr.Row():
        buttons = {choice: gr.Button(t(words), interactive=False, min_width=140, elem_id=f"vote-{choice}")
                   for choice, words in VOTE_CHOICES.items()}  # fmt: skip
    question = gr.State("")
    reveal = gr.HTML(elem_id="blind-reveal")
    with gr.Row(visible=False) as after:
        own = gr.Textbox(label=t("What the persona should have said (empty: the better answer as it is)"), scale=4)
        send = gr.Button(t("Add to the pairs"), scale=1, min_width=140, elem_id="vote-to-pairs")
    download = gr.DownloadButton(t("Export votes for DPO (JSON lines)"), size="sm", scale=0, elem_id="export-votes")

    draw.click(show_errors(draw_probe), page.adapter, said, **QUIET)
    everything = [left, right, question, status, *buttons.values(), reveal, after]
    gr.on(
        [begin.click, said.submit], wait_in_queue(ask_both, everything, status),
        [said, key, page.slug, page.adapter, rival, strength, *knobs], everything,
        concurrency_limit=None, **QUIET,
    )  # fmt: skip
    for choice, button in buttons.items():
        button.click(
            show_errors(lambda q, k, s, a, choice=choice: cast_vote(choice, q, k, s, a)),
            [question, key, page.slug, page.adapter],
            [status, *buttons.values(), reveal, after],
            **QUIET,
        )
    send.click(show_errors(add_correction), [question, own, key, page.slug, page.adapter], status, **QUIET)
    download.click(show_errors(export_votes), [key, page.slug, page.adapter], download, api_visibility="private")
    gr.on(
        opened,
        show_errors(lambda s, a, k: (tally_html(s, a, k), _rival_dropdown(s, a))),
        [page.slug, page.adapter, key],
        [reveal, rival],
        **QUIET,
    )


def _rival_dropdown(slug: str, chosen: str) -> gr.Dropdown:
    return gr.Dropdown([v for v in voice_picker.list_other_voices(slug, chosen) if v[1] != chosen])
