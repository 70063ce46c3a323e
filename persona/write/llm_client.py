"""The HTTP client for OpenAI-compatible servers: one JSON answer, a streamed chat, the list of models.

The LLM judge asks the server at PERSONA_LLM_URL, suggestions that one or the one set in the page, remote columns of a
chat the one at PERSONA_CHAT_URL. Keys are sent as a bearer token; they appear in no message and are written to no file.
"""

import importlib.util
import json
import os
import re
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from persona.errors import InputError, Message, PersonaError
from persona.store import deployment

REQUEST_TIMEOUT = 120.0  # seconds; a small model on a CPU is slow, and a busy server takes long to its first token
STREAM_TIMEOUT = httpx.Timeout(REQUEST_TIMEOUT, connect=10.0)
MAX_LINE_CHARACTERS = 200_000  # of one line of a stream; a server that goes on is cut off
KEYRING_ENTRY = ("persona", "model server")  # service and user name
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
    whole reply as the server counts it, None where the piece does not say. thinking: what is added to what was
    thought before the reply.
    """

    text: str = ""
    stopped: bool = False
    tokens: int | None = None
    thinking: str = ""


def endpoint_from_env() -> LlmEndpoint | None:
    """The endpoint at PERSONA_LLM_URL; None where the variable is not set."""
    url = os.environ.get("PERSONA_LLM_URL", "").rstrip("/")
    if not url:
        return None
    return LlmEndpoint(url, os.environ.get("PERSONA_LLM_MODEL", "default"), os.environ.get("PERSONA_LLM_KEY", ""))


_set_here: LlmEndpoint | None = None  # in the page, for this process; in no file


def current_endpoint() -> LlmEndpoint | None:
    """The endpoint that was set in the page, else in the system's keyring, else in the environment.

    On a shared server only that of the environment: the others belong to whoever owns the machine.
    """
    if deployment.is_shared_server():
        return endpoint_from_env()
    return _set_here or _read_keyring() or endpoint_from_env()


def set_endpoint(endpoint: LlmEndpoint | None, remember: bool = False) -> None:
    """Use this endpoint until the program ends; None: that of the environment again.

    remember: keep it in the system's keyring, from which None removes it. Raises InputError for what is no address, on
    a shared server, and where the keyring refuses.
    """
    global _set_here
    if deployment.is_shared_server():
        raise InputError("On a shared server only its owner sets a model server, by PERSONA_LLM_URL.")
    if endpoint and not re.match(r"https?://[^\s/]+", endpoint.url):
        raise InputError("{url}: not an address. It begins with http:// or https://.", url=f"{endpoint.url!r:.80}")
    if remember or endpoint is None:
        _write_keyring(endpoint)
    _set_here = endpoint


def has_keyring() -> bool:
    """Whether the package keyring is installed; whether it finds a keyring of the system shows only when it is used."""
    return importlib.util.find_spec("keyring") is not None


def _read_keyring() -> LlmEndpoint | None:
    if not has_keyring():
        return None
    import keyring

    try:
        return LlmEndpoint(**json.loads(keyring.get_password(*KEYRING_ENTRY) or ""))
    except Exception:  # no entry, or a keyring that is locked or missing, each with errors of its own
        return None


def _write_keyring(endpoint: LlmEndpoint | None) -> None:
    if not has_keyring():
        return
    import keyring

    try:
        if endpoint:
            keyring.set_password(*KEYRING_ENTRY, json.dumps(asdict(endpoint)))
        elif keyring.get_password(*KEYRING_ENTRY):
            keyring.delete_password(*KEYRING_ENTRY)
    except Exception as e:
        raise InputError(
            "The system's keyring refused ({kind}). Set the address without remembering it.", kind=type(e).__name__
        ) from None


def auth_headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def request_text(endpoint: LlmEndpoint, prompt: str, temperature: float = 0.8) -> str:
    """The model's answer to `prompt`. Raises PersonaError where there is none."""
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": prompt}], "temperature": temperature}
    try:
        answer = httpx.post(
            f"{endpoint.url}/chat/completions", json=body, headers=auth_headers(endpoint.key), timeout=REQUEST_TIMEOUT
        )
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])
    except httpx.HTTPStatusError as e:
        raise PersonaError(
            "The model server answered {status}. Check address, model and key.", status=e.response.status_code
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise PersonaError(
            "The model server cannot be reached ({kind}). Is it running?", kind=type(e).__name__
        ) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise PersonaError("The model server's answer is not a chat completion. Check its address.") from None


def request_json_list(endpoint: LlmEndpoint, prompt: str, temperature: float = 0.8) -> list[Any]:
    """The JSON list in the model's answer to `prompt`. Raises PersonaError where there is none."""
    rows = find_json_list(request_text(endpoint, prompt, temperature))
    if rows is None:
        raise PersonaError(
            "{model} did not answer with a JSON list. Try again, or another model.", model=endpoint.model
        )
    return rows


def find_json_list(text: str) -> list[Any] | None:
    """The JSON list in a model's answer; None for none."""
    try:
        rows = json.loads(text[text.index("[") : text.rindex("]") + 1])
    except ValueError:
        return None
    return rows if isinstance(rows, list) else None


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


class BadRequestError(InputError):
    """The server does not accept the request as it is (400, 422), for instance for a field that it does not know."""


async def stream_chat(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncGenerator[ChatChunk, None]:
    """Yield the pieces of a reply as they come.

    Raises BadRequestError for a request that the server does not accept; InputError where it refuses otherwise, or
    speaks no SSE.
    """
    try:
        async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                status, reason = answer.status_code, await _read_error_reason(answer)
                said = Message("The chat server answered {status}: {reason}", status=status, reason=reason)
                raise BadRequestError(said) if status in (400, 422) else InputError(said)
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
    chunks = []
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
        chunks.append(ChatChunk(delta.get("content") or "", choice.get("finish_reason") == "stop", thinking=thinking))
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
