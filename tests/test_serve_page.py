"""The API beside the page: one server, one model, and Gradio's own middleware in between."""

import os
import socket
import subprocess
import sys

import gradio as gr
import httpx
import openai
import pytest
from api_server import KEY, running
from speaking import is_busy
from waiting import wait_for

from persona.compare import session
from persona.serve import http, model_list
from persona.store.workspace import PROJECT_DIR

HI = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def page(tmp_path_factory, tiny_gemma):
    """(url of a launched page, the server that serves the same model alone)."""
    with pytest.MonkeyPatch.context() as patch, running(patch, tmp_path_factory.mktemp("served"), tiny_gemma) as own:
        patch.setattr(model_list, "list_home_models", lambda: own.models)
        patch.setenv("PERSONA_API_KEYS", KEY)
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        with gr.Blocks(analytics_enabled=False) as demo:
            gr.Textbox()
        kwargs = http.page_api_kwargs("127.0.0.1")
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, app_kwargs=kwargs)
        yield url.rstrip("/"), own
        demo.close()


def test_page_and_api_share_a_server(page):
    url, _ = page
    assert "gradio" in httpx.get(url).text and httpx.get(f"{url}/config").json()["components"]
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/v1/models").status_code == 401
    auth = {"Authorization": f"Bearer {KEY}"}
    assert len(httpx.get(f"{url}/v1/models", headers=auth).json()["data"]) == 3
    for got in (httpx.get(f"{url}/v1/nothing", headers=auth), httpx.post(f"{url}/v1/models", headers=auth)):
        assert got.status_code in (404, 405) and "message" in got.json()["error"]
    assert httpx.post(f"{url}/generate", json={}, headers=auth).status_code == 400


def test_it_says_what_the_server_alone_says(page):
    url, own = page
    said = []
    for address in (url, own.url):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=120)
        got = client.chat.completions.create(model="one", messages=HI, seed=3, max_tokens=12)
        stream = client.chat.completions.create(model="one", messages=HI, seed=3, max_tokens=12, stream=True)
        said += [got.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)]
    assert len(set(said)) == 1 and said[0]


@pytest.mark.parametrize("encoding", ["identity", "br", "gzip"])
def test_a_stream_is_not_held_back_and_ends_with_its_client(page, monkeypatch, encoding):
    """Gradio compresses what it can: pieces must come one by one all the same."""
    url, _ = page
    real, steps = session.stream_replies, []

    def stream(*args, **more):
        for replies in real(*args, **more):
            steps.append(1)
            yield replies

    monkeypatch.setattr(session, "stream_replies", stream)
    body = {"model": "one", "messages": HI, "max_tokens": 3000, "stream": True}
    auth = {"Authorization": f"Bearer {KEY}", "Accept-Encoding": encoding}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=auth, timeout=120) as got:
        raw = got.iter_raw()
        next(raw), next(raw), next(raw)
    wait_for(lambda: not is_busy())
    assert len(steps) < 3000


@pytest.mark.slow
@pytest.mark.release
def test_the_project_s_own_page_has_it(home):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    env = os.environ | {"PORT": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    for name in ("HOST", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "PERSONA_API_KEYS", "SPACE_ID", "GRADIO_SHARE"):
        env.pop(name, None)
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "app.py", "--port", port, "--home", str(home)],
        env=env,
        cwd=PROJECT_DIR,
        stdout=subprocess.DEVNULL,
    ) as page:
        try:

            def up():
                assert page.poll() is None, "the page has ended"
                try:
                    return httpx.get(f"{url}/config").status_code == 200
                except httpx.TransportError:
                    return False

            wait_for(up)
            assert httpx.get(f"{url}/health").json() == {"status": "ok"}
            assert httpx.get(f"{url}/v1/models", timeout=60).json()["object"] == "list"
            assert httpx.get(f"{url}/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
        finally:
            page.terminate()
