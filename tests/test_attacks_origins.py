"""Other websites, frames, proxies that are none, and cookies that the server did not make, on a shared server.

A visitor's browser is what attacks here: it sends the visitor's cookies along with what another site asks for.
"""

import json
import re

import httpx
import openai
import pytest
from cases import check_each

from persona.errors import InputError
from persona.serve import http as api
from persona.serve import model_list, origins
from persona.store import persona_folder, workspace
from persona.store.persona_folder import PersonaCard
from persona.ui import app
from persona.ui.middleware import workspaces
from persona.ui.middleware.stack import build_middleware
from tests.test_attacks_visitors import Visitor, filled, numbered, routes_of

MARK = "BETWEEN-ADA-AND-ME"
KEY = "sk-origins"
OWN_NAME = "mags.example"  # of a proxy in front
FOREIGN = ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:1", "http://0.0.0.0:7860", "file://",
           "https://127.0.0.1.evil.example", "https://mags.example.evil.example", "https://mags.example:8443", ""]  # fmt: skip
FETCHES = [{"origin": o} for o in FOREIGN] + [
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "origin": "null"},
]  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """(the page, its url, a visitor with a persona, the file they uploaded, the home). Behind the proxy of PERSONA_HOSTS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_HOME", str(tmp_path_factory.mktemp("shared")))
        patch.setenv("PERSONA_SHARED", "1")
        patch.setenv("PERSONA_HOSTS", OWN_NAME)
        patch.setenv("PERSONA_MAX_REQUESTS", "0")
        patch.setenv("PERSONA_API_KEYS", KEY)
        patch.setenv("PERSONA_API_ORIGINS", "https://chat.example, http://localhost:8080")
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(model_list, "list_home_models", lambda: [])
        demo = app.build_app()
        kwargs = {**api.page_api_kwargs("127.0.0.1"), "middleware": build_middleware("127.0.0.1")}
        _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, show_error=True,
                                        app_kwargs=kwargs, **app.LAUNCH_OPTIONS)  # fmt: skip
        ada = Visitor(url)
        with workspace.as_visitor(ada.id):
            persona_folder.create_persona_at(persona_folder.free_path("Ada"), PersonaCard(name=f"Ada {MARK}"))
        yield demo, url.rstrip("/"), ada, ada.drop("ada.jsonl", MARK), workspace.data_root()
        demo.close()
        ada.http.close()


@pytest.fixture(autouse=True)
def at_home(house, home, monkeypatch):
    """conftest.py gives every test a home of its own; the server has one for them all."""
    monkeypatch.setenv("PERSONA_HOME", str(house[4]))


# --- other websites ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_route_answers_another_website(house):
    """Every route of the app, with the visitor's cookies: refused, or a file that is the same for everybody."""
    demo, _, ada, file, _ = house
    assert MARK in json.dumps(ada.call(numbered(demo, "restore_tab"), [""])), "else nothing below could fail"
    tried, answered = 0, set()

    def check(path, method, headers):
        nonlocal tried
        tried += 1
        body = {"json": {"data": [], "fn_index": 0, "session_hash": "tab"}} if method == "POST" else {}
        got = ada.http.request(method, path.lstrip("/"), headers=headers, **body)
        assert not [name for name in got.headers if name.startswith("access-control-")], headers
        assert MARK not in got.text
        if got.status_code != 403:
            answered.add(path.split("/")[1] if path.count("/") > 1 else path)

    cases = [
        (path, method, headers)
        for route in routes_of(demo.app.routes)
        for path in filled(route.path, ["tab", file["path"]])
        for method in sorted((getattr(route, "methods", None) or {"GET", "POST"}) & {"GET", "POST"})
        for headers in (FETCHES[0], FETCHES[1], FETCHES[2], FETCHES[10])
    ]
    check_each(cases, check)
    static = {"assets", "static", "svelte", "pwa_icon", "/pwa_icon", "/favicon.ico", "/robots.txt", "/manifest.json",
              "/theme.css", "gradio_api"}  # fmt: skip
    assert tried > 200 and answered <= static, answered - static


