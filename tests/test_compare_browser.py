"""Comparing in a real browser: a conversation that survives a reload, a blind vote, and a correction that is learned."""

import json
import shutil

import pytest
from browsing import open_page, settle, to_compare
from waiting import wait_for

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_compare_vote_and_correct(browser, page_server, trained_persona):
    page, errors = open_page(browser, page_server.url)
    page.click("#persona-list input")
    page.click("[role=option]:has-text('甄嬛')")
    to_compare(page)
    page.wait_for_function("document.querySelector('#adapter input')?.value?.includes('甄嬛')")

    # the replies kept short
    page.click("#sampling button")
    page.fill("#longest input[type=number]", "16")
    page.fill("#say textarea, #say input", "你是谁？")
    page.click("#send")
    settle(page)

    # a third voice, which says why it has no answer yet, and then answers
    page.click("#compare-with input")
    page.click("[role=option]:has-text('Base alone')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#chat-third .bot.message:has-text('not asked')")
    page.click("#regenerate")
    page.wait_for_selector("#chat-third-note:has-text('✓')")
    settle(page)
    texts = [page.locator(f"#{c} .bot.message").last.inner_text() for c in ("chat-base", "chat-persona", "chat-third")]
    assert all(t.strip() for t in texts) and texts[0] != texts[1]
    assert "tokens" in page.inner_text("#chat-persona-note")

    # it is on disk, and there after a reload
    kept = list(trained_persona.path.glob("talks/*/*.jsonl"))
    assert len(kept) == 1 and "你是谁？" in kept[0].read_text()
    page.reload()
    page.wait_for_selector("#chat-persona .user.message:has-text('你是谁？')")
    assert page.locator("#chat-persona .bot.message").last.inner_text() == texts[1]

    # what she should have said becomes a pair
    before = len(trained_persona.pairs())
    page.locator("#chat-persona .bot.message").last.hover()
    page.locator("#chat-persona button[aria-label='Edit']").last.click()
    page.locator("#chat-persona textarea").last.fill("本宫甄嬛，莺声燕语里的一个。")
    page.locator("#chat-persona button[aria-label='Submit']").last.click()
    wait_for(lambda: len(trained_persona.pairs()) == before + 1)
    added = trained_persona.pairs()[-1]
    assert (added.instruction, added.output, added.source) == ("你是谁？", "本宫甄嬛，莺声燕语里的一个。", "correction")

    # it is marked in the chat, also after a reload
    for reload in (False, True):
        if reload:
            page.reload()
        page.wait_for_selector("#chat-persona .bot.message:has-text('✎ Your correction, pair')")
        shown = page.locator("#chat-persona .bot.message").last.inner_text()
        assert shown.startswith("本宫甄嬛，莺声燕语里的一个。") and texts[1].strip() in shown

    # the first click saves the file, and a damaged zip leaves everything as it was
    with page.expect_download() as download:
        page.click("#export-talk")
    assert download.value.suggested_filename.startswith("甄嬛-")
    adapter = page.input_value("#adapter input")
    page.click("#open-adapters button")
    damaged = {"name": "damaged.zip", "mimeType": "application/zip", "buffer": b"PK"}
    page.set_input_files("#open-adapters input[type=file]", damaged)
    page.locator(".toast-body", has_text="damaged").wait_for()
    page.wait_for_function("!document.querySelector('#adapter-opening').innerText.trim()")
    assert page.input_value("#adapter input") == adapter and page.locator(".wrap .error").count() == 0

    # a blind vote: no name before it, the count after it
    page.click("[role=tab]:has-text('Blind vote')")
    page.click("#sampling button")
    page.fill("#longest input[type=number]", "16")
    page.fill("#blind-question textarea", "今日可好？")
    page.click("#blind-ask")
    page.wait_for_selector("#stop-blind:not([disabled])")
    page.wait_for_selector("#vote-left:not([disabled])")
    page.wait_for_selector("#stop-blind[disabled]")
    assert "Base" not in page.inner_text("#blind-left") + page.inner_text("#blind-right")
    page.click("#vote-left")
    page.wait_for_selector("#blind-reveal .reveal:has-text('Base, with persona prompt')")
    assert "1 votes" in page.inner_text("#blind-reveal") or "1 vote" in page.inner_text("#blind-reveal")
    rows = [json.loads(x) for f in trained_persona.path.glob("votes/*.jsonl") for x in f.read_text().splitlines()]
    assert [r["choice"] for r in rows if "choice" in r] == ["left"]
    assert errors == []


def test_a_switch_of_persona_stops_the_answer(browser, page_server, trained_persona):
    """What was written stays in its own conversation; the columns are the other persona's."""
    other = shutil.copytree(trained_persona.path, trained_persona.path.with_name("other"))
    card = json.loads((other / "persona.json").read_text())
    (other / "persona.json").write_text(json.dumps({**card, "name": "Other"}))
    page, errors = open_page(browser, f"{page_server.url}/?persona=zhen-huan&step=compare")
    page.wait_for_selector("#columns .base-note")
    page.fill("#say textarea, #say input", "你是谁？")
    page.click("#send")
    page.wait_for_selector("#chat-persona-note:has-text('tokens')")
    page.click("#persona-list input")
    page.click("[role=option]:has-text('Other')")
    page.wait_for_selector("#stop-chat[disabled]")
    page.wait_for_function("!document.querySelector('#chat-persona .user.message')")
    page.wait_for_timeout(1500)  # nothing is written into these columns any more
    assert page.locator("#columns .message").count() == 0 and page.locator(".toast-body").count() == 0
    assert list(trained_persona.path.glob("talks/*/*.jsonl")) and not list(other.glob("talks/*/*.jsonl"))
    assert errors == []
