"""Step 4, tab Blind vote: two answers without names, a vote, and how sure the count is."""

import filecmp
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any, NamedTuple, Self

import gradio as gr

from persona.compare import blind_votes, corrections, dpo_export
from persona.compare.blind_votes import BlindQuestion, VoteLog, VoteSide
from persona.compare.conversation import ConversationAnswer
from persona.errors import Message, PersonaError
from persona.models.adapter import WEIGHTS_FILE, Adapter
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.share.open_adapter import open_adapter
from persona.store import jsonl
from persona.ui import voice_picker
from persona.ui.buttons import cancel_then, download_on_click, run_with_stop
from persona.ui.i18n import localized, t
from persona.ui.model_queue import ModelTurn, model_work, wait_in_queue
from persona.ui.page import QUIET, SHOWING, Page, download_path, on_latest, open_current_persona, show_errors
from persona.ui.steps.compare import train_on_votes
from persona.ui.steps.compare.base_note import is_chat_base
from persona.ui.steps.compare.controls import NO_UNSEEN_QUESTIONS, SamplingSettings
from persona.ui.steps.compare.loading import report_loading
from persona.ui.widgets import bars_html

CHOOSING_RIVAL: dict[str, Any] = {**SHOWING, "concurrency_id": "rival", "concurrency_limit": 1}
VOTE_CHOICES = {"left": "← Left is better", "tie": "Equally good", "bad": "Both bad", "right": "Right is better →"}


class VoteView(NamedTuple):
    """Two answers and a vote on them: the components, or the values for them; by default they stay as they are."""

    left: Any = gr.skip()
    right: Any = gr.skip()
    question_id: Any = gr.skip()
    status: Any = gr.skip()
    vote_left: Any = gr.skip()  # the buttons, in the order of VOTE_CHOICES
    vote_tie: Any = gr.skip()
    vote_bad: Any = gr.skip()
    vote_right: Any = gr.skip()
    reveal: Any = gr.skip()
    correction: Any = gr.skip()  # the row in which an answer can be corrected

    def with_buttons(self, interactive: bool) -> Self:
        left, tie, bad, right = (gr.Button(interactive=interactive) for _ in VOTE_CHOICES)
        return self._replace(vote_left=left, vote_tie=tie, vote_bad=bad, vote_right=right)


def open_adapter_votes(slug: str, adapter_id: str, browser_key: str) -> VoteLog:
    return blind_votes.open_vote_log(voice_picker.conversation_dir(slug, adapter_id), browser_key)


def list_rivals(slug: str, adapter_id: str) -> list[tuple[str, str]]:
    """(label, id) of the voices that the chosen adapter can be compared with."""
    return [v for v in voice_picker.list_other_voices(slug, adapter_id) if v[1] != adapter_id]


def choose_rival(slug: str, adapter_id: str) -> str:
    """The rival to begin with; "" for none. It is the adapter that this one goes on from, where that is still there.

    A base that was never taught to answer gives itself away, and so does a first step, which is hardly more than the
    base: against such a base, it is another run on it, else the earliest snapshot from the second half of this run.
    """
    if not adapter_id:
        return ""
    if voice_picker.is_remote(adapter_id):
        return next((voice for _, voice in list_rivals(slug, adapter_id)), "")
    main = voice_picker.find_adapter(adapter_id)
    parent = main.facts.get("parent")
    before = parent.get("adapter") if isinstance(parent, dict) else None
    if before in {voice for _, voice in list_rivals(slug, adapter_id)}:
        return before
    if is_chat_base(main):
        return voice_picker.BASE_WITH_PROMPT
    refs = [AdapterRef.parse_id(voice) for _, voice in list_rivals(slug, adapter_id)]
    runs = [ref for ref in refs if ref.kind is RefKind.RUN and ref.step is None]
    chosen = AdapterRef.parse_id(adapter_id)
    snapshots = {ref.step: ref for ref in refs if ref.step is not None and ref.run == chosen.run}
    late = [snapshots[step] for step in sorted(snapshots) if 2 * step >= max(snapshots)]
    for ref in [*runs, *late]:
        other = open_adapter(ref)
        if other.base_id == main.base_id and not _has_same_weights(other, main):
            return str(ref)
    return voice_picker.BASE_WITH_PROMPT


def _has_same_weights(one: Adapter, other: Adapter) -> bool:
    return filecmp.cmp(one.path / WEIGHTS_FILE, other.path / WEIGHTS_FILE, shallow=False)