def test_what_matters_is_refused_in_every_way_a_browser_can_tell(house):
    demo, _, ada, file, _ = house
    event = {"data": ["Eve"], "fn_index": numbered(demo, "start_persona"), "session_hash": "e"}
    before = persona_names(ada)

    def check(headers):
        for path in ("", "config", f"gradio_api/file={file['path']}", "gradio_api/queue/data?session_hash=tab"):
            assert ada.http.get(path, headers=headers).status_code == 403
        assert ada.http.post("gradio_api/queue/join", json=event, headers=headers).status_code == 403
        form = ada.http.post("gradio_api/upload", files={"files": ("x.txt", b"x")}, headers=headers)
        assert form.status_code == 403 and "another website" in form.json()["detail"]
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type", **headers}
        assert ada.http.options("gradio_api/queue/join", headers=asked).status_code == 403

    check_each([({**headers},) for headers in FETCHES], check)
    assert persona_names(ada) == before


def persona_names(visitor: Visitor) -> list[str]:
    with workspace.as_visitor(visitor.id):
        return [p.card().name for p in persona_folder.list_personas()]


def test_the_page_itself_is_answered(house):
    """With the Host that it was opened under, behind the proxy, and by a program, which says nothing of an origin."""
    url = house[1]
    port = url.rpartition(":")[2]
    cases = [{"origin": url}, {"origin": url, "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"}, {}, {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"},
        {"host": OWN_NAME, "origin": f"https://{OWN_NAME}"}, {"origin": f"https://{OWN_NAME}"},
        {"host": OWN_NAME, "origin": f"https://{OWN_NAME}:443", "x-forwarded-proto": "https"}]  # fmt: skip

    def check(headers):
        assert httpx.get(f"{url}/config", headers=headers).status_code == 200

    check_each([(case,) for case in cases], check)
    plain = {"host": OWN_NAME, "origin": f"http://{OWN_NAME}", "x-forwarded-proto": "https"}
    assert httpx.get(f"{url}/config", headers=plain).status_code == 403, "over https nothing of http is its own"


def test_a_link_from_another_site_opens_the_page_and_nothing_else(house):
    _, _, ada, file, _ = house
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert ada.http.get("?persona=a/b", headers=link).status_code == 200
    for path in ("config", "logout", f"gradio_api/file={file['path']}", "gradio_api/queue/data?session_hash=tab"):
        assert ada.http.get(path, headers=link).status_code == 403
    assert ada.http.post("", headers=link).status_code == 403


@pytest.mark.slow
def test_a_gradio_client_in_python_still_connects(house):
    from gradio_client import Client

    assert Client(f"{house[1]}/", verbose=False).config["version"]


# --- what browsers are told --------------------------------------------------------------------------------------


def test_every_answer_carries_its_headers_and_only_static_files_are_kept(house):
    _, _, ada, file, _ = house
    page = ada.http.get("").text
    asset = re.search(r"assets/[\w.-]+\.js", page)
    assert asset
    private = ["", "config", f"gradio_api/file={file['path']}", "gradio_api/nothing", "v1/models", "health"]
    for path in [*private, asset[0], "theme.css"]:
        got = ada.http.get(path)
        assert got.headers["x-content-type-options"] == "nosniff" and got.headers["referrer-policy"] == "same-origin"
        assert (got.headers.get("cache-control") == "no-store") == (path in private), path
        assert "frame-ancestors 'self'" in got.headers["content-security-policy"]


def test_each_script_of_the_page_carries_a_nonce_that_is_new_each_time(house):
    got = [house[2].http.get("") for _ in range(2)]
    nonces = [re.findall(r"'nonce-([\w-]{20,})'", g.headers["content-security-policy"])[0] for g in got]
    assert len(set(nonces)) == 2
    for g, nonce in zip(got, nonces, strict=True):
        tags = re.findall(r"<script[^>]*>", g.text)
        assert len(tags) > 4 and all(f'nonce="{nonce}"' in tag for tag in tags)
        policy = dict(part.partition(" ")[::2] for part in g.headers["content-security-policy"].split("; "))
        assert "unsafe-inline" not in policy["script-src"] and policy["object-src"] == "'none'"
        assert policy["img-src"] == "'self' data: blob:" and policy["connect-src"] == "'self'"


def test_the_hub_may_frame_a_space_and_nobody_else(house, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "ann/persona")
    monkeypatch.setenv("SPACE_HOST", "ann-persona.hf.space")
    space = {"host": "ann-persona.hf.space", "x-forwarded-proto": "https", "origin": "https://ann-persona.hf.space"}
    got = httpx.get(f"{house[1]}/config", headers={**space, "host": "localhost"})
    assert got.status_code == 200
    assert got.headers["content-security-policy"].endswith("frame-ancestors 'self' https://huggingface.co")
    assert httpx.get(f"{house[1]}/config", headers={"origin": "https://huggingface.co"}).status_code == 403
    framed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    assert httpx.get(house[1], headers=framed).status_code == 200


# --- proxies -----------------------------------------------------------------------------------------------------

LIES = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "forwarded": "host=evil.example;proto=https",
        "x-gradio-server": "https://evil.example"}  # fmt: skip


