"""Fixtures for tests in a real Chromium: one page process for all tests, emptied between them. Load with pytest_plugins.

Tests that need a separate process (to kill it, or to set other variables) use `own_server` instead of `page_server`.
"""

import json
import re
import shutil

import pytest
from tiny_models import write_adapter

from benchmarks.page import kill_trainers, opened
from persona.store import persona_folder
from persona.store.workspace import EXAMPLES_DIR
from persona.train import launcher
from persona.train.config import make_config

KEPT = ("bases", "tmp", "page.log")


@pytest.fixture(scope="module")
def chromium():
    """Module scope: while Playwright runs, its event loop conflicts with those of other tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        made = p.chromium.launch(executable_path=found, args=flags)
        yield made
        made.close()


@pytest.fixture
def browser(chromium):
    yield chromium
    for context in chromium.contexts:
        context.close()


def page_process(home, embedded_base, **env):
    home.mkdir(exist_ok=True)
    if not (home / "bases").exists():
        (home / "bases").symlink_to(embedded_base.path.parent)
    return opened(home, **env)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory, embedded_base):
    with page_process(tmp_path_factory.mktemp("page"), embedded_base) as running:
        yield running


@pytest.fixture
def page_server(shared_server):
    """`python app.py` as a user starts it, on a free port, with an empty home."""
    yield shared_server
    kill_trainers(shared_server.home)
    for left in shared_server.home.iterdir():
        if left.name not in KEPT:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@pytest.fixture
def own_server(tmp_path, embedded_base):
    with page_process(tmp_path / "home", embedded_base) as running:
        yield running


@pytest.fixture(scope="session")
def drawn_adapter(tmp_path_factory, embedded_base):
    """A LoRA of the embedded base with random, untrained weights, which answers differently from the base."""
    target = tmp_path_factory.mktemp("drawn") / "adapter"
    card = persona_folder.open_persona(EXAMPLES_DIR / "zhen-huan").card()
    write_adapter(embedded_base.path, target, template="gemma-base", card=card, size=0.1)
    facts = json.loads((target / "run.json").read_text())
    facts["base"]["id"] = embedded_base.id
    (target / "run.json").write_text(json.dumps(facts))
    return target


@pytest.fixture
def trained_persona(page_server, drawn_adapter, monkeypatch):
    """甄嬛 with a finished run."""
    monkeypatch.setenv("PERSONA_HOME", str(page_server.home))
    persona = persona_folder.open_persona(shutil.copytree(EXAMPLES_DIR / "zhen-huan", page_server.home / "personas/zhen-huan",
                                                  ignore=shutil.ignore_patterns("runs")))  # fmt: skip
    run = launcher.create_run(persona, make_config("quick"))
    shutil.copytree(drawn_adapter, run.adapter)
    run.log("state", state="done")
    return persona


def open_page(browser, url: str, **options):
    """A new tab, and the list of its JavaScript errors and of what the page's Content Security Policy refused."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000}, **options)
    page.set_default_timeout(180_000)
    errors: list[str] = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if "Content Security Policy" in m.text else None)
    page.goto(url)
    return page, errors


def to_compare(page) -> None:
    for step in ("template", "train", "compare"):
        page.click(f"#to-{step}")


def settle(page, words: str = "done") -> None:
    page.wait_for_function(f"document.querySelector('#chat-status')?.innerText?.includes('{words}')")


def cell(row: int, field: str) -> str:
    return f"#pairs [data-row='{row}'] [data-field='{field}']"


def fill(page, row: int, field: str, text: str) -> None:
    """Type into a cell of the table and leave the cell."""
    page.click(cell(row, field))
    page.keyboard.press("Control+A")
    page.keyboard.type(text)
    page.keyboard.press("Escape")


def joined(page, selector: str) -> str:
    return "".join(page.locator(selector).all_inner_texts()).replace("\u21b5", "").replace("\n", "")


def steps_done(page) -> int:
    found = re.search(r"(\d+) / \d+", page.inner_text("#train-status"))
    return int(found[1]) if found else 0
