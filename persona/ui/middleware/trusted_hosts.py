"""Host names under which the page answers, against DNS rebinding.

On a user's own machine there are no accounts: anyone who reaches the page can do everything it offers.
"""

import os

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from persona.store import deployment

LOOPBACK_HOSTS = ("127.0.0.1", "localhost")


def trusted_host_middleware(host: str) -> list[Middleware]:
    """For a page that only this machine reaches: refuse requests under any other host name.

    A website can make its own name point to 127.0.0.1 (DNS rebinding) and then use the page as its user. PERSONA_HOSTS
    holds further names, of a proxy in front of the page, joined by commas. A page that is meant for others (another
    host, a Space, Gradio's public link) is not guarded: its names are not known here.
    """
    if host not in LOOPBACK_HOSTS or deployment.is_hf_space() or deployment.has_public_link():
        return []
    proxy_hosts = [name.strip() for name in os.environ.get("PERSONA_HOSTS", "").split(",") if name.strip()]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_HOSTS, *proxy_hosts], www_redirect=False)]
