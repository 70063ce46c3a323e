"""Fixtures for tests of the API: a server, OpenAI's client, and reference replies. Load with pytest_plugins."""

import json

import httpx
import openai
import pytest
from api_server import KEY, running

from persona.compare import session
from persona.compare.session import NO_ADAPTER, Column
from persona.models.sampling import Sampling

HI = [{"role": "user", "content": "Who are you?"}]
WARM = {"temperature": 0.9, "top_p": 0.95, "seed": 7, "max_tokens": 24}
AS_SAMPLING = Sampling(0.9, 0.95, seed=7, max_new_tokens=24)


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_gemma):
    with pytest.MonkeyPatch.context() as patch, running(patch, tmp_path_factory.mktemp("served"), tiny_gemma) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture
def post(server):
    def send(content, path="/v1/chat/completions", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        auth = {"Authorization": f"Bearer {KEY}"} | headers
        return httpx.post(server.url + path, content=body, headers=auth, timeout=120)

    return send


def expected_reply(server, model="one", text="Who are you?", sampling=AS_SAMPLING, history=(), system=None):
    """The expected (prompt, reply): generated without the API, alone in its batch."""
    served = next(m for m in server.models if m.id == model)
    renderer = served.renderer(system)
    name = server.model.attach(served.adapter) if served.adapter else NO_ADAPTER
    prompt = renderer.render_prompt(history, text)
    steps = session.stream_replies(server.model, [Column(name, prompt, stop_id=renderer.stop_id)], sampling)
    # at its last token: a partial character at the limit is shown on the page, but not sent
    return prompt, next(r for [r] in steps if r.ended or r.tokens == sampling.max_new_tokens)


def ask(client, model="one", messages=HI, **more):
    return client.chat.completions.create(model=model, messages=messages, **(WARM | more))


def pieces(chunks):
    """(texts, finish reasons, usages) of a stream; texts and reasons by choice."""
    texts, reasons, usages = {}, {}, []
    for chunk in chunks:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in reasons, "said once"
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, usages
