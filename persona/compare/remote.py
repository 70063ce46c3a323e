"""Chat through an OpenAI-compatible server instead of the model in memory: each column is a model of that server.

vLLM with --enable-lora, llama.cpp's server, Ollama, `persona serve`. Address and key come from the environment
(PERSONA_CHAT_URL, PERSONA_CHAT_KEY), never from a visitor, who could make this machine send requests anywhere.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from httpx import AsyncClient

from persona.errors import InputError, Message
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.write.llm_client import BadRequestError, ChatChunk, list_models, open_stream_client, stream_chat

MAX_REPLY_CHARACTERS = 200_000  # of one reply; a server that goes on is cut off
Turn = dict[str, str]


def configured_server() -> tuple[str, str] | None:
    """(url, key) from the environment; None without PERSONA_CHAT_URL. Raises InputError for a wrong address."""
    url = os.environ.get("PERSONA_CHAT_URL", "").strip()
    return (check_server_url(url), os.environ.get("PERSONA_CHAT_KEY", "").strip()) if url else None


def fetch_model_names() -> list[str]:
    """The names that the configured server offers; [] where none is configured. Raises InputError if it is silent."""
    server = configured_server()
    return list_models(*server) if server else []


def check_server_url(url: str) -> str:
    """The base URL, up to /chat/completions. Raises InputError for one that cannot be used."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and not parts.query and (parts.port or 1)
    except ValueError:
        valid = False
    if not valid:
        raise InputError("The chat server's address is no http(s) URL. Write it like http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise InputError("The chat server's address holds a password. Put the key into PERSONA_CHAT_KEY instead.")
    return url.rstrip("/").removesuffix("/chat/completions")


def stream_remote(
    url: str, key: str, models: Sequence[str], messages_per_column: Sequence[Sequence[Turn]], sampling: Sampling
) -> Iterator[list[Generation]]:
    """Yield the replies of all columns whenever one has grown, as session.stream_replies does, until each has ended.

    One request a column, all at once. A column whose request fails has the reason in its `error`, the others go on.
    Closing the iterator hangs up. messages_per_column: as build_messages returns them. Tokens are counted by the
    server, else by its pieces. Raises InputError for a wrong address or key.
    """
    url = check_server_url(url)
    if not (key.isascii() and key.isprintable()):
        raise InputError("PERSONA_CHAT_KEY holds characters that no key has. Copy it again.")
    columns = list(zip(models, messages_per_column, strict=True))
    replies, changed, finished = [Generation() for _ in columns], threading.Event(), threading.Event()

    def on_update(column: int, reply: Generation) -> None:  # only the newest is kept: a fast server makes no pile
        replies[column] = reply
        changed.set()

    loop = asyncio.new_event_loop()
    task = loop.create_task(_ask_all(url, key, columns, sampling, on_update))

    def run() -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            finished.set()
            changed.set()

    thread = threading.Thread(target=run, name="persona-endpoint", daemon=True)
    thread.start()
    try:
        done = False
        while not done:
            changed.wait()
            changed.clear()
            done = finished.is_set()
            yield list(replies)
    finally:
        with contextlib.suppress(RuntimeError):  # it has closed already
            loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=10)


async def _ask_all(
    url: str, key: str, columns: Sequence[tuple[str, Sequence[Turn]]], sampling: Sampling,
    on_update: Callable[[int, Generation], None],
) -> None:  # fmt: skip
    """Each column's replies are told as they grow."""
    async with open_stream_client(key) as client:

        async def column(n: int, model: str, chat: Sequence[Turn]) -> None:
            reply = Generation()
            try:
                async for reply in _stream_reply(client, url, _body(model, chat, sampling)):
                    on_update(n, reply)
            except InputError as e:
                on_update(n, replace(reply, error=e.message))
            except Exception as e:  # whatever it is, it stays this column's error
                on_update(
                    n,
                    replace(
                        reply, error=Message("The chat server could not be asked ({kind}).", kind=type(e).__name__)
                    ),
                )

        await asyncio.gather(*(column(n, *c) for n, c in enumerate(columns)))


NEUTRAL = {"top_k": 0, "min_p": 0, "repetition_penalty": 1}  # no fields of OpenAI's


def _body(model: str, chat: Sequence[Turn], s: Sampling) -> dict[str, Any]:
    return {
        "model": model, "messages": list(chat), "stream": True, "stream_options": {"include_usage": True},
        "temperature": s.temperature, "top_p": s.top_p, "seed": s.seed, "max_tokens": s.max_new_tokens,
        **{name: getattr(s, name) for name in NEUTRAL},
    }  # fmt: skip


async def _ask(client: AsyncClient, url: str, body: dict[str, Any]) -> AsyncGenerator[ChatChunk, None]:
    """As stream_chat().

    Neutral values are sent too, since a server may have a default of its own; one that refuses the request, as OpenAI
    does for any field that it does not know, is asked again without those that change nothing.
    """
    shorter = {name: value for name, value in body.items() if name not in NEUTRAL or value != NEUTRAL[name]}
    for asked in (body, shorter):
        try:
            async with contextlib.aclosing(stream_chat(client, url, asked)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except BadRequestError:
            if asked == shorter:
                raise


async def _stream_reply(client: AsyncClient, url: str, body: dict[str, Any]) -> AsyncGenerator[Generation, None]:
    """Yield the reply as it grows. A piece counts as a token until the server says how many there were.

    Raises InputError as stream_chat() does, and for a reply that is too long.
    """
    start = time.perf_counter()
    reply = Generation()
    async with contextlib.aclosing(_ask(client, url, body)) as chunks:
        async for chunk in chunks:
            if chunk.text or chunk.thinking:
                seconds = time.perf_counter() - start
                reply = replace(reply, text=reply.text + chunk.text, thinking=reply.thinking + chunk.thinking,
                                tokens=reply.tokens + 1, first=reply.first or seconds, seconds=seconds)  # fmt: skip
            if chunk.stopped:
                reply = replace(reply, ended=True)
            if chunk.tokens is not None:
                reply = replace(reply, tokens=chunk.tokens)
            yield reply
            if len(reply.text) + len(reply.thinking) > MAX_REPLY_CHARACTERS:
                raise InputError(
                    "The chat server's reply has more than {limit:,} characters; it was cut off.",
                    limit=MAX_REPLY_CHARACTERS,
                )
