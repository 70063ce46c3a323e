"""The Compare step without a browser: who speaks, what is kept, what is refused."""

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from cases import check_each
from tiny_models import CARD, write_adapter

from persona.compare import conversation, session
from persona.errors import BaseError, PersonaError
from persona.models import adapter
from persona.models.base import Base
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.train import launcher
from persona.train.config import make_config
from persona.ui import navigation, voice_picker
from persona.ui.chosen import Chosen
from persona.ui.model_queue import ModelTurn
from persona.ui.steps import compare
from persona.ui.steps import share as share_step
from persona.ui.steps.compare import base_note, blind_vote_tab, chat_tab, conversation_view, loading, questions_tab
from persona.ui.steps.compare.controls import Selection

KNOBS = (0.0, 0.9, 0, 0.0, 1.0, 6, 0)  # greedy, six tokens
KEY = conversation.new_browser_key()


@pytest.fixture
def run(home, tiny_gemma, plain_cpu, monkeypatch):
    """Mags with a finished run that kept one moment."""
    monkeypatch.setattr(session, "base_of", lambda *_, **__: Base("someone/tiny", tiny_gemma))
    monkeypatch.setattr(session, "_open", {})
    persona = persona_folder.create_persona_at(
        home / "personas/mags", CARD, [Pair("Who?", "Mags."), Pair("Where?", "Sable Point.")]
    )
    made = launcher.create_run(persona, make_config(base=str(tiny_gemma)))
    write_adapter(tiny_gemma, made.adapter, seed=1, template="gemma-base")
    write_adapter(tiny_gemma, made.path / "moments/step-000002", seed=2, template="gemma-base")
    made.log("state", state="done")
    return made


@pytest.fixture
def chosen(run):
    return f"run/mags/{run.name}"


def frames_of(steps):
    """What the page shows: the turns on the model are taken at once."""
    for step in steps:
        if isinstance(step, ModelTurn):
            yield from map(step.show, step.work(*step.args))
        else:
            yield step


def last(steps) -> tuple:
    *_, frame = frames_of(steps)
    return frame


def say(text, chosen, others=(voice_picker.BASE_WITH_PROMPT,), talk_id="", key=KEY, knobs=KNOBS):
    return chat_tab.send_message(text, key, "mags", chosen, list(others), talk_id, 1.0, *knobs)


def selection(chosen, talk_id="", key=KEY, others=()):
    return Selection(key, "mags", chosen, list(others), talk_id)


def kept(chosen, talk_id, key=KEY):
    return conversation_view.load_conversation(selection(chosen, talk_id, key))


# ---- who


def test_what_can_be_chosen(run, chosen):
    assert [i for _, i in voice_picker.list_choices("mags")] == [chosen]
    assert [i for _, i in voice_picker.list_other_voices("mags")] == [
        voice_picker.BASE_WITH_PROMPT,
        voice_picker.BASE_ALONE,
        chosen,
        f"{chosen}@2",
    ]
    names = [
        voice_picker.voice_label(v, chosen)
        for v in (voice_picker.BASE_WITH_PROMPT, voice_picker.BASE_ALONE, chosen, f"{chosen}@2")
    ]
    assert len(set(names)) == 4 and names[3].startswith("Mags, step 2 of ")


def test_an_id_from_a_browser_leads_nowhere_else(run):
    cases = ["", "run/mags/../../../etc", "run/../mags/x", "opened/..", "opened/../personas/mags", "server", "x/y",
        "run/mags/nothing", "blend/0.5/run/mags/../x"]  # fmt: skip

    def check(hostile):
        with pytest.raises((PersonaError, ValueError)):
            voice_picker.find_adapter(hostile)

    check_each(cases, check)


def test_columns_stand_where_they_are_expected(run, chosen):
    others = [voice_picker.BASE_ALONE, f"{chosen}@2", f"blend/0.25/{chosen}@2"]
    cast = voice_picker.open_comparison("mags", chosen, others, 0.5)
    assert [r.adapter for r in cast.records][1] == chosen and len(cast.records) == 4
    same = conversation_view.column_voices(selection(chosen, others=others))
    assert [(r.label, r.column) for r in cast.records] == [(v.label, v.column) for v in same]
    alone, own, early, mixed = cast.voices
    assert alone.renderer.system == "" and own.renderer.system == CARD.system == mixed.renderer.system
    assert (own.strength, early.strength, mixed.strength) == (0.5, 0.5, 0.5)
    parts = dict(cast.model.adapter_weights(mixed.adapter))
    assert parts == {own.adapter: 0.25, early.adapter: 0.75}


