"""Everybody can use the page: axe-core finds nothing serious on any step, in either language, light and dark, wide and
narrow; and the keyboard alone leads from the first screen to an answer.
"""

import pytest
from browsing import open_page, settle

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]

# the look with least room, least light and the longest fonts; the others before a release
LOOK = ("zh-CN", 390, "dark")
OTHERS = [
    (locale, width, theme) for locale in ("en-US", "zh-CN") for width in (390, 1440) for theme in ("light", "dark")
]
OTHERS.remove(LOOK)


@pytest.mark.parametrize("locale, width, theme", [LOOK, *(pytest.param(*o, marks=pytest.mark.release) for o in OTHERS)])
def test_no_step_has_a_serious_finding(browser, page_server, trained_persona, locale, width, theme):
    found: dict[str, str] = {}  # one line for each thing, with the first place it was met at
    context = browser.new_context(locale=locale, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{page_server.url}?__theme={theme}")
    for place, part in walk(page):
        # what waits is faded
        page.wait_for_function("!document.querySelector('.pending:not(.step-button), .generating')")
        assert page.evaluate("document.documentElement.lang") == ("zh-CN" if locale == "zh-CN" else "en")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{place} scrolls sideways"
        for line in serious(page, part):
            found.setdefault(line, place)
    assert not found, "\n".join(f"{where}: {line}" for line, where in found.items())


def test_the_keyboard_alone_leads_to_an_answer(browser, page_server, trained_persona):
    """Tab, Enter and what is typed; the mouse is never touched."""
    page, errors = open_page(browser, page_server.url)
    page.wait_for_selector("#write-mask .mask")  # a new tab opens who was edited last
    press_on(page, "#step-compare-button", "Enter")
    page.wait_for_selector("#step-compare-button[aria-current]")
    page.wait_for_function("document.activeElement?.id === 'step-compare-button'")
    page.wait_for_function("document.querySelector('#adapter input')?.value?.includes('甄嬛')")
    press_on(page, "#sampling > button", "Enter")
    tab_to(page, "#longest input[type=number]")
    page.keyboard.press("Control+A")
    page.keyboard.type("16")
    tab_to(page, "#say textarea")
    page.keyboard.type("你是谁？")
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator("#chat-persona .bot.message").last.inner_text().strip() and errors == []


def press_on(page, selector: str, key: str) -> None:
    tab_to(page, selector)
    page.keyboard.press(key)


def tab_to(page, selector: str, most: int = 60) -> None:
    """Press Tab until `selector` has the focus, and see that its focus can be seen."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement?.matches(s)", selector):
            drawn = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert drawn != "none", f"{selector}: nothing shows that it has the focus"
            return
    raise AssertionError(f"{selector} is not reached within {most} presses of Tab")


def serious(page, part: str) -> list[str]:
    """What axe finds in a part of the page that keeps somebody out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options = {"resultTypes": ["violations"]}
    return [
        f"{v['id']}: {n['html'][:200]} {n.get('failureSummary', '')}"
        for v in axe.run(page, part, options=options).response["violations"]
        if v["impact"] in ("serious", "critical")
        for n in v["nodes"]
    ]


def walk(page):
    """Every step with its tabs open, one after another; yields where it is, and what is new there."""
    page.wait_for_selector("#write-mask .mask")  # a new tab opens who was edited last
    page.click("#persona-list input")
    page.locator("#persona-list [role=option]").first.click()  # new or example
    page.wait_for_selector("#open-zhen-huan")
    yield "welcome", "body"
    page.click("#open-zhen-huan")
    page.wait_for_selector("#write-mask .mask")
    yield "write", "body"
    for tab in ("pairs", "interview", "who", "import", "check"):
        page.click(f"#step-write button[data-tab-id='{tab}']")
        for drawer in {
            "pairs": ["many-pairs"],
            "interview": ["suggest-section"],
            "import": ["import-rows", "export-section"],
            "check": ["review-section"],
        }.get(tab, []):
            page.click(f"#{drawer} > button")
        yield f"write, {tab}", "#step-write"
    for step, ready in (("template", "#totals .good"), ("train", "#train-status .card"), ("compare", "#probes button"),
                        ("share", "#share-about .card")):  # fmt: skip
        page.click(f"#step-{step}-button")
        page.wait_for_selector(f"#step-{step}-button[aria-current]")
        page.wait_for_selector(ready)
        for drawer in {
            "template": ["template-details"],
            "train": ["expert"],
            "compare": ["sampling", "open-adapters"],
        }.get(step, []):
            page.click(f"#{drawer} > button")
        yield step, f"#step-{step}"  # the header was in the body above
        for tab in ("blind", "list", "judge") if step == "compare" else ():
            page.click(f"#compare-tabs button[data-tab-id='{tab}']")
            yield f"compare, {tab}", "#compare-tabs"
