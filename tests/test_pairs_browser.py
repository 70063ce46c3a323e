"""The table of pairs in a real browser, with a slow server and with a second window: nothing typed is lost."""

import json

import pytest
from browsing import cell, fill, open_page
from waiting import wait_for

from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]

# the answers to edits come late, those to the first text of a new pair last of all
SLOW_ANSWERS = """() => {
  const real = window.fetch;
  window.fetch = async (...request) => {
    const answer = await real(...request);
    const body = String(request[1]?.body ?? "");
    const late = !body.includes('"do":') ? 0 : body.includes('"field":"instruction"') ? 1500 : 500;
    if (late) await new Promise((resume) => setTimeout(resume, late));
    return answer;
  };
}"""
TYPED = "0123456789abcdefghijklmnopqrstuvwxyzABCD"


def read_pairs(file) -> list[tuple[str, str]]:
    return [(pair["instruction"], pair["output"]) for pair in map(json.loads, file.read_text().splitlines())]


def test_what_is_typed_into_a_new_pair_is_kept_however_late_the_server_answers(browser, page_server):
    page, errors = open_page(browser, page_server.url)
    page.fill("#new-name input, #new-name textarea", "Ada")
    page.click("#start")
    page.click("#pairs .empty [data-do=add]")
    fill(page, 1, "instruction", "Who are you?")
    fill(page, 1, "output", "Ada.")
    page.wait_for_selector("#pairs-status .saving >> text=/^saved/")
    page.evaluate(SLOW_ANSWERS)
    page.click(cell(1, "output"))
    for number in (2, 3):
        page.keyboard.press("Control+Enter")
        page.keyboard.type(f"{number}{TYPED}")
        page.keyboard.press("Tab")
        page.keyboard.type(TYPED)
    assert page.evaluate("document.activeElement.value") == TYPED and page.input_value(cell(2, "output")) == TYPED
    typed = [("Who are you?", "Ada."), (f"2{TYPED}", TYPED), (f"3{TYPED}", TYPED)]
    file = page_server.home / "personas/ada/pairs.jsonl"
    wait_for(lambda: read_pairs(file) == typed or page.wait_for_timeout(100))
    # an answer that was overtaken by the next one left its line of what is missing
    page.wait_for_selector("#pairs-status .saving >> text=/^saved/")
    page.wait_for_timeout(2000)
    assert "3 pairs" in page.inner_text("#pairs-status") and "empty" not in page.inner_text("#pairs-status")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Pair 3: the persona answers"
    assert "1–3 of 3" in page.inner_text("#pairs .pager")
    assert errors == [] and not page.locator(".toast-body").count()


def test_why_a_text_is_not_saved_stays_until_the_table_is_reloaded(browser, page_server):
    first, _ = open_page(browser, page_server.url)
    first.click("#open-lighthouse-keeper")
    first.wait_for_selector(cell(1, "output"))
    second, errors = open_page(browser, f"{page_server.url}/?persona=lighthouse-keeper")
    second.wait_for_selector(cell(1, "output"))
    fill(first, 1, "output", "From the first window.")
    first.wait_for_selector("#pairs-status .saving >> text=/^saved/")
    fill(second, 1, "output", "From the second window.")
    second.wait_for_selector("#pairs-status .saving >> text=/not saved.*changed elsewhere.*press Reload/")
    second.wait_for_selector("#pairs [data-row='1'] .mark >> text=changed elsewhere")
    second.click("#reload")
    second.wait_for_selector("#pairs-status .saving >> text=/^saved/")
    assert second.input_value(cell(1, "output")) == "From the first window."
    assert not second.locator("#pairs .refused").count() and errors == []


SLOW_REQUESTS = """() => {
  const real = window.fetch;
  window.fetch = async (...request) => {
    if (request[1]?.body) await new Promise((resume) => setTimeout(resume, 800));
    return real(...request);
  };
}"""
# a text that is not on disk yet, of which the page says "saved", or what was found in the text before
LIES = """() => {
  window.lies = [];
  setInterval(() => {
    const row = document.querySelector("#pairs textarea.unsaved")?.closest("[data-row]");
    const marks = row?.querySelector(".mark") && getComputedStyle(row.querySelector(".marks")).visibility;
    const said = document.querySelector("#pairs-status .saving")?.textContent;
    if (row && (said.startsWith("saved") || marks === "visible")) window.lies.push(said + row.innerText);
  }, 20);
}"""


@pytest.fixture
def four_pairs(page_server, monkeypatch):
    monkeypatch.setenv("PERSONA_HOME", str(page_server.home))
    otto = persona_folder.create_persona("otto", PersonaCard(name="Otto"))
    otto.save_pairs([Pair(f"Question {n}?", "" if n == 4 else f"One {n}.\n\nTwo {n}.") for n in range(1, 5)])
    return otto.pairs_file


def test_what_is_typed_while_the_table_is_drawn_again_is_kept(browser, page_server, four_pairs):
    """Each action draws the table, late; meanwhile another pair is typed in, which then has another number."""
    page, errors = open_page(browser, f"{page_server.url}/?persona=otto")
    page.wait_for_selector("#pairs [data-row='4'] .mark")
    page.evaluate(SLOW_REQUESTS)
    page.evaluate(LIES)
    page.set_default_timeout(30_000)

    def type_at(row: int, text: str) -> None:
        page.click(cell(row, "output"))
        page.keyboard.press("Control+End")
        page.keyboard.type(text, delay=40)

    page.hover(cell(2, "output"))
    page.click("#pairs [data-row='2'] [data-do=delete]")
    page.wait_for_selector("#pairs [data-row='2'].locked")
    type_at(4, "typed while 2 went away")
    page.keyboard.press("Tab")
    expected = [("Question 1?", "One 1.\n\nTwo 1."), ("Question 3?", "One 3.\n\nTwo 3."),
                ("Question 4?", "typed while 2 went away")]  # fmt: skip
    wait_for(lambda: read_pairs(four_pairs) == expected or page.wait_for_timeout(100))
    page.wait_for_selector("#pairs-status .saving >> text=/^saved/")

    page.hover(cell(1, "output"))
    page.click("#pairs [data-row='1'] [data-do=split]")
    type_at(3, ", and while 1 was split")
    expected = [("Question 1?", "One 1."), ("", "Two 1."), expected[1],
                ("Question 4?", "typed while 2 went away, and while 1 was split")]  # fmt: skip
    wait_for(lambda: [p[1] for p in read_pairs(four_pairs)] == [p[1] for p in expected] or page.wait_for_timeout(100))
    page.wait_for_selector("#pairs-status .saving >> text=/^saved/")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Pair 4: the persona answers"

    page.click("#reload")  # the page's own drawing, which no action of the table waits for
    type_at(2, " Three.")
    wait_for(lambda: read_pairs(four_pairs)[1][1] == "Two 1. Three." or page.wait_for_timeout(100))
    page.wait_for_selector("#pairs-status .saving >> text=/^saved/")
    assert page.evaluate("lies") == [] and errors == []
    assert not page.locator(".toast-body").count() and not page.locator("#pairs .locked, #pairs .unchecked").count()
