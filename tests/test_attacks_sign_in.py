"""Signing in on a Space, against a stand-in for the Hub: what was made before moves to the account, and to no other."""

import json
import re
from urllib.parse import urlsplit

import httpx
import pytest

from persona.store import deployment, persona_folder, workspace
from persona.store.persona_folder import PersonaCard
from persona.ui import app
from persona.ui.middleware import workspaces
from persona.ui.middleware.stack import build_middleware
from tests.oauth_standin import CLIENT, SECRET, OAuthHub

pytestmark = pytest.mark.slow
SPACE = "ann-persona.hf.space"
GUEST_COOKIE = f"__Host-{workspaces.VISITOR_COOKIE}"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """(the stand-in, the url of the page, its home), as the platform starts a Space with hf_oauth."""
    with OAuthHub() as hub, pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("space")
        variables = {"OAUTH_CLIENT_ID": CLIENT, "OAUTH_CLIENT_SECRET": SECRET, "OAUTH_SCOPES": "openid profile",
                     "OPENID_PROVIDER_URL": hub.url}  # fmt: skip
        assert set(variables) == set(deployment.OAUTH_VARIABLES)
        for name, value in {**variables, "SPACE_ID": "ann/persona", "SPACE_HOST": SPACE, "SYSTEM": "spaces",
                            "PERSONA_HOME": str(home), "PERSONA_MAX_REQUESTS": "0"}.items():  # fmt: skip
            patch.setenv(name, value)
        for name, value in variables.items():  # Gradio has read them when it was imported
            patch.setattr(f"gradio.oauth.{name}", value)
        patch.setattr("gradio.http_server.get_space", lambda: None)  # it would reload the page's files on a change
        demo = app.build_app()
        _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False,
                                        app_kwargs={"middleware": build_middleware("127.0.0.1")}, **app.LAUNCH_OPTIONS)  # fmt: skip
        yield hub, url.rstrip("/"), home
        demo.close()


@pytest.fixture(autouse=True)
def at_home(space, home, monkeypatch):
    for name, value in {"PERSONA_HOME": str(space[2]), "SPACE_ID": "ann/persona", "SPACE_HOST": SPACE}.items():
        monkeypatch.setenv(name, value)


class Browser:
    """Knows the page by its https address only, keeps its cookies, and follows redirects as a person would."""

    def __init__(self, url: str):
        self.url, self.cookies = url, {}

    def get(self, address: str) -> httpx.Response:
        """The last answer of the chain."""
        for _ in range(12):
            got = self.step(address)
            if not got.is_redirect:
                return got
            address = got.headers["location"]
        raise AssertionError("redirected without end")

    def step(self, address: str) -> httpx.Response:
        parts = urlsplit(address)
        if parts.netloc not in ("", SPACE):
            return httpx.get(address)
        headers = {"host": SPACE, "x-forwarded-proto": "https",
                   "cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}  # fmt: skip
        got = httpx.get(f"{self.url}{parts.path}?{parts.query}", headers=headers, timeout=60)
        for line in got.headers.get_list("set-cookie"):
            name, value = re.match(r"([^=]+)=([^;]*)", line).groups()  # type: ignore[union-attr]
            assert "secure" in line.lower(), "all of a Space's cookies travel by https alone"
            if "01 jan 1970" in line.lower():
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return got

    @property
    def guest(self) -> str:
        return workspaces.visitor_of_secret(self.cookies[GUEST_COOKIE].partition(".")[0]) or ""


def make_persona(visitor: str, name: str) -> None:
    with workspace.as_visitor(visitor):
        persona_folder.create_persona_at(persona_folder.free_path(name), PersonaCard(name=name))


def names_of(visitor: str) -> list[str]:
    with workspace.as_visitor(visitor):
        return sorted(p.card().name for p in persona_folder.list_personas())


def test_work_of_before_signing_in_moves_to_the_account_and_out_of_reach_of_the_browser(space):
    hub, url, _ = space
    hub.account = ("512", "ada")
    ada, account = Browser(url), workspaces.visitor_of_account("512")
    assert ada.get("/").status_code == 200
    make_persona(ada.guest, "Mags")
    assert ada.get("/login/huggingface").status_code == 200
    assert names_of(account) == ["Mags"] and names_of(ada.guest) == []
    make_persona(account, "Kept")
    assert ada.get("/logout").status_code == 200
    assert names_of(ada.guest) == [], "who uses the browser after her finds nothing"
    phone = Browser(url)
    phone.get("/")
    phone.get("/login/huggingface")
    assert names_of(account) == ["Kept", "Mags"]
    assert hub.issued and not any(token in phone.get("/").text for token in hub.issued)


def test_two_accounts_in_one_browser_stay_two(space):
    hub, url, _ = space
    browser = Browser(url)
    for sub in ("600", "601"):
        hub.account = (sub, f"user-{sub}")
        browser.get("/")
        browser.get("/login/huggingface")
        make_persona(workspaces.visitor_of_account(sub), f"Of {sub}")
        browser.get("/logout")
    assert [names_of(workspaces.visitor_of_account(sub)) for sub in ("600", "601")] == [["Of 600"], ["Of 601"]]


def test_nobody_is_signed_in_by_a_link_or_with_a_session_of_their_own_making(space):
    """A callback without the browser's own state, a code used twice, an unsigned session, a session of another key."""
    hub, url, _ = space
    hub.account = ("666", "eve")
    eve = Browser(url)
    eve.get("/")
    at_hub = eve.step("/login/huggingface").headers["location"]
    callback = httpx.get(at_hub).headers["location"]
    victim = Browser(url)
    victim.get("/")
    make_persona(victim.guest, "Victim's")
    victim.step(callback)  # the link that Eve sends
    victim.get("/")
    assert names_of(workspaces.visitor_of_account("666")) == [] and names_of(victim.guest) == ["Victim's"]
    eve.step(callback)
    again = eve.step(callback)
    assert again.status_code >= 300
    forged = {"oauth_info": {"userinfo": {"sub": "512"}}}
    import base64

    from itsdangerous import TimestampSigner

    data = base64.b64encode(json.dumps(forged).encode())
    for value in (data.decode(), TimestampSigner("").sign(data).decode(), TimestampSigner("-v4").sign(data).decode()):
        thief = Browser(url)
        thief.get("/")
        thief.cookies["session"] = value
        thief.get("/")
        make_persona(thief.guest, "Thief's")
        thief.get("/")
        assert names_of(thief.guest) == ["Thief's"], "else it had moved to the account"


def test_no_redirect_leads_away(space):
    hub, url, _ = space
    hub.account = ("512", "ada")
    for target in (
        "https://evil.example/x",
        "//evil.example",
        "////evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
    ):
        browser = Browser(url)
        browser.get("/")
        address = f"/login/huggingface?_target_url={target}"
        for _ in range(6):
            got = browser.step(address)
            if not got.is_redirect:
                break
            address = got.headers["location"]
            assert urlsplit(address).netloc in ("", SPACE, urlsplit(hub.url).netloc) and not address.startswith("/\\")
        logout = browser.step(f"/logout?_target_url={target}").headers["location"]
        assert logout.startswith("/") and not logout.startswith(("//", "/\\")), logout
