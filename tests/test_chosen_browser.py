"""Who is chosen, in a real browser: a switch shows the new persona alone, wakes a known few events, and has an address."""

import json
import shutil
import urllib.request
from collections import Counter

import pytest
from browsing import open_page

from persona.share import archive
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.train import launcher
from persona.train.config import make_config

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]

MOST_EVENTS = 44  # of one switch: each step shows the other persona, and what runs for the first one is stopped
NAMES = ("Otto", "Edith")
STEPS = ("write", "template", "train", "compare", "share")
IDLE_MS = 1500  # how long an idle page is looked at
MOST_FRAMES = 36  # asked for by an idle page meanwhile; a single clock that runs on asks for 90
COUNT_FRAMES_JS = """window.frames = 0; const frame = window.requestAnimationFrame;
    window.requestAnimationFrame = (callback) => { window.frames++; return frame.call(window, callback); };"""


class Watched:
    """A page whose requests for events are counted."""

    def __init__(self, browser, url: str, **options):
        config = json.load(urllib.request.urlopen(url.split("/?")[0] + "/config"))
        self.names = {d["id"]: d["api_name"] for d in config["dependencies"]}
        self.page, self.errors = open_page(browser, "about:blank", **options)
        self.page.add_init_script(COUNT_FRAMES_JS)
        self.page.goto(url)
        self.page.wait_for_selector("#navigation nav[data-asked=start]", state="attached")
        self.settle()

    @property
    def events(self) -> Counter[str]:
        """Name of an event → how often it was asked for since forget()."""
        return Counter({self.names[number]: times for number, times in self.page.traffic.joined.items()})

    def forget(self) -> None:
        self.page.traffic.joined.clear()

    def settle(self) -> None:
        self.page.traffic.settle(self.page, quiet=1)

    def frames_at_rest(self) -> int:
        """Frames that the page asks for in IDLE_MS once it has come to rest, or at last, if it never does."""
        for _ in range(10):
            before = self.page.evaluate("frames")
            self.page.wait_for_timeout(IDLE_MS)
            if (drawn := self.page.evaluate("frames") - before) < MOST_FRAMES:
                break
        return drawn

    def choose(self, name: str) -> None:
        self.page.click("#persona-list input")
        self.page.locator("[role=option]").filter(has_text=name).first.click()
        named = "slug => (new URLSearchParams(location.search).get('persona') ?? '') === slug"
        self.page.wait_for_function(named, arg=name.lower() if name in NAMES else "")
        self.settle()

    def step(self, name: str) -> None:
        self.page.click(f"#step-{name}-button")
        self.page.wait_for_selector(f"#step-{name}-button[aria-current]")
        self.settle()

    def shown(self) -> tuple[str, str]:
        """The persona in the header, and the step."""
        shown = [step for step in STEPS if self.page.is_visible(f"#step-{step}")]
        marked = self.page.get_attribute("#navigation [aria-current]", "id")
        assert [marked] == [f"step-{step}-button" for step in shown]
        return self.page.input_value("#persona-list input"), shown[0]


@pytest.fixture
def personas(page_server, drawn_adapter, monkeypatch):
    """Otto, with a run of his own; Edith, without one. Returns Otto's run."""
    monkeypatch.setenv("PERSONA_HOME", str(page_server.home))
    pairs = [Pair(f"Which clock is number {n}?", f"Otto's clock {n}.") for n in range(6)]
    otto = persona_folder.create_persona("otto", PersonaCard(name="Otto"))
    otto.save_pairs(pairs)
    persona_folder.create_persona("edith", PersonaCard(name="Edith")).save_pairs(pairs[:3])
    run = launcher.create_run(otto, make_config("quick"))
    shutil.copytree(drawn_adapter, run.adapter)
    run.log("state", state="done")
    return run


