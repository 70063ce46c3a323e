"""The page over HTTP: what a stranger, another site, or a made-up request can do; and where requests go from here.

Gradio's "private" hides an endpoint from its clients and listings and protects nothing: the page itself calls every
handler by number, and so can whoever reaches the port. What protects is in the handlers, and is tested here by calling
them as a stranger would.
"""

import json
from pathlib import Path

import httpx
import pytest
from cases import check_each

from persona.compare import conversation, conversation_store
from persona.store import persona_folder
from persona.store.persona_folder import PersonaCard
from persona.ui import app
from persona.ui.middleware.stack import build_middleware
from persona.ui.middleware.trusted_hosts import trusted_host_middleware
from tests.test_attacks_visitors import filled, routes_of

PUBLIC: set[str] = set()  # names that clients and listings may show; an endpoint is added here on purpose or not at all


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page on a free port of this machine, with a persona in it."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("served")
        patch.setenv("PERSONA_HOME", str(home))
        mine = persona_folder.create_persona_at(
            persona_folder.personas_dir() / "mags", PersonaCard(name="Mags", system="SECRET-PROMPT")
        )
        demo = app.build_app()
        _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False,
                                        app_kwargs={"middleware": build_middleware("127.0.0.1")}, **app.LAUNCH_OPTIONS)  # fmt: skip
        with httpx.Client(base_url=url, timeout=30) as client:
            yield demo, client, mine
        demo.close()


def numbered(demo, name: str) -> int:
    return next(n for n, fn in demo.fns.items() if fn.name == name)


def call(client: httpx.Client, number: int, data: list, session: str = "stranger") -> dict:
    """Ask for a handler by its number, as the page's own script does; the last message of the stream."""
    body = {"data": data, "fn_index": number, "session_hash": session, "event_data": None}
    client.post("gradio_api/queue/join", json=body).raise_for_status()
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as lines:
        for line in lines.iter_lines():
            if line.startswith("data:") and (said := json.loads(line[5:]))["msg"] == "process_completed":
                return said
    raise AssertionError("no answer")


@pytest.mark.slow
def test_only_endpoints_of_the_list_are_shown_to_clients(served):
    demo, client, _ = served
    shown = {fn.api_name for fn in demo.fns.values() if fn.fn is not None and fn.api_visibility != "private"}
    assert shown == PUBLIC
    info = client.get("gradio_api/info").json()
    assert {n.lstrip("/") for n in info["named_endpoints"]} == PUBLIC and not info["unnamed_endpoints"]


@pytest.mark.slow
def test_a_gradio_client_finds_nothing_to_call(served):
    from gradio_client import Client

    client = Client(str(served[1].base_url), verbose=False)
    for name in ("/restore_tab", "/push_to_hub", "/make_zip", "/save_edit", "/send_after_greeting"):
        with pytest.raises(ValueError, match="Cannot find a function"):
            client.predict(api_name=name)


def test_files_of_this_machine_are_not_served(served):
    cases = ["/etc/passwd", "../../../etc/passwd", "..%2f..%2fetc/passwd", "README.md", "app.py",
        "{project}/README.md", "{project}/persona/ui/steps/share/__init__.py", "{mine}/persona.json",
        "{mine}/pairs.jsonl", "{mine}/talks", "{home}", "file:///etc/passwd", "//evil/x"]  # fmt: skip

    def check(path):
        _, client, mine = served
        named = path.format(
            project=Path(__file__).resolve().parent.parent, mine=mine.path, home=mine.path.parent.parent
        )
        for way in ("gradio_api/file=", "file=", "gradio_api/stream/", "static/", "assets/"):
            answer = client.get(way + named)
            assert answer.status_code in (400, 401, 403, 404, 405, 422), (way, answer.status_code)
            assert "root:" not in answer.text and "SECRET-PROMPT" not in answer.text

    check_each(cases, check)


def test_the_page_fetches_no_address_for_a_stranger(served):
    cases = ["http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/x", "https://evil.example/x",
        "https://huggingface.co/x"]  # fmt: skip

    def check(url):
        for way in ("gradio_api/proxy=", "gradio_api/file="):
            assert served[1].get(way + url, follow_redirects=False).status_code in (400, 403, 404)

    check_each(cases, check)


@pytest.mark.parametrize("name", ["open_zip", "survey_source", "ask_whose_voice", "start_from_file"])
def test_a_file_that_was_not_uploaded_is_not_read(name, served):
    """The page sends the path of an upload back to the server; a stranger can write any path there."""
    demo, client, mine = served
    number = numbered(demo, name)
    for path in ("/etc/passwd", str(mine.path / "persona.json"), str(Path(__file__).resolve())):
        file = {"path": path, "orig_name": "x.zip", "meta": {"_type": "gradio.FileData"}}
        data = [file, *[None] * (len(demo.fns[number].inputs) - 1)]
        said = call(client, number, data, f"s-{name}-{hash(path)}")
        assert not said["success"]
        assert "SECRET" not in json.dumps(said) and "root:" not in json.dumps(said)


