"""Fixtures for tests in a real Chromium: one page process for all tests, emptied between them. Load with pytest_plugins.

A random model of two layers stands in the place of the embedded base: the page is tested, not the model. Tests that need
a separate process (to kill it, or to set other variables) use `own_server` instead of `page_server`.
"""

import json
import re
import shutil
import time
from collections import Counter

import pytest
from tiny_models import write_adapter

from benchmarks.page import kill_trainers, opened, put_tiny_base
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


@pytest.fixture(scope="session")
def page_base(tmp_path_factory):
    """The tiny base that every page process finds under the embedded base's name."""
    return put_tiny_base(tmp_path_factory.mktemp("page-base"))


def page_process(home, page_base, **env):
    home.mkdir(exist_ok=True)
    bases = home / "bases"
    bases.unlink(missing_ok=True)  # the link that each test's home has to the real bases
    bases.symlink_to(page_base.path.parent, target_is_directory=True)
    return opened(home, **env)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory, page_base):
    with page_process(tmp_path_factory.mktemp("page"), page_base) as running:
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
def own_server(tmp_path, page_base):
    with page_process(tmp_path / "home", page_base) as running:
        yield running


def draw_adapter(base, target, card, **settings):
    """A LoRA of this base with random, untrained weights, which answers differently from the base."""
    write_adapter(base.path, target, template="gemma-base", card=card, size=0.1, **settings)
    facts = json.loads((target / "run.json").read_text())
    facts["base"]["id"] = base.id
    (target / "run.json").write_text(json.dumps(facts))
    return target


@pytest.fixture
def real_server(tmp_path, embedded_base):
    """A separate process with the real embedded base."""
    with page_process(tmp_path / "home", embedded_base) as running:
        yield running


@pytest.fixture(scope="session")
def drawn_adapter(tmp_path_factory, page_base):
    card = persona_folder.open_persona(EXAMPLES_DIR / "zhen-huan").card()
    return draw_adapter(page_base, tmp_path_factory.mktemp("drawn") / "adapter", card)


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


class Traffic:
    """What a tab asks of the server. joined: the events that it has asked for, ever: fn_index → times.

    Gradio holds a stream open while events are unanswered, and asks for what follows an event in a fraction of a second.
    """

    def __init__(self, page):
        self.joined: Counter[int] = Counter()
        self._streams: set = set()
        self._changed = 0.0
        page.on("request", self._asked)
        page.on("requestfinished", self._answered)
        page.on("requestfailed", self._answered)

    def _asked(self, request) -> None:
        self._changed = time.monotonic()
        if request.is_navigation_request():
            self._streams.clear()  # a page that is left does not report the end of its streams
        if "/queue/data" in request.url:
            self._streams.add(request)
        if "/queue/join" in request.url or "/run/predict" in request.url:
            self.joined[json.loads(request.post_data)["fn_index"]] += 1

    def _answered(self, request) -> None:
        self._changed = time.monotonic()
        self._streams.discard(request)

    @property
    def is_waiting(self) -> bool:
        """Whether a stream is open."""
        return bool(self._streams)

    def settle(self, page, quiet: float = 0.6) -> None:
        """Wait until every event is answered and nothing has been asked for `quiet` seconds."""
        self._changed, before, end = time.monotonic(), Counter(self.joined), time.monotonic() + 180
        while self.is_waiting or time.monotonic() - self._changed < quiet:
            assert time.monotonic() < end, f"the page never rests: {self.joined - before}, open: {self._streams}"
            page.wait_for_timeout(50)


def open_page(browser, url: str, **options):
    """A new tab, and the list of its JavaScript errors and of what the page's Content Security Policy refused."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000}, **options)
    page.set_default_timeout(180_000)
    page.traffic = Traffic(page)
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
