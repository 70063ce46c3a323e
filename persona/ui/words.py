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
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from persona.errors import Message

COOKIE = "persona-language"
CHINESE: dict[str, str] = json.loads((Path(__file__).parent / "zh.json").read_text(encoding="utf-8"))

# what was chosen here counts as the browser's own language; the server sees the cookie
FIRST = f"""<script>
(() => {{
  const kept = document.cookie.match(/(?:^|; ){COOKIE}=(en|zh)/)?.[1];
  const language = kept ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  const full = language === "zh" ? "zh-CN" : "en";
  Object.defineProperty(navigator, "language", {{ get: () => full }});
  Object.defineProperty(navigator, "languages", {{ get: () => [full] }});
  document.documentElement.lang = full;
}})();
</script>"""

# in a frame of another site, as a Space is shown on the Hub, a browser keeps only cookies that are marked so
FRAMED = "SameSite=None; Secure; Partitioned"
SWITCH = f"""() => {{
  const other = document.documentElement.lang.startsWith("zh") ? "en" : "zh";
  const framed = location.protocol === "https:" ? "; {FRAMED}" : "; SameSite=Lax";
  document.cookie = `{COOKIE}=${{other}}; Path=/; Max-Age=31536000${{framed}}`;
  location.reload();
}}"""

# the browser looks up every text that a component shows, a value too; so that what a visitor typed, or the value behind
# a choice, is never taken for a text of the page, these begin with a sign that nobody types
SIGN = "\u2063"
_english: dict[str, str] = {}  # all that components show from the start
_chinese: dict[str, str] = {}
BROWSER = gr.I18n(**{"en": _english, "zh": _chinese, "zh-CN": _chinese})  # for Gradio's launch: sent with the page
_asking: ContextVar[Mapping[str, str]] = ContextVar("asking", default=MappingProxyType({}))
_building: ContextVar[bool] = ContextVar("building", default=False)


def t(text: str, **values: Any) -> str:
    """`text` in the visitor's language, with {values} put in; while the page is built, what the browser translates."""
    english, chinese = text, CHINESE.get(text, text)
    if values:
        english, chinese = english.format(**values), chinese.format(**values)
    return both(english, chinese)


def localized(text: str) -> str:
    """A text of the library in the visitor's language; one that is no Message is somebody's own, and stays as it is."""
    return text.translated(CHINESE) if isinstance(text, Message) and language() == "zh" else str(text)


def both(english: str, chinese: str) -> str:
    """The one in the visitor's language; while the page is built, what the browser chooses from."""
    if not _building.get():
        return chinese if language() == "zh" else english
    key = SIGN + english
    _english[key], _chinese[key] = english, chinese
    return I18nData(key)  # type: ignore[return-value]  # Gradio takes it wherever it takes a text


def asked_by(headers: Mapping[str, str]) -> None:
    """For ASGI, where Gradio handles no event yet: whose language `t` speaks while this request is served."""
    _asking.set(headers)


def language() -> str:
    """ "en" or "zh": of the visitor whose event is handled; English where there is none, as in the command line."""
    request = LocalContext.request.get(None)
    headers = getattr(request, "headers", None) or _asking.get()
    if kept := re.search(rf"(?:^|; ){COOKIE}=(en|zh)(?:;|$)", headers.get("cookie", "")):
        return kept[1]
    return "zh" if headers.get("accept-language", "").lower().startswith("zh") else "en"


class First:
    """ASGI: puts the script FIRST into the page, where it runs before Gradio reads the browser's language.

    Gradio's own `head` is put in by its script, too late for that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        start: Event = {}

        async def changed(message: Event) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start:
                body = message.get("body", b"").replace(b"<head>", b"<head>" + FIRST.encode(), 1)
                message = {**message, "body": body}
                headers = MutableHeaders(raw=start["headers"])
                if "content-length" in headers:
                    headers["content-length"] = str(len(body))
                await send(start)
                start = {}
            await send(message)

        await self.app(scope, receive, changed)


@contextmanager
def built() -> Iterator[None]:
    """While the components of the page are made."""
    token = _building.set(True)
    try:
        yield
    finally:
        _building.reset(token)
