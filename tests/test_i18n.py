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

from persona.compare.conversation import VoiceRecord
from persona.errors import Message
from persona.ui import i18n, voice_picker
from persona.ui.i18n import localized, t
from persona.ui.middleware import head_scripts
from persona.ui.steps.compare import conversation_view
from tests.test_compare_step import KEY, chosen, last, run, say  # noqa: F401  (fixtures)


@pytest.fixture
def visitor():
    """Sets the headers of the one who asks."""

    def ask(**headers: str) -> None:
        LocalContext.request.set(SimpleNamespace(headers=headers))

    yield ask
    LocalContext.request.set(None)


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setitem(i18n.CHINESE, "{n} pairs of {name}", "{name}的{n}对")


@pytest.mark.parametrize("cookie, prefers, want", [
    ("", "", "en"), ("", "zh-TW,en;q=0.5", "zh"), ("", "en,zh;q=0.9", "en"), ("persona-language=zh", "en", "zh"),
    ("a=b; persona-language=en; c=d", "zh", "en"), ("xpersona-language=zh", "en", "en"),
    ("persona-language=zhx", "en", "en"),
])  # fmt: skip
def test_the_switch_counts_before_the_browser(visitor, chinese, cookie, prefers, want):
    visitor(**{"cookie": cookie, "accept-language": prefers})
    assert i18n.language() == want
    assert t("{n} pairs of {name}", n=3, name="甄嬛") == {"en": "3 pairs of 甄嬛", "zh": "甄嬛的3对"}[want]


def test_without_a_visitor_it_is_english(chinese):
    assert t("{n} pairs of {name}", n=3, name="甄嬛") == "3 pairs of 甄嬛" and t("{braces} stay") == "{braces} stay"


def test_components_are_translated_by_the_browser(monkeypatch, chinese):
    with i18n.building_page():
        said = t("{n} pairs of {name}", n=3, name="D'Arcy")
    assert isinstance(said, I18nData) and said.key == i18n.KEY_PREFIX + "3 pairs of D'Arcy"
    assert i18n.BROWSER_I18N.translations_dict["zh-CN"][said.key] == "D'Arcy的3对", "shown as it stands: no ICU message"
    assert i18n.BROWSER_I18N.translations_dict["en"][said.key] == "3 pairs of D'Arcy"
    assert "3 pairs of D'Arcy" not in i18n.BROWSER_I18N.translations_dict["zh-CN"], "a value of the same words stays"
    assert t("{n} pairs of {name}", n=3, name="x") == "3 pairs of x", "only while the page is built"


def test_placeholders_are_the_same_in_both():
    for english, text in i18n.CHINESE.items():
        assert set(re.findall(r"{\w*}", english)) - {"{detail}"} == set(re.findall(r"{\w*}", text)), english


def test_a_conversation_made_in_chinese_opens_in_english(visitor, run, chosen):  # noqa: F811
    others = [voice_picker.BASE_WITH_PROMPT, voice_picker.BASE_ALONE, f"{chosen}@2"]

    def columns(talk_id):
        return conversation_view.show_conversation(KEY, "mags", chosen, others, talk_id)[4:8]

    visitor(cookie=f"{i18n.LANGUAGE_COOKIE}=zh")
    *_, status, talk_id = last(say("Who?", chosen, others))
    assert status.endswith(" · 完成")
    day = localized(voice_picker.format_run_time(run.name))
    named = ["基座 + 角色提示词", f"Mags，{day}", "仅基座", f"Mags，{day} 第 2 步"]
    made = columns(talk_id)
    assert [c.label for c in made] == named
    visitor(cookie=f"{i18n.LANGUAGE_COOKIE}=en")
    there = columns(talk_id)
    assert [c.label for c in there] == [voice_picker.voice_label(v, chosen) for v in (others[0], chosen, *others[1:])]
    assert [c.value for c in there] == [c.value for c in made] and all(len(c.value) == 2 for c in there)
    assert conversation_view.latest_conversation(KEY, "mags", chosen, others, "") == talk_id


KEPT = {
    i18n.localized: {
        Message("edit of pair {row}", row=3): "编辑第 3 条对话对", "edit of pair 4": "edit of pair 4",
        Message("import of {file}", file="a (b).{c}.csv"): "导入 a (b).{c}.csv",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "tell, label, want", [(f, label, want) for f, cases in KEPT.items() for label, want in cases.items()]
)
def test_what_is_kept_in_english_is_told_in_chinese_and_names_are_not(visitor, tell, label, want):
    assert tell(label) == label
    visitor(cookie=f"{i18n.LANGUAGE_COOKIE}=zh")
    assert tell(label) == want


def test_a_label_is_told_in_chinese_from_its_id(visitor, run, chosen):  # noqa: F811
    when = {"en": "01 Feb 23:00", "zh": "02-01 23:00"}
    told = {
        f"{chosen}": (f"Mags, {voice_picker.format_run_time(run.name)}", None),
        "server/Base alone": ("Base alone", "Base alone"),
        "base": ("Base alone", "仅基座"),
    }
    assert voice_picker.format_run_time("20260201-230000-ab12") == when["en"]
    assert voice_picker.format_run_time("mine") == "mine"
    assert voice_picker.voice_label(f"blend/0.30/{chosen}@2", chosen).startswith("30% Mags, ")
    visitor(cookie=f"{i18n.LANGUAGE_COOKIE}=zh")
    assert localized(voice_picker.format_run_time("20260201-230000-ab12")) == when["zh"]
    day = localized(voice_picker.format_run_time(run.name))
    assert (
        localized(voice_picker.voice_label(f"blend/0.30/{chosen}@2", chosen))
        == f"30% Mags，{day} + 70% Mags，{day} 第 2 步"
    )
    for voice, (english, chinese) in told.items():
        label = voice_picker.voice_label(voice, chosen)
        assert (label, localized(label)) == (english, chinese or f"Mags，{day}")


def test_a_voice_on_disk_is_told_in_chinese_while_it_is_there(visitor, run, chosen):  # noqa: F811
    visitor(cookie=f"{i18n.LANGUAGE_COOKIE}=zh")
    day = localized(voice_picker.format_run_time(run.name))
    records = [
        (VoiceRecord("prompt", "Base, with persona prompt"), "基座 + 角色提示词"),
        (VoiceRecord("base", "Base alone"), "仅基座"),
        (VoiceRecord("adapter", "old label", chosen), f"Mags，{day}"),
        (VoiceRecord("adapter", "Mags, 22 Nov 03:15", "run/mags/20261122-031500-gone"), "Mags, 22 Nov 03:15"),
        (VoiceRecord("adapter", "50% A + 50% B", f"blend/0.50/{chosen}"), "50% A + 50% B"),
        (VoiceRecord("adapter", "odd", "../../etc"), "odd"),
    ]
    for record, shown in records:
        assert voice_picker.record_label(record) == shown


def test_the_script_stands_first_in_the_page_and_nowhere_else():
    page = HTMLResponse("<html><head><meta></head><body><head></body></html>")
    app = Starlette(routes=[Route("/", lambda r: page), Route("/other", lambda r: PlainTextResponse("<head>"))],
                    middleware=[Middleware(head_scripts.HeadScriptsMiddleware)])  # fmt: skip
    client = TestClient(app)
    answer = client.get("/")
    script = head_scripts.SCRIPTS.decode().replace("<script", '<script nonce=""')
    assert answer.text.startswith(f"<html><head>{script}<meta>") and answer.text.count("<script") == 2
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert client.get("/other").text == "<head>"
