"""A base that reasons, from its training to its answers: a tiny random Qwen3 whose tokens are scripted."""

import itertools
import json
from dataclasses import replace

import httpx
import openai
import pytest
from api_server import KEY, listening
from conftest import family_tokenizer
from speaking import letters, script
from tiny_models import PLAIN_CPU, new_run, write_adapter
from training import CARD, PAIRS, SETTINGS

from persona.compare import conversation, remote, session
from persona.compare.session import LoadedModel, default_voices
from persona.errors import InputError, PersonaError, TemplateError
from persona.judge import scoring
from persona.models import adapter as adapters
from persona.models import hardware, open_renderer
from persona.models.base import Base
from persona.models.generate import Generation, _StreamedText, generate_batch
from persona.models.sampling import Sampling
from persona.serve import http, model_list
from persona.serve.auth import ApiAuth
from persona.serve.batcher import visible_reply
from persona.store.pairs import Pair
from persona.store.thinking import join_thinking
from persona.template.chat_template import read_template
from persona.template.compatibility import try_render_prompt
from persona.train import parent, row_tokens, validate
from persona.train.config import make_config
from persona.train.prepare import prepare_run
from persona.train.run import train_run
from persona.ui.steps.compare import conversation_view

pytest_plugins = "training"
GREEDY = Sampling(temperature=0, max_new_tokens=60)
ANSWER = join_thinking("They ask.\nShort.", "Mags.")


@pytest.fixture
def thinker(tmp_path, tiny_thinker, monkeypatch):
    """(model, adapter) of a persona whose base goes on thinking."""
    monkeypatch.setattr(hardware, "this_machine", lambda: PLAIN_CPU)
    write_adapter(tiny_thinker, tmp_path / "mags", template=read_template("qwen3").with_thinking("keep"))
    model = LoadedModel(Base("someone/tiny", tiny_thinker))
    monkeypatch.setattr(session, "_open", {(str(tiny_thinker), "none"): model})
    return model, adapters.read_adapter(tmp_path / "mags")


def say(monkeypatch, tokenizer, *answers: str):
    """Script a batch that writes these answers, one a row."""
    rows = [[*letters(tokenizer, text), tokenizer.convert_tokens_to_ids("<|im_end|>")] for text in answers]
    longest = max(map(len, rows))
    steps = [[row[n] for row in rows if n < len(row)] for n in range(longest)]
    script(monkeypatch, *steps)


def ask(model, adapter, history=()):
    columns = [voice.render_column(history, "Who?") for voice in default_voices(model, adapter)]
    return columns, list(session.stream_replies(model, columns, GREEDY))


# ---- training


@pytest.mark.slow
@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.parametrize("mode", ["none", "keep", "train"])
def test_a_run_trains_rows_of_its_mode_and_its_adapter_asks_as_the_base_does(tmp_path, tiny_thinker, mode):
    pairs = [replace(pair, output=join_thinking("hm", pair.output)) for pair in PAIRS[:8]] + PAIRS[8:]
    run = new_run(tmp_path, CARD, pairs, **{**SETTINGS, "base": str(tiny_thinker), "thinking": mode, "max_steps": 2})
    prepared = prepare_run(run)
    shown = [renderer_text(prepared, example) for example in prepared.train]
    assert any("hm" in learned for learned in shown) == (mode == "train")
    assert any("hm" in example.text for example in prepared.train) == (mode != "none")
    train_run(run)
    found = adapters.read_adapter(run.adapter)
    assert found.facts["config"]["thinking"] == found.template.thinking == mode and found.template.name == "qwen3"
    tokenizer = prepared.renderer.tokenizer
    own = replace(found.template, text=tokenizer.chat_template)
    chat = [{"role": "user", "content": "Who?"}]
    assert try_render_prompt(tokenizer, found.template, chat) == try_render_prompt(tokenizer, own, chat, mode != "none")
    follow = parent.read_parent(run.adapter)
    assert follow.template == "qwen3"
    assert parent.adopt_settings(make_config(base=str(tiny_thinker)), follow, {"base"}).thinking == mode
    if mode != "keep":
        with pytest.raises(InputError, match="thinking=keep"):
            parent.adopt_settings(make_config(thinking="keep", base=str(tiny_thinker)), follow, {"base", "thinking"})


def renderer_text(prepared, example) -> str:
    return prepared.renderer.tokenizer.decode([x for x in example.labels if x >= 0])


def test_thinking_is_refused_with_what_cannot_go_with_it(tiny_gemma):
    with pytest.raises(TemplateError, match="thinking=keep: this base's chat format has no <think> block"):
        open_renderer.open_renderer(CARD, str(tiny_gemma), thinking="keep")
    with pytest.raises(InputError, match="thinking=train and rehearsal_fraction do not go together"):
        validate.check_config(make_config(thinking="train", rehearsal_fraction=0.2), hardware.plan_device(PLAIN_CPU))


