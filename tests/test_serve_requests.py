"""What an API request means, and what is refused: no model, no server."""

import json
import shutil
from dataclasses import replace

import pytest
from cases import check_each
from hypothesis import given
from hypothesis import strategies as st
from rendering import renderer_of
from tiny_models import write_adapter

from persona.errors import InputError
from persona.models import adapter
from persona.models import base as models_base
from persona.models.base import Base
from persona.models.generate import Generation
from persona.models.sampling import MAX_CONTEXT_TOKENS, Sampling
from persona.serve import model_list
from persona.serve.api_errors import ApiError, internal_error
from persona.serve.auth import ApiAuth, is_loopback_url, read_api_auth
from persona.serve.batcher import GenerationRequest, PartialReply, visible_reply
from persona.serve.http import ChatCompletion, _event, page_api_kwargs
from persona.serve.requests import (
    DEFAULT_REPLY_TOKENS,
    MAX_CHOICES,
    parse_chat_request,
    parse_generate_request,
    split_messages,
    unwrap_prompt,
)
from persona.store import persona_folder
from persona.template.chat_template import shipped_templates
from persona.template.render import ChatPrompt, Renderer
from persona.template.select import choose_template

HI = [{"role": "user", "content": "Hi"}]


def order(**more):
    return parse_chat_request({"model": "m", "messages": HI, **more}, 5)


def refused(call, *args) -> ApiError:
    with pytest.raises(ApiError) as e:
        call(*args)
    json.dumps(e.value.body())
    return e.value


def test_the_settings_of_a_request_are_the_samplings_of_its_rows():
    asked = order(temperature=1, top_p=0.5, top_k=-1, min_p=0.1, repetition_penalty=1, seed=7, n=3, max_tokens=9)
    assert asked.samplings(100) == [Sampling(1, 0.5, 0, 0.1, 1, seed, 9) for seed in (7, 8, 9)]
    assert order(max_completion_tokens=4).samplings(1)[0].max_new_tokens == 4


def test_what_is_not_named_is_the_houses_own():
    house = Sampling(seed=5, max_new_tokens=DEFAULT_REPLY_TOKENS)
    assert order().samplings(100) == [house] == order(temperature=None, stop=None, n=None, seed=None).samplings(100)
    assert order().samplings(MAX_CONTEXT_TOKENS - 3)[0].max_new_tokens == 3, "the room that is left"
    assert not order().stream and order().stop == () and order().system is None
    assert order(seed=-1).sampling.seed == 2**63 - 1, "any 64 bit number is a seed to OpenAI"


def test_there_must_be_room_for_the_reply():
    assert order(max_tokens=96).samplings(MAX_CONTEXT_TOKENS - 96)
    for asked, prompt in (
        (order(max_tokens=97), MAX_CONTEXT_TOKENS - 96),
        (order(), MAX_CONTEXT_TOKENS),
        (order(), MAX_CONTEXT_TOKENS * 9),
    ):
        assert refused(asked.samplings, prompt).code == "context_length_exceeded"


WRONG = [
    ({"temperature": "hot"}, "temperature"), ({"temperature": 9}, "temperature"), ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"min_p": -1}, "min_p"), ({"repetition_penalty": 0.5}, "repetition_penalty"),
    ({"n": 0}, "n"), ({"n": MAX_CHOICES + 1}, "n"), ({"n": "2"}, "n"), ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"), ({"seed": 2**63}, "seed"), ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop"), ({"stop": {}}, "stop"), ({"stop": [1]}, "stop"), ({"stop": "x" * 201}, "stop"),
    ({"stream": "yes"}, "stream"), ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": []}, "messages"), ({"messages": "Hi"}, "messages"), ({"messages": [3]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"), ({"model": None}, "model"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"tools": [{}]}, "tools"), ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"mirostat": 2}, "mirostat"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
]  # fmt: skip


def test_a_wrong_field_is_named():
    def check(more, param):
        wrong = refused(parse_chat_request, {"model": "m", "messages": HI} | more, 0)
        assert wrong.status == 400 and wrong.param == param and wrong.message
        assert wrong.body()["error"] | {"message": ""} == {
            "message": "", "type": "invalid_request_error", "param": param, "code": wrong.code}  # fmt: skip

    check_each(WRONG, check)


@pytest.mark.parametrize("body", [[], "x", None, 3])
def test_a_body_that_is_no_object_is_refused(body):
    assert "must be an object" in refused(parse_chat_request, body, 0).message
    assert "must be an object" in refused(parse_generate_request, body, "m", 0).message


def test_fields_that_ask_for_nothing_are_let_through():
    same = order(user="me", frequency_penalty=0, presence_penalty=0.0, tools=[], logit_bias={}, mirostat=None,
                 response_format={"type": "text"}, reasoning_effort="low", metadata={"a": "b"}, top_k=0)  # fmt: skip
    assert same == order()


