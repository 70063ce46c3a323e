"""A stranger's text in every field of a persona and an adapter, in a real browser: it is shown, and does nothing."""

import shutil

import pytest
from browsing import draw_adapter, open_page, settle

from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, ProbeRule
from persona.train import launcher
from persona.train.config import make_config

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]

HOSTILE = "".join((
    "![a](http://evil.example/a.png) <img src=http://evil.example/b.png onerror=window.hacked=1> ",
    "[x](javascript:window.hacked=1) <script>window.hacked=1</script> $$\\\\href{http://evil.example}{y}$$ ",
    "<svg onload=window.hacked=1> http://evil.example/auto <style>@import 'http://evil.example/c.css';</style>",
))  # fmt: skip


@pytest.fixture
def hostile_persona(page_server, page_base, tmp_path, monkeypatch):
    """A persona with a finished run; the run's adapter, samples and questions are as hostile as the persona itself."""
    monkeypatch.setenv("PERSONA_HOME", str(page_server.home))
    card = PersonaCard(name=f"Mallory {HOSTILE}"[:80], system=HOSTILE, greeting=f"# Hi\n{HOSTILE}", author=HOSTILE,
                       source=HOSTILE, rights=HOSTILE, probes=(HOSTILE,),
                       probe_rules=(ProbeRule(ask=HOSTILE, must_mention=("x",)),))  # fmt: skip
    pairs = [Pair(f"{n} {HOSTILE}", f"{HOSTILE} {n}", ((HOSTILE, HOSTILE),), HOSTILE) for n in range(6)]
    persona = persona_folder.create_persona("Mallory", card)
    persona.save_pairs(pairs)
    run = launcher.create_run(persona, make_config("quick"))
    shutil.copytree(draw_adapter(page_base, tmp_path / "drawn", card), run.adapter)
    run.log("samples", step=1, samples=[{"probe": HOSTILE, "text": HOSTILE}])
    run.log("state", state="done", message=HOSTILE)
    return persona


def open_every_tab(page) -> int:
    tabs = page.locator("[role=tab]:visible")
    count = tabs.count()
    for n in range(count):
        if tabs.nth(n).is_visible() and tabs.nth(n).is_enabled():
            tabs.nth(n).click()
            page.traffic.settle(page, 0.2)
    return count


def test_hostile_text_loads_nothing_and_runs_nothing(browser, page_server, hostile_persona):
    page, errors = open_page(browser, page_server.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.click("#persona-list input")
    page.locator("[role=option]", has_text="Mallory").first.click()
    page.wait_for_selector("#pairs [data-row='6']")
    tabs = open_every_tab(page)
    for step in ("template", "train"):
        page.click(f"#to-{step}")
        page.traffic.settle(page)
    page.click("#to-compare")
    page.wait_for_function("document.querySelector('#adapter input')?.value?.includes('Mallory')")
    greeting = page.locator("#chat-persona", has_text="evil.example/a.png")
    greeting.wait_for()
    assert "# Hi" in greeting.inner_text() and "![a](http://evil.example/a.png)" in greeting.inner_text()
    page.fill("#say textarea", HOSTILE)
    page.click("#send")
    settle(page)
    said = page.locator("#chat-persona .user.message").inner_text()
    assert "<img src=http://evil.example/b.png onerror=window.hacked=1>" in said and "$$" in said
    tabs += open_every_tab(page)
    page.click("#to-share")
    page.traffic.settle(page)
    assert tabs >= 8, "the walk has to reach the tabs of Write and Compare"
    assert not [url for url in asked if "evil.example" in url]
    assert page.evaluate("window.hacked") is None and not errors
    assert page.evaluate("document.querySelectorAll('img[src*=evil], a[href*=evil], a[href^=javascript]').length") == 0