def test_can_think_says_where_the_setting_means_something(tiny_thinker, tiny_gemma):
    found = {}
    for folder, template in ((tiny_thinker, "auto"), (tiny_thinker, "chatml"), (tiny_gemma, "auto")):
        found[folder.name, template] = open_renderer.can_think(
            *open_renderer.open_renderer(CARD, str(folder), template)
        )
    assert list(found.values()) == [True, False, False]


def test_the_plan_counts_what_the_rows_hold():
    def count(mode):
        return row_tokens.estimate_row_tokens(CARD, Pair("q" * 36, join_thinking("t" * 360, "r" * 36)), thinking=mode)

    none, keep, train = map(count, ("none", "keep", "train"))
    assert none == row_tokens.estimate_row_tokens(CARD, Pair("q" * 36, "r" * 36))
    assert keep == (none[0] + 100, none[1]) and train == (none[0] + 100, none[1] + 100)


# ---- answers


def test_the_thinking_is_told_apart_as_it_comes(thinker, monkeypatch):
    model, adapter = thinker
    say(monkeypatch, model.tokenizer, ANSWER, "No thinking.")
    columns, steps = ask(model, adapter)
    assert [c.prompt.thinking for c in columns] == ["", ""]
    base, persona = steps[-1]
    assert (base.thinking, base.text, base.ended) == ("They ask.\nShort.", "Mags.", True)
    assert (persona.thinking, persona.text) == ("", "No thinking.")
    assert base.tokens == len(letters(model.tokenizer, ANSWER)), "both count"
    assert not any("<" in reply.text + reply.thinking for step in steps for reply in step)
    for before, after in itertools.pairwise(steps):
        assert after[0].thinking.startswith(before[0].thinking) and after[0].text.startswith(before[0].text)


def test_a_prompt_that_opens_the_block_and_markers_that_are_special(tiny_thinker, monkeypatch):
    tokenizer = family_tokenizer(read_template("deepseek-r1-distill").text)
    ids = [*letters(tokenizer, "hm\n"), tokenizer.convert_tokens_to_ids("</think>"), *letters(tokenizer, "\n\nYes.")]
    from persona.models.generate import Row, Sampler

    def reply(tokenizer, begun, tokens):
        row = Row([1], GREEDY, -1, thinking=begun)
        row.start(tokenizer, Sampler(GREEDY), 0.0)
        for token in tokens:
            row.add(token, 1.0)
        return row.reply

    assert reply(tokenizer, "<think>", ids) == Generation("Yes.", len(ids), thinking="hm")
    assert reply(tokenizer, "<think>", ids[:1]).thinking == "h"
    assert reply(tokenizer, None, ids).text == "hm\n</think>\n\nYes.", "a persona that does not think"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hm\n\n\nYes.", "or this sees nothing"
    shown = _StreamedText(tokenizer, thinks=True)
    assert [shown.add(token) for token in [*ids, tokenizer.eos_token_id]][-1] == "hm\n</think>\n\nYes."


def test_the_next_turn_reads_no_thinking(thinker):
    model, adapter = thinker
    column = default_voices(model, adapter)[1]
    plain, thought = (column.render_column([("a", reply)], "b").prompt for reply in ("c", join_thinking("hm", "c")))
    assert plain == thought


def test_an_answer_that_ends_within_its_thinking_has_no_text(thinker, monkeypatch):
    model, adapter = thinker
    prompt = default_voices(model, adapter)[1].render_column((), "Who?").prompt
    say(monkeypatch, model.tokenizer, ANSWER)
    *_, [reply] = generate_batch(
        model.model, model.tokenizer, [prompt.ids], replace(GREEDY, max_new_tokens=8), -1, thinking=prompt.thinking
    )
    assert reply.thinking and not reply.text and not reply.ended
    note = conversation_view.reply_note(reply, 8)
    assert "the thinking used them all up: raise the limit of 8" in note
    assert "used them all up" not in conversation_view.reply_note(replace(reply, text="x"), 8)


def test_the_judge_leaves_room_for_the_thinking(thinker):
    model, adapter = thinker
    renderer = session.renderer_of(adapter, model.tokenizer)
    assert scoring.thinking_room(renderer) == scoring.THINKING_TOKENS
    none = replace(renderer, template=renderer.template.with_thinking("none"))
    assert scoring.thinking_room(none) == 0 and none.render_prompt([], "a").thinking is None


# ---- API