def test_a_file_that_was_uploaded_is_read(served):
    """Else the test above could not fail."""
    demo, client, _ = served
    place = client.post(
        "gradio_api/upload", files={"files": ("x.jsonl", b'{"instruction": "a", "output": "b"}')}
    ).json()[0]
    file = {"path": place, "orig_name": "x.jsonl", "meta": {"_type": "gradio.FileData"}}
    number = numbered(demo, "ask_whose_voice")
    said = call(client, number, [file, *[None] * (len(demo.fns[number].inputs) - 1)], "uploaded")
    assert said["success"], said


def test_a_made_up_key_shows_nobody_elses_conversations(served):
    demo, client, mine = served
    talk = conversation_store.start_conversation(
        conversation_store.open_store(mine.path, conversation.new_browser_key()), "BETWEEN-US"
    )
    number = numbered(demo, "show_conversation")
    for key in (
        "",
        "x",
        "../" * 9,
        conversation.new_browser_key(),
        conversation_store.open_store(mine.path, conversation.new_browser_key()).path.name,
    ):
        data = [key, "mags", "run/mags/x", [], talk.id]
        assert "BETWEEN-US" not in json.dumps(call(client, number, data, f"k{hash(key)}"))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_a_name_that_another_site_makes_lead_here_is_refused(host, served):
    _, client, _ = served
    assert client.get("config", headers={"host": host}).status_code == 400
    assert client.post("gradio_api/upload", files={"files": b"x"}, headers={"host": host}).status_code == 400
    assert client.get("config").status_code == 200


def test_a_page_for_others_and_a_proxy_keep_their_names(monkeypatch):
    assert trusted_host_middleware("0.0.0.0") == []
    for name, value in (("SPACE_ID", "ann/persona"), ("GRADIO_SHARE", "True")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert trusted_host_middleware("127.0.0.1") == []
    monkeypatch.setenv("PERSONA_HOSTS", "mags.example, ")
    assert trusted_host_middleware("127.0.0.1")[0].kwargs["allowed_hosts"] == ["127.0.0.1", "localhost", "mags.example"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:1"])
def test_no_route_answers_another_site_or_another_port(origin, served):
    """On an own machine there is no cookie to be without: whatever a browser here opens can send requests."""
    demo, client, mine = served

    def check(path, method):
        body = {"json": {"data": ["Eve"], "fn_index": numbered(demo, "start_persona"), "session_hash": "eve"}}
        got = client.request(method, path.lstrip("/"), headers={"origin": origin}, **(body if method == "POST" else {}))
        assert "SECRET-PROMPT" not in got.text
        assert not [name for name in got.headers if name.startswith("access-control-")]
        static = path.startswith(("/assets", "/static", "/svelte", "/pwa_icon")) or path.endswith(
            (".css", ".ico", ".txt", "manifest.json")
        )
        assert got.status_code == 403 or (method == "GET" and static)

    check_each([
        (path, method) for route in routes_of(demo.app.routes) for path in filled(route.path, ["eve"])
        for method in sorted((getattr(route, "methods", None) or {"GET", "POST"}) & {"GET", "POST"})
    ], check)  # fmt: skip
    form = client.post("gradio_api/upload", files={"files": ("x.txt", b"x")}, headers={"origin": origin})
    assert form.status_code == 403
    assert [p.name for p in mine.path.parent.iterdir() if not p.name.startswith(".")] == ["mags"]


def test_an_upload_without_a_name_is_refused_and_leaves_nothing(served):
    _, client, _ = served
    for name in ("", "  ", ".."):
        got = client.post("gradio_api/upload", files={"files": (name, b"x")})
        assert got.status_code == 400 and "name" in got.json()["error"]


def test_no_header_of_a_proxy_that_is_none_sets_the_pages_address(served):
    _, client, _ = served
    lies = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-gradio-server": "https://evil.example"}
    assert client.get("config", headers=lies).json()["root"] == str(client.base_url).rstrip("/")
    assert "evil.example" not in client.get("", headers=lies).text


def test_another_site_is_not_told_that_it_may_ask(served):
    """A browser asks first (preflight) before it sends JSON elsewhere, and sends nothing unless it is allowed."""
    _, client, _ = served
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST",
               "access-control-request-headers": "content-type"}  # fmt: skip
    asked = client.options("gradio_api/queue/join", headers=headers)
    assert asked.status_code == 403 and "access-control-allow-origin" not in asked.headers
    body = json.dumps({"data": [""], "fn_index": 0, "session_hash": "x"})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):  # what needs no asking
        sent = client.post("gradio_api/queue/join", content=body, headers={"content-type": kind})
        assert sent.status_code == 422


def test_an_upload_has_a_limit(served):
    assert served[0].max_file_size == app.LAUNCH_OPTIONS["max_file_size"] <= 4_000_000_000


# --- where requests go from here ---------------------------------------------------------------------------------


