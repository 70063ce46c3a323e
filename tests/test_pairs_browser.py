"""The table of pairs in a real browser, with a slow server and with a second window: nothing typed is lost."""

import json

import pytest
from browsing import cell, fill, open_page
from waiting import wait_for

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