def test_the_api_gives_the_thinking_beside_the_content(thinker, monkeypatch):
    model, adapter = thinker
    served = model_list.list_models([("mags", adapter, model.base)], [])
    with listening(http.build_api(lambda: served, ApiAuth((KEY,)))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        messages = [{"role": "user", "content": "Who?"}]
        say(monkeypatch, model.tokenizer, ANSWER)
        message = client.chat.completions.create(model="mags", messages=messages, stop=["ask"]).choices[0].message
        assert (message.content, message.reasoning_content) == ("Mags.", "They ask.\nShort.")
        say(monkeypatch, model.tokenizer, ANSWER)
        deltas = [
            c.choices[0].delta for c in client.chat.completions.create(model="mags", messages=messages, stream=True)
        ]
        assert "".join(d.content or "" for d in deltas) == "Mags."
        thoughts = [d.reasoning_content for d in deltas if getattr(d, "reasoning_content", None)]
        assert "".join(thoughts) == "They ask.\nShort." and len(thoughts) > 3
        say(monkeypatch, model.tokenizer, "Mags.")
        message = client.chat.completions.create(model="mags", messages=messages).choices[0].message
        assert message.content == "Mags." and not hasattr(message, "reasoning_content")
        say(monkeypatch, model.tokenizer, ANSWER)
        answer = httpx.post(f"{url}/generate", json={"prompt": "Who?", "model": "mags"}, timeout=60,
                            headers={"Authorization": f"Bearer {KEY}"}).json()  # fmt: skip
        assert (answer["response"], answer["reasoning_content"]) == ("Mags.", "They ask.\nShort.")


def test_a_stop_string_stops_the_reply_alone():
    reply = Generation("Mags. No more.", 9, thinking="No more.")
    got = visible_reply(reply, GREEDY, ["No"])
    assert (got.text, got.finish, got.thinking) == ("Mags. ", "stop", "No more.")


def test_another_server_s_thinking_is_told_apart(monkeypatch):
    from persona.write import llm_client

    def event(**delta):
        return {"choices": [{"delta": delta, "finish_reason": None}]}

    async def events(_):
        yield event(reasoning_content="hm")
        yield event(reasoning=" so")
        yield event(content="Yes.")
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}

    class Answer(httpx.AsyncByteStream):
        async def __aiter__(self):
            async for one in events(None):
                yield f"data: {json.dumps(one)}\n\n".encode()
            yield b"data: [DONE]\n\n"

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Answer()))
    monkeypatch.setattr(remote, "open_stream_client", lambda _: httpx.AsyncClient(transport=transport))
    assert llm_client.ChatChunk().thinking == ""
    *_, [reply] = remote.stream_remote("http://x/v1", "", ["m"], [[{"role": "user", "content": "a"}]], GREEDY)
    assert (reply.thinking, reply.text, reply.ended) == ("hm so", "Yes.", True)


# ---- the page's conversation


def test_a_column_folds_the_thinking_and_numbers_its_turns_without_it():
    shown = [*conversation_view.exchange_messages("a", "b"),
             *conversation_view.exchange_messages("c", "d <b>", "hm <i>"), *conversation_view.exchange_messages("e", "")]  # fmt: skip
    assert [m["content"] for m in shown] == ["a", "b", "c", "hm &lt;i>", "d &lt;b>", "e", "…"]
    assert shown[3]["metadata"] == {"title": "Thinking", "status": "done"}
    turns = [conversation_view.turn_of_message(shown, n) for n in (0, 1, 2, 4, 5, 6)]
    assert turns == [(0, False), (0, True), (1, False), (1, True), (2, False), (2, True)]
    assert not any(conversation_view.is_unchanged_thinking(shown, n, "x") for n in (0, 1, 2, 4, 5, 6))
    assert conversation_view.is_unchanged_thinking(shown, 3, "hm <i>"), "handed back with the answer below it"
    with pytest.raises(PersonaError, match="Thinking cannot be corrected"):
        conversation_view.is_unchanged_thinking(shown, 3, "hm hm")
    assert conversation_view.exchange_messages("a", "", "hm", is_thinking=True)[1]["metadata"]["status"] == "pending"


def test_a_saved_answer_keeps_its_thinking_apart_from_what_later_turns_read():
    voice = conversation.VoiceRecord("adapter", "Mags", "run/mags/r")
    answer = conversation.ConversationAnswer(voice, "Mags.", 9, True, "hm")
    from dataclasses import asdict

    assert conversation.answer_from_row(asdict(answer)) == answer
    older = {name: value for name, value in asdict(answer).items() if name != "thinking"}
    assert conversation.answer_from_row(older).thinking == ""
    rows = [{"talk": "x", "time": 1.0}, {"id": 1, "parent": 0, "time": 1.0, "said": "a"},
            {"id": 2, "parent": 1, "time": 1.0, "answers": [asdict(answer)], "sampling": {}}]  # fmt: skip
    talk = conversation.build_conversation("x", rows)
    assert conversation.column_history(replace(talk, turns=(*talk.turns, replace(talk.turns[0], id=9))), 9, voice.column) == (
        ("a", "Mags."),)  # fmt: skip
    messages = conversation_view.chatbot_messages(talk, voice.column, {})
    assert [m["content"] for m in messages] == ["a", "hm", "Mags."]
