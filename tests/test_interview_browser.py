"""An evening of writing, in a real browser: the interview, the check, the plan of a training; and the review by keyboard."""

import json

import pytest
from browsing import open_page
from waiting import wait_for

from benchmarks.page import pairs_on_disk
from persona.store import persona_folder
from persona.store.pairs import Pair

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]

REPLY, ASKED = "#interview textarea.reply", "#interview textarea.asked"


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def wait_for_question(page, number: int) -> None:
    page.wait_for_function(f"document.querySelector('#interview .interview')?.dataset.number === '{number}'")


def test_interview_then_check_then_plan(browser, page_server):
    page, errors = open_page(browser, page_server.url)
    page.fill("#new-name input, #new-name textarea", "Ada")
    page.click("#start")
    page.wait_for_selector("#pairs .empty")
    open_tab(page, "Interview")
    page.wait_for_selector(REPLY)
    typed = []
    for n in range(6):
        wait_for_question(page, n)
        assert page.evaluate("document.activeElement.className") == "reply"  # no key but Enter is needed
        typed.append((page.input_value(ASKED), f"I am Ada, and this is answer {n}."))
        page.keyboard.type(typed[-1][1])
        page.keyboard.press("Enter")
    wait_for_question(page, 6)
    file = page_server.home / "personas/ada/pairs.jsonl"
    assert pairs_on_disk(file.parent) == typed and typed[0][0] == "Who are you?"

    # a draft is on disk before it is called kept, a line break included
    page.keyboard.type("One line,")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    page.wait_for_selector("#interview .saving >> text=Draft kept")
    assert json.loads((file.parent / "interview.json").read_text())["draft"] == "One line,\nand another"
    page.reload()
    page.wait_for_selector("#pairs [data-row='6']")
    open_tab(page, "Interview")
    page.wait_for_function(f"document.querySelector('{REPLY}')?.value === 'One line,\\nand another'")
    asked = page.input_value(ASKED)

    # skip, back to what was typed, back to the last answer, and on again
    page.focus(REPLY)
    page.keyboard.press("Alt+ArrowDown")
    wait_for_question(page, 7)
    assert page.input_value(ASKED) != asked and page.input_value(REPLY) == ""
    page.keyboard.press("Alt+ArrowUp")
    wait_for_question(page, 8)
    assert (page.input_value(ASKED), page.input_value(REPLY)) == (asked, "One line,\nand another")
    page.keyboard.press("Alt+ArrowUp")
    wait_for_question(page, 9)
    assert (page.input_value(ASKED), page.input_value(REPLY)) == typed[5]
    assert pairs_on_disk(file.parent) == typed[:5]
    page.keyboard.press("Enter")
    wait_for_question(page, 10)
    wait_for(lambda: pairs_on_disk(file.parent) == typed)
    assert "6 answers so far" in page.inner_text("#interview aside")

    # the check knows what is missing, and six pairs can be trained on
    open_tab(page, "Check")
    page.wait_for_selector("#findings .card >> text=6 usable pairs")
    page.click("#to-template")
    page.wait_for_selector("#totals .good")
    page.click("#to-train")
    page.wait_for_selector("#plan .quiet")
    page.wait_for_selector("#start-training:not([disabled])")
    assert errors == []


def test_a_review_by_keyboard(browser, page_server, monkeypatch):
    monkeypatch.setenv("PERSONA_HOME", str(page_server.home))
    card = persona_folder.default_card("Ada")
    pairs = [Pair(f"Question {n}?", f"As an AI language model, I say {n}.", source="chat.txt") for n in range(4)]
    ada = persona_folder.create_persona_at(persona_folder.free_path("ada"), card, pairs)
    page, errors = open_page(browser, f"{page_server.url}/?persona=ada")
    page.wait_for_selector("#pairs [data-row='4']")

    def shows(number: int) -> None:
        page.wait_for_function(f"document.querySelector('#review .review')?.dataset.item === '{number}'")

    # from the check, with the reason why
    open_tab(page, "Check")
    page.click("#findings [data-do='review'][data-key='ai-leak']")
    shows(1)
    page.wait_for_selector("#review .hint >> text=an assistant speaks here")
    page.keyboard.press("k")
    shows(2)
    page.keyboard.press("d")
    shows(3)
    page.keyboard.press("e")
    page.keyboard.press("Control+A")
    page.keyboard.type("I say: keep it.")  # k, e and d are letters here
    page.keyboard.press("Control+Enter")
    shows(4)
    assert [p.output for p in ada.pairs()] == [pairs[0].output, "I say: keep it.", pairs[3].output]
    page.keyboard.press("u")
    shows(3)
    page.keyboard.press("u")
    shows(2)
    assert ada.pairs() == pairs
    page.keyboard.press("d")
    shows(3)
    page.click("#review [data-do='dropped']")
    shows(2)
    page.click("#review [data-do='keep']")
    shows(3)
    assert ada.pairs() == pairs
    page.wait_for_selector("#review .topic >> text=2 of 4 looked at · 2 kept · 0 dropped")
    assert errors == []
