"""The page's HTML: scripts that run before Gradio's, and the nonce of all scripts.

One sets the language before Gradio reads the browser's. The other calms Gradio's clocks of pending events: Gradio 6.31
redraws each at every frame, hidden ones too, and that of a component that is removed meanwhile (its own loading screen
is one) for ever, which keeps the browser of an idle page busy.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from persona.ui.i18n import LANGUAGE_COOKIE

# the chosen language replaces the browser's own; the server reads the same cookie
LANGUAGE_SCRIPT = f"""<script>
(() => {{
  const kept = document.cookie.match(/(?:^|; ){LANGUAGE_COOKIE}=(en|zh)/)?.[1];
  const language = kept ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  const full = language === "zh" ? "zh-CN" : "en";
  Object.defineProperty(navigator, "language", {{ get: () => full }});
  Object.defineProperty(navigator, "languages", {{ get: () => [full] }});
  document.documentElement.lang = full;
}})();
</script>"""


# the clock shows tenths of a second; while none is to be seen, it is enough to look now and then
CLOCK_SCRIPT = r"""<script>
(() => {
  const frame = window.requestAnimationFrame.bind(window);
  const clock = /^\(\)=>\{\w+\(\w+,\(performance\.now\(\)-\w+\(\w+\)\)\/1e3\)/;
  window.requestAnimationFrame = (callback) => {
    if (!clock.test(callback)) return frame(callback);
    const clocks = [...document.querySelectorAll("[data-testid='status-tracker']:not(.hide)")];
    const shown = clocks.some((tracker) => tracker.offsetParent);
    return setTimeout(() => frame(callback), shown ? 100 : 1000);
  };
})();
</script>"""
SCRIPTS = (LANGUAGE_SCRIPT + CLOCK_SCRIPT).encode()


class HeadScriptsMiddleware:
    """ASGI: inserts SCRIPTS at the start of the page's head, and marks the page's scripts as the server's.

    Gradio adds its own `head` by script, too late. In what it writes into its scripts it escapes "<".
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        start: Event = {}

        async def send_with_script(message: Event) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start:
                body = message.get("body", b"").replace(b"<head>", b"<head>" + SCRIPTS, 1)
                body = body.replace(b"<script", b'<script nonce="%s"' % scope.get("persona.nonce", "").encode())
                message = {**message, "body": body}
                headers = MutableHeaders(raw=start["headers"])
                if "content-length" in headers:
                    headers["content-length"] = str(len(body))
                await send(start)
                start = {}
            await send(message)

        await self.app(scope, receive, send_with_script)
