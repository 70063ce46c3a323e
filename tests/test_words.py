"""Two languages: what the browser translates, what a handler says, and who decides which."""

import re
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from gradio.i18n import I18nData
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from persona.ui import words
from persona.ui.words import t


@pytest.fixture
def visitor():
    """Sets the headers of the one who asks."""

    def ask(**headers: str) -> None:
        LocalContext.request.set(SimpleNamespace(headers=headers))

    yield ask
    LocalContext.request.set(None)


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setitem(words.CHINESE, "{n} pairs of {name}", "{name}的{n}对")


@pytest.mark.parametrize("cookie, prefers, want", [
    ("", "", "en"), ("", "zh-TW,en;q=0.5", "zh"), ("", "en,zh;q=0.9", "en"), ("persona-language=zh", "en", "zh"),
    ("a=b; persona-language=en; c=d", "zh", "en"), ("xpersona-language=zh", "en", "en"),
    ("persona-language=zhx", "en", "en"),
])  # fmt: skip
def test_the_switch_counts_before_the_browser(visitor, chinese, cookie, prefers, want):
    visitor(**{"cookie": cookie, "accept-language": prefers})
    assert words.language() == want
    assert t("{n} pairs of {name}", n=3, name="甄嬛") == {"en": "3 pairs of 甄嬛", "zh": "甄嬛的3对"}[want]


def test_without_a_visitor_it_is_english(chinese):
    assert t("{n} pairs of {name}", n=3, name="甄嬛") == "3 pairs of 甄嬛" and t("{braces} stay") == "{braces} stay"


def test_components_are_translated_by_the_browser(monkeypatch, chinese):
    with words.built():
        said = t("{n} pairs of {name}", n=3, name="D'Arcy {x}")
    assert isinstance(said, I18nData) and said.key == words.SIGN + "3 pairs of D'Arcy {x}"
    assert words.BROWSER.translations_dict["zh-CN"][said.key] == "D''Arcy '{'x}的3对", "as an ICU message"
    assert "3 pairs of D'Arcy {x}" not in words.BROWSER.translations_dict["zh-CN"], "a value of the same words stays"
    assert t("{n} pairs of {name}", n=3, name="x") == "3 pairs of x", "only while the page is built"


def test_placeholders_are_the_same_in_both():
    for english, text in words.CHINESE.items():
        assert sorted(re.findall(r"{\w*}", english)) == sorted(re.findall(r"{\w*}", text)), english


def test_the_script_stands_first_in_the_page_and_nowhere_else():
    page = HTMLResponse("<html><head><meta></head><body><head></body></html>")
    app = Starlette(routes=[Route("/", lambda r: page), Route("/other", lambda r: PlainTextResponse("<head>"))],
                    middleware=[Middleware(words.First)])  # fmt: skip
    client = TestClient(app)
    answer = client.get("/")
    assert answer.text.startswith(f"<html><head>{words.FIRST}<meta>") and answer.text.count("<script>") == 1
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert client.get("/other").text == "<head>"
