"""A greeting that was chosen for a new conversation is what the persona said first: in the prompt, and kept."""

import json

from persona.compare import conversation
from persona.store import persona_folder
from persona.ui import voice_picker
from persona.ui.steps.compare import chat_tab, conversation_view
from tests.test_compare_step import KEY, KNOBS, chosen, frames_of, run, say, selection  # noqa: F401


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
