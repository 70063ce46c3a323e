"""What every request passes first: by which names the page may be asked for, whose it is, and in which language.

On an own machine there are no accounts: whoever reaches the page may do all that it can.
"""

import os

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from persona.store import deployment

LOOPBACK_HOSTS = ("127.0.0.1", "localhost")


def trusted_host_middleware(host: str) -> list[Middleware]:
    """For a page on this machine alone: refuse what a browser asks by any other name.

    A site elsewhere can make its own name lead to 127.0.0.1 (DNS rebinding), and then read and do all that the page
    can, with the login of its user. PERSONA_HOSTS names those of a proxy in front of it, joined by commas. A page that
    is meant for others (another host, a Space, Gradio's public link) is not guarded: its names are not known here.
    """
    if host not in LOOPBACK_HOSTS or deployment.is_hf_space() or deployment.has_public_link():
        return []
    named = [name.strip() for name in os.environ.get("PERSONA_HOSTS", "").split(",") if name.strip()]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_HOSTS, *named], www_redirect=False)]
