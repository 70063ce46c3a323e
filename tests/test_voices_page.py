"""The Compare step without a browser: who speaks, what is kept, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from cases import check_each
from tiny import CARD, write_adapter

from persona import adapter, chat, folder, hardware, runs, talks
from persona.base import Base
from persona.config import make_config
from persona.errors import PersonaError
from persona.pairs import Pair
from persona.ui import asking, blind, compare, talking, voices
from persona.ui import share as share_step

KNOBS = (0.0, 0.9, 0, 0.0, 1.0, 6, 0)  # greedy, six tokens
KEY = talks.new_key()


@pytest.fixture
def run(home, tiny_gemma, monkeypatch):
    """Mags with a finished run that kept one moment."""
    plain = hardware.Machine("cpu", "test", 10**9, 2, (("float32", 1e9), ("bfloat16", 1.0)))
    monkeypatch.setattr(hardware, "this_machine", lambda: plain)
    monkeypatch.setattr(chat, "base_of", lambda *_, **__: Base("someone/tiny", tiny_gemma))
    monkeypatch.setattr(chat, "_open", {})
    persona = folder.create(home / "personas/mags", CARD, [Pair("Who?", "Mags."), Pair("Where?", "Sable Point.")])
    made = runs.create_run(persona, make_config(base=str(tiny_gemma)))
    write_adapter(tiny_gemma, made.adapter, seed=1, template="gemma-base")
    write_adapter(tiny_gemma, made.path / "moments/step-000002", seed=2, template="gemma-base")
    made.log("state", state="done")
    return made


@pytest.fixture
def chosen(run):
    return f"run/mags/{run.name}"


def last(frames) -> tuple:
    *_, frame = frames
    return frame


def say(text, chosen, others=(voices.PROMPTED,), talk_id="", key=KEY, knobs=KNOBS):
    return talking.say(text, key, "mags", chosen, list(others), talk_id, 1.0, *knobs)


def kept(chosen, talk_id, key=KEY):
    return talking.talk_of("mags", chosen, key, talk_id)


# ---- who


def test_what_can_be_chosen(run, chosen):
    assert [i for _, i in voices.choices("mags")] == [chosen]
    assert [i for _, i in voices.beside("mags")] == [voices.PROMPTED, voices.ALONE, chosen, f"{chosen}@2"]
    names = [voices.label(v, chosen) for v in (voices.PROMPTED, voices.ALONE, chosen, f"{chosen}@2")]
    assert len(set(names)) == 4 and names[3].startswith("Mags, step 2 of ")


def test_an_id_from_a_browser_leads_nowhere_else(run):
    cases = ["", "run/mags/../../../etc", "run/../mags/x", "opened/..", "opened/../personas/mags", "server", "x/y",
        "run/mags/nothing", "blend/0.5/run/mags/../x"]  # fmt: skip

    def check(hostile):
        with pytest.raises((PersonaError, ValueError)):
            voices.find(hostile)

    check_each(cases, check)


def test_columns_stand_where_they_are_expected(run, chosen):
    others = [voices.ALONE, f"{chosen}@2", f"blend/0.25/{chosen}@2"]
    cast = voices.cast("mags", chosen, others, 0.5)
    assert [v.adapter for v in cast.voices][1] == chosen and len(cast.voices) == 4
    assert [v.label for v in cast.voices] == compare._labels(chosen, others)
    alone, own, early, mixed = cast.speakers
    assert alone.renderer.system == "" and own.renderer.system == CARD.system == mixed.renderer.system
    assert (own.strength, early.strength, mixed.strength) == (0.5, 0.5, 0.5)
    parts = dict(cast.model.mix(mixed.adapter))
    assert parts == {own.adapter: 0.25, early.adapter: 0.75}


# ---- talk


def test_a_turn_is_kept_and_is_what_the_columns_say_alone(run, chosen):
    frame = last(say("Who are you?", chosen))
    talk = kept(chosen, frame[-1])
    prompted, own = (a.text for a in talk.turns[0].answers)
    assert prompted and own and prompted != own and "done" in frame[-2]
    again = last(say("Who are you?", chosen, others=[]))
    assert kept(chosen, again[-1]).turns[0].answers[0].text == own, "alone it says what it said in company"


def test_the_second_turn_follows_each_columns_own_first(run, chosen, monkeypatch):
    asked, real = [], voices.Cast.answer
    monkeypatch.setattr(voices.Cast, "answer", lambda c, h, *more: asked.append(h) or real(c, h, *more))
    first = last(say("Who are you?", chosen))[-1]
    last(say("And then?", chosen, talk_id=first))
    answers = [a.text for a in kept(chosen, first).turns[0].answers]
    assert asked[1] == [(("Who are you?", text),) for text in answers]


def test_what_was_said_before_a_stop_is_kept(run, chosen):
    frames = say("Who are you?", chosen, knobs=(0.0, 0.9, 0, 0.0, 1.0, 40, 0))
    for _ in range(5):
        frame = next(frames)
    frames.close()
    answer = kept(chosen, frame[-1]).turns[0].answers[1]
    assert 0 < answer.tokens < 40 and not answer.ended
    assert last(say("Go on", chosen, talk_id=frame[-1])), "the model is free for the next"


def test_another_wording_and_another_take(run, chosen):
    talk_id = last(say("Who are you?", chosen))[-1]
    before = kept(chosen, talk_id).turns[0]
    last(talking.again(KEY, "mags", chosen, [voices.PROMPTED], talk_id, 1.0, 1.5, 1.0, 0, 0.0, 1.0, 6, 7))
    now = kept(chosen, talk_id).turns[0]
    assert len(now.takes) == 2 and now.answers != before.answers and now.sampling["seed"] == 7
    event = SimpleNamespace(index=0, value="Who, then?")
    last(compare.edited(event, KEY, "mags", chosen, [voices.PROMPTED], talk_id, 0, 1.0, *KNOBS))
    shown = kept(chosen, talk_id)
    assert [t.said for t in shown.turns] == ["Who, then?"] and len(shown.turns[0].wordings) == 2


def test_a_corrected_answer_becomes_a_pair(run, chosen, monkeypatch):
    told = []
    monkeypatch.setattr(compare.gr, "Info", told.append)
    talk_id = last(say("Who are you?", chosen))[-1]
    event = SimpleNamespace(index=1, value="Mags Tolliver. Wipe your boots.")
    last(compare.edited(event, KEY, "mags", chosen, [voices.PROMPTED], talk_id, 1, 1.0, *KNOBS))
    pair = folder.by_slug("mags").pairs()[-1]
    assert (pair.instruction, pair.output, pair.source) == (
        "Who are you?", "Mags Tolliver. Wipe your boots.", "correction",
    )  # fmt: skip
    assert "Added as pair 3" in told[0]


def test_a_visitor_sees_no_other_visitors_conversation(run, chosen):
    talk_id = last(say("A secret", chosen))[-1]
    stranger = talks.new_key()
    with pytest.raises(PersonaError):
        kept(chosen, talk_id, key=stranger)
    assert talking.listing("mags", chosen, stranger, "").choices == [("New conversation", "")]
    assert len(talking.listing("mags", chosen, KEY, talk_id).choices) == 2
    assert talking.latest("mags", chosen, KEY) == talk_id and talking.latest("mags", chosen, stranger) == ""


def test_an_export_holds_every_column(run, chosen):
    talk_id = last(say("Who are you?", chosen))[-1]
    rows = [json.loads(x) for x in Path(talking.export("mags", chosen, KEY, talk_id)).read_text().splitlines()]
    assert [r["messages"][-2] for r in rows] == [{"role": "user", "content": "Who are you?"}] * 2
    assert rows[1]["adapter"] == chosen


# ---- vote, list


def test_a_vote_is_blind_until_it_is_given(run, chosen):
    *frames, ready = blind.ask("Who are you?", KEY, "mags", chosen, voices.PROMPTED, 1.0, *KNOBS)
    assert all(f[0] == f[1] for f in frames), "nothing is shown while they write"
    seen = " ".join(str(x) for x in ready)
    assert "Base" not in seen and run.name[:8] not in seen
    *_, reveal, _ = blind.vote("left", ready[2], KEY, "mags", chosen)
    assert "Base, with her prompt" in reveal and "1 vote" in reveal and "95 % interval" in reveal
    with pytest.raises(PersonaError, match="already"):
        blind.vote("left", ready[2], KEY, "mags", chosen)


def test_a_list_of_questions_becomes_files(run, chosen):
    frame = last(asking.ask("Who?\n\n Where? ", "mags", chosen, [voices.PROMPTED], 1.0, *KNOBS))
    assert frame[1] == "2 questions, 2 voices" and [f.rpartition(".")[2] for f in frame[2:]] == ["csv", "md", "html"]
    assert "Where?" in Path(frame[3]).read_text()
    assert asking.held_out("mags", chosen).splitlines() == [r.pair.instruction for r in run.rows() if r.held_out]
    with pytest.raises(PersonaError, match="no question yet"):
        next(asking.ask(" \n ", "mags", chosen, [], 1.0, *KNOBS))


# ---- another server


def test_sampling_is_kept_with_the_persona(run, chosen):
    """Whoever opens her draws so; the adapter that was trained before does as well, and what is shared says it."""
    assert compare.drawn(chosen, 0.4, 0.9, 0, 0.0, 1.1) == [0.4, 0.9, 0, 0.0, 1.1]
    compare.keep_drawing("mags", 0.7, 0.8, 40, 0.05, 1.2)
    assert compare.drawn(chosen, 0.4, 0.9, 0, 0.0, 1.1) == [0.7, 0.8, 40, 0.05, 1.2]
    card = folder.by_slug("mags").card()
    assert card.sampling.chosen()["min_p"] == 0.05 and (card.name, card.system) == (CARD.name, CARD.system)
    assert share_step.current(chosen).card.sampling == card.sampling
    with pytest.raises(PersonaError, match="temperature"):
        compare.keep_drawing("mags", -1, 0.8, 40, 0.05, 1.2)


def test_voices_of_another_server(run, chosen, monkeypatch, tmp_path, tiny_gemma):
    """Really asked over HTTP: Persona's own server stands in for vLLM."""
    from serving import KEY as TOKEN
    from serving import running

    with running(monkeypatch, tmp_path, tiny_gemma) as server:
        monkeypatch.setenv("PERSONA_CHAT_URL", f"{server.url}/v1")
        monkeypatch.setenv("PERSONA_CHAT_KEY", TOKEN)
        offered = [i for _, i in voices.choices("mags")]
        assert {"server/tiny", "server/one", "server/two"} < set(offered)
        assert [i for _, i in voices.beside("mags", "server/one")] == offered[1:]
        frame = last(say("Who are you?", "server/one", others=["server/tiny"]))
        talk = kept("server/one", frame[-1])
        assert [a.voice.label for a in talk.turns[0].answers] == ["tiny", "one"]
        assert all(a.text and a.tokens == 6 for a in talk.turns[0].answers)
        with pytest.raises(PersonaError, match="that server"):
            last(say("Who?", "server/one", others=[voices.PROMPTED]))
    with pytest.raises(PersonaError, match="no adapter yet"):
        adapter.check(voices.find("server/one").path)
