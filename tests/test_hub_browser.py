"""The Hub in a real browser: a share link by Back from a slow Hub, and a push that is refused after one that was not."""

import shutil

import pytest
from browsing import open_page, page_process

from persona.models.adapter import ADAPTER_FILES
from persona.store import persona_folder
from persona.store.workspace import EXAMPLES_DIR
from persona.train import launcher
from persona.train.config import make_config
from tests.local_hub import ANN, Hub

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture
def hub():
    with Hub() as running:
        yield running


@pytest.fixture
def server(hub, tmp_path, page_base, drawn_adapter, monkeypatch):
    """A page of a user who is logged in to the Hub: 甄嬛 has a finished run here, and is on the Hub as ann/zhen."""
    files = {name: (drawn_adapter / name).read_bytes() for name in ADAPTER_FILES if (drawn_adapter / name).is_file()}
    hub.add("ann/zhen", files)
    home = tmp_path / "home"
    monkeypatch.setenv("PERSONA_HOME", str(home))
    persona = persona_folder.open_persona(shutil.copytree(EXAMPLES_DIR / "zhen-huan", home / "personas/zhen-huan"))
    run = launcher.create_run(persona, make_config("quick"))
    shutil.copytree(drawn_adapter, run.adapter)
    run.log("state", state="done")
    login = {"HF_ENDPOINT": hub.url, "HF_TOKEN": ANN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    with page_process(home, page_base, **login) as running:
        yield running


def test_a_slow_link_holds_nobody_up_and_shows_itself_to_who_waits(browser, hub, server):
    page, errors = open_page(browser, f"{server.url}/?persona=ann/zhen")
    page.wait_for_selector("#step-compare-button[aria-current]")
    page.traffic.settle(page)

    def choose_zhen_huan():
        page.click("#persona-list input")
        page.click("#persona-list [role=option] >> text=甄嬛")
        page.wait_for_function("new URLSearchParams(location.search).get('persona') === 'zhen-huan'")
        page.traffic.settle(page)

    def go_back_to_a_slow_hub():
        hub.retry_after = 9  # seconds
        hub.fail("GET /api/models/ann/zhen", 1, 429)
        page.go_back(wait_until="commit")
        page.wait_for_selector("#navigation .next-hint >> text=Opening ann/zhen from the Hub")

    choose_zhen_huan()
    go_back_to_a_slow_hub()
    page.click("#step-train-button")
    page.wait_for_selector("#step-train-button[aria-current]")
    assert page.locator("#navigation .next-hint >> text=Opening").count() == 0
    page.traffic.settle(page)
    assert "persona=zhen-huan&step=train" in page.url, "who has gone on stays there"

    page.goto(f"{server.url}/?persona=ann/zhen")
    page.wait_for_selector("#step-compare-button[aria-current]")
    page.traffic.settle(page)
    page.click("#step-share-button")
    page.wait_for_selector("#step-share-button[aria-current]")
    page.traffic.settle(page)
    hub.requests.clear()
    page.go_back(wait_until="commit")
    page.wait_for_selector("#step-compare-button[aria-current]")
    page.traffic.settle(page)
    assert hub.requests == [], "another step of a link that is open"

    choose_zhen_huan()
    go_back_to_a_slow_hub()
    page.wait_for_function("document.querySelector('#persona-list input').value.startsWith('New')")
    page.traffic.settle(page)
    assert page.url.endswith("/?persona=ann/zhen") and page.is_visible("#step-compare")

    choose_zhen_huan()
    del hub.repos["ann/zhen"]
    page.go_back(wait_until="commit")
    page.wait_for_selector(".toast-body:has-text('not on the Hub')")
    page.traffic.settle(page)
    assert "persona=zhen-huan&step=compare" in page.url, "the address says what is shown"
    assert page.locator("#navigation .next-hint >> text=Opening").count() == 0 and errors == []


def test_a_refused_push_takes_the_last_ones_link_away(browser, hub, server):
    page, errors = open_page(browser, f"{server.url}/?persona=zhen-huan&step=share")
    page.wait_for_selector("#make-zip:has-text('甄嬛')")
    page.traffic.settle(page)
    page.click("#push")
    page.wait_for_selector(".toast-body:has-text('needs a name on the Hub')")
    page.fill("#repo textarea, #repo input", "clock")
    page.click("#push")
    page.wait_for_selector("#push-status:has-text('On the Hub, private')")
    page.traffic.settle(page)
    link = "#share-link textarea, #share-link input"
    assert "?persona=ann/clock@" in page.input_value(link)
    page.fill("#repo textarea, #repo input", "ben/clock")
    page.click("#push")
    page.wait_for_selector(".toast-body:has-text('no right to do this')")
    page.traffic.settle(page)
    assert page.inner_text("#push-status").strip() == page.input_value(link) == "" and errors == []
    assert list(hub.repos) == ["ann/zhen", "ann/clock"]
