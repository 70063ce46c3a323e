"""Host names under which the page answers, against DNS rebinding; and whose word on its address it takes.

On a user's own machine there are no accounts: anyone who reaches the page can do everything it offers.
"""

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from persona.store import deployment

LOOPBACK_HOSTS = ("127.0.0.1", "localhost")
_HOST = re.compile(r"[a-z0-9._-]+(:[0-9]{1,5})?")
PUBLIC_LINK_HOSTS = ".gradio.live"  # what Gradio's public links end with


def trusted_host_middleware(host: str) -> list[Middleware]:
    """For a page that only this machine reaches: refuse requests under any other host name.

    A website can make its own name point to 127.0.0.1 (DNS rebinding) and then use the page as its user. PERSONA_HOSTS
    holds further names, of a proxy in front of the page, joined by commas. A page that is meant for others (another
    host, a Space, Gradio's public link) is not guarded: its names are not known here.
    """
    if host not in LOOPBACK_HOSTS or deployment.is_hf_space() or deployment.has_public_link():
        return []
    allowed = [*LOOPBACK_HOSTS, *deployment.proxy_hosts()]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)]


class ProxyHeaders:
    """ASGI: takes X-Forwarded-Host and -Proto from a declared proxy only, and a host only by a name that is declared.

    Gradio builds the page's address from them, and uvicorn takes X-Forwarded-Proto from any program of this machine.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _keep_declared_headers(scope)
        await self.app(scope, receive, send)


def _keep_declared_headers(scope: Scope) -> None:
    given = Headers(scope=scope)
    host, proto = (given.get(f"x-forwarded-{name}", "").split(",")[0].strip().lower() for name in ("host", "proto"))
    headers, declared = MutableHeaders(scope=scope), deployment.has_proxy()
    for name in {key for key in given if key.startswith("x-forwarded-") or key in ("forwarded", "x-gradio-server")}:
        del headers[name]
    if proto:
        scope["scheme"] = "https" if declared and proto == "https" else "http"
    if declared and proto == "https":
        headers["x-forwarded-proto"] = proto
    if declared and _is_declared_host(host):
        headers["x-forwarded-host"] = host


def _is_declared_host(host: str) -> bool:
    """Whether it is a name that is declared, with a port or without; what follows a "/" or "@" would lead elsewhere."""
    if not _HOST.fullmatch(host):
        return False
    name = host.partition(":")[0]
    return deployment.is_proxy_host(name) or (deployment.has_public_link() and name.endswith(PUBLIC_LINK_HOSTS))
