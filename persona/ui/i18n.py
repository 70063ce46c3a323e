"""The page's two languages. The code says everything in English; zh.json holds the Chinese of each text.

What a component shows from the start is translated by the browser (gr.I18n), what a handler says by `t` in the language
of the visitor who asked. Both follow one rule: the cookie that the switch sets, else what the browser prefers.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.i18n import I18nData

from persona.errors import Message

LANGUAGE_COOKIE = "persona-language"
CHINESE: dict[str, str] = json.loads((Path(__file__).parent / "locales" / "zh.json").read_text(encoding="utf-8"))

# in a frame of another site, as a Space is shown on the Hub, a browser keeps only cookies that are marked so
CROSS_SITE_COOKIE = "SameSite=None; Secure; Partitioned"
SWITCH_LANGUAGE_JS = f"""() => {{
  const other = document.documentElement.lang.startsWith("zh") ? "en" : "zh";
  const framed = location.protocol === "https:" ? "; {CROSS_SITE_COOKIE}" : "; SameSite=Lax";
  document.cookie = `{LANGUAGE_COOKIE}=${{other}}; Path=/; Max-Age=31536000${{framed}}`;
  location.reload();
}}"""

# the browser looks up every text that a component shows, a value too; so that what a visitor typed, or the value behind
# a choice, is never taken for a text of the page, these begin with a sign that nobody types
KEY_PREFIX = "\u2063"
_english: dict[str, str] = {}  # all that components show from the start
_chinese: dict[str, str] = {}
BROWSER_I18N = gr.I18n(**{"en": _english, "zh": _chinese, "zh-CN": _chinese})  # for Gradio's launch: sent with the page
_asking: ContextVar[Mapping[str, str]] = ContextVar("asking", default=MappingProxyType({}))
_building: ContextVar[bool] = ContextVar("building", default=False)


def t(text: str, **values: Any) -> str:
    """`text` in the visitor's language, with {values} put in; while the page is built, what the browser translates."""
    english, chinese = text, CHINESE.get(text, text)
    if values:
        english, chinese = english.format(**values), chinese.format(**values)
    return localize(english, chinese)


def localized(text: str) -> str:
    """A text of the library in the visitor's language; one that is no Message is somebody's own, and stays as it is."""
    return text.translated(CHINESE) if isinstance(text, Message) and language() == "zh" else str(text)


def localize(english: str, chinese: str) -> str:
    """The one in the visitor's language; while the page is built, what the browser chooses from."""
    if not _building.get():
        return chinese if language() == "zh" else english
    key = KEY_PREFIX + english
    _english[key], _chinese[key] = english, chinese
    return I18nData(key)  # type: ignore[return-value]  # Gradio takes it wherever it takes a text


def set_request_headers(headers: Mapping[str, str]) -> None:
    """For ASGI, where Gradio handles no event yet: whose language `t` speaks while this request is served."""
    _asking.set(headers)


def language() -> str:
    """ "en" or "zh": of the visitor whose event is handled; English where there is none, as in the command line."""
    request = LocalContext.request.get(None)
    headers = getattr(request, "headers", None) or _asking.get()
    if kept := re.search(rf"(?:^|; ){LANGUAGE_COOKIE}=(en|zh)(?:;|$)", headers.get("cookie", "")):
        return kept[1]
    return "zh" if headers.get("accept-language", "").lower().startswith("zh") else "en"


@contextmanager
def building_page() -> Iterator[None]:
    """While the components of the page are made."""
    token = _building.set(True)
    try:
        yield
    finally:
        _building.reset(token)
