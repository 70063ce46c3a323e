"""A share link, from the click to the first word: with the embedded base already unpacked, and without.

    python -m benchmarks.link [--tiny] [--json]

A visitor's browser opens ?persona=ann/mags on a page that has just started, with a Hub of the tests in the place of the
real one, and asks as soon as the greeting stands there. cold: the embedded base is still in its packages, as on a Space
that has just been built. warm: it was unpacked by an earlier page. again: the next visitor of the warm page. Needs
Playwright and Chromium. Seconds from the click; the question is sent at `greeting`.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.page import Page, drawn_adapter, link_embedded_base, opened, put_tiny_base
from tests.local_hub import Hub

GREETING = "Who keeps this light"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SECONDS = 600  # until a word, at most
FIRST_WORD = """() => [...document.querySelectorAll("#chat-persona .bot.message")].some(m => m.innerText.trim())"""


def put_persona(hub: Hub, zipped: Path) -> None:
    """Put the adapter of a zip on the Hub, with a greeting."""
    with zipfile.ZipFile(zipped) as packed:
        files = {Path(name).name: packed.read(name) for name in packed.namelist() if not name.endswith("/")}
    card = json.loads(files["persona.json"]) | {"greeting": GREETING}
    hub.add("ann/mags", files | {"persona.json": json.dumps(card).encode()})


def visit(browser: Any, page: Page) -> dict[str, float]:
    """Open the link in a new window and ask; the seconds at which each thing was there."""
    context = browser.new_context()
    window = context.new_page()
    window.set_default_timeout(SECONDS * 1000)
    start, at = time.perf_counter(), {}

    def reached(name: str) -> None:
        at[name] = round(time.perf_counter() - start, 1)

    window.goto(f"{page.url}/?persona=ann/mags", wait_until="commit")
    reached("page")
    window.wait_for_selector(".toast-body:has-text('ann/mags')")
    reached("notice")
    window.wait_for_selector("#step-compare:has-text('template gemma-base')")
    reached("card")
    window.wait_for_selector(f"#chat-persona:has-text('{GREETING}')")
    reached("greeting")
    window.fill("#say textarea, #say input", "Are you lonely?")
    window.click("#send")
    window.wait_for_function(FIRST_WORD)
    reached("first word")
    context.close()
    return at


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as p:
        yield p.chromium.launch(executable_path=found, args=FLAGS)


def measure(tiny: bool) -> Iterator[tuple[str, dict[str, float]]]:
    with tempfile.TemporaryDirectory(prefix="persona-link-") as folder, Hub() as hub, chromium() as browser:
        made = Path(folder) / "made"
        put_persona(hub, drawn_adapter((put_tiny_base if tiny else link_embedded_base)(made), made / "mags.zip"))
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "PERSONA_SHARED": "1"}
        home = Path(folder) / "home"
        if not tiny:
            with opened(home, **settings) as page:
                yield "cold", visit(browser, page)
        else:
            shutil.copytree(made / "bases", home / "bases")
        with opened(home, **settings) as page:
            for name in ("warm", "again"):
                yield name, visit(browser, page)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link")
    parser.add_argument("--tiny", action="store_true", help="with a base of two layers, without the cold visit")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seconds = {}
    for name, at in measure(given.tiny):
        seconds[name] = at
        if not given.json:
            print(f"{name}:", ", ".join(f"{what} {s} s" for what, s in at.items()), flush=True)
    if given.json:
        print(json.dumps(seconds))


if __name__ == "__main__":
    main()