def test_turns_become_the_history():
    given = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")]
    assert split_messages(given) == ("S", (("a", "b"), ("c", "d")), "e")
    assert split_messages([("user", "a")]) == (None, (), "a")
    assert split_messages([("developer", ""), ("user", "a")]) == ("", (), "a"), "said to be none: the persona's is off"


def test_a_greeting_is_the_first_thing_that_the_persona_says():
    given = [("system", "S"), ("assistant", "Come in."), ("user", "a")]
    assert split_messages(given) == ("S", (("", "Come in."),), "a")
    for name in ("gemma", "chatml", "llama-3"):
        text = renderer_of(name, "Be Mags.").render_prompt([("", "Come in.")], "Who are you?").text
        assert text.index("Be Mags.") < text.index("Come in.") < text.index("Who are you?")


def test_the_answer_names_the_entries_of_the_book():
    for entries in ((), ("Bosun", "the sea")):
        made = GenerationRequest(None, None, ChatPrompt("x", [1], entries), 0, (), (), "api")
        answer = ChatCompletion(order(), made)
        assert answer.whole([PartialReply("a", 1, "stop")]).get("book_entries", []) == [*entries]
        chunks = [answer._chunk(0, {"content": "a"}), answer._chunk(0, {}, "stop")]
        assert ["book_entries" in chunk for chunk in chunks] == [False, bool(entries)]


def test_neighbours_of_one_role_are_one_turn():
    given = [("system", "S"), ("system", "T"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"),
             ("user", "e")]  # fmt: skip
    assert split_messages(given) == ("S\n\nT", (("a\n\nb", "c\n\nd"),), "e")


def test_roles_that_no_template_knows_are_refused_with_a_sentence():
    cases = ["", "s", "a", "ua", "sa", "usu", "uau s".replace(" ", ""), "ut", "f"]

    def check(roles):
        names = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "f": "x" * 999}
        wrong = refused(split_messages, [(names[r], "text") for r in roles])
        assert wrong.status == 400 and wrong.message.endswith(".") and len(wrong.message) < 300

    check_each(cases, check)


def test_blocks_of_text_are_one_text_and_nothing_else_is_read():
    def said_by(content):
        return parse_chat_request({"model": "m", "messages": [{"role": "user", "content": content}]}, 0).text

    assert said_by([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]) == "a b" == said_by("a b")
    image = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    for content in ([image], [{"type": "text", "text": "a"}, image], None, [], 3, [None], [{"type": "text"}], "  "):
        assert refused(said_by, content).status == 400
    assert "no images" in refused(said_by, [image]).message


def test_what_the_client_library_sends_back_of_a_reply_is_read():
    reply = {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    asked = parse_chat_request({"model": "m", "messages": [*HI, reply, *HI]}, 0)
    assert asked.history == (("Hi", "b"),)
    assert (
        refused(parse_chat_request, {"model": "m", "messages": [*HI, reply | {"tool_calls": [{}]}, *HI]}, 0).status
        == 400
    )


def test_generate_is_a_chat_of_one_turn():
    asked = parse_generate_request(
        {"instruction": "Hi", "max_new_tokens": 9, "temperature": 0.2, "seed": 1}, "first", 0
    )
    assert asked == parse_chat_request(
        {"model": "first", "messages": HI, "max_tokens": 9, "temperature": 0.2, "seed": 1}, 0
    )
    assert parse_generate_request({"prompt": "Hi", "system": "S", "model": "m"}, "first", 5).system == "S"
    for wrong in (
        {},
        {"prompt": "a", "instruction": "b"},
        {"prompt": "a", "n": 2},
        {"prompt": 3},
        {"prompt": "a", "x": 1},
    ):
        assert refused(parse_generate_request, wrong, "m", 0).status == 400


def test_generate_takes_the_names_of_transformers():
    asked = parse_generate_request({"prompt": "Hi", "max_length": 256, "do_sample": True, "temperature": 0.7}, "m", 0)
    assert asked.total == 256 and asked.sampling.temperature == 0.7
    assert [s.max_new_tokens for s in asked.samplings(56)] == [200]
    assert parse_generate_request({"prompt": "Hi", "do_sample": False}, "m", 0).sampling.temperature == 0
    far = parse_generate_request({"prompt": "Hi", "max_length": 10**6}, "m", 0)
    assert [s.max_new_tokens for s in far.samplings(96)] == [MAX_CONTEXT_TOKENS - 96]
    assert refused(asked.samplings, 256).param == "max_length"
    wrong = [{"max_length": 0}, {"max_length": "9"}, {"max_length": 9, "max_new_tokens": 9}, {"do_sample": "no"}]
    check_each(wrong, lambda body: refused(parse_generate_request, {"prompt": "Hi", **body}, "m", 0))


def test_a_prompt_that_has_the_marks_already_gets_them_once(byte_tokenizer):
    cases = {
        "Chinese": ("alpaca-zh", "### 指令:\n什么是AI\n\n### 回答:\n", "", "什么是AI"),
        "system": ("alpaca-en", "Below.\n\n### Instruction:\nHi\n\n### Response:", "Below.", "Hi"),
        "plain": ("alpaca-zh", "什么是AI", None, "什么是AI"),
        "half": ("alpaca-zh", "### 指令:\n什么是AI", None, "### 指令:\n什么是AI"),
    }

    def check(template, prompt, system, text):
        renderer = Renderer(byte_tokenizer, shipped_templates()[template])
        asked = unwrap_prompt(parse_generate_request({"prompt": prompt}, "m", 0), renderer)
        assert (asked.system, asked.text) == (system, text)

    check_each(cases, check)


# ---- stop strings


def reply(text, ended=False, tokens=1):
    return Generation(text, tokens, ended)


def test_text_ends_before_the_first_stop_string():
    s = Sampling(max_new_tokens=10)
    assert visible_reply(reply("one two three"), s, ["three", "two"]) == PartialReply("one ", 1, "stop")
    assert visible_reply(reply("one tw"), s, ["two"]) == PartialReply("one ", 1), "held back: it may become one"
    assert visible_reply(reply("one tw", ended=True), s, ["two"]) == PartialReply("one tw", 1, "stop")
    assert visible_reply(reply("one tw", tokens=10), s, ["two"]) == PartialReply("one tw", 10, "length")
    assert visible_reply(reply("one tx"), s, ["two"]) == PartialReply("one tx", 1)
    assert visible_reply(reply("aab"), s, ["aabb", "bc"]) == PartialReply("", 1)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.data())
