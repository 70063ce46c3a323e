"""More pairs proposed by a chat model at an OpenAI-compatible endpoint: optional, and never saved before they are read.

The address, key and model come from the environment (PERSONA_LLM_URL, PERSONA_LLM_KEY, PERSONA_LLM_MODEL) and are never
stored. What is proposed is marked as synthetic in its `source`.
"""

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from persona.errors import InputError, PersonaError
from persona.folder import Card
from persona.pairs import Pair, check

SHOWN = 12  # of her pairs, as examples of her manner
TIMEOUT = 120.0  # seconds; a small model on a CPU is slow


@dataclass(frozen=True)
class Endpoint:
    """Where the chat model answers: the address that ends before /chat/completions."""

    url: str
    model: str
    key: str = field(default="", repr=False)


def endpoint() -> Endpoint | None:
    """The endpoint that the environment names; None when it names none."""
    url = os.environ.get("PERSONA_LLM_URL", "").rstrip("/")
    if not url:
        return None
    return Endpoint(url, os.environ.get("PERSONA_LLM_MODEL", "default"), os.environ.get("PERSONA_LLM_KEY", ""))


def paraphrases(at: Endpoint, pair: Pair, row: int, count: int = 4) -> list[Pair]:
    """The same answer under questions put differently. Raises PersonaError when the endpoint fails."""
    wanted = (
        f"Write {count} different ways in which someone could say the following, in the same language and with the "
        f"same meaning. Answer with a JSON list of strings and nothing else.\n\n{pair.instruction}"
    )
    made = [text for text in ask(at, wanted) if isinstance(text, str) and text.strip() and text != pair.instruction]
    source = f"synthetic: {at.model}, paraphrase of pair {row}"
    return [replace(pair, instruction=text.strip(), source=source) for text in made[:count]]


def new_pairs(at: Endpoint, card: Card, pairs: Sequence[Pair], about: str, count: int = 5) -> list[Pair]:
    """New pairs in her manner, after some of her own as examples. Raises PersonaError when the endpoint fails."""
    shown = random.Random(0).sample(list(pairs), min(SHOWN, len(pairs)))
    examples = json.dumps([p.to_dict() | {"history": []} for p in shown], ensure_ascii=False)
    subject = f" The subject: {about}." if about.strip() else ""
    wanted = (
        f"You write dialogue for a character.\nCharacter: {card.name}. {card.system}\n"
        f"Examples of what is said to the character and of the answers: {examples}\n\n"
        f"Write {count} new examples in the same manner and language, none of them a repetition.{subject} Answer with "
        'a JSON list of objects {"instruction": …, "output": …} and nothing else.'
    )
    made = []
    for row in ask(at, wanted)[:count]:
        try:
            pair = check({k: row[k] for k in ("instruction", "output")} if isinstance(row, dict) else row)
        except (InputError, KeyError):
            continue
        made.append(replace(pair, source=f"synthetic: {at.model}"))
    if not made:
        raise PersonaError(
            "{model} answered, but with no pair in its answer. Try again, or another model.", model=at.model
        )
    return made


def ask(at: Endpoint, prompt: str, temperature: float = 0.8) -> list[Any]:
    """The JSON list in the model's answer. Raises PersonaError when there is none."""
    headers = {"Authorization": f"Bearer {at.key}"} if at.key else {}
    body = {"model": at.model, "messages": [{"role": "user", "content": prompt}], "temperature": temperature}
    try:
        answer = httpx.post(f"{at.url}/chat/completions", json=body, headers=headers, timeout=TIMEOUT)
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
