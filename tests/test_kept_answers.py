"""After Regenerate: which of the two answers stays is a preference, which can be taken back."""

from dataclasses import replace

import pytest

from persona.compare import blind_votes, conversation_store, kept_answers
from persona.compare.conversation import ConversationAnswer, VoiceRecord, new_browser_key
from persona.compare.preference_sources import collect_all
from persona.errors import PersonaError
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.ui.steps.compare import keep_answer
from persona.ui.steps.compare.controls import Selection

OWN, BASE = VoiceRecord("adapter", "mags", "run/mags/r1"), VoiceRecord("base", "base")


@pytest.fixture
def chat(tmp_path, monkeypatch):
    """A conversation of two turns whose last answer is regenerated: (persona, store, selection, number before)."""
    persona, key = create_persona_at(tmp_path / "mags", PersonaCard(name="Mags"), [Pair("a", "b")]), new_browser_key()
    monkeypatch.setattr(keep_answer.voice_picker, "conversation_dir", lambda *_: persona.path)
    monkeypatch.setattr(keep_answer.voice_picker, "voice_record", lambda *_: OWN)
    store = conversation_store.open_store(persona.path, key)
    talk = conversation_store.start_conversation(store, "Hi")
    talk = conversation_store.add_answers(store, talk, talk.turns[-1].id, answers("Hello.", "Hm."), {})
    talk = conversation_store.add_turn(store, talk, "Why?")
    talk = conversation_store.add_answers(
        store, talk, talk.turns[-1].id, answers("Eh?", "<b>Because of many things."), {}
    )
    before = talk.turns[-1].answered
    conversation_store.add_answers(store, talk, talk.turns[-1].id, answers("Eh!", "So."), {})
    return persona, store, Selection(key, "mags", OWN.adapter, [], talk.id), before


def answers(base, own):
    return [ConversationAnswer(BASE, base), ConversationAnswer(OWN, own)]


def test_the_answer_that_stays_is_a_preference_until_it_is_taken_back(chat):
    persona, _, selection, before = chat
    assert keep_answer.start_regeneration(4, *selection) == (5, before + 1)
    offered = keep_answer.offer(before, *selection)
    assert offered.box.visible and "&lt;b&gt;Because" in offered.earlier and "So." in offered.later
    kept = keep_answer.keep(True, before, *selection)
    (found,) = collect_all(persona).preferences
    assert (found.pair, found.rejected) == (
        Pair("Why?", "So.", (("Hi", "Hm."),), "regenerated"), "<b>Because of many things.")  # fmt: skip
    log = blind_votes.open_vote_log(persona.path, selection.browser_key)
    assert blind_votes.read_blind_questions(log) == [], "no tally counts it"
    keep_answer.undo(kept.choice, *selection)
    assert collect_all(persona).preferences == ()
    with pytest.raises(PersonaError, match="taken back"):
        keep_answer.undo(kept.choice, *selection)


def test_an_earlier_answer_that_stays_is_shown_again_and_both_ways_teach_nothing(chat):
    persona, store, selection, before = chat
    keep_answer.keep(True, before, *selection)
    keep_answer.keep(False, before, *selection)
    talk = conversation_store.read_conversation(store, selection.conversation_id)
    assert talk.turns[-1].answered == before and len(talk.turns[-1].regenerations) == 2, "both are on disk"
    found = collect_all(persona)
    assert found.preferences == () and "both ways" in found.left_out[0]
    assert not keep_answer.offer(before, *selection).box.visible, "it is the one that is shown"


def test_what_cannot_be_learned_from_is_not_offered_or_is_left_out(chat):
    persona, store, selection, before = chat
    for changes in ({"adapter_id": "opened/mags"}, {"conversation_id": ""}):
        assert not keep_answer.offer(before, *selection._replace(**changes)).box.visible
    assert not keep_answer.offer(0, *selection).box.visible
    talk = conversation_store.read_conversation(store, selection.conversation_id)
    log = blind_votes.open_vote_log(persona.path, selection.browser_key)
    cut, foreign = ConversationAnswer(OWN, "So", ended=False), replace(OWN, adapter="run/other/r9")
    kept_answers.record_choice(log, talk, cut, ConversationAnswer(OWN, "No."))
    kept_answers.record_choice(log, talk, ConversationAnswer(foreign, "I."), ConversationAnswer(foreign, "We."))
    with log.path.open("a") as f:
        f.write('{"regenerated": "x", "voice": {}}\n')
    found = collect_all(persona)
    assert found.preferences == () and [("cut off" in x, "another persona" in x) for x in found.left_out] == [
        (True, False), (False, True)]  # fmt: skip
