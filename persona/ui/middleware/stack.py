"""The middleware of the page, in the order in which a request passes it."""

from starlette.middleware import Middleware

from persona.store import deployment
from persona.ui.middleware import front_end, head_scripts, origins, trusted_hosts, uploads, visitors


def build_middleware(host: str) -> list[Middleware]:
    """For Gradio's app_kwargs. Gradio's own CORS headers are switched off in this process."""
    origins.disable_gradio_cors()
    isolation = [Middleware(visitors.VisitorIsolation)] if deployment.is_shared_server() else []
    return [
        Middleware(origins.SecurityHeaders),
        Middleware(trusted_hosts.ProxyHeaders),
        *trusted_hosts.trusted_host_middleware(host),
        Middleware(origins.OriginCheck),
        *isolation,
        Middleware(uploads.UploadCheck),
        Middleware(head_scripts.HeadScriptsMiddleware),
        Middleware(front_end.FrontEndMiddleware),
    ]