def test_the_base_in_memory_is_said_and_can_be_chosen(run, chosen, tiny_gemma, monkeypatch):
    """Choosing it reaches the model, through the settings that every tab passes on."""
    monkeypatch.setattr(loading.bases, "find_local_base", lambda *_: Base("someone/tiny", tiny_gemma))
    assert loading.describe_opening(None) == loading.describe_opening("server/x") == ""
    assert "someone/tiny in float32: about 0.0 GB" in loading.describe_opening(chosen)
    assert "class='quiet'" in loading.describe_opening(chosen, "int8")
    assert "is not auto" in loading.describe_opening(chosen, "int4")
    asked = []

    def open_model(base, *how):
        asked.append(how)
        raise BaseError("enough")

    monkeypatch.setattr(session, "open_model", open_model)
    settings = (1.0, *KNOBS, "int8")
    for ask in (chat_tab.send_message("Hi", KEY, "mags", chosen, [], "", *settings),
                blind_vote_tab.ask_both("Hi", KEY, "mags", chosen, "base", *settings),
                questions_tab.answer_questions("Hi", "mags", chosen, [], *settings)):  # fmt: skip
        with suppress(PersonaError, gr.Error):
            list(frames_of(ask))
    assert asked == [("int8", "none")] * 3


# ---- talk


def test_a_turn_is_kept_and_is_what_the_columns_say_alone(run, chosen):
    frame = last(say("Who are you?", chosen))
    talk = kept(chosen, frame[-1])
    prompted, own = (a.text for a in talk.turns[0].answers)
    assert prompted and own and prompted != own and "done" in frame[-2]
    again = last(say("Who are you?", chosen, others=[]))
    assert kept(chosen, again[-1]).turns[0].answers[0].text == own, "alone it says what it said in company"


def test_the_second_turn_follows_each_columns_own_first(run, chosen, monkeypatch):
    asked, real = [], voice_picker.Comparison.answer
    monkeypatch.setattr(voice_picker.Comparison, "answer", lambda c, h, *more: asked.append(h) or real(c, h, *more))
    first = last(say("Who are you?", chosen))[-1]
    last(say("And then?", chosen, talk_id=first))
    answers = [a.text for a in kept(chosen, first).turns[0].answers]
    assert asked[1] == [(("Who are you?", text),) for text in answers]


def test_what_was_said_before_a_stop_is_kept(run, chosen):
    frames = frames_of(say("Who are you?", chosen, knobs=(0.0, 0.9, 0, 0.0, 1.0, 40, 0)))
    talk_id = next(frames)[-1]
    seen = [next(frames) for _ in range(4)]
    frames.close()
    answer = kept(chosen, talk_id).turns[0].answers[1]
    assert 0 < answer.tokens < 40 and not answer.ended
    assert {str(frame[-1]) for frame in seen} == {str(gr.skip())}, "a late frame chooses no conversation again"
    assert last(say("Go on", chosen, talk_id=talk_id)), "the model is free for the next"


def test_another_wording_and_another_take(run, chosen):
    talk_id = last(say("Who are you?", chosen))[-1]
    before = kept(chosen, talk_id).turns[0]
    last(
        chat_tab.regenerate_answers(
            KEY, "mags", chosen, [voice_picker.BASE_WITH_PROMPT], talk_id, 1.0, 1.5, 1.0, 0, 0.0, 1.0, 6, 7
        )
    )
    now = kept(chosen, talk_id).turns[0]
    assert len(now.regenerations) == 2 and now.answers != before.answers and now.sampling["seed"] == 7
    event = SimpleNamespace(index=0, value="Who, then?")
    last(chat_tab.edit_message(event, 0, KEY, "mags", chosen, [voice_picker.BASE_WITH_PROMPT], talk_id, 1.0, *KNOBS))
    shown = kept(chosen, talk_id)
    assert [t.said for t in shown.turns] == ["Who, then?"] and len(shown.turns[0].wordings) == 2