def test_a_forwarded_host_is_believed_of_a_declared_proxy_alone(house, monkeypatch):
    url = house[1]

    def root(**headers):
        return httpx.get(f"{url}/config", headers=headers).json()["root"]

    assert root(**LIES) == url.replace("http:", "https:"), "the host is none that is declared, the proxy is"
    assert root(**{"x-forwarded-host": OWN_NAME, "x-forwarded-proto": "https"}) == f"https://{OWN_NAME}"
    monkeypatch.delenv("PERSONA_HOSTS")
    assert root(**LIES) == url == root(**{"x-forwarded-host": OWN_NAME, "x-forwarded-proto": "https"})
    page = httpx.get(url, headers=LIES)
    assert "evil.example" not in page.text and "Secure" not in page.headers["set-cookie"]


@pytest.mark.parametrize(
    "host", ["{own}:80@evil.example", "{own}:/evil.example", "evil.example/.{own}", "{own}:", "{own}:1234567"]
)
def test_a_forwarded_host_is_a_name_and_nothing_more(host, house, monkeypatch):
    """Gradio builds addresses of it, which lead elsewhere from a "/" or "@" on."""
    monkeypatch.setenv("PERSONA_HOSTS", f"{OWN_NAME},*.{OWN_NAME}")
    url = house[1]
    assert httpx.get(f"{url}/config", headers={"x-forwarded-host": host.format(own=OWN_NAME)}).json()["root"] == url
    port = {"x-forwarded-host": f"{OWN_NAME}:8443", "x-forwarded-proto": "https"}
    assert httpx.get(f"{url}/config", headers=port).json()["root"] == f"https://{OWN_NAME}:8443"


# --- cookies -----------------------------------------------------------------------------------------------------


def get_with_cookie(url: str, cookie: str, **headers: str) -> str:
    """The cookie that the page sets for a request with this one, "" for none."""
    return httpx.get(url, headers={"cookie": cookie, **headers}).headers.get("set-cookie", "")


def test_a_value_that_the_server_did_not_make_is_replaced_and_does_nothing(house):
    demo, url, ada = house[:3]
    secret, _, signature = ada.http.cookies[workspaces.VISITOR_COOKIE].partition(".")
    cases = ["A" * 43, workspaces.new_secret(), f"{workspaces.new_secret()}.{signature}", f"{workspaces.new_secret()}.{'0' * 32}",
             f"{'A' * 43}.", "x=1", ada.id]  # fmt: skip

    def check(value):
        new = get_with_cookie(url, f"{workspaces.VISITOR_COOKIE}={value}")
        assert new.startswith(f"{workspaces.VISITOR_COOKIE}=") and value.partition(".")[0] not in new
        body = {"data": ["Eve"], "fn_index": numbered(demo, "start_persona"), "session_hash": "e"}
        headers = {"cookie": f"{workspaces.VISITOR_COOKIE}={value}"}
        assert httpx.post(f"{url}/gradio_api/queue/join", json=body, headers=headers).status_code == 403

    check_each(cases, check)
    assert get_with_cookie(url, f"{workspaces.VISITOR_COOKIE}={secret}.{signature}") == "", "its own stays"


