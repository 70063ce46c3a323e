"""serve: base and adapters behind an OpenAI-compatible API."""

import socket
from typing import Annotated

import typer

from persona.cli.output import print_note
from persona.errors import InputError


def serve(
    adapter: Annotated[
        list[str] | None,
        typer.Argument(help="Adapters, as for chat, or NAME=ADAPTER; none: all personas under PERSONA_HOME."),
    ] = None,
    base: Annotated[str, typer.Option(help="Base model, if not the adapters' own.")] = "",
    host: Annotated[str, typer.Option(help="Where to listen; other machines need PERSONA_API_KEYS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
) -> None:
    """Serve base and adapters as http://HOST:PORT/v1, for anything that speaks OpenAI's chat completions."""
    from persona.serve import http
    from persona.serve.auth import read_api_auth

    auth = read_api_auth(host)
    listening = _listen(host, port)
    import uvicorn

    from persona.compare import session
    from persona.serve import model_list

    models = model_list.open_named_models(adapter or [], base)
    loaded = session.open_model(models[0].base)
    for model in models:
        if model.adapter and model.base == models[0].base:
            loaded.attach(model.adapter)  # what does not fit is an error now
    where = f"[{host}]" if ":" in host else host
    print_note(f"{', '.join(m.id for m in models)} on http://{where}:{listening.getsockname()[1]}/v1")
    app = http.build_api(lambda: models, auth)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                            timeout_graceful_shutdown=5)  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket. Raises InputError when the address is taken or not this machine's."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, number)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(100)  # from here on a client waits instead of being refused
    except OSError as e:
        raise InputError(
            "{host}:{port}: cannot listen there ({reason}). Choose another --port.",
            host=host,
            port=port,
            reason=e.strerror or e,
        ) from e
    return made
