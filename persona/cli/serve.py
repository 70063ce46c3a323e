"""`persona serve`: base and adapters behind an OpenAI-compatible API."""

import socket
from typing import Annotated

import typer

from persona.cli.output import ADAPTER_HELP, AdapterTemplate, Quantization, print_note
from persona.errors import InputError, PersonaError

ENGINES = ("persona", "vllm")


def serve(
    adapter: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ADAPTER",
            help=f"Any number; NAME=ADAPTER gives the model a name in the API. {ADAPTER_HELP} "
            "Default: all personas under PERSONA_HOME.",
        ),
    ] = None,
    base: Annotated[
        str, typer.Option(help="Base model: name, Hub id, folder or .gguf file. Default: the adapters' own.")
    ] = "",
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any other than this machine's own needs PERSONA_API_KEYS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    template: AdapterTemplate = "",
    quantization: Quantization = "auto",
    engine: Annotated[
        str,
        typer.Option(help="What answers: persona, or vllm, which is faster for many requests at once (PERSONA_VLLM)."),
    ] = "persona",
) -> None:
    """Serve base and adapters at http://HOST:PORT/v1, for any program that speaks OpenAI's chat completions."""
    if engine not in ENGINES:
        raise InputError("--engine {engine}: choose one of {known}.", engine=engine, known=", ".join(ENGINES))
    if engine == "vllm":
        _serve_with_vllm(adapter or [], base, host, port, template, quantization)
        return
    from persona.serve import http
    from persona.serve.auth import read_api_auth

    auth = read_api_auth(host)
    listening = _listen(host, port)
    import uvicorn

    from persona.compare import session
    from persona.serve import model_list

    served = model_list.open_named_models(adapter or [], base, quantization, template)
    how = served[0].opening
    print_note(session.plan_opening(*how).describe())
    model = session.open_model(*how)
    for one in served:
        if one.adapter and one.base == served[0].base:
            model.attach(one.adapter)  # so that an adapter that does not fit is refused now
    address = f"[{host}]" if ":" in host else host
    print_note(f"{', '.join(m.id for m in served)} on http://{address}:{listening.getsockname()[1]}/v1")
    app = http.build_api(lambda: served, auth)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                            timeout_graceful_shutdown=5)  # fmt: skip
    uvicorn.Server(config).run(sockets=[listening])


def _serve_with_vllm(references: list[str], base: str, host: str, port: int, template: str, quantization: str) -> None:
    from persona.serve import model_list, vllm_engine
    from persona.serve.auth import read_api_auth

    if quantization not in ("auto", "none"):
        raise InputError(
            "--quantization {quantization} does not go with --engine vllm, which opens the base in full precision. "
            "Leave it out.",
            quantization=quantization,
        )
    auth, program = read_api_auth(host), vllm_engine.find_vllm()
    served = model_list.open_named_models(references, base, quantization, template)
    print_note(
        f"{', '.join(m.id for m in served)} by vLLM, which adds no persona's prompt: send it as the system message."
    )
    if status := vllm_engine.run_vllm(program, served, host, port, auth):
        raise PersonaError("vLLM ended with status {status}; what it printed above says why.", status=status)


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket. Raises InputError when the address is taken or not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(100)  # from here on a client waits instead of being refused
    except OSError as e:
        raise InputError(
            "{host}:{port}: cannot listen there ({reason}). Choose another --port.",
            host=host,
            port=port,
            reason=e.strerror or e,
        ) from e
    return listening
