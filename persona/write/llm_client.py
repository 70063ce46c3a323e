"""Client for an OpenAI-compatible server (PERSONA_LLM_URL)."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

import httpx

from persona.errors import PersonaError

REQUEST_TIMEOUT = 120.0  # seconds; a small model on a CPU is slow


@dataclass(frozen=True)
class LlmEndpoint:
    """Where the chat model answers: the address that ends before /chat/completions."""

    url: str
    model: str
    key: str = field(default="", repr=False)


def endpoint_from_env() -> LlmEndpoint | None:
    """The endpoint that the environment names; None when it names none."""
    url = os.environ.get("PERSONA_LLM_URL", "").rstrip("/")
    if not url:
        return None
    return LlmEndpoint(url, os.environ.get("PERSONA_LLM_MODEL", "default"), os.environ.get("PERSONA_LLM_KEY", ""))


def request_json_list(at: LlmEndpoint, prompt: str, temperature: float = 0.8) -> list[Any]:
    """The JSON list in the model's answer. Raises PersonaError when there is none."""
    headers = {"Authorization": f"Bearer {at.key}"} if at.key else {}
    body = {"model": at.model, "messages": [{"role": "user", "content": prompt}], "temperature": temperature}
    try:
        answer = httpx.post(f"{at.url}/chat/completions", json=body, headers=headers, timeout=REQUEST_TIMEOUT)
        answer.raise_for_status()
        text = answer.json()["choices"][0]["message"]["content"]
        found = json.loads(text[text.index("[") : text.rindex("]") + 1])
    except httpx.HTTPStatusError as e:
        raise PersonaError(
            "PERSONA_LLM_URL answered {status}. Check address, model and key.", status=e.response.status_code
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise PersonaError(
            "PERSONA_LLM_URL cannot be reached ({kind}). Is the server running?", kind=type(e).__name__
        ) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise PersonaError(
            "{model} did not answer with a JSON list. Try again, or another model.", model=at.model
        ) from None
    if not isinstance(found, list):
        raise PersonaError("{model} did not answer with a JSON list. Try again, or another model.", model=at.model)
    return found