def test_a_cookie_of_an_earlier_version_keeps_its_workspace_and_is_made_anew(house):
    url, ada = house[1:3]
    secret = ada.http.cookies[workspaces.VISITOR_COOKIE].partition(".")[0]
    assert f"{workspaces.VISITOR_COOKIE}={secret}." in get_with_cookie(url, f"{workspaces.VISITOR_COOKIE}={secret}")
    secure = get_with_cookie(url, f"{workspaces.VISITOR_COOKIE}={secret}", **{"x-forwarded-proto": "https"})
    assert secure.startswith(f"__Host-{workspaces.VISITOR_COOKIE}={secret}.")


def test_over_https_the_cookie_is_the_hosts_own(house, monkeypatch):
    """A neighbouring site, or plain http, can set a cookie of any name but one that begins with __Host-."""
    url, ada = house[1:3]
    https = {"x-forwarded-proto": "https"}
    new = get_with_cookie(url, "", **https)
    assert new.startswith("__Host-persona-visitor=") and "Path=/; " in new and "Domain" not in new
    assert new.endswith("HttpOnly; SameSite=Lax; Secure")
    mine = new.partition(";")[0]
    assert get_with_cookie(url, mine, **https) == ""
    planted = f"{workspaces.VISITOR_COOKIE}={ada.http.cookies[workspaces.VISITOR_COOKIE]}"  # the attacker's, signed
    assert planted.partition("=")[2] not in get_with_cookie(url, planted, **https)
    assert get_with_cookie(url, f"{planted}; {mine}", **https) == ""
    monkeypatch.setenv("SPACE_ID", "ann/persona")
    assert get_with_cookie(url, "", **https).endswith("HttpOnly; SameSite=None; Secure; Partitioned")


def test_the_key_of_the_cookies_is_the_owners_alone_and_outlives_the_process(house):
    key = workspace.data_root() / "cookie-key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32


# --- the API -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_api_is_open_to_the_web_pages_that_its_owner_names(house):
    url, auth = house[1], {"authorization": f"Bearer {KEY}"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    for origin in ("https://chat.example", "http://localhost:8080"):
        before = httpx.options(f"{url}/v1/chat/completions", headers={"origin": origin, **asked})
        assert before.status_code == 204 and before.headers["access-control-allow-origin"] == origin
        assert before.headers["access-control-allow-headers"] == "authorization,content-type"
        got = httpx.get(f"{url}/v1/models", headers={"origin": origin, **auth})
        assert got.status_code == 200 and got.headers["access-control-allow-origin"] == origin
        assert got.headers["vary"] == "Origin" and "access-control-allow-credentials" not in got.headers
        assert httpx.get(f"{url}/config", headers={"origin": origin}).status_code == 403, "of the API, not of the page"
    for headers in FETCHES:
        for path in ("v1/models", "health"):
            got = httpx.get(f"{url}/{path}", headers={**auth, **headers})
            assert got.status_code == 403 and "access-control-allow-origin" not in got.headers, headers
        refused = httpx.options(f"{url}/v1/models", headers={**asked, **headers})
        assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    assert httpx.get(f"{url}/v1/models", headers={**auth, "origin": url}).status_code == 200
    assert openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0).models.list().data == []


def test_an_origin_is_a_scheme_and_a_host(monkeypatch):
    check_each(
        {
            "port of the scheme": ("https://A.example:443", "https://a.example"),
            "another port": ("http://a.example:443", "http://a.example:443"),
            "IPv6": ("http://[::1]:80", "http://[::1]"),
            "null": ("null", None),
            "a path": ("https://a.example/", None),
            "credentials": ("https://a@b.example", None),
            "two": ("https://a.example https://b.example", None),
            "empty": ("", None),
        },
        lambda text, expected: pytest.fail("wrong") if origins.normalize_origin(text) != expected else None,
    )
    monkeypatch.setenv("PERSONA_API_ORIGINS", "https://a.example/, *")
    with pytest.raises(InputError, match=r"PERSONA_API_ORIGINS: 'https://a.example/' is not an origin"):
        api.page_api_kwargs("127.0.0.1")