def test_a_corrected_answer_becomes_a_pair(run, chosen, monkeypatch):
    told = []
    monkeypatch.setattr(compare.gr, "Info", lambda text, **_: told.append(text))
    talk_id = last(say("Who are you?", chosen))[-1]
    event = SimpleNamespace(index=1, value="Mags Tolliver. Wipe your boots.")
    last(chat_tab.edit_message(event, 1, KEY, "mags", chosen, [voice_picker.BASE_WITH_PROMPT], talk_id, 1.0, *KNOBS))
    pair = persona_folder.find_persona("mags").pairs()[-1]
    assert (pair.instruction, pair.output, pair.source) == (
        "Who are you?", "Mags Tolliver. Wipe your boots.", "correction",
    )  # fmt: skip
    assert "Added as pair 3 of Mags" in told[0]


def test_a_visitor_sees_no_other_visitors_conversation(run, chosen):
    talk_id = last(say("A secret", chosen))[-1]
    stranger = conversation.new_browser_key()
    with pytest.raises(PersonaError):
        kept(chosen, talk_id, key=stranger)
    assert conversation_view.conversation_dropdown(*selection(chosen, key=stranger)).choices == [
        ("New conversation", "")
    ]
    assert len(conversation_view.conversation_dropdown(*selection(chosen, talk_id)).choices) == 2
    assert (
        conversation_view.latest_conversation(*selection(chosen)) == talk_id
        and conversation_view.latest_conversation(*selection(chosen, key=stranger)) == ""
    )


def test_an_export_holds_every_column(run, chosen):
    talk_id = last(say("Who are you?", chosen))[-1]
    rows = [
        json.loads(x)
        for x in Path(conversation_view.export_conversation(*selection(chosen, talk_id))).read_text().splitlines()
    ]
    assert run.name in Path(conversation_view.export_conversation(*selection(chosen, talk_id))).name
    assert [r["messages"][-2] for r in rows] == [{"role": "user", "content": "Who are you?"}] * 2
    assert rows[1]["adapter"] == chosen


# ---- vote, list


def test_a_vote_is_blind_until_it_is_given(run, chosen):
    asked = blind_vote_tab.ask_both("Who are you?", KEY, "mags", chosen, voice_picker.BASE_WITH_PROMPT, 1.0, *KNOBS)
    *frames, ready = frames_of(asked)
    assert all(f[0] == f[1] for f in frames), "nothing is shown while they write"
    seen = " ".join(str(x) for x in ready)
    assert "Base" not in seen and run.name[:8] not in seen
    *_, reveal, _ = blind_vote_tab.cast_vote("left", ready[2], KEY, "mags", chosen)
    assert "Base, with persona prompt" in reveal and "1 vote" in reveal and "95 % interval" in reveal
    with pytest.raises(PersonaError, match="already"):
        blind_vote_tab.cast_vote("left", ready[2], KEY, "mags", chosen)


def test_a_list_of_questions_becomes_files(run, chosen):
    others = [voice_picker.BASE_WITH_PROMPT]
    frames = list(frames_of(questions_tab.answer_questions("Who?\n\n Where? ", "mags", chosen, others, 1.0, *KNOBS)))
    assert frames[-1].status == "2 questions, 2 voices"
    first, done = frames[0], frames[-2]
    assert "0 of 2 questions answered" in first.status and first.table.count("<td>…</td>") == 4, "no old answers"
    assert not first.csv.interactive and "1 of 2 questions answered" in frames[1].status
    stem = f"mags-{run.name}-answers"
    assert [Path(b.value["path"]).name for b in done[2:]] == [f"{stem}.csv", f"{stem}.md", f"{stem}.html"]
    assert done.md.interactive and "Where?" in Path(done.md.value["path"]).read_text()
    unseen = [r.pair.instruction for r in run.rows() if r.held_out]
    assert questions_tab.held_out_questions(chosen).splitlines() == unseen
    assert blind_vote_tab.draw_probe(chosen) in unseen
    offered = compare.describe_adapter("mags", chosen)[0]
    assert offered.visible and offered.label == "Questions kept out of the training"
    (run.path / "pairs.jsonl").unlink()
    with pytest.raises(PersonaError, match="no probes and no held-out"):
        questions_tab.held_out_questions(chosen)
    assert not compare.describe_adapter("mags", chosen)[0].visible, "no empty heading"
    with pytest.raises(PersonaError, match="no questions yet"):
        next(questions_tab.answer_questions(" \n ", "mags", chosen, [], 1.0, *KNOBS))


# ---- another server


