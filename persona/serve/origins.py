"""Which web pages may use a server: its own, and, for the API, those of the origins in PERSONA_API_ORIGINS.

A browser says where a request comes from, in Origin or Sec-Fetch-Site; a program says neither and is not meant here.
"""

import os
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona.errors import InputError
from persona.serve.api_errors import ApiError
from persona.store import deployment

PREFLIGHT_SECONDS = 600  # for which a browser keeps what it was told of an origin
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def normalize_origin(text: str) -> str | None:
    """SCHEME://HOST, with :PORT unless it is the scheme's own, in lower case; None for anything else, as for null."""
    found = _ORIGIN.fullmatch(text.strip().lower())
    if not found:
        return None
    scheme, host, port = found.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS.get(scheme) else "")


def read_api_origins() -> frozenset[str]:
    """The origins of PERSONA_API_ORIGINS. Raises InputError naming one that is none."""
    origins = set()
    for text in filter(None, map(str.strip, os.environ.get("PERSONA_API_ORIGINS", "").split(","))):
        if (origin := normalize_origin(text)) is None:
            raise InputError(
                "PERSONA_API_ORIGINS: {text} is not an origin. Write https://HOST or http://HOST:PORT, several "
                "separated by commas.",
                text=f"{text!r:.80}",
            )
        origins.add(origin)
    return frozenset(origins)


def is_own_origin(origin: str, host: str, scheme: str) -> bool:
    """Whether `origin` is the server's own. host, scheme: of the request; over https no http origin is its own."""
    given = normalize_origin(origin)
    schemes = ("https",) if scheme == "https" else ("http", "https")
    if given is None or given.partition("://")[0] not in schemes:
        return False
    return given in {normalize_origin(f"{s}://{host}") for s in schemes} or deployment.is_proxy_host(
        given.partition("://")[2]
    )


def is_from_elsewhere(scope: Scope) -> bool:
    """Whether a web page of another origin makes this request, as far as its browser says."""
    headers = Headers(scope=scope)
    if origins := headers.getlist("origin"):
        return not all(is_own_origin(o, headers.get("host", ""), scope.get("scheme", "http")) for o in origins)
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


class ApiOrigins:
    """ASGI: of web pages, the API answers its own and those of `origins`, which CORS headers tell. No credentials."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app, self.origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_from_elsewhere(scope):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.getlist("origin")
        if len(given) != 1 or normalize_origin(given[0]) not in self.origins:
            refused = ApiError(403, "This API is not open to web pages of other origins. See PERSONA_API_ORIGINS.")
            await JSONResponse(refused.body(), refused.status)(scope, receive, send)
            return
        allowed = {"access-control-allow-origin": given[0], "vary": "Origin"}
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            asked = headers.get("access-control-request-headers")
            await Response(
                status_code=204,
                headers=allowed
                | {"access-control-allow-methods": "GET, POST", "access-control-max-age": str(PREFLIGHT_SECONDS)}
                | ({"access-control-allow-headers": asked} if asked else {}),
            )(scope, receive, send)
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowed)
            await send(message)

        await self.app(scope, receive, send_allowed)