def test_only_our_own_forms_are_links():
    cases = ["http://169.254.169.254/latest", "file:///etc/passwd", "ftp://x/?persona=a/b", "gopher://x", "//evil/a",
                 "https://evil.example/a/b", "https://huggingface.co@evil.example/a/b", "https://huggingface.co.evil.example/a/b",
                 "https://evil.example/?persona=https://evil.example/x", "https://x/?persona=../../a", "a/b/../c", "a/b@../x",
                 "https://huggingface.co/datasets/a", "https://x/?persona=a/b&persona=c/d", "data:text/html,x", "a/b\n@c", "a/b?x"]  # fmt: skip

    def check(text):
        from persona.errors import ShareError
        from persona.share.hub import HubRef

        with pytest.raises(ShareError):
            HubRef.parse(text)

    check_each(cases, check)


def test_a_link_to_any_app_leads_to_the_hub_alone():
    from persona.share.hub import HubRef

    assert HubRef.parse("http://169.254.169.254/?persona=a/b@c") == HubRef("a/b", "c")


def test_on_a_shared_server_nothing_of_the_page_names_the_endpoint_of_suggestions(monkeypatch):
    """There it is of the environment alone: a visitor could else have the server ask any address."""
    from persona.errors import InputError
    from persona.ui import app
    from persona.ui.steps.write import suggest_tab
    from persona.write import llm_client

    monkeypatch.delenv("PERSONA_LLM_URL", raising=False)
    fields = {"server-url", "server-model", "server-key", "server-use"}
    for shared, shown in (("1", set()), ("0", fields)):
        monkeypatch.setenv("PERSONA_SHARED", shared)
        assert {getattr(block, "elem_id", None) for block in app.build_app().blocks.values()} & fields == shown
    monkeypatch.setenv("PERSONA_SHARED", "1")
    with pytest.raises(InputError, match="only its owner"):
        suggest_tab.set_server("http://127.0.0.1:1/v1", "m", "", False)
    assert llm_client.current_endpoint() is None


def test_a_redirect_of_the_endpoint_is_not_followed_with_the_key(monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from persona.errors import PersonaError
    from persona.write import llm_client

    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        at = llm_client.LlmEndpoint(f"http://127.0.0.1:{server.server_port}/v1", "m", "sk-secret")
        with pytest.raises(PersonaError, match="307"):
            llm_client.request_json_list(at, "hi")
        server.shutdown()
    assert asked == ["/v1/chat/completions"]


# --- secrets -----------------------------------------------------------------------------------------------------

SECRETS = {"HF_TOKEN": "hf_" + "s" * 34, "PERSONA_LLM_KEY": "sk-llm-" + "t" * 30, "WANDB_API_KEY": "w" * 40,
           "SWANLAB_API_KEY": "u" * 30, "OPENAI_API_KEY": "sk-" + "v" * 40}  # fmt: skip


@pytest.mark.slow
def test_no_secret_is_written_or_said(tiny_llama, tmp_path, monkeypatch, home, capfd, caplog):
    """Everything that can be done cheaply, well and badly; then all that was written, printed, logged and raised."""
    from persona.errors import PersonaError
    from persona.share import archive, hub
    from persona.store.pairs import Pair
    from persona.train import launcher
    from persona.train.config import make_config
    from persona.write import llm_client
    from tests.local_hub import Hub
    from tests.tiny_models import write_adapter

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("PERSONA_LLM_URL", "http://127.0.0.1:9/v1")
    said = []

    def tried(do):
        try:
            said.append(repr(do()))
        except PersonaError as e:
            said.append(f"{e!r} {e} {e.__cause__!r} {e.__context__!r}")

    mine = persona_folder.create_persona_at(
        persona_folder.personas_dir() / "mags", PersonaCard(name="Mags"), [Pair(f"q{n}", f"a{n}") for n in range(9)]
    )
    run = launcher.create_run(mine, make_config(report_to="none"))
    run.log("state", state="failed", message="broken")
    launcher.stop_run(run)
    write_adapter(tiny_llama, run.adapter)
    with Hub() as there:
        monkeypatch.setenv("HF_ENDPOINT", there.url)
        tried(lambda: hub.push_adapter(run.adapter, "ann/x"))  # a token that this Hub does not know
        there.users[SECRETS["HF_TOKEN"]] = "ann"
        tried(lambda: hub.push_adapter(run.adapter, "ann/x"))
        tried(lambda: hub.push_adapter(run.adapter, "ben/x"))
        tried(lambda: hub.pull_adapter(hub.HubRef("ann/x")))
        tried(lambda: hub.pull_adapter(hub.HubRef("ann/none")))
        assert any("'private': True" in x for x in said)  # one of them did succeed
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    tried(lambda: hub.pull_adapter(hub.HubRef("ann/y")))
    tried(lambda: archive.pack_adapter(run.adapter, tmp_path / "x.zip"))
    endpoint = llm_client.endpoint_from_env()
    assert endpoint and SECRETS["PERSONA_LLM_KEY"] not in repr(endpoint)
    tried(lambda: llm_client.request_json_list(endpoint, "hi"))
    tried(lambda: (_ for _ in ()).throw(PersonaError(run.progress().message)))
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink()]
    out = capfd.readouterr()
    everything = [*written, *(x.encode() for x in (*said, out.out, out.err, caplog.text))]
    assert len(written) > 15
    for name, value in SECRETS.items():
        assert not any(value.encode() in piece for piece in everything), name
