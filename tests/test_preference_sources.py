"""A persona's own votes and corrections as preferences; `persona prefer`."""

import json
from dataclasses import replace

import pytest

from persona.compare import blind_votes, conversation_store
from persona.compare.blind_votes import VoteSide
from persona.compare.conversation import ConversationAnswer, VoiceRecord, new_browser_key
from persona.compare.preference_sources import collect_all
from persona.errors import PersonaError
from persona.judge.preference_verdict import describe_preferences
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.train.progress import RunProgress
from persona.ui.navigation import TRAIN
from persona.ui.steps.compare import blind_vote_tab
from persona.ui.steps.train import further

BASE = VoiceRecord("base", "base")
OWN = VoiceRecord("adapter", "mags", "run/mags/r1")
FOREIGN = VoiceRecord("adapter", "other", "run/other/r9")


def vote(log, said, better, worse, voice=OWN, rival=BASE, choice=None):
    """Ask, answer and vote; `better` is what `voice` says."""
    drawn = blind_votes.draw_question(log, said, [VoteSide(voice), VoteSide(rival)], "Be dry.", {})
    texts = {voice: better, rival: worse}
    sides = (drawn.left.voice, drawn.right.voice)
    blind_votes.record_answers(log, drawn.id, [ConversationAnswer(v, texts[v]) for v in sides])
    blind_votes.record_vote(log, drawn.id, choice or ("left" if sides[0] == voice else "right"))


def test_votes_and_corrections_are_preferences_and_the_rest_is_listed(tmp_path):
    corrected = Pair("Who?", "Mags.", source="correction")
    persona = create_persona_at(tmp_path / "mags", PersonaCard(name="Mags", system="Be dry."), [corrected])
    log = blind_votes.open_vote_log(persona.path, new_browser_key())
    vote(log, "Why?", "So.", "Because of many things.")
    vote(log, "Equal?", "Yes.", "Yes.")
    vote(log, "Other?", "I am another.", "No.", voice=FOREIGN)
    vote(log, "Both bad?", "a", "b", choice="bad")
    store = conversation_store.open_store(persona.path, new_browser_key())
    talk = conversation_store.start_conversation(store, "Who?")
    answers = [ConversationAnswer(OWN, "I am Bob."), ConversationAnswer(FOREIGN, "I am Eve.")]
    conversation_store.add_answers(store, talk, talk.turns[0].id, answers, {})
    found = collect_all(persona)
    assert [(p.pair.instruction, p.pair.output, p.rejected) for p in found.preferences] == [
        ("Why?", "So.", "Because of many things."),
        ("Who?", "Mags.", "I am Bob."),
    ]
    assert all(p.pair.system == "" for p in found.preferences), "the persona's own prompt"
    listed = "\n".join(found.left_out)
    assert all(text in listed for text in ("1 left out: the two answers are equal", "another persona", "both bad"))
    json.dumps([p.pair.to_dict() for p in found.preferences])


def test_the_page_trains_on_this_visitors_votes(tmp_path, monkeypatch):
    """Only theirs, from the adapter that is chosen; an adapter of no run is refused."""
    persona = create_persona_at(tmp_path / "mags", PersonaCard(name="Mags", system="Be dry."), [Pair("a", "b")])
    mine, other = new_browser_key(), new_browser_key()
    vote(blind_votes.open_vote_log(persona.path, mine), "Why?", "So.", "Because of many things.")
    vote(blind_votes.open_vote_log(persona.path, other), "When?", "Now.", "Later than that.")
    made = []
    monkeypatch.setattr(blind_vote_tab, "open_current_persona", lambda slug: persona)
    monkeypatch.setattr(blind_vote_tab.voice_picker, "conversation_dir", lambda *_: persona.path)
    monkeypatch.setattr(blind_vote_tab, "open_parent", lambda ref: str(ref))
    monkeypatch.setattr(blind_vote_tab.launcher, "create_preference_run", lambda *work: made.append(work))
    monkeypatch.setattr(blind_vote_tab.launcher, "start_run", lambda run: None)
    assert blind_vote_tab.train_on_votes(mine, "mags", "run/mags/r1")[1] == TRAIN
    ((_, preferences, parent, _),) = made
    assert [p.pair.instruction for p in preferences] == ["Why?"] and parent == "run/mags/r1"
    with pytest.raises(PersonaError, match="adapter of this persona"):
        blind_vote_tab.train_on_votes(mine, "mags", "opened/mags")


def test_the_verdict_says_how_often_and_warns_where_the_chosen_answers_became_less_likely():
    figures = {"accuracy_before": 0.54, "accuracy_after": 0.83}
    learned = {"held_out": 2, "held_out_learned": [10, 10]}
    better, worse = {8: [9.0, 9.0]}, {8: [31.0, 30.0]}
    seen = [
        RunProgress(result=figures, plan=learned, base_nll=3.0, chosen=8, start_rows=[20.0, 20.0],
                    held_out_rows={0: [30.0, 30.0], **rows})
        for rows in (better, worse)
    ]  # fmt: skip
    said = [describe_preferences(p) for p in seen]
    assert said[0] == "Of held-out choices it now prefers yours in 83 % (before 54 %; 2 choices)."
    assert said[1].startswith(said[0]) and "less likely" in said[1]
    assert describe_preferences(RunProgress()) == ""
    assert [further.change_html(p).partition(" data")[0] for p in seen] == ['<div class="good"', '<div class="problem"']
    for after, kind in ((0.54, "hint"), (0.4, "problem")):
        same = replace(seen[0], result={"accuracy_before": 0.54, "accuracy_after": after})
        assert f'class="{kind}"' in further.change_html(same)