def rival_note(slug: str, adapter_id: str, rival: str) -> str:
    """Whether a vote against this rival is blind."""
    bases = (voice_picker.BASE_ALONE, voice_picker.BASE_WITH_PROMPT)
    if not adapter_id or rival not in bases or is_chat_base(voice_picker.find_adapter(adapter_id)):
        return ""
    text = t("This base was never taught to answer, so its answer gives itself away. Against another run or a "
             "late step of this one the vote is blind.")  # fmt: skip
    return f"<div class='hint'>{text}</div>"


def draw_probe(adapter_id: str) -> str:
    """One of the questions that the adapter was not trained on, at random. Raises PersonaError where there is none."""
    questions = [] if voice_picker.is_remote(adapter_id) else voice_picker.unseen_questions(adapter_id)
    if not questions:
        raise PersonaError(NO_UNSEEN_QUESTIONS)
    return random.choice(questions)


def ask_both(
    question: str, browser_key: str, slug: str, adapter_id: str, rival: str, *settings: Any
) -> Iterator[VoteView | ModelTurn]:
    """Stream both answers, on random sides. settings: the SamplingSettings."""
    sampling_settings = SamplingSettings(*settings)
    sampling_settings.to_sampling()  # a value out of range is refused first
    for text in report_loading(adapter_id, sampling_settings.quantization):
        yield _answers_update("", "", "", text, False)
    work = (question, browser_key, slug, adapter_id, rival, *settings)
    if voice_picker.is_remote(adapter_id):
        yield from answer_both(*work)
    else:
        batch_key = voice_picker.batch_key(adapter_id, sampling_settings.quantization)
        yield ModelTurn(answer_both, work, batch_key=batch_key, rows=2)


@model_work(lambda *work: SamplingSettings(*work[5:]).gpu_seconds(2))
def answer_both(
    question: str, browser_key: str, slug: str, adapter_id: str, rival: str, *settings: Any
) -> Iterator[VoteView]:
    """Nothing is shown before both answers are complete: which one ends first would give away who is who."""
    sampling_settings = SamplingSettings(*settings)
    sampling, votes = sampling_settings.to_sampling(), open_adapter_votes(slug, adapter_id, browser_key)
    comparison = voice_picker.open_comparison(
        slug, adapter_id, [rival], sampling_settings.strength, sampling_settings.quantization
    )
    sides = [VoteSide(record) for record in comparison.records]
    drawn = blind_votes.draw_question(votes, question, sides, comparison.card.system, {"seed": sampling.seed})
    order = [comparison.records.index(side.voice) for side in (drawn.left, drawn.right)]
    comparison = replace(
        comparison,
        voices=tuple(comparison.voices[n] for n in order),
        records=tuple(comparison.records[n] for n in order),
    )
    for replies in comparison.answer([(), ()], question, sampling):
        longest = max(reply.tokens for reply in replies)
        status = t("Both are writing: {n} of at most {most} tokens", n=longest, most=sampling.max_new_tokens)
        yield _answers_update("", "", "", status, False)
    if error := next((reply.error for reply in replies if reply.error), ""):
        raise PersonaError(Message.of(error))
    answers = [ConversationAnswer(record, reply.text, reply.tokens, reply.ended)
               for record, reply in zip(comparison.records, replies, strict=True)]  # fmt: skip
    shown = blind_votes.redact_question(blind_votes.record_answers(votes, drawn.id, answers))
    yield _answers_update(shown["left"], shown["right"], shown["question"], t("Which one is the persona?"), True)


def _answers_update(left: str, right: str, question_id: str, status: str, ready: bool) -> VoteView:
    view = VoteView(
        _answer_html(left), _answer_html(right), question_id, status, reveal="", correction=gr.Row(visible=False)
    )
    return view.with_buttons(interactive=ready)


def _answer_html(text: str) -> str:
    return f"<div class='card answer'>{escape(text.strip()) or '<span class=quiet>…</span>'}</div>"


def cast_vote(choice: str, question_id: str, browser_key: str, slug: str, adapter_id: str) -> VoteView:
    """Save the vote, and show which voice wrote which answer."""
    voted = blind_votes.record_vote(open_adapter_votes(slug, adapter_id, browser_key), question_id, choice)
    names = "".join(
        f"<div><span class='quiet'>{side}</span> <b>{escape(voice_picker.record_label(s.voice))}</b></div>"
        for side, s in ((t("left"), voted.left), (t("right"), voted.right))
    )
    reveal = f"<div class='reveal'>{names}</div>{tally_html(slug, adapter_id, browser_key)}"
    view = VoteView(status=t("Voted."), reveal=reveal, correction=gr.Row(visible=bool(slug)))
    return view.with_buttons(interactive=False)


