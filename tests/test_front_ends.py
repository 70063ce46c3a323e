"""Requests as chat front ends send them. SillyTavern's are built as its server does, from its source (1.12.6)."""

import pytest

from persona.serve.api_errors import ApiError
from persona.serve.requests import parse_chat_request

# its default main prompt, and what it puts before a chat
MAIN = "Write Mags's next reply in a fictional chat between Mags and User."
START = "[Start a new Chat]"
GREETING, SAID = "Mind the step.", "Who are you?"
# source "Custom (OpenAI-compatible)" with the samplers of its default preset; a key without value is not sent
SILLYTAVERN = {
    "model": "mags", "temperature": 1, "max_tokens": 300, "stream": True, "presence_penalty": 0, "frequency_penalty": 0,
    "top_p": 1, "logit_bias": {},
}  # fmt: skip


def sillytavern(messages, **more):
    return parse_chat_request(SILLYTAVERN | {"messages": messages} | more, default_seed=1)


def test_sillytavern_with_strict_post_processing():
    """The user speaks first and roles alternate: what stands before the greeting becomes the user's first message."""
    asked = sillytavern([
        {"role": "system", "content": MAIN}, {"role": "user", "content": START},
        {"role": "assistant", "content": GREETING}, {"role": "user", "content": SAID},
    ])  # fmt: skip
    assert (asked.system, asked.history, asked.text) == (MAIN, ((START, GREETING),), SAID)
    assert asked.stream and asked.limit == 300 and (asked.sampling.temperature, asked.sampling.top_p) == (1, 1)


def test_sillytavern_s_other_samplers():
    chat = [{"role": "user", "content": SAID}]
    asked = sillytavern(chat, top_k=40, seed=5, n=2, stop=["\nUser:", "\nMags:"])
    assert (asked.sampling.top_k, asked.sampling.seed, asked.choices) == (40, 5, 2)
    assert asked.stop == ("\nUser:", "\nMags:")
    included = sillytavern(chat, min_p=0.05, repetition_penalty=1.1)  # by "Include Body Parameters"
    assert (included.sampling.min_p, included.sampling.repetition_penalty) == (0.05, 1.1)


def test_sillytavern_without_post_processing_is_told_why_not():
    greeted = [{"role": "assistant", "content": GREETING}, {"role": "user", "content": SAID}]
    asked = sillytavern([{"role": "system", "content": MAIN}, *greeted])
    assert (asked.system, asked.history, asked.text) == (MAIN, (("", GREETING),), SAID)
    with pytest.raises(ApiError, match="A system message stands before all others"):
        sillytavern([*greeted, {"role": "system", "content": START}])
    with pytest.raises(ApiError, match="frequency_penalty"):
        sillytavern([{"role": "user", "content": SAID}], frequency_penalty=0.7)
