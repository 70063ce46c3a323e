"""The OpenAI-compatible API over HTTP: GET /v1/models, POST /v1/chat/completions, POST /generate, GET /health.

A server of its own (persona serve), or routes of the page's server. auth.py says who may ask, requests.py reads what is
asked, batcher.py answers it.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from persona.errors import InputError, PersonaError
from persona.serve import model_list, requests
from persona.serve.api_errors import ApiError, internal_error
from persona.serve.auth import ApiAuth, read_api_auth
from persona.serve.batcher import Batcher, GenerationRequest, PartialReply
from persona.serve.model_list import ServedModel
from persona.serve.origins import ApiOrigins, read_api_origins
from persona.serve.requests import ChatRequest
from persona.store import deployment

MAX_BODY_BYTES = 1_000_000  # bytes; 4,096 tokens of conversation are far less
BODY_TIMEOUT = 30  # seconds to send it in
API_PATHS = ("/v1/{rest:path}", "/generate", "/health")
# to many clients these end a line, and an event is one; JSON itself escapes the ASCII ones
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
T = TypeVar("T")

log = logging.getLogger(__name__)


def is_api_path(path: str) -> bool:
    """Whether a path of the page's server is the API's."""
    return path.startswith("/v1/") or path in ("/generate", "/health")


def page_api_kwargs(host: str) -> dict[str, Any]:
    """The app_kwargs of Gradio's launch that serve the API beside the page; {} where it must stay off.

    Off: without keys on a Space or another shared server, on an address that others reach, with Gradio's public link.
    """
    public = deployment.is_shared_server() or deployment.is_hf_space() or deployment.has_public_link()
    try:
        auth = read_api_auth("0.0.0.0" if public else host)
    except InputError:
        return {}
    api = build_api(model_list.list_home_models, auth)
    return {"routes": [Route(path, api) for path in API_PATHS]}  # Starlette passes every method on to an app


def build_api(
    list_served: Callable[[], Sequence[ServedModel]], auth: ApiAuth, batcher: Batcher | None = None
) -> FastAPI:
    """The API as an ASGI app. list_served: called at every request. Raises InputError as read_api_origins() does."""
    answers = batcher or Batcher()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(answers.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(ApiOrigins, origins=read_api_origins())
    allowed = [Depends(auth.check)]

    async def served() -> Sequence[ServedModel]:
        return await asyncio.to_thread(list_served)

    async def prepare(models: Sequence[ServedModel], chat: ChatRequest, request: Request) -> GenerationRequest:
        model = model_list.find_model(models, chat.model)
        return await asyncio.to_thread(prepare_request, model, chat, auth.client_of(request))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", dependencies=allowed)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_json(s) for s in await served()]}

    @app.get("/v1/models/{name:path}", dependencies=allowed)
    async def one_model(name: str) -> dict[str, Any]:
        return _model_json(model_list.find_model(await served(), name))

    @app.post("/v1/chat/completions", dependencies=allowed)
    async def complete(request: Request) -> Response:
        chat = requests.parse_chat_request(await read_body(request), secrets.randbits(31))
        answer = ChatCompletion(chat, await prepare(await served(), chat, request))
        updates = stream_generation(answers, answer.generation)
        if not chat.stream:
            return JSONResponse(answer.whole(await cancel_on_disconnect(request, _last(updates))))
        first = await cancel_on_disconnect(request, anext(updates))  # an error before the first word still has a status
        return StreamingResponse(answer.events(first, updates), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip

    @app.post("/generate", dependencies=allowed)
    async def generate(request: Request) -> Response:
        body, models = await read_body(request), await served()
        default = next((s.id for s in models if s.adapter), models[0].id if models else "")
        chat = requests.parse_generate_request(body, default, secrets.randbits(31))
        chat = await asyncio.to_thread(unwrap_chat, model_list.find_model(models, chat.model), chat)
        generation = await prepare(models, chat, request)
        (row,) = await cancel_on_disconnect(request, _last(stream_generation(answers, generation)))
        usage = {"prompt_tokens": len(generation.prompt.ids), "completion_tokens": row.tokens}
        return JSONResponse({"generated_text": row.text, "response": row.text, "model": chat.model,
                             "finish_reason": row.finish, "usage": usage} | _reasoning(row.thinking))  # fmt: skip

    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is answered in OpenAI's form."""

    def handle(_: Request, e: Exception) -> Response:
        if isinstance(e, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it; nginx's number for this
        if isinstance(e, HTTPException):  # no such path or method
            e = ApiError(e.status_code, f"{e.detail}. There are GET /v1/models and POST /v1/chat/completions.")
        if not isinstance(e, ApiError):
            e = internal_error()
        return JSONResponse(e.body(), e.status, headers=e.headers())

    for kind in (ApiError, HTTPException, ClientDisconnect, Exception):  # the last is logged by the server, too
        app.add_exception_handler(kind, handle)


def _model_json(served: ServedModel) -> dict[str, Any]:
    return {"id": served.id, "object": "model", "created": served.created, "owned_by": "persona"}


async def read_body(request: Request) -> Any:
    """The body of a request. Raises ApiError: 413 too large, 408 too slow, 400 not JSON."""
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


def prepare_request(served: ServedModel, chat: ChatRequest, client: str = "api") -> GenerationRequest:
    """Render the prompt with the renderer of the training. Nothing is submitted yet. Raises ApiError."""
    try:
        renderer = served.renderer(chat.system)
        prompt = renderer.render_prompt(chat.history, chat.text)
        stop_id = renderer.stop_id
    except PersonaError as e:
        log.warning("%s: %s", served.id, e)
        raise ApiError(400, f"The chat template of '{served.id}' cannot write this conversation. Try it without a "
                      "system message.", param="messages", code="invalid_value") from None  # fmt: skip
    samplings = chat.samplings(len(prompt.ids))
    return GenerationRequest(served.opening, served.adapter, prompt, stop_id, samplings, chat.stop, client)


def unwrap_chat(served: ServedModel, chat: ChatRequest) -> ChatRequest:
    """unwrap_prompt() with the model's template; the request as it is where that cannot write a prompt at all."""
    try:
        return requests.unwrap_prompt(chat, served.renderer(""))
    except PersonaError:
        return chat  # prepare_request says why


async def stream_generation(batcher: Batcher, generation: GenerationRequest) -> AsyncIterator[list[PartialReply]]:
    """Submit the request and yield its replies so far, until all have finished. Closing the iterator cancels it."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    newest: list[list[PartialReply] | Exception] = []  # one: each holds all before it, and a slow client needs no pile

    def set_newest(update: list[PartialReply] | Exception) -> None:
        newest[:] = [update]
        changed.set()

    def on_update(update: list[PartialReply] | Exception) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody listens
            loop.call_soon_threadsafe(set_newest, update)

    generation.on_update = on_update
    batcher.submit(generation)
    try:
        while True:
            await changed.wait()
            changed.clear()
            update = newest.pop()
            if isinstance(update, Exception):
                raise update
            yield update
            if all(row.finish for row in update):
                return
    finally:
        generation.cancel()


async def _last(updates: AsyncIterator[T]) -> T:
    async for update in updates:
        last = update
    return last


async def cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`. Raises ClientDisconnect, and cancels it, when the client hangs up meanwhile."""
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
    """A chat request's answer in OpenAI's form, whole or as server-sent events."""

    def __init__(self, chat: ChatRequest, generation: GenerationRequest):
        self.chat, self.generation = chat, generation
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": chat.model}

    def usage(self, rows: Sequence[PartialReply]) -> dict[str, int]:
        """Tokens of the prompt, and of all replies; the token that ends a reply is not counted."""
        prompt, replies = len(self.generation.prompt.ids), sum(row.tokens for row in rows)
        return {"prompt_tokens": prompt, "completion_tokens": replies, "total_tokens": prompt + replies}

    def whole(self, rows: Sequence[PartialReply]) -> dict[str, Any]:
        choices = [
            {"index": n, "message": {"role": "assistant", "content": row.text, "refusal": None,
                                     **_reasoning(row.thinking)}, "logprobs": None, "finish_reason": row.finish}
            for n, row in enumerate(rows)
        ]  # fmt: skip
        return self.head | {"object": "chat.completion", "choices": choices, "usage": self.usage(rows)} | self.book

    @property
    def book(self) -> dict[str, list[str]]:
        """Beside OpenAI's fields: the names of the entries of the character book that are in the prompt, if any."""
        return {"book_entries": list(entries)} if (entries := self.generation.prompt.entries) else {}

    async def events(self, first: list[PartialReply], updates: AsyncIterator[list[PartialReply]]) -> AsyncIterator[str]:
        """Each choice's role, its text piece by piece, why it ended (with `book`); the usage if asked for; [DONE]."""
        for n in range(len(first)):
            yield self._chunk(n, {"role": "assistant", "content": ""})
        before = [PartialReply("", 0)] * len(first)
        try:
            async for now in _prepend(first, updates):
                for n, (old, new) in enumerate(zip(before, now, strict=True)):
                    # a reply begins with what has been sent of it (see Batcher._report)
                    if thought := new.thinking[len(old.thinking) :]:
                        yield self._chunk(n, _reasoning(thought))
                    if piece := new.text[len(old.text) :]:
                        yield self._chunk(n, {"content": piece})
                    if new.finish and not old.finish:
                        yield self._chunk(n, {}, new.finish)
                before = now
        except ApiError as e:  # the status has been sent: this is how OpenAI tells it then
            yield _event(e.body())
            return
        finally:
            self.generation.cancel()  # also where the connection broke while something was sent
        if self.chat.include_usage:
            yield _event(self._piece([]) | {"usage": self.usage(before)})
        yield "data: [DONE]\n\n"

    def _chunk(self, index: int, delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        book = self.book if finish else {}
        return _event(self._piece([choice]) | ({"usage": None} if self.chat.include_usage else {}) | book)

    def _piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.head | {"object": "chat.completion.chunk", "choices": choices}


def _reasoning(thinking: str) -> dict[str, str]:
    """Beside OpenAI's fields, as vLLM and DeepSeek name it: what a model thought before its reply, if it thinks."""
    return {"reasoning_content": thinking} if thinking else {}


async def _prepend(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for item in rest:
        yield item


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False).translate(_LINE_ENDS)}\n\n"
