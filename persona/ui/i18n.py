"""The page's two languages. Texts in the code are English; locales/zh.json holds the Chinese of each.

The browser translates what the components show from the start (gr.I18n); `t` translates what a handler returns, for the
visitor who asked. Both take the language from the cookie that the switch sets, else from the browser.
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

from persona.errors import Message, format_counts
from persona.store.cjk import is_chinese

LANGUAGE_COOKIE = "persona-language"
CHINESE: dict[str, str] = json.loads((Path(__file__).parent / "locales" / "zh.json").read_text(encoding="utf-8"))

# in a frame of another site, as the Hub shows a Space, a browser keeps only cookies with these attributes
CROSS_SITE_COOKIE = "SameSite=None; Secure; Partitioned"
SWITCH_LANGUAGE_JS = f"""() => {{
  const other = document.documentElement.lang.startsWith("zh") ? "en" : "zh";
  const framed = location.protocol === "https:" ? "; {CROSS_SITE_COOKIE}" : "; SameSite=Lax";
  document.cookie = `{LANGUAGE_COOKIE}=${{other}}; Path=/; Max-Age=31536000${{framed}}`;
  location.reload();
}}"""

# the browser looks up every text that a component shows, its values too. Keys begin with a character that nobody types,
# so that a visitor's own text, or the value behind a choice, is never translated
KEY_PREFIX = "\u2063"
_english: dict[str, str] = {}  # what components show from the start
_chinese: dict[str, str] = {}
BROWSER_I18N = gr.I18n(**{"en": _english, "zh": _chinese, "zh-CN": _chinese})  # sent with the page, by Gradio's launch
_request_headers: ContextVar[Mapping[str, str]] = ContextVar("request_headers", default=MappingProxyType({}))
_given_language: ContextVar[str] = ContextVar("given_language", default="")
_building: ContextVar[bool] = ContextVar("building", default=False)


def t(text: str, **values: Any) -> str:
    """Translate `text`, a format string, for the visitor; while the page is built, into what the browser translates."""
    english, chinese = text, CHINESE.get(text, text)
    if values:
        english, chinese = format_counts(english, values), chinese.format(**values)
    return localize(english, chinese)


def localized(text: str) -> str:
    """Translate a Message of the library for the visitor; any other text is somebody's own and stays as it is."""
    return text.translated(CHINESE) if isinstance(text, Message) and language() == "zh" else str(text)


def localize(english: str, chinese: str) -> str:
    """The text in the visitor's language; while the page is built, the key by which the browser chooses."""
    if not _building.get():
        return chinese if language() == "zh" else english
    key = KEY_PREFIX + english
    _english[key], _chinese[key] = english, chinese
    return I18nData(key)  # type: ignore[return-value]  # Gradio takes it wherever it takes a text


def set_request_headers(headers: Mapping[str, str]) -> None:
    """Take the language of `t` from this request, for middleware that runs before Gradio handles an event."""
    _request_headers.set(headers)


def language() -> str:
    """The language of the visitor whose event is handled, "en" or "zh"; "en" without one, as in the command line."""
    if given := _given_language.get():
        return given
    request = LocalContext.request.get(None)
    headers = getattr(request, "headers", None) or _request_headers.get()
    if cookie := re.search(rf"(?:^|; ){LANGUAGE_COOKIE}=(en|zh)(?:;|$)", headers.get("cookie", "")):
        return cookie[1]
    return "zh" if is_chinese(headers.get("accept-language", "")) else "en"


@contextmanager
def as_language(language: str) -> Iterator[None]:
    """While it lasts, `t` returns this language, whichever request is handled."""
    token = _given_language.set(language)
    try:
        yield
    finally:
        _given_language.reset(token)


@contextmanager
def building_page() -> Iterator[None]:
    """While it lasts, `t` returns what the browser translates: the components of the page are being made."""
    token = _building.set(True)
    try:
        yield
    finally:
        _building.reset(token)
