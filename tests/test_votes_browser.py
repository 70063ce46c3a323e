"""In a real browser: preferences are imported, votes and corrections are made, and the page counts what they teach."""

import json

import pytest
from browsing import open_page

from persona.compare.preference_sources import collect_all

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]
VOTES = 3


def ask_and_vote(page, question, correction=""):
    """Vote for the shorter answer, and say what the persona should have said.

    The tiny base hardly ever ends an answer by itself, and nothing is learned from one that was cut off; a correction
    counts all the same.
    """
    page.fill("#blind-question textarea", question)
    page.click("#blind-ask")
    page.wait_for_selector("#vote-left:not([disabled])")
    left, right = (page.inner_text(f"#blind-{side}") for side in ("left", "right"))
    page.click("#vote-left" if len(left) <= len(right) else "#vote-right")
    page.wait_for_selector("#blind-reveal .reveal")
    if correction:
        page.fill("#vote-correction textarea", correction)
        page.click("#vote-to-pairs")
        page.wait_for_selector("#blind-status:has-text('Added as pair')")


def test_votes_corrections_and_an_imported_file_are_counted(browser, page_server, trained_persona):
    page, errors = open_page(browser, f"{page_server.url}/?persona=zhen-huan&step=write")

    # a file of preferences: the page asks, and keeps them
    page.click("[role=tab]:has-text('Import')")
    row = json.dumps({"prompt": "水开了吗？", "chosen": "开了。", "rejected": "开了，还很烫。"}).encode()
    page.set_input_files(
        "#import-file input[type=file]", {"name": "both.jsonl", "mimeType": "text/plain", "buffer": row}
    )
    page.click("#keep-preferences")
    page.wait_for_selector("#kept-preferences:has-text('Imported preferences: 1')")

    # the votes
    page.click("#step-compare-button")
    page.click("#compare-tabs [role=tab]:has-text('Blind vote')")
    page.click("#sampling button")
    page.fill("#longest input[type=number]", "16")
    for n in range(VOTES):
        ask_and_vote(page, f"第 {n} 盏灯是谁的？", "本宫的。")
    assert f"{VOTES} votes" in page.inner_text("#blind-reveal")
    page.wait_for_selector(f"#train-on-votes:has-text('Train on {VOTES + 1} votes, choices and corrections')")
    found = collect_all(trained_persona)
    assert len(found.preferences) == VOTES + 1 and all("cut off" in text for text in found.left_out)
    assert errors == []
