"""Take the pictures of README and the tutorials, in both languages, from the running page.

    python scripts/pictures.py [URL] [FOLDER] [WIDTH]

The page must have the persona 甄嬛 with a finished run and a report.
"""

import io
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

LANGUAGES = {"en-US": "", "zh-CN": "zh"}  # locale → folder under FOLDER
WIDTH, COLOURS = 1200, 128  # of a picture on disk: sharp enough to read, and all of them together under 2.5 MB


def walk(page: Page, shoot: Callable[[str], None]) -> None:
    """Open 甄嬛 and take a picture of each of the five steps."""
    page.wait_for_selector("#open-zhen-huan")
    page.wait_for_selector("#navigation nav")
    shoot("welcome")
    page.click("#open-zhen-huan")
    page.wait_for_selector("#write-mask .mask")
    shoot("write")
    page.click("#step-write button[data-tab-id=check]")
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
    for n, question in enumerate(("你是谁？", "今天被领导骂哭了，心里委屈。"), 1):
        page.fill("#say textarea", question)
        page.click("#send")
        page.wait_for_function(f"document.querySelectorAll('#chat-persona .bot.message').length === {n}")
        page.wait_for_function("document.querySelector('#chat-status').innerText.match(/done|完/)", timeout=240_000)
    shoot("compare")
    page.click("#compare-tabs button[data-tab-id=judge]")
    page.wait_for_timeout(3000)
    if not page.locator("#report .pv-figures").is_visible():
        page.click("#measure")
    page.wait_for_selector("#report .pv-figures", timeout=1_200_000)
    shoot("judge")
    page.click("#to-share")
    page.wait_for_selector("#share-about .card")
    page.click("#make-zip")
    page.wait_for_selector("#zip-file a")
    shoot("share")


def save(taken: bytes, file: Path) -> None:
    """A screenshot as a small PNG: scaled down, with a palette."""
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def main(url: str = "http://127.0.0.1:7860", folder: str = "docs/pictures", width: str = "1440") -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"])
        for locale, below in LANGUAGES.items():
            target = Path(folder) / below
            target.mkdir(parents=True, exist_ok=True)
            context = browser.new_context(locale=locale, viewport={"width": int(width), "height": 800})
            page = context.new_page()
            page.set_default_timeout(240_000)
            page.goto(url)

            def shoot(name: str, page: Page = page, target: Path = target) -> None:
                time.sleep(1)  # let transitions end
                save(page.screenshot(full_page=True), target / f"{name}.png")

            walk(page, shoot)
            context.close()
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