def test_sampling_is_kept_with_the_persona(run, chosen):
    """Whoever opens her draws so; the adapter that was trained before does as well, and what is shared says it."""
    assert compare.card_sampling(chosen, 0.4, 0.9, 0, 0.0, 1.1) == [0.4, 0.9, 0, 0.0, 1.1]
    compare.save_sampling("mags", 0.7, 0.8, 40, 0.05, 1.2)
    assert compare.card_sampling(chosen, 0.4, 0.9, 0, 0.0, 1.1) == [0.7, 0.8, 40, 0.05, 1.2]
    card = persona_folder.find_persona("mags").card()
    assert card.sampling.chosen()["min_p"] == 0.05 and (card.name, card.system) == (CARD.name, CARD.system)
    assert share_step.open_chosen_adapter(chosen).card.sampling == card.sampling
    with pytest.raises(PersonaError, match="temperature"):
        compare.save_sampling("mags", -1, 0.8, 40, 0.05, 1.2)


def test_voices_of_another_server(run, chosen, monkeypatch, tmp_path, tiny_gemma):
    """Really asked over HTTP: Persona's own server stands in for vLLM."""
    from api_server import KEY as TOKEN
    from api_server import running

    with running(monkeypatch, tmp_path, tiny_gemma) as server:
        monkeypatch.setenv("PERSONA_CHAT_URL", f"{server.url}/v1")
        monkeypatch.setenv("PERSONA_CHAT_KEY", TOKEN)
        offered = [i for _, i in voice_picker.list_choices("mags")]
        assert {"server/tiny", "server/one", "server/two"} < set(offered)
        assert [i for _, i in voice_picker.list_other_voices("mags", "server/one")] == offered[1:]
        frame = last(say("Who are you?", "server/one", others=["server/tiny"]))
        talk = kept("server/one", frame[-1])
        assert [a.voice.label for a in talk.turns[0].answers] == ["tiny", "one"]
        assert all(a.text and a.tokens == 6 for a in talk.turns[0].answers)
        with pytest.raises(gr.Error, match="that server"):
            last(say("Who?", "server/one", others=[voice_picker.BASE_WITH_PROMPT]))
    with pytest.raises(PersonaError, match="no adapter yet"):
        adapter.read_adapter(voice_picker.find_adapter("server/one").path)


def test_a_base_in_circles_is_stopped_and_says_so(run, chosen):
    frames = list(frames_of(say("Who are you?", chosen, knobs=(0.0, 0.9, 0, 0.0, 1.0, 200, 0))))
    base, own = kept(chosen, frames[-1][-1]).turns[0].answers
    assert base.tokens < 200 and not base.ended, "a random base, asked greedily, repeats itself"
    notes = [frame[4] for frame in frames if isinstance(frame[4], str)]
    assert "✓" in notes[-1] and "went round in circles" in notes[-1]
    shown = [sum(isinstance(frame[n], gr.Chatbot) for frame in frames) for n in (0, 1)]
    assert shown[0] <= base.tokens + 1 and shown[1] <= own.tokens + 1, "a column that has ended is left as it is"
    talk = selection(chosen, frames[-1][-1], others=[voice_picker.BASE_WITH_PROMPT])
    assert "went round in circles" in conversation_view.show_conversation(*talk)[8], "also after a reload"


def test_a_correction_is_marked_where_it_belongs(run, chosen):
    others = [voice_picker.BASE_WITH_PROMPT]
    talk_id = last(say("Who are you?", chosen))[-1]
    answer = kept(chosen, talk_id).turns[0].answers[1].text
    event = SimpleNamespace(index=1, value="Mags. Wipe your boots.")
    frame = last(chat_tab.edit_message(event, 1, KEY, "mags", chosen, others, talk_id, 1.0, *KNOBS))
    base, own = (bot.value[1]["content"][0]["text"] for bot in frame[:2])
    assert own.startswith("Mags. Wipe your boots.\n\n✎ Your correction, pair 3.") and answer.strip() in own
    assert "✎" not in base
    assert conversation_view.read_chatbot_text(own) == "Mags. Wipe your boots.", "the mark is no part of the answer"


def test_a_voice_that_joined_later_says_so(run, chosen):
    talk_id = last(say("Who are you?", chosen))[-1]
    talk = kept(chosen, talk_id)
    voices = conversation_view.column_voices(selection(chosen, others=[voice_picker.BASE_ALONE]))
    alone, own = conversation_view.column_messages(talk, voices, selection(chosen))
    assert alone[1]["content"] == "(not asked: this voice was added later)" and own[1]["content"] != "…"


