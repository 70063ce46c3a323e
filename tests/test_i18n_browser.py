"""The page in a browser that prefers Chinese: no English sentence on any step; and after the switch, no Chinese."""

import json
import re

import pytest
from browsing import open_page

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]

# step → what is there when it has been drawn
STEPS = {"write": "#write-mask .mask", "template": "#totals .good", "train": "#plan b",
         "compare": "#chat-persona .placeholder-content, #chat-persona .placeholder", "share": "#share-about .card"}  # fmt: skip
# every text that is to be seen, also in an empty text box and in what a screen reader says of our own parts
SEEN = """() => [
  ...document.body.innerText.split("\\n"),
  ...[...document.querySelectorAll("[placeholder]")].filter((e) => e.checkVisibility()).map((e) => e.placeholder),
  ...[...document.querySelectorAll("#pairs [aria-label], #pairs [title]")].flatMap((e) => [e.ariaLabel, e.title]),
].filter(Boolean)"""

# what the library says and the page does not: names, whose text it is, and where a template and a plan come from
LIBRARY = (r"Gemma Terms of Use", r"Hugging Face Hub", r"hf auth login", r"CC-BY-4\.0 for these lines.*", r"Gemma 1-3 pretrained bases.*", r"No GPU: .*",
           r"Gemma 3 270M, pretrained.*", r"GPU:? .*", r"Mags Tolliver")  # fmt: skip


def walk(page) -> dict[str, list[str]]:
    """Every step → its lines."""
    seen = {}
    for step, drawn in STEPS.items():
        page.click("#step-write-button" if step == "write" else f"#to-{step}")
        page.wait_for_selector(drawn)
        page.evaluate(f"document.querySelectorAll('#step-{step} button.label-wrap:not(.open)').forEach(e => e.click())")
        seen[step] = page.evaluate(SEEN)
    return seen


def test_each_language_is_whole(browser, page_server, trained_persona):
    page, errors = open_page(browser, page_server.url, locale="zh-CN")
    page.click("#persona-list input")
    page.click("[role=option]:has-text('甄嬛')")
    words = r"[A-Za-z'’]{2,}(?:[ ,;:]+[A-Za-z'’]{2,}){2,}"
    for step, lines in walk(page).items():
        assert len(lines) > 15, step
        english = [line for line in lines if re.search(words, re.sub("|".join(LIBRARY), "", line))]
        assert english == [], step

    # her own texts stay Chinese
    own = trained_persona.pairs_file.read_text(encoding="utf-8") + json.dumps(
        trained_persona.card().model_dump(), ensure_ascii=False
    )
    page.click("#language")
    page.wait_for_function("document.documentElement.lang === 'en'")
    for step, lines in walk(page).items():
        runs = {run for line in lines for run in re.findall("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]+", line)}
        assert [r for r in runs if r not in own and r != "中文"] == [], step
    assert errors == []
