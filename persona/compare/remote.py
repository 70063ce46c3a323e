"""Chat through an OpenAI-compatible server instead of the model in memory: each column is a model of that server.

vLLM with --enable-lora, llama.cpp's server, Ollama, `persona serve`. Address and key come from the environment
(PERSONA_CHAT_URL, PERSONA_CHAT_KEY), never from a visitor, who could make this machine send requests anywhere.
"""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from persona.errors import InputError, Message
from persona.models.generate import Generation
from persona.models.sampling import Sampling

TIMEOUT = httpx.Timeout(120.0, connect=10.0)  # seconds; a busy server on a CPU may take long to its first token
MAX_REPLY_CHARACTERS = 200_000  # characters of one reply, and of one line; a server that goes on is cut off
MAX_MODELS = 50  # of a server that are listed
Turn = dict[str, str]


def configured_server() -> tuple[str, str] | None:
    """(url, key) from the environment; None without PERSONA_CHAT_URL. Raises InputError for a wrong address."""
    url = os.environ.get("PERSONA_CHAT_URL", "").strip()
    return (check_server_url(url), os.environ.get("PERSONA_CHAT_KEY", "").strip()) if url else None


def fetch_model_names() -> list[str]:
    """The models of the configured server; [] without one. Raises InputError when it does not list them."""
    server = configured_server()
    if server is None:
        return []
    url, key = server
    try:
        answer = httpx.get(f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=5.0)
        return [str(m["id"])[:200] for m in answer.raise_for_status().json()["data"]][:MAX_MODELS]
    except (httpx.HTTPError, KeyError, TypeError, ValueError) as e:
        raise InputError(
            "The chat server at PERSONA_CHAT_URL does not list its models ({kind}).", kind=type(e).__name__
        ) from None


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
    """Pass each column's reply to `on_update` as it grows."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=TIMEOUT, headers=headers) as client:

        async def column(n: int, model: str, chat: Sequence[Turn]) -> None:
            reply = Generation()
            try:
                async for reply in _ask(client, url, _body(model, chat, sampling)):
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


def _body(model: str, chat: Sequence[Turn], s: Sampling) -> dict[str, Any]:
    """The request; extensions of OpenAI's fields only where they change something, since OpenAI itself refuses them."""
    body: dict[str, Any] = {
        "model": model, "messages": list(chat), "stream": True, "stream_options": {"include_usage": True},
        "temperature": s.temperature, "top_p": s.top_p, "seed": s.seed, "max_tokens": s.max_new_tokens,
    }  # fmt: skip
    extensions = {"top_k": (s.top_k, 0), "min_p": (s.min_p, 0), "repetition_penalty": (s.repetition_penalty, 1)}
    return body | {name: value for name, (value, neutral) in extensions.items() if value != neutral}


async def _ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Any:
    """Yield the reply as it grows. Raises InputError when the server refuses, or answers in another format."""
    start = time.perf_counter()
    reply = Generation()
    try:
        async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise InputError(
                    "The chat server answered {status}: {reason}",
                    status=answer.status_code,
                    reason=await _error_reason(answer),
                )
            async for event in _events(answer):
                reply = _extend_reply(reply, event, time.perf_counter() - start)
                yield reply
                if len(reply.text) > MAX_REPLY_CHARACTERS:
                    raise InputError(
                        "The chat server's reply has more than {limit:,} characters; it was cut off.",
                        limit=MAX_REPLY_CHARACTERS,
                    )
    except httpx.TimeoutException:
        raise InputError("The chat server took too long to answer. Is it busy, or the model still loading?") from None
    except httpx.HTTPError as e:
        raise InputError("The chat server cannot be reached ({kind}). Is it running?", kind=type(e).__name__) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError("The chat server's answer is not a stream of chat completions. Check its address.") from None


async def _events(answer: httpx.Response) -> Any:
    """The JSON objects of a stream of server-sent events, up to [DONE]. Raises InputError for an error among them."""
    async for data in _data(answer):
        if data == "[DONE]":
            return
        event = json.loads(data)
        if event.get("error"):
            raise InputError("The chat server broke off: {message}", message=_message(event))
        yield event
    raise InputError("The chat server hung up before its reply was finished.")


async def _data(answer: httpx.Response) -> Any:
    """The text after "data:" on each line. Raises InputError for a line without an end."""
    rest = ""
    async for text in answer.aiter_text():
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if line.startswith("data:"):
                yield line[5:].strip()
        if len(rest) > MAX_REPLY_CHARACTERS:
            raise InputError("The chat server sends a line that does not end. Check its address.")


def _extend_reply(old: Generation, event: dict[str, Any], seconds: float) -> Generation:
    """The reply after one event. A piece counts as a token until the server says how many there were."""
    reply = old
    for choice in event.get("choices") or []:
        if piece := (choice.get("delta") or {}).get("content"):
            first = reply.first or seconds
            reply = replace(reply, text=reply.text + piece, tokens=reply.tokens + 1, first=first, seconds=seconds)
        if choice.get("finish_reason") == "stop":
            reply = replace(reply, ended=True)
    token_count = (event.get("usage") or {}).get("completion_tokens")
    return replace(reply, tokens=token_count) if type(token_count) is int else reply


async def _error_reason(answer: httpx.Response) -> str:
    """The message in the body of an error, shortened; it is the other server's text."""
    body = b""
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > 10_000:
            break
    try:
        return _message(json.loads(body))
    except (ValueError, TypeError, AttributeError):
        return Message("no reason given.")


def _message(value: dict[str, Any]) -> str:
    error = value.get("error")
    text = (error.get("message") if isinstance(error, dict) else error) or value.get("detail")
    return str(text)[:300] if text else Message("no reason given.")
