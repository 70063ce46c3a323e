"""The OpenAI-compatible API over HTTP: GET /v1/models, POST /v1/chat/completions, POST /generate, GET /health.

A server of its own (persona serve), or routes of the page's server. Who may ask: see `Door`. What is asked is
read in api/orders.py, answered in api/batches.py.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from persona.errors import InputError, PersonaError
from persona.serve import model_list, requests
from persona.serve.api_errors import ApiError, internal_error
from persona.serve.batcher import Batcher, GenerationRequest, PartialReply
from persona.serve.model_list import ServedModel
from persona.serve.requests import ChatRequest
from persona.store import deployment

MAX_BODY_BYTES = 1_000_000  # bytes; 4,096 tokens of conversation are far less
BODY_TIMEOUT = 30  # seconds to send it in
API_PATHS = ("/v1/{rest:path}", "/generate", "/health")
# to many clients these end a line, and an event is one; JSON itself escapes the ASCII ones
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ApiAuth:
    """Who may come in. With keys: whoever brings one. Without: this machine's programs, and no web page from elsewhere.

    The names of host and origin are looked at because a page in a browser on this machine can reach the address, too.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)

    async def check(self, request: Request) -> None:
        """Raises Refusal, 401 or 403."""
        if not self.keys:
            origin = request.headers.get("origin")
            if not is_loopback_url(f"http://{request.headers.get('host', '')}") or (
                origin and not is_loopback_url(origin)
            ):
                raise ApiError(403, "Without PERSONA_API_KEYS only programs on this machine are answered.")
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else ""
        if not sum(hmac.compare_digest(_digest(given), _digest(key)) for key in self.keys):  # all are compared
            raise ApiError(401, "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'.",
                          code="invalid_api_key")  # fmt: skip


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    """Whether a bind address, or the host of a URL, is this machine's loopback."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def is_loopback_url(url: str) -> bool:
    with suppress(ValueError):
        return is_loopback(urlsplit(url).hostname or "")
    return False


def read_api_auth(host: str) -> ApiAuth:
    """The door with the keys of PERSONA_API_KEYS. Raises InputError when there are none and others could reach us."""
    keys = tuple(k for part in os.environ.get("PERSONA_API_KEYS", "").split(",") if (k := part.strip()))
    if not keys and not is_loopback(host):
        raise InputError(
            "{host}: other machines could use the model, so keys are needed. Set PERSONA_API_KEYS to one "
            "or more, separated by commas, or serve on 127.0.0.1.",
            host=host,
        )
    return ApiAuth(keys)


def page_api_kwargs(host: str) -> dict[str, Any]:
    """What makes Gradio's launch serve the API beside the page (its app_kwargs); nothing where it must stay off.

    Off: without keys on a Space or another shared server, on an address that others reach, with Gradio's public link.
    """
    public = deployment.is_shared_server() or os.environ.get("SPACE_ID") or deployment.has_public_link()
    try:
        door = read_api_auth("0.0.0.0" if public else host)
    except InputError:
        return {}
    api = build_api(model_list.list_home_models, door)
    return {
        "routes": [Route(path, api) for path in API_PATHS]
    }  # an app is no function: Starlette hands it every method


def build_api(offered: Callable[[], Sequence[ServedModel]], door: ApiAuth, batches: Batcher | None = None) -> FastAPI:
    """The API as an ASGI app. offered: asked for the menu at every request."""
    own = batches or Batcher()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(own.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    inside = [Depends(door.check)]

    async def models() -> Sequence[ServedModel]:
        return await asyncio.to_thread(offered)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", dependencies=inside)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_json(s) for s in await models()]}

    @app.get("/v1/models/{name:path}", dependencies=inside)
    async def one_model(name: str) -> dict[str, Any]:
        return _model_json(model_list.find_model(await models(), name))

    @app.post("/v1/chat/completions", dependencies=inside)
    async def complete(request: Request) -> Response:
        order = requests.parse_chat_request(await read_body(request), secrets.randbits(31))
        answer = ChatCompletion(
            order, await asyncio.to_thread(prepare_request, model_list.find_model(await models(), order.model), order)
        )
        states = stream_generation(own, answer.job)
        if not order.stream:
            return JSONResponse(answer.whole(await cancel_on_disconnect(request, _last(states))))
        first = await cancel_on_disconnect(
            request, anext(states)
        )  # what fails before the first word still has a status
        return StreamingResponse(answer.events(first, states), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip

    @app.post("/generate", dependencies=inside)
    async def generate(request: Request) -> Response:
        body, known = await read_body(request), await models()
        default = next((s.id for s in known if s.adapter), known[0].id if known else "")
        order = requests.parse_generate_request(body, default, secrets.randbits(31))
        job = await asyncio.to_thread(prepare_request, model_list.find_model(known, order.model), order)
        return JSONResponse(
            {"response": (await cancel_on_disconnect(request, _last(stream_generation(own, job))))[0].text}
        )

    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Whatever goes wrong is told in OpenAI's form."""

    def told(_: Request, e: Exception) -> Response:
        if isinstance(e, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it; nginx's number for this
        if isinstance(e, HTTPException):  # no such path or method
            e = ApiError(e.status_code, f"{e.detail}. There are GET /v1/models and POST /v1/chat/completions.")
        if not isinstance(e, ApiError):
            e = internal_error()
        return JSONResponse(e.body(), e.status, headers=e.headers())

    for kind in (ApiError, HTTPException, ClientDisconnect, Exception):  # the last is logged by the server, too
        app.add_exception_handler(kind, told)


def _model_json(served: ServedModel) -> dict[str, Any]:
    return {"id": served.id, "object": "model", "created": served.created, "owned_by": "persona"}


async def read_body(request: Request) -> Any:
    """The body of a request. Raises Refusal: 413 too large, 408 too slow, 400 not JSON."""
    too_large = ApiError(413, f"The body has more than {MAX_BODY_BYTES:,} bytes. Shorten the messages.")
    with suppress(ValueError):
        if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
            raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_TIMEOUT} seconds.") from None
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # no half characters (\\ud800), which nothing could answer with
    except (ValueError, RecursionError) as e:  # Unicode and JSON errors are ValueErrors
        raise ApiError(400, f"The body is not JSON that can be read ({type(e).__name__}). Send an object as UTF-8.",
                      code="invalid_json") from None  # fmt: skip
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def prepare_request(served: ServedModel, order: ChatRequest) -> GenerationRequest:
    """The prompt, by the renderer of the training; nobody hears of the job yet. Raises Refusal."""
    try:
        renderer = served.renderer(order.system)
        prompt = renderer.render_prompt(order.history, order.text)
        stop_id = renderer.stop_id
    except PersonaError as e:
        log.warning("%s: %s", served.id, e)
        raise ApiError(400, f"The chat template of '{served.id}' cannot write this conversation. Try it without a "
                      "system message.", param="messages", code="invalid_value") from None  # fmt: skip
    samplings = order.samplings(len(prompt.ids))
    return GenerationRequest(served.base, served.adapter, prompt, stop_id, samplings, order.stop, tell=lambda _: None)


