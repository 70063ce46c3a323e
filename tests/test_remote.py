"""Chat through another server: a real one for what it says, a scripted one for what can go wrong."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from cases import check_each
from tiny_models import write_adapter
from typer.testing import CliRunner
from waiting import wait_for

from persona import cli
from persona.compare.remote import NEUTRAL, check_server_url, configured_server, stream_remote
from persona.errors import InputError
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.store.workspace import PROJECT_DIR
from persona.template.chat_template import build_messages

ASK = build_messages("You keep the light.", [("Hi", "Good evening.")], "Who are you?")
WARM = Sampling(temperature=0.9, top_p=0.95, seed=7, max_new_tokens=12)


def last(url, models, chats, sampling=WARM, key=""):
    *_, replies = stream_remote(url, key, models, chats, sampling)
    return replies


@pytest.fixture
def scripted():
    """A server that sends the given bytes; `asked` holds the bodies and keys that it got."""
    made = []

    def start(*parts, status: int = 200, hold: bool = False, unknown: Collection[str] = ()):
        """unknown: fields that are refused, as OpenAI does."""
        asked, broken = [], threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.path, self.headers.get("Authorization"), body))
                refused = sorted(set(unknown) & body.keys())
                self.send_response(400 if refused else status)
                self.end_headers()
                if refused:
                    self.wfile.write(json.dumps({"error": {"message": f"unknown argument: {refused[0]}"}}).encode())
                    return
                try:
                    for part in itertools.chain(*([p] if isinstance(p, bytes) else p for p in parts)):
                        self.wfile.write(part)
                    while hold and not time.sleep(0.01):
                        self.wfile.write(piece("x"))
                except OSError:
                    broken.set()

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", asked, broken

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


def piece(text, finish="null"):
    return f'data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{finish}}}]}}\n\n'.encode()


def test_replies_come_as_they_grow(scripted):
    """The second half is sent only when the first has been seen."""
    seen = threading.Event()

    class Parts:
        def __iter__(self):
            yield piece("Good ")
            assert seen.wait(60)
            yield from (piece("evening."), piece("", '"stop"'), DONE)

    url, _, _ = scripted(Parts())
    shown = []
    for [reply] in stream_remote(url, "", ["m"], [ASK], WARM):
        shown.append(reply)
        seen.set()
    assert shown[0] == Generation("Good ", 1) and shown[-1] == Generation("Good evening.", 2, True)


DONE = b"data: [DONE]\n\n"
COUNTED = b'data: {"choices":[],"usage":{"completion_tokens":5}}\n\n'


def test_a_reply_grows_and_ends(scripted):
    url, asked, _ = scripted(b": hello\n\n", piece("Good "), piece("evening."), piece("", '"stop"'), COUNTED, DONE)
    steps = [r for [r] in stream_remote(url + "/", "sk-1", ["m"], [ASK], WARM)]
    assert steps[-1] == Generation("Good evening.", 5, True)
    assert 0 < steps[-1].first <= steps[-1].seconds
    path, key, body = asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer sk-1") and body["messages"] == ASK
    assert {k: body[k] for k in ("temperature", "top_p", "seed", "max_tokens", "repetition_penalty")} == {
        "temperature": 0.9, "top_p": 0.95, "seed": 7, "max_tokens": 12, "repetition_penalty": 1.1}  # fmt: skip
    plain = scripted(piece("a", '"length"'), DONE)
    assert last(plain[0], ["m"], [ASK]) == [Generation("a", 1)] and plain[1][0][1] is None


def test_a_neutral_value_is_said_too_for_a_server_may_have_another_default(scripted):
    url, asked, _ = scripted(piece("a", '"length"'), DONE)
    last(url, ["m"], [ASK], replace(WARM, repetition_penalty=1, min_p=0, top_k=0))
    assert [{k: body[k] for k in NEUTRAL} for _, _, body in asked] == [NEUTRAL]


def test_a_server_that_refuses_unknown_fields_is_asked_without_those_that_change_nothing(scripted):
    url, asked, _ = scripted(piece("a", '"stop"'), DONE, unknown=NEUTRAL)
    assert last(url, ["m"], [ASK], replace(WARM, repetition_penalty=1))[0].text == "a"
    assert [NEUTRAL.keys() & body.keys() for _, _, body in asked] == [NEUTRAL.keys(), set()]
    strong, asked, _ = scripted(piece("a", '"stop"'), DONE, unknown=["top_k"])
    assert "unknown argument: top_k" in str(last(strong, ["m"], [ASK], replace(WARM, top_k=5))[0].error)
    assert [body["top_k"] for _, _, body in asked] == [5, 5]


WRONG = {
    "refused": ((b'{"error": {"message": "no such model"}}',), 404, "answered 404: no such model"),
    "no reason": ((b"<html>",), 502, "answered 502: no reason"),
    "redirect": ((b"",), 302, "answered 302"),
    "not json": ((b"data: {oops\n\n",), 200, "not a stream"),
    "another shape": ((b'data: {"choices": [3]}\n\n',), 200, "not a stream"),
    "a list": ((b"data: [1]\n\n",), 200, "not a stream"),
    "breaks off": ((piece("a"), b'data: {"error": {"message": "out of memory"}}\n\n'), 200, "out of memory"),
    "hangs up": ((piece("a"),), 200, "hung up"),
    "a page": ((b"<html>hello</html>",), 200, "hung up"),
    "no line end": ((b"x" * 300_000,), 200, "does not end"),
    "too long": ((piece("x" * 150_000), piece("x" * 150_000), DONE), 200, "cut off"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_goes_wrong_is_that_columns_error(scripted, case):
    parts, status, why = case
    bad, good = scripted(*parts, status=status), scripted(piece("fine", '"stop"'), DONE)
    reply = last(bad[0], ["m"], [ASK], key="sk-secret")[0]
    assert why in reply.error and "sk-secret" not in reply.error and len(reply.error) < 500
    assert last(good[0], ["m", "n"], [ASK, ASK]) == [Generation("fine", 1, True)] * 2


def test_nobody_there():
    assert "cannot be reached" in last("http://127.0.0.1:9/v1", ["m"], [ASK])[0].error


def test_closing_hangs_up(scripted):
    url, _, broken = scripted(hold=True)
    steps = stream_remote(url, "", ["m", "m"], [ASK, ASK], WARM)
    next(steps)
    steps.close()
    assert broken.wait(60)
    wait_for(lambda: not any(t.name == "persona-endpoint" for t in threading.enumerate()))


def test_an_address_that_cannot_be_one_is_refused():
    cases = ["", "ftp://x/v1", "file:///etc/passwd", "127.0.0.1:8000", "http://", "http://[", "http://x:99999",
        "http://x/?a=1", "http://user:pass@x/v1"]  # fmt: skip

    def check(url):
        with pytest.raises(InputError, match="address") as e:
            check_server_url(url)
        assert "pass@" not in str(e.value)

    check_each(cases, check)


def test_a_key_that_is_none_is_refused():
    with pytest.raises(InputError, match="PERSONA_CHAT_KEY"):
        last("http://127.0.0.1:9/v1", ["m"], [ASK], key="a\nb")


def test_the_environment_names_the_server(monkeypatch):
    monkeypatch.delenv("PERSONA_CHAT_URL", raising=False)
    assert configured_server() is None
    monkeypatch.setenv("PERSONA_CHAT_URL", "http://127.0.0.1:8000/v1/chat/completions")
    monkeypatch.setenv("PERSONA_CHAT_KEY", " k ")
    assert configured_server() == ("http://127.0.0.1:8000/v1", "k")


# ---- persona serve, as a process


def test_the_command_refuses_what_cannot_be_served(monkeypatch):
    import socket

    monkeypatch.delenv("PERSONA_API_KEYS", raising=False)

    def refusal(*args):
        got = CliRunner().invoke(cli.app, ["serve", *args])
        assert isinstance(got.exception, InputError)
        return str(got.exception)

    assert "PERSONA_API_KEYS" in refusal("--host", "0.0.0.0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in refusal("--port", str(taken.getsockname()[1]))


@pytest.mark.slow
def test_columns_through_a_server_of_our_own(tiny_gemma, tmp_path):
    """Two processes, as for real."""
    for seed, name in enumerate(("one", "two"), 1):
        write_adapter(tiny_gemma, tmp_path / name, seed=seed, template="gemma-base")
    env = os.environ | {"PERSONA_API_KEYS": "sk-1,sk-2", "PYTHONPATH": str(PROJECT_DIR)}
    command = [sys.executable, "-m", "persona", "serve", str(tmp_path / "one"), f"mine={tmp_path / 'two'}",
               "--base", str(tiny_gemma), "--port", "0"]  # fmt: skip
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            line = next(line for line in server.stderr if "/v1" in line)
            url = re.search(r"http://127\.0\.0\.1:\d+/v1", line)[0]
            assert "one, mine on" in line
            base = line.split(",")[0].split()[-1]
            longer = replace(WARM, temperature=1.5, max_new_tokens=40)
            got = last(url, [base, "one", "mine", "gone"], [ASK] * 4, longer, "sk-2")
            assert [r.error for r in got[:3]] == [""] * 3 and "does not exist" in got[3].error
            texts = [r.text for r in got[:3]]
            assert len(set(texts)) == 3 and all(r.ended or r.tokens == 40 for r in got[:3])
            # each alone: in a GPU's bfloat16 another batch size can round differently
            first, again = (last(url, ["one"], [ASK], longer, "sk-1")[0] for _ in range(2))
            assert first == again and first.text
            assert "401" in last(url, ["one"], [ASK], key="sk-3")[0].error
            assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
        finally:
            server.terminate()
            rest = server.stderr.read()
    assert "sk-" not in line + rest and "Traceback" not in rest
