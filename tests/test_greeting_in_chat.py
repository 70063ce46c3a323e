"""A greeting that was chosen for a new conversation is what the persona said first: in the prompt, and kept."""

import json
from dataclasses import replace

from persona.compare import conversation, conversation_store, corrections, preference_sources
from persona.compare.conversation import ConversationAnswer, VoiceRecord
from persona.share.exports import character_card
from persona.store import persona_folder
from persona.store.edits import split_pair
from persona.store.pairs import Pair, find_unfinished, parse_pair
from persona.store.persona_folder import PersonaCard
from persona.train import split
from persona.ui import voice_picker
from persona.ui.steps.compare import chat_tab, conversation_view
from tests.test_compare_step import KEY, KNOBS, chosen, frames_of, run, say, selection  # noqa: F401

HER = VoiceRecord("adapter", "甄嬛", "run/zhen-huan/20261122-031500-a1b2")


def test_it_is_read_by_the_model_and_kept(run, chosen, monkeypatch):  # noqa: F811
    prompts, stream = [], voice_picker.session.stream_replies

    def remember(model, columns, *args, **more):
        prompts.extend(column.prompt.text for column in columns)
        return stream(model, columns, *args, **more)

    monkeypatch.setattr(voice_picker.session, "stream_replies", remember)
    change = {"greeting": "Hm.", "alternate_greetings": ("Ahoy, {{user}}.",)}
    persona_folder.update_card(persona_folder.find_persona("mags"), lambda _: change)
    shown = conversation_view.show_conversation(*selection(chosen))[-1]
    assert shown.value is None and shown.visible
    settings = (KEY, "mags", chosen, [voice_picker.BASE_WITH_PROMPT], "", 1.0, *KNOBS)
    list(frames_of(chat_tab.send_after_greeting("The moon?", None, *settings)))
    assert prompts and "Ahoy" not in "".join(prompts) and "Hm." not in "".join(prompts), "none was chosen"
    prompts.clear()
    *_, frame = frames_of(chat_tab.send_after_greeting("The moon?", 1, *settings))
    assert prompts and all(text.index("Ahoy, you.") < text.index("The moon?") for text in prompts)
    prompts.clear()
    list(frames_of(say("And the sun?", chosen, talk_id=frame[-1])))
    assert prompts and all("Ahoy, you." in text for text in prompts)
    chat = conversation_view.load_conversation(selection(chosen, frame[-1]))
    exported = [json.loads(line)["messages"] for line in conversation.export_messages(chat)]
    assert all({"role": "assistant", "content": "Ahoy, you."} in messages for messages in exported)
    assert "Began with: Ahoy" in conversation_view.greeting_note(chat)
    assert conversation_view.chosen_greeting(99, selection(chosen)) == ""


def test_a_correction_keeps_the_greeting_as_context(tmp_path):
    """It was in the prompt; nobody asked for it, so it is not learned, and no pair is made of it."""
    persona = persona_folder.create_persona_at(tmp_path / "p", PersonaCard(name="甄嬛"), [Pair("a", "b")])
    (persona.runs_dir / "20261122-031500-a1b2").mkdir(parents=True)
    mine = conversation_store.open_store(persona.path, KEY)
    talk = conversation_store.start_conversation(mine, "坐。", "来了？")
    talk = conversation_store.add_answers(mine, talk, talk.turns[0].id, [ConversationAnswer(HER, "她")], {})
    talk = conversation_store.add_turn(mine, talk, "茶凉了")
    talk = conversation_store.add_answers(mine, talk, talk.turns[1].id, [ConversationAnswer(HER, "凉茶")], {})
    first, last = (corrections.pair_from_turn(talk, turn.id, HER.column, "换了便是。") for turn in talk.turns)
    assert first == Pair("坐。", "换了便是。", (("", "来了？"),), "correction", weights=(0, 1))
    assert last.history == (("", "来了？"), ("坐。", "她")) and last.weights == (0, 1, 1)
    assert not find_unfinished([first, last]) and parse_pair(last.to_dict()) == last
    assert [part.instruction for part in split_pair(last)] == ["坐。", "茶凉了"]
    assert character_card._example(first) == "<START>\n{{char}}: 来了？\n{{user}}: 坐。\n{{char}}: 换了便是。"
    other = replace(first, instruction="走。")
    assert split._group_pairs([first, other, last], by_conversation=True) == [[0], [1], [2]], "not one for its greeting"

    corrections.append_correction(persona, last)
    rejected = {p.rejected for p in preference_sources.collect_preferences(persona, [], [talk]).preferences}
    assert rejected == {"凉茶"}
    shown = conversation_view.chatbot_messages(talk, HER.column, corrections.find_corrections(persona))
    assert "换了便是。" in shown[-1]["content"]