async def stream_generation(batches: Batcher, job: GenerationRequest) -> AsyncIterator[list[PartialReply]]:
    """Submit the job and yield what its rows have said, until all have finished. Closing it ends the job."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    newest: list[
        list[PartialReply] | Exception
    ] = []  # one: each holds all of those before, and a slow client needs no pile

    def note(new: list[PartialReply] | Exception) -> None:
        newest[:] = [new]
        news.set()

    def tell(new: list[PartialReply] | Exception) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody listens
            loop.call_soon_threadsafe(note, new)

    job.tell = tell
    batches.submit(job)
    try:
        while True:
            await news.wait()
            news.clear()
            new = newest.pop()
            if isinstance(new, Exception):
                raise new
            yield new
            if all(row.finish for row in new):
                return
    finally:
        job.gone.set()


async def _last(states: AsyncIterator[T]) -> T:
    async for state in states:
        last = state
    return last


async def cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives. Raises ClientDisconnect, and cancels it, when the client hangs up meanwhile."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ChatCompletion:
    """An order's answer in OpenAI's form, whole or as server-sent events."""

    def __init__(self, order: ChatRequest, job: GenerationRequest):
        self.order, self.job = order, job
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": order.model}

    def usage(self, rows: Sequence[PartialReply]) -> dict[str, int]:
        """Tokens of the prompt, and of all replies; the token that ends a reply is not counted."""
        prompt, replies = len(self.job.prompt.ids), sum(row.tokens for row in rows)
        return {"prompt_tokens": prompt, "completion_tokens": replies, "total_tokens": prompt + replies}

    def whole(self, rows: Sequence[PartialReply]) -> dict[str, Any]:
        choices = [
            {"index": n, "message": {"role": "assistant", "content": row.text, "refusal": None}, "logprobs": None,
             "finish_reason": row.finish}
            for n, row in enumerate(rows)
        ]  # fmt: skip
        return self.head | {"object": "chat.completion", "choices": choices, "usage": self.usage(rows)}

    async def events(self, first: list[PartialReply], states: AsyncIterator[list[PartialReply]]) -> AsyncIterator[str]:
        """Each choice's role, its text piece by piece, why it ended; the usage if asked for; [DONE]."""
        for n in range(len(first)):
            yield self._chunk(n, {"role": "assistant", "content": ""})
        before = [PartialReply("", 0)] * len(first)
        try:
            async for now in _prepend(first, states):
                for n, (old, new) in enumerate(zip(before, now, strict=True)):
                    # by length: what has been sent is not taken back (batches.py knows a case)
                    if piece := new.text[len(old.text) :]:
                        yield self._chunk(n, {"content": piece})
                    if new.finish and not old.finish:
                        yield self._chunk(n, {}, new.finish)
                before = now
        except ApiError as e:  # the status has been sent: this is how OpenAI tells it then
            yield _event(e.body())
            return
        finally:
            self.job.gone.set()  # also where a client's connection broke while something was sent to it
        if self.order.include_usage:
            yield _event(self._piece([]) | {"usage": self.usage(before)})
        yield "data: [DONE]\n\n"

    def _chunk(self, index: int, delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event(self._piece([choice]) | ({"usage": None} if self.order.include_usage else {}))

    def _piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.head | {"object": "chat.completion.chunk", "choices": choices}


async def _prepend(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for item in rest:
        yield item


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False).translate(_LINE_ENDS)}\n\n"
