"""Keeps other websites out of the page: no request of theirs is answered, and no frame but the Hub's shows it.

A browser sends a visitor's cookies, and reaches 127.0.0.1, for any site that asks. What such a site may have is what is
the same for everybody: the files of Gradio's own script, and the page itself when a visitor follows a link to it.
"""

import secrets

from gradio import routes
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona.serve.http import is_api_path
from persona.serve.origins import is_from_elsewhere
from persona.store import deployment
from persona.ui.i18n import set_request_headers, t
from persona.ui.middleware.refusal import RequestRefused

STATIC_PREFIXES = ("/assets/", "/static/", "/svelte/", "/pwa_icon")
STATIC_PATHS = ("/theme.css", "/gradio_api/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json")
LINKED_PATHS = ("/", "/login/huggingface", "/login/callback")  # what a visitor may reach from another site
HUB = "https://huggingface.co"
GRADIO_CDN = "https://gradio.s3-us-west-2.amazonaws.com"  # from where a page with a public link loads Gradio's script


def is_static(path: str) -> bool:
    """Whether a path leads to a file that is the same for everybody."""
    return path in STATIC_PATHS or path.startswith(STATIC_PREFIXES)


def disable_gradio_cors() -> None:
    """Gradio answers every site, or on localhost every port of it, that it may read what is the visitor's.

    It puts this before all other middleware and has no option for it, so the name it takes it by is replaced.
    """
    routes.CustomCORSMiddleware = lambda app, **_: app  # type: ignore[assignment, misc]


class OriginCheck:
    """ASGI: 403 for a web page of another origin, by Origin and Sec-Fetch-Site. The API beside the page has its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_api_path(scope["path"]) or not is_from_elsewhere(scope) or _is_open(scope):
            await self.app(scope, receive, send)
            return
        set_request_headers(Headers(scope=scope))
        text = t("This request comes from another website. Open the page itself to use it.")
        await RequestRefused(403, text).response()(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    """Whether a request of another site reveals and changes nothing: a static file, or a link that is followed."""
    headers = Headers(scope=scope)
    if scope["method"] not in ("GET", "HEAD"):
        return False
    is_link = headers.get("sec-fetch-mode") == "navigate" and "origin" not in headers
    return is_static(scope["path"]) or (is_link and scope["path"] in LINKED_PATHS)


class SecurityHeaders:
    """ASGI: tells browsers what the page may load, who may frame it, and that they may keep static files only.

    scope["persona.nonce"] is what the inline scripts of this answer must carry.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        nonce = scope["persona.nonce"] = secrets.token_urlsafe(16)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "same-origin"
                headers["content-security-policy"] = content_security_policy(nonce)
                if not is_static(scope["path"]) or message["status"] >= 400:
                    headers["cache-control"] = "no-store"
            await send(message)

        await self.app(scope, receive, send_with_headers)


def content_security_policy(nonce: str) -> str:
    """What Gradio's page needs and no more.

    Its components compile the scripts of their events and the charts' expressions (unsafe-eval), and set styles as they
    draw (unsafe-inline, for styles). A script in a text, a foreign image and a foreign address are refused.
    """
    hub = f" {HUB}" if deployment.is_hf_space() else ""
    cdn = f" {GRADIO_CDN}" if deployment.has_public_link() else ""
    return "; ".join([
        f"default-src 'self'{cdn}",
        f"script-src 'self' 'nonce-{nonce}' 'unsafe-eval'{cdn}",
        f"style-src 'self' 'unsafe-inline'{cdn}",
        f"img-src 'self' data: blob:{hub}",
        f"font-src 'self' data:{cdn}",
        "media-src 'self' data: blob:",
        "worker-src 'self' blob:",
        f"connect-src 'self'{hub}",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        f"frame-ancestors 'self'{hub}",
    ])  # fmt: skip
