"""The HTTP client for OpenAI-compatible servers: one JSON answer, a streamed chat, the list of models.

Suggestions and the LLM judge ask the server at PERSONA_LLM_URL; remote columns of a chat the one at PERSONA_CHAT_URL.
Keys are sent as a bearer token and appear in no message.
"""

import json
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import httpx

from persona.errors import InputError, Message, PersonaError

REQUEST_TIMEOUT = 120.0  # seconds; a small model on a CPU is slow, and a busy server takes long to its first token
STREAM_TIMEOUT = httpx.Timeout(REQUEST_TIMEOUT, connect=10.0)
MAX_LINE_CHARACTERS = 200_000  # of one line of a stream; a server that goes on is cut off
MAX_MODELS = 50  # names taken from a server's list


@dataclass(frozen=True)
class LlmEndpoint:
    """A chat model at a server. url: the address that ends before /chat/completions."""

    url: str
    model: str
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class ChatChunk:
    """One piece of a streamed reply.

    text: what is added to the reply. stopped: the model ended it (finish_reason "stop"). tokens: the length of the
    whole reply as the server counts it, None where the piece does not say.
    """

    text: str = ""
    stopped: bool = False
    tokens: int | None = None


def endpoint_from_env() -> LlmEndpoint | None:
    """The endpoint at PERSONA_LLM_URL; None where the variable is not set."""
    url = os.environ.get("PERSONA_LLM_URL", "").rstrip("/")
    if not url:
        return None
    return LlmEndpoint(url, os.environ.get("PERSONA_LLM_MODEL", "default"), os.environ.get("PERSONA_LLM_KEY", ""))


def auth_headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def request_json_list(endpoint: LlmEndpoint, prompt: str, temperature: float = 0.8) -> list[Any]:
    """The JSON list in the model's answer to `prompt`. Raises PersonaError where there is none."""
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": prompt}], "temperature": temperature}
    try:
        answer = httpx.post(
            f"{endpoint.url}/chat/completions", json=body, headers=auth_headers(endpoint.key), timeout=REQUEST_TIMEOUT
        )
        answer.raise_for_status()
        text = answer.json()["choices"][0]["message"]["content"]
        rows = json.loads(text[text.index("[") : text.rindex("]") + 1])
    except httpx.HTTPStatusError as e:
        raise PersonaError(
            "PERSONA_LLM_URL answered {status}. Check address, model and key.", status=e.response.status_code
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise PersonaError(
            "PERSONA_LLM_URL cannot be reached ({kind}). Is the server running?", kind=type(e).__name__
        ) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        rows = None
    if not isinstance(rows, list):
        raise PersonaError(
            "{model} did not answer with a JSON list. Try again, or another model.", model=endpoint.model
        )
    return rows


def list_models(url: str, key: str) -> list[str]:
    """The model names of the chat server, at most MAX_MODELS. Raises InputError where it does not list them."""
    try:
        answer = httpx.get(f"{url}/models", headers=auth_headers(key), timeout=5.0)
        return [str(m["id"])[:200] for m in answer.raise_for_status().json()["data"]][:MAX_MODELS]
    except (httpx.HTTPError, KeyError, TypeError, ValueError) as e:
        raise InputError(
            "The chat server at PERSONA_CHAT_URL does not list its models ({kind}).", kind=type(e).__name__
        ) from None


def open_stream_client(key: str) -> httpx.AsyncClient:
    """A client for stream_chat(); several streams may share it."""
    return httpx.AsyncClient(timeout=STREAM_TIMEOUT, headers=auth_headers(key))


async def stream_chat(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncGenerator[ChatChunk, None]:
    """Yield the pieces of a reply as they come. Raises InputError where the server refuses or speaks no SSE."""
    try:
        async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise InputError(
                    "The chat server answered {status}: {reason}",
                    status=answer.status_code,
                    reason=await _read_error_reason(answer),
                )
            async for event in _read_events(answer):
                for chunk in _parse_chunks(event):
                    yield chunk
    except httpx.TimeoutException:
        raise InputError("The chat server took too long to answer. Is it busy, or the model still loading?") from None
    except httpx.HTTPError as e:
        raise InputError("The chat server cannot be reached ({kind}). Is it running?", kind=type(e).__name__) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError("The chat server's answer is not a stream of chat completions. Check its address.") from None


def _parse_chunks(event: dict[str, Any]) -> list[ChatChunk]:
    chunks = [
        ChatChunk((choice.get("delta") or {}).get("content") or "", choice.get("finish_reason") == "stop")
        for choice in event.get("choices") or []
    ]
    tokens = (event.get("usage") or {}).get("completion_tokens")
    return [*chunks, ChatChunk(tokens=tokens)] if type(tokens) is int else chunks


async def _read_events(answer: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of a stream of server-sent events, up to [DONE]. Raises InputError for an error among them."""
    async for data in _read_data_lines(answer):
        if data == "[DONE]":
            return
        event = json.loads(data)
        if event.get("error"):
            raise InputError("The chat server broke off: {message}", message=_error_message(event))
        yield event
    raise InputError("The chat server hung up before its reply was finished.")


async def _read_data_lines(answer: httpx.Response) -> AsyncGenerator[str, None]:
    """What follows "data:" on each line. Raises InputError for a line without an end."""
    rest = ""
    async for text in answer.aiter_text():
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if line.startswith("data:"):
                yield line[5:].strip()
        if len(rest) > MAX_LINE_CHARACTERS:
            raise InputError("The chat server sends a line that does not end. Check its address.")


async def _read_error_reason(answer: httpx.Response) -> str:
    """The message in the body of an error, shortened; it is the other server's text."""
    body = b""
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > 10_000:
            break
    try:
        return _error_message(json.loads(body))
    except (ValueError, TypeError, AttributeError):
        return Message("no reason given.")


def _error_message(value: dict[str, Any]) -> str:
    error = value.get("error")
    text = (error.get("message") if isinstance(error, dict) else error) or value.get("detail")
    return str(text)[:300] if text else Message("no reason given.")
