"""The middleware of the page, in the order in which a request passes it."""

from starlette.middleware import Middleware

from persona.store import deployment
from persona.ui.middleware import language, visitors
from persona.ui.middleware.trusted_hosts import trusted_host_middleware


def build_middleware(host: str) -> list[Middleware]:
    """For Gradio's app_kwargs."""
    isolation = [Middleware(visitors.VisitorIsolation)] if deployment.is_shared_server() else []
    return [*trusted_host_middleware(host), *isolation, Middleware(language.LanguageScriptMiddleware)]
