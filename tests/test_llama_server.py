"""llama.cpp's own server, by its package: what its chat route makes of our template is our prompt."""

import contextlib

import httpx
import pytest

from persona.models import bundled
from persona.models.base import load_tokenizer, resolve_base
from persona.share.exports.merged_model import strip_generation_tags
from persona.template.chat_template import build_messages, read_template
from persona.template.render import Renderer

TURNS = [("Who are you?", "Mags. Sit down.\n"), ("你是谁？", "看灯的人。")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The embedded base in its own file with our template, as `llama-server --jinja --chat-template-file` serves it."""
    xllamacpp = pytest.importorskip("xllamacpp")
    file = tmp_path_factory.mktemp("gguf") / "base.gguf"
    bundled.assemble_gguf(file)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity, settings.use_jinja = (
        512,
        1,
        False,
        0,
        True,
    )
    settings.chat_template = strip_generation_tags(read_template("gemma-base")).text
    server = xllamacpp.Server(settings)
    with httpx.Client(base_url=server.listening_address, timeout=300, trust_env=False) as client:
        yield client
    with contextlib.suppress(NameError):
        del server


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("system", ["", "You keep the light at Sable Point."])
@pytest.mark.parametrize("turns", [0, 2])
def test_the_chat_route_is_asked_with_our_prompt(base_home, served, system, turns):
    renderer = Renderer(load_tokenizer(resolve_base("gemma-3-270m")), read_template("gemma-base"), system)
    prompt = renderer.render_prompt(TURNS[:turns], "What do you fear?")
    chat = build_messages(system, TURNS[:turns], "What do you fear?")

    def ask(path, **values):
        return served.post(path, json=values).raise_for_status().json()

    text = ask("/apply-template", messages=chat)["prompt"]
    ids = ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
    assert ids == list(prompt.ids)
    greedy = {"temperature": 0, "max_tokens": 3, "cache_prompt": False}
    said = ask("/v1/chat/completions", messages=chat, **greedy)
    assert said["usage"]["prompt_tokens"] == len(prompt.ids)
    alone = ask("/completion", prompt=list(prompt.ids), n_predict=3, temperature=0, cache_prompt=False)
    assert said["choices"][0]["message"]["content"] == alone["content"]
    ended = ask("/v1/chat/completions", messages=chat, logit_bias=[[renderer.stop_id, 1000.0]], **greedy)
    assert (ended["choices"][0]["finish_reason"], ended["choices"][0]["message"]["content"]) == ("stop", "")
    cut = ask("/v1/chat/completions", messages=chat, stop=[alone["content"][3:6]], **greedy)
    assert cut["choices"][0]["message"]["content"] == alone["content"].partition(alone["content"][3:6])[0]