def tally_html(slug: str, adapter_id: str, browser_key: str) -> str:
    """For every two voices with votes: the win rate with its interval, and how many more votes would settle it."""
    tallies = []
    if adapter_id and browser_key:
        votes = open_adapter_votes(slug, adapter_id, browser_key)
        tallies = blind_votes.tally_all(blind_votes.read_blind_questions(votes), chosen=adapter_id)
    if not tallies:
        return f"<div class='quiet'>{t('No votes yet. Ask a question; the names are shown after the vote.')}</div>"
    return "".join(map(_tally_card, tallies))


def _tally_card(tally: blind_votes.Tally) -> str:
    first, second = voice_picker.record_label(tally.first), voice_picker.record_label(tally.second)
    counts = {first: tally.wins, second: tally.losses, t("equally good"): tally.ties, t("both bad"): tally.both_bad}
    bars = bars_html([(label, count, str(count)) for label, count in counts.items()])
    names = {"first": escape(first), "second": escape(second)}
    head = t("<b>{first}</b> against <b>{second}</b>, {n} vote(s)", **names, n=tally.votes)
    if tally.votes == 1:
        head = t("<b>{first}</b> against <b>{second}</b>, 1 vote", **names)
    return (
        f"<div class='card'>{head}{bars}<p>{_win_rate_text(tally, first)}{escape(localized(tally.evidence))}</p>"
        f"<p class='quiet'>{escape(localized(tally.side_bias))}</p></div>"
    )


def _win_rate_text(tally: blind_votes.Tally, first: str) -> str:
    rate = tally.rate
    if rate.value is None:
        return ""
    text = t("{name} wins <b>{rate}</b> of the decided votes (95 % interval {low} to {high}).", name=escape(first),
             rate=f"{rate.value:.0%}", low=f"{rate.low:.0%}", high=f"{rate.high:.0%}")  # fmt: skip
    return f"{text} "


def add_correction(question_id: str, correction: str, browser_key: str, slug: str, adapter_id: str) -> str:
    """Add a pair with the better answer, or with the correction if one is given. Returns a message."""
    persona = open_current_persona(slug)
    pair = corrections.pair_from_vote(_find_voted(question_id, browser_key, slug, adapter_id), correction.strip())
    return localized(corrections.append_correction(persona, pair).message)


def _find_voted(question_id: str, browser_key: str, slug: str, adapter_id: str) -> BlindQuestion:
    for question in blind_votes.read_blind_questions(open_adapter_votes(slug, adapter_id, browser_key)):
        if question.id == question_id and question.choice:
            return question
    raise PersonaError("Vote first: then the answer can go to the pairs.")


def export_votes(browser_key: str, slug: str, adapter_id: str) -> str:
    """The votes as preference rows for TRL's DPOTrainer. Returns the file's path."""
    questions = blind_votes.read_blind_questions(open_adapter_votes(slug, adapter_id, browser_key))
    preferences = dpo_export.collect_preferences(questions)
    if not preferences.rows:
        raise PersonaError(
            "There is nothing to export yet. It takes a vote for left or right where the two answers differ and the "
            "better one was not cut off."
        )
    path = download_path(f"{voice_picker.file_stem(adapter_id)}-preferences.jsonl")
    path.write_text("".join(jsonl.dump_rows(preferences.rows)), encoding="utf-8")
    return str(path)


class _Controls(NamedTuple):
    """The components of the tab."""

    question: gr.Textbox
    draw: gr.Button
    rival: gr.Dropdown
    rival_note: gr.HTML
    ask: gr.Button
    stop: gr.Button
    view: VoteView
    correction: gr.Textbox
    add: gr.Button
    export: gr.Button
    train: Any  # of train_on_votes.build


def build(page: Page, browser_key: gr.BrowserState, settings: SamplingSettings, opened: Sequence[Any]) -> None:
    """The tab. opened: events on which the tally is shown anew."""
    _connect_events(page, browser_key, settings, opened, _build_layout())