def test_what_the_base_is_stands_beside_it(run, chosen):
    talk = selection(chosen, others=[voice_picker.BASE_WITH_PROMPT])
    base, own, *_ = conversation_view.show_conversation(*talk)[12:]
    assert "only learned to continue text" in base and own == ""
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in base and "270 MB" in base
    found, step, number = base_note.choose_base(Chosen("mags"), SimpleNamespace(base="Qwen/Qwen3-0.6B"))
    assert found.value == "Qwen/Qwen3-0.6B" and step.selected == number == navigation.TEMPLATE
    assert base_note.choose_base(Chosen("mags"), SimpleNamespace(base="/etc"))[0] == gr.skip()


def test_a_rival_is_no_early_step(run, chosen, tiny_gemma):
    """An early step equals the base and gives itself away as the base does."""
    for step in (1, 40):
        write_adapter(
            tiny_gemma, run.path / f"moments/step-{step:06}", seed=1 if step == 40 else 3, template="gemma-base"
        )
    assert blind_vote_tab.choose_rival("mags", chosen) == voice_picker.BASE_WITH_PROMPT, "step 40 is the adapter itself"
    write_adapter(tiny_gemma, run.path / "moments/step-000030", seed=4, template="gemma-base")
    write_adapter(tiny_gemma, run.path / "moments/step-000020", seed=5, template="gemma-base")
    assert blind_vote_tab.choose_rival("mags", chosen) == f"{chosen}@20"


def test_files_are_named_after_persona_and_run(run, chosen):
    assert voice_picker.file_stem(chosen) == f"mags-{run.name}"
    assert voice_picker.file_stem(f"{chosen}@2") == f"mags-{run.name}-step-2"
    assert voice_picker.file_stem("opened/mags-0a1b") == "mags-0a1b"


def test_questions_to_try_were_not_trained_on(run, chosen):
    """A probe that is a training pair is left out, whatever its capitals."""
    (trained,) = [r.pair.instruction for r in run.rows() if not r.held_out]
    persona_folder.update_card(
        persona_folder.find_persona("mags"), lambda _: {"probes": (trained.upper(), "Is it late?")}
    )
    unseen = [r.pair.instruction for r in run.rows() if r.held_out]
    assert voice_picker.unseen_questions(chosen) == ["Is it late?", *unseen]


def test_a_loaded_model_is_not_said_to_load(run, chosen, tiny_gemma, monkeypatch):
    monkeypatch.setattr(loading.bases, "find_local_base", lambda *_: Base("someone/tiny", tiny_gemma))
    assert "Loading the model" in next(loading.report_loading(chosen))
    last(say("Who are you?", chosen))
    assert list(loading.report_loading(chosen)) == ["Writing …"]


def test_the_rival_of_a_pretrained_base_is_no_base(run, chosen):
    _, rival, note, _ = blind_vote_tab.show_rivals("mags", chosen, KEY, voice_picker.BASE_WITH_PROMPT, "")
    assert (rival.value, note) == (f"{chosen}@2", ""), "another checkpoint"
    _, rival, note, _ = blind_vote_tab.show_rivals("mags", chosen, KEY, voice_picker.BASE_ALONE, chosen)
    assert "value" not in rival._constructor_args[0] and "gives itself away" in note, "it stays"
    facts = run.adapter / "run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"base": {"id": "Qwen/Qwen3-0.6B"}}))
    assert blind_vote_tab.choose_rival("mags", chosen) == voice_picker.BASE_WITH_PROMPT, "a chat base can be a rival"


def test_greetings_are_offered_and_book_entries_that_joined_are_named(run, chosen):
    book = {"entries": [{"keys": ["moon"], "content": "It is a <lamp>.", "name": "Moon <b>"}]}
    change = {"greeting": "Hm.", "alternate_greetings": ("Ahoy, {{user}}.",), "character_book": book}
    persona_folder.update_card(persona_folder.find_persona("mags"), lambda _: change)
    assert [t for t, _ in conversation_view.show_conversation(*selection(chosen))[-1].choices] == ["Hm.", "Ahoy, you."]
    assert "Ahoy" in conversation_view.choose_greeting(1, *selection(chosen))[0].placeholder
    frames = list(frames_of(say("The moon?", chosen)))
    assert all("From the book: Moon &lt;b&gt;" in f[n] for f in frames for n in (4, 5) if isinstance(f[n], str))
    assert not conversation_view.hide_greetings(*selection(chosen, frames[-1][-1])).visible