def test_what_is_shown_is_never_taken_back(text, stops, data):
    """However the text is cut into tokens: all is shown up to the stop string that is complete first."""
    cuts = sorted({*data.draw(st.lists(st.integers(0, len(text)))), len(text)})
    shown = ""
    for n, cut in enumerate(cuts, 1):
        now = visible_reply(reply(text[:cut], ended=n == len(cuts)), Sampling(), stops)
        assert now.text.startswith(shown) and not any(s in now.text for s in stops)
        shown = now.text
        if now.finish:
            break
    so_far = next((text[:cut] for cut in cuts if any(s in text[:cut] for s in stops)), text)
    first = min((so_far.find(s) for s in stops if s in so_far), default=len(text))
    assert shown == text[:first] and now.finish == "stop"


# ---- who may come in, and what there is


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.3", "example.com", "localhost.example.com"])
def test_no_address_that_others_reach_without_a_key(host, monkeypatch):
    monkeypatch.delenv("PERSONA_API_KEYS", raising=False)
    with pytest.raises(InputError, match="PERSONA_API_KEYS"):
        read_api_auth(host)
    monkeypatch.setenv("PERSONA_API_KEYS", " , ")
    with pytest.raises(InputError, match="PERSONA_API_KEYS"):
        read_api_auth(host)
    monkeypatch.setenv("PERSONA_API_KEYS", "one, two")
    assert read_api_auth(host).keys == ("one", "two") and "one" not in repr(read_api_auth(host))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_none(host, monkeypatch):
    monkeypatch.delenv("PERSONA_API_KEYS", raising=False)
    assert read_api_auth(host) == ApiAuth()


def test_the_page_serves_it_only_where_it_is_safe(monkeypatch):
    for name in ("PERSONA_API_KEYS", "SPACE_ID", "GRADIO_SHARE"):
        monkeypatch.delenv(name, raising=False)
    assert len(page_api_kwargs("127.0.0.1")["routes"]) == 3 and page_api_kwargs("0.0.0.0") == {}
    for name, value in (("SPACE_ID", "someone/persona"), ("GRADIO_SHARE", "True"), ("PERSONA_SHARED", "1")):
        monkeypatch.setenv(name, value)
        assert page_api_kwargs("127.0.0.1") == {}
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPACE_ID", "someone/persona")
    monkeypatch.setenv("PERSONA_API_KEYS", "k")
    assert page_api_kwargs("0.0.0.0")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:80"])
def test_local_urls(url):
    assert is_loopback_url(url)


def test_foreign_urls():
    cases = ["http://localhost.evil.example", "http://evil.example:8000", "null", "http://",
        "http://127.0.0.1@evil.example", "http://[", "http://127.0.0.1.nip.io"]  # fmt: skip

    def check(url):
        assert not is_loopback_url(url)

    check_each(cases, check)


def test_a_server_error_says_nothing_of_the_inside():
    assert internal_error().body()["error"] == {"message": "The server failed to answer. Its log says why.",
                                        "type": "server_error", "param": None, "code": "internal_error"}  # fmt: skip
    assert ApiError(429, "x", retry_after=3).headers() == {"Retry-After": "3"}


