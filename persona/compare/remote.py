"""Chat through any OpenAI-compatible server instead of the model in memory: each column a model name of that server.

vLLM with --enable-lora, llama.cpp's server, Ollama, `persona serve`. The address and key come from whoever
runs the page (PERSONA_CHAT_URL, PERSONA_CHAT_KEY), never from a visitor, who could else make this machine knock
anywhere.
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
MAX_MODELS = 50  # of a server that are offered
Turn = dict[str, str]


def configured_server() -> tuple[str, str] | None:
    """(url, key) from the environment; None where no endpoint is named. Raises InputError for a wrong address."""
    url = os.environ.get("PERSONA_CHAT_URL", "").strip()
    return (check_server_url(url), os.environ.get("PERSONA_CHAT_KEY", "").strip()) if url else None


def fetch_model_names() -> list[str]:
    """The names that the configured server offers; [] where none is configured. Raises InputError if it is silent."""
    found = configured_server()
    if found is None:
        return []
    url, key = found
    try:
        answer = httpx.get(f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=5.0)
        return [str(m["id"])[:200] for m in answer.raise_for_status().json()["data"]][:MAX_MODELS]
    except (httpx.HTTPError, KeyError, TypeError, ValueError) as e:
        raise InputError(
            "The chat server at PERSONA_CHAT_URL does not list its models ({kind}).", kind=type(e).__name__
        ) from None


def check_server_url(url: str) -> str:
    """The address that ends before /chat/completions. Raises InputError where it cannot be one."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.query and (parts.port or 1)
    except ValueError:
        good = False
    if not good:
        raise InputError("The chat server's address is no http(s) URL. Write it like http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise InputError("The chat server's address holds a password. Put the key into PERSONA_CHAT_KEY instead.")
    return url.rstrip("/").removesuffix("/chat/completions")


def stream_remote(
    url: str, key: str, models: Sequence[str], messages_per_column: Sequence[Sequence[Turn]], sampling: Sampling
) -> Iterator[list[Generation]]:
    """Yield the replies of all columns whenever one has grown, as chat.stream does, until each has ended.

    All are asked at once. A column whose request fails says why in its `error`, the others go on. Closing the iterator
    hangs up. messages_per_column: as templates.messages makes them. tokens: as the server counts them, else its pieces.
    Raises InputError for an address or key that is none.
    """
    url = check_server_url(url)
    if not (key.isascii() and key.isprintable()):
        raise InputError("PERSONA_CHAT_KEY holds characters that no key has. Copy it again.")
    columns = list(zip(models, messages_per_column, strict=True))
    replies, news, over = [Generation() for _ in columns], threading.Event(), threading.Event()

    def tell(column: int, reply: Generation) -> None:  # the newest alone is kept: a fast server makes no pile
        replies[column] = reply
        news.set()

    loop = asyncio.new_event_loop()
    work = loop.create_task(_ask_all(url, key, columns, sampling, tell))

    def run() -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(work)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            over.set()
            news.set()

    thread = threading.Thread(target=run, name="persona-endpoint", daemon=True)
    thread.start()
    try:
        done = False
        while not done:
            news.wait()
            news.clear()
            done = over.is_set()
            yield list(replies)
    finally:
        with contextlib.suppress(RuntimeError):  # it has closed already
            loop.call_soon_threadsafe(work.cancel)
        thread.join(timeout=10)


async def _ask_all(
    url: str, key: str, columns: Sequence[tuple[str, Sequence[Turn]]], sampling: Sampling,
    tell: Callable[[int, Generation], None],
) -> None:  # fmt: skip
    """Each column's replies are told as they grow."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=TIMEOUT, headers=headers) as client:

        async def column(n: int, model: str, chat: Sequence[Turn]) -> None:
            reply = Generation()
            try:
                async for reply in _ask(client, url, _body(model, chat, sampling)):
                    tell(n, reply)
            except InputError as e:
                tell(n, replace(reply, error=e.message))
            except Exception as e:  # also what no list foresees: one column's error is never another's
                tell(
                    n,
                    replace(
                        reply, error=Message("The chat server could not be asked ({kind}).", kind=type(e).__name__)
                    ),
                )

        await asyncio.gather(*(column(n, *c) for n, c in enumerate(columns)))


def _body(model: str, chat: Sequence[Turn], s: Sampling) -> dict[str, Any]:
    """What OpenAI knows always; the extensions only where they change something, since OpenAI itself refuses them."""
    body: dict[str, Any] = {
        "model": model, "messages": list(chat), "stream": True, "stream_options": {"include_usage": True},
        "temperature": s.temperature, "top_p": s.top_p, "seed": s.seed, "max_tokens": s.max_new_tokens,
    }  # fmt: skip
    more = {"top_k": (s.top_k, 0), "min_p": (s.min_p, 0), "repetition_penalty": (s.repetition_penalty, 1)}
    return body | {name: value for name, (value, neutral) in more.items() if value != neutral}


async def _ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Any:
    """Yield the reply as it grows. Raises InputError where the server refuses, or speaks something else."""
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
    """What follows "data:" on each line; a line without an end is cut off."""
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
    counted = (event.get("usage") or {}).get("completion_tokens")
    return replace(reply, tokens=counted) if type(counted) is int else reply


async def _error_reason(answer: httpx.Response) -> str:
    """The message in an error's body, shortened; it is the other server's text."""
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
    said = (error.get("message") if isinstance(error, dict) else error) or value.get("detail")
    return str(said)[:300] if said else Message("no reason given.")