@pytest.mark.parametrize(
    "locale, new", [("en", "New or example"), pytest.param("zh-CN", "新建或示例", marks=pytest.mark.release)]
)
def test_every_switch_shows_the_chosen_one_alone(browser, page_server, personas, drawn_adapter, tmp_path, locale, new):
    """From step to step, with and without runs, and with an opened zip: no refusal, and few events."""
    zipped = archive.pack_adapter(drawn_adapter, tmp_path / "other.zip")
    watched = Watched(browser, page_server.url, locale=locale)
    page = watched.page
    watched.choose("Otto")
    switches = 0
    for step in STEPS:
        watched.step(step)
        watched.forget()
        switches = 0
        for name in reversed(NAMES):
            watched.choose(name)
            switches += 1
            assert watched.shown() == (name, step)
            others = {"Edith": "Otto", "Otto": "Edith"}[name]
            texts = page.locator("#step-compare, #step-share").all_inner_texts()  # not made before they are shown
            assert others not in "".join(texts), (step, name)
            assert page.locator(".toast-body.error").count() == 0, page.locator(".toast-body").all_inner_texts()
        assert watched.events.total() <= MOST_EVENTS * switches, watched.events
        watched.forget()
        assert watched.frames_at_rest() < MOST_FRAMES, ("drawn while idle", step)
        watched.forget()
        page.wait_for_timeout(IDLE_MS)
        assert not watched.events, ("idle", step, watched.events)
    assert "Otto" in page.inner_text("#make-zip") and "Otto" in page.inner_text("#push")
    watched.choose("Edith")
    assert page.is_disabled("#make-zip")

    # an opened zip is named where it can be given away, and goes with the switch
    watched.choose("Otto")
    watched.step("compare")
    page.click("#open-adapters button")
    page.set_input_files("#open-zip input[type=file], input[type=file][accept='.zip']", str(zipped))
    page.wait_for_function("new URLSearchParams(location.search).get('adapter')?.startsWith('opened/')")
    watched.step("share")
    page.wait_for_selector("#make-zip:has-text('甄嬛')")
    watched.choose("Edith")
    assert page.is_disabled("#make-zip") and "甄嬛" not in page.inner_text("#step-share")
    watched.choose(new)
    assert page.locator(".toast-body.error").count() == 0 and watched.errors == []


def test_what_came_while_another_step_was_shown_is_listed(browser, page_server, personas, drawn_adapter):
    """By the header's buttons too, and where the chosen adapter stays the same."""
    watched = Watched(browser, page_server.url)
    page = watched.page
    watched.choose("Otto")
    watched.step("compare")
    watched.step("write")
    shutil.copytree(drawn_adapter, page_server.home / "adapters" / "came-later")  # as another window opens a zip
    watched.step("compare")
    page.click("#compare-with input")
    page.wait_for_selector("[role=option]:has-text('came-later')")
    assert watched.errors == []


def test_back_forward_reload_and_a_copied_link_lead_where_they_say(browser, page_server, personas):
    watched = Watched(browser, page_server.url)
    page = watched.page
    watched.choose("Otto")
    watched.step("share")
    watched.choose("Edith")
    way = [("Otto", "write"), ("Otto", "share"), ("Edith", "share")]
    copied = page.url
    for who, step in reversed(way[:-1]):
        page.go_back(wait_until="commit")
        watched.settle()
        assert watched.shown() == (who, step)
    page.go_forward(wait_until="commit")
    watched.settle()
    assert watched.shown() == ("Otto", "share")
    page.reload()
    page.wait_for_selector("#step-share-button[aria-current]")
    watched.settle()
    assert watched.shown() == ("Otto", "share")
    assert page.evaluate("document.activeElement.tagName") == "BODY", "no focus box"
    other = Watched(browser, copied)
    assert other.shown() == ("Edith", "write"), "Share is closed to Edith, who has no adapter"
    assert watched.errors == [] and other.errors == []


def test_what_is_refused_gives_way_to_what_was_accepted(browser, page_server, personas):
    watched = Watched(browser, f"{page_server.url}/?persona=otto&step=template")
    page = watched.page
    page.wait_for_selector("#mask .mask .learned")
    page.fill("#base input", "ann/there-is-no-such-base")
    page.keyboard.press("Enter")
    page.wait_for_selector(".toast-body:has-text('the base is still')")
    watched.settle()
    assert "there-is-no-such-base" not in page.input_value("#base input")
    assert page.locator("#mask .mask .learned").count()
