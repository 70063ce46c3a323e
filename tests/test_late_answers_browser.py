"""In a real browser, with answers that come late: the page shows what was asked for last."""

import threading

import pytest
from browsing import open_page

from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.ui import navigation
from persona.ui.app import LAUNCH_OPTIONS, build_app
from persona.ui.middleware.stack import build_middleware

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]

# what is asked with this text in it is answered 1.5 seconds late
SLOW_ANSWER = """(text) => {
  const real = window.fetch;
  window.fetch = async (...request) => {
    const answer = await real(...request);
    if (String(request[1]?.body ?? "").includes(text)) await new Promise((resume) => setTimeout(resume, 1500));
    return answer;
  };
}"""


@pytest.fixture
def ada(page_server, monkeypatch):
    monkeypatch.setenv("PERSONA_HOME", str(page_server.home))
    persona = persona_folder.create_persona("ada", PersonaCard(name="Ada"))
    persona.save_pairs([Pair("Who are you?", "I am Ada."), Pair("What do you do?", "I count.")])
    return persona


def test_a_text_that_is_no_longer_searched_for_leaves_no_rows(browser, page_server, ada):
    """Nor does the preview of a replacement that was made since."""
    page, errors = open_page(browser, page_server.url)
    page.wait_for_selector("#pairs [data-row='2']")
    page.traffic.settle(page)
    page.evaluate(SLOW_ANSWER, "count")
    page.fill("#search input, #search textarea", "count")
    page.wait_for_timeout(300)  # it is asked for
    page.fill("#search input, #search textarea", "")
    page.traffic.settle(page, quiet=2)
    assert page.input_value("#search input, #search textarea") == ""
    assert page.locator("#pairs [data-row]").count() == 2

    page.click("#many-pairs > button")
    page.fill("#find input, #find textarea", "I c")
    page.wait_for_selector("#replace-all:has-text('1 pair')")
    page.fill("#find input, #find textarea", "I count")
    page.wait_for_timeout(300)
    page.click("#replace-all")
    page.wait_for_selector("#replace-preview .good")
    page.traffic.settle(page, quiet=2)
    assert "Replaced" in page.inner_text("#replace-preview") and page.is_disabled("#replace-all")
    assert errors == []


@pytest.fixture
def slow_page(ada, monkeypatch):
    """The page in this process: its address, and what makes the next drawing of the bar alone wait until it is set."""
    real, held = navigation.navigation_html, []

    def hold(*about):
        drawn = real(*about)
        if held:
            held.pop().wait(60)
        return drawn

    monkeypatch.setattr(navigation, "navigation_html", hold)
    demo = build_app()
    monkeypatch.setattr(navigation, "navigation_html", real)  # mark_step_shown and follow_run are as fast as ever
    kwargs = {"middleware": build_middleware("127.0.0.1")}
    _, url, _ = demo.queue(default_concurrency_limit=8).launch(
        prevent_thread_lock=True, quiet=True, app_kwargs=kwargs, **LAUNCH_OPTIONS
    )
    yield url, held
    demo.close()


def test_a_late_drawing_of_the_bar_does_not_lead_back(browser, slow_page):
    url, held = slow_page
    page, errors = open_page(browser, f"{url}?persona=ada")
    page.wait_for_selector("#pairs [data-row='2']")
    page.traffic.settle(page)
    page.evaluate("""() => { window.pushed = []; const push = history.pushState.bind(history);
        history.pushState = (...state) => { pushed.push(state[2].search); push(...state); }; }""")
    answer = threading.Event()
    held.append(answer)
    page.click("#pairs [data-row='2'] textarea")  # shows its tools
    page.wait_for_timeout(300)
    page.click("#pairs [data-row='2'] [data-do=duplicate]")  # the bar is drawn anew, in the step Write
    page.wait_for_selector("#pairs [data-row='3']")
    page.wait_for_timeout(500)
    assert not held, "it waits"
    page.click("#step-template-button")
    page.wait_for_selector("#step-template")
    page.wait_for_timeout(1000)
    answer.set()
    page.traffic.settle(page)
    assert page.get_attribute("#navigation [aria-current]", "id") == "step-template-button"
    assert page.evaluate("pushed") == ["?persona=ada&step=template"]
    page.go_back(wait_until="commit")
    page.wait_for_selector("#step-write-button[aria-current]")
    assert errors == []
