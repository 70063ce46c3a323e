"""The pictures of README, taken from the running app: start it with a trained 甄嬛, then

python scripts/pictures.py [URL] [FOLDER] [WIDTH]
"""

import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright


def walk(page: Page, shoot) -> None:
    """Open 甄嬛 and go through the five steps."""
    page.wait_for_selector("#open-zhen-huan")
    shoot("welcome")
    page.click("#open-zhen-huan")
    page.wait_for_selector("#write-mask .mask")
    shoot("write")
    page.click("button[role=tab]:has-text('Check')")
    page.wait_for_selector("#findings .coverage")
    shoot("check")
    page.click("#to-template")
    page.wait_for_selector("#totals .good")
    shoot("template")
    page.click("#to-train")
    page.wait_for_selector("#train-status .card")
    page.wait_for_selector("#plan .quiet")
    shoot("train")
    page.click("#to-compare")
    page.wait_for_function("document.querySelector('#adapter input')?.value?.length > 0")
    for question in ("你是谁？", "今天被领导骂哭了，心里委屈。"):
        page.wait_for_function("document.querySelector('#say textarea').value === ''")
        page.fill("#say textarea", question)
        page.click("#send")
        page.wait_for_function("!document.querySelector('#chat-status').innerText.includes('done')")
        page.wait_for_function("document.querySelector('#chat-status').innerText.includes('done')", timeout=240_000)
    shoot("compare")
    page.click("[role=tab]:has-text('Did it learn?')")
    if not page.locator("#report .pv-figures").is_visible():
        page.click("#measure")
    page.wait_for_selector("#report .pv-figures", timeout=1_200_000)
    shoot("judge")
    page.click("#to-share")
    page.wait_for_selector("#share-about .card")
    page.click("#make-zip")
    page.wait_for_selector("#zip-file a")
    shoot("share")


def main(url: str = "http://127.0.0.1:7860", folder: str = "docs/pictures", width: str = "1440") -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": int(width), "height": 800})
        page.set_default_timeout(240_000)
        page.goto(url)

        def shoot(name: str) -> None:
            time.sleep(1)  # let transitions end
            page.screenshot(path=target / f"{name}.png", full_page=True)

        walk(page, shoot)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