def test_an_event_is_one_line_to_every_client():
    text = "".join(map(chr, range(0x3000))) + "甄"
    sent = _event({"text": text})
    assert len(sent.splitlines()) == 2 and sent.endswith('甄"}\n\n')
    assert json.loads(sent.removeprefix("data: ")) == {"text": text}


# ---- the menu


@pytest.fixture
def at_home(home, tiny_gemma, monkeypatch):
    """Two personas, one with two runs, and two adapters opened on the page: one broken, one of a base that is elsewhere."""
    write_adapter(tiny_gemma, home / "made", template="gemma-base")
    for name in ("mags", "hui"):
        persona_folder.create_persona_at(persona_folder.personas_dir() / name, persona_folder.default_card(name))
    runs = persona_folder.personas_dir() / "mags" / "runs"
    for place in (runs / "20261121-r1", runs / "20261122-r2", home / "adapters" / "broken", home / "adapters" / "far"):
        target = place / "adapter" if place.parent == runs else place
        shutil.copytree(home / "made", target)
        (place / "run.json").write_text((home / "made" / "run.json").read_text())
    (home / "adapters" / "broken" / "adapter_model.safetensors").write_bytes(b"x")
    far = home / "adapters" / "far" / "run.json"
    far.write_text(far.read_text().replace("someone/tiny", "else/where"))
    here = {"someone/tiny": Base("someone/tiny", tiny_gemma), "": Base("default", tiny_gemma)}
    monkeypatch.setattr(models_base, "find_local_base", here.get)
    return runs


def test_the_home_offers_newest_adapters_whose_base_is_here(at_home):
    listed = model_list.list_home_models()
    assert [s.id for s in listed] == ["someone/tiny", "default", "mags"]
    assert listed[2].adapter.path == at_home / "20261122-r2" / "adapter" and listed[2].created > 1.7e9
    assert model_list.open_named_models([]) == listed


def test_adapters_are_named_on_the_command_line(at_home, tiny_gemma, tmp_path):
    one = str(at_home / "20261121-r1")
    odd = shutil.copytree(one, tmp_path / "a=b")
    listed = model_list.open_named_models([one, f"her={one}", str(odd)], str(tiny_gemma))
    assert [s.id for s in listed] == [tiny_gemma.name, "mags", "her", "mags-2"]
    assert [s.id for s in model_list.open_named_models([], str(tiny_gemma))] == [tiny_gemma.name]
    bare = model_list.open_named_models([], str(tiny_gemma))[0].renderer(None)
    assert bare.system == "" and bare.stop_id and bare.template == choose_template(bare.tokenizer)


def test_a_base_is_opened_once_as_its_first_adapter_was_trained(at_home, tiny_gemma):
    first, second = at_home / "20261121-r1", at_home / "20261122-r2"
    file = first / "adapter" / "run.json"
    file.write_text(file.read_text().replace('"config": {', '"config": {"quantization": "nf4", '))
    base = Base("someone/tiny", tiny_gemma)
    for order, trained in (((first, second), "nf4"), ((second, first), "none")):
        listed = model_list.open_named_models([str(run) for run in order], str(tiny_gemma))
        assert {s.opening[1:] for s in listed} == {("auto", trained)} and len(listed) == 3
    assert {s.opening[1] for s in model_list.open_named_models([], quantization="int8")} == {"int8"}
    assert model_list.ServedModel("x", base).opening == (base, "auto", "none")


def test_models_have_names_of_their_own(tiny_gemma, tmp_path):
    places = [
        "mags/runs/20261122-r1/adapter",
        "mags/runs/20261122-r1/moments/step-30",
        "mags/adapter",
        "two",
        "deep/two",
    ]
    write_adapter(tiny_gemma, tmp_path / "made", template="gemma-base")
    base, found = Base("two", tiny_gemma), []
    for place in places:
        shutil.copytree(tmp_path / "made", tmp_path / place)
        found.append(("", adapter.read_adapter(tmp_path / place), base))
    listed = model_list.list_models([*found, ("own", found[0][1], base)], [base])
    assert [s.id for s in listed] == ["two", "mags", "mags@30", "mags-2", "two-2", "two-3", "own"]
    assert listed[0].template == found[0][1].template, "base and persona can be given the same prompt"
    assert model_list.find_model(listed, "mags").adapter == found[0][1]
    snapshot = replace(listed[-1], id="mags@30")
    assert all(model_list.find_model([snapshot], name) is snapshot for name in ("mags@30", "mags@000030"))
    wrong = refused(model_list.find_model, listed, "x" * 5000)
    assert (wrong.status, wrong.code, wrong.param) == (404, "model_not_found", "model") and len(wrong.message) < 400