def _build_layout() -> _Controls:
    gr.Markdown(t("Two answers without names, on random sides. Vote, then see which voice wrote which."))
    with gr.Row(elem_classes="slim"):
        question = gr.Textbox(
            label=t("Question"), placeholder=t("Ask both"), scale=4, min_width=260, elem_id="blind-question"
        )
        draw = gr.Button(t("Another question"), scale=0, min_width=180)
        rival = gr.Dropdown(
            voice_picker.list_bases()[:1], value=voice_picker.BASE_WITH_PROMPT,
            scale=2, min_width=280, label=t("Against"), elem_id="blind-rival",
        )  # fmt: skip
        ask = gr.Button(t("Ask both"), variant="primary", scale=1, min_width=120, elem_id="blind-ask")
        stop = gr.Button(t("Stop"), variant="stop", scale=0, min_width=90, interactive=False, elem_id="stop-blind")
    rival_note = gr.HTML(elem_id="rival-note")
    status = gr.HTML(elem_classes="quiet status", elem_id="blind-status")
    with gr.Row():
        left = gr.HTML(elem_id="blind-left")
        right = gr.HTML(elem_id="blind-right")
    with gr.Row():
        vote_left, vote_tie, vote_bad, vote_right = (
            gr.Button(t(label), interactive=False, min_width=140, elem_id=f"vote-{choice}")
            for choice, label in VOTE_CHOICES.items()
        )
    reveal = gr.HTML(elem_id="blind-reveal")
    with gr.Row(visible=False) as row:
        correction = gr.Textbox(
            label=t("What the persona should have said (empty: the better answer as it is)"), scale=4,
            elem_id="vote-correction",
        )  # fmt: skip
        add = gr.Button(t("Add to the pairs"), scale=1, min_width=140, elem_id="vote-to-pairs")
    with gr.Row():
        train = train_on_votes.build_button()
        export = gr.Button(
            t("Export votes for DPO (JSON lines)"), size="sm", scale=0, min_width=260, elem_id="export-votes"
        )
    train_controls = train_on_votes.build(train)
    view = VoteView(left, right, gr.State(""), status, vote_left, vote_tie, vote_bad, vote_right, reveal, row)
    return _Controls(question, draw, rival, rival_note, ask, stop, view, correction, add, export, train_controls)


def _connect_events(
    page: Page, browser_key: gr.BrowserState, settings: SamplingSettings, opened: Sequence[Any], c: _Controls
) -> None:
    view, slug, adapter = c.view, page.slug, page.adapter
    c.draw.click(show_errors(draw_probe), adapter, c.question, **QUIET)
    running = run_with_stop(
        [c.ask.click, c.question.submit], c.stop, wait_in_queue(ask_both, view, view.status),
        [c.question, browser_key, slug, adapter, c.rival, *settings], view, concurrency_limit=None,
    )  # fmt: skip
    cancel_then(c.stop.click, [running], lambda: _answers_update("", "", "", t("Stopped"), False), view)
    cancel_then(
        adapter.change, [running], lambda: _answers_update("", "", "", "", False)._replace(reveal=gr.skip()), view
    )
    buttons = (view.vote_left, view.vote_tie, view.vote_bad, view.vote_right)
    voted = [
        button.click(
            show_errors(partial(cast_vote, choice)), [view.question_id, browser_key, slug, adapter], view, **QUIET
        )
        for choice, button in zip(VOTE_CHOICES, buttons, strict=True)
    ]
    added = c.add.click(
        show_errors(add_correction), [view.question_id, c.correction, browser_key, slug, adapter], view.status, **QUIET
    )
    train_on_votes.connect(page, browser_key, c.train, opened, [*voted, added])
    download_on_click(c.export, export_votes, [browser_key, slug, adapter])
    rival_for = gr.State("")  # the adapter that the rival was offered for
    on_latest(
        opened, show_errors(show_rivals), [slug, adapter, browser_key, c.rival, rival_for],
        [view.reveal, c.rival, c.rival_note, rival_for], **CHOOSING_RIVAL,
    )  # fmt: skip
    c.rival.input(show_errors(rival_note), [slug, adapter, c.rival], c.rival_note, **CHOOSING_RIVAL)


def show_rivals(
    slug: str, adapter_id: str, browser_key: str, rival: str, rival_for: str
) -> tuple[str, gr.Dropdown, str, str]:
    """The tally, the rivals there are, the note on the selected one, and the adapter: another one's rival goes."""
    choices = list_rivals(slug, adapter_id)
    dropdown = gr.Dropdown(choices)  # one that stays is not written: another may be chosen by the time of the answer
    if rival_for != adapter_id or rival not in {voice for _, voice in choices}:
        rival = choose_rival(slug, adapter_id)
        dropdown = gr.Dropdown(choices, value=rival or None)
    return tally_html(slug, adapter_id, browser_key), dropdown, rival_note(slug, adapter_id, rival), adapter_id
