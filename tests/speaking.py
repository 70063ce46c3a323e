"""Fixtures for tests of chat: a tiny base with two adapters, and helpers to generate. Load with pytest_plugins."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny_models import write_adapter

from persona.compare.model_queue import MODEL_QUEUE
from persona.compare.session import LoadedModel, stream_replies
from persona.models import adapter, generate
from persona.models.base import Base
from persona.models.sampling import Sampling
from persona.template.render import ChatPrompt

GREEDY = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=24)
WARM = Sampling(temperature=0.9, top_p=0.95, seed=7, max_new_tokens=24)
WAYS = {"greedy": GREEDY, "warm": WARM, "top-k": replace(WARM, top_k=12, top_p=1.0)}
NEVER = -1  # a stop id that is never sampled; the tokenizer's own eos still stops a reply


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_gemma):
    """Two adapters of the tiny Gemma, of different rank."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(tiny_gemma, folder / "one", seed=1, template="gemma-base")
    write_adapter(tiny_gemma, folder / "two", seed=2, template="gemma-base", r=2, target_modules=["q_proj", "up_proj"])
    return [adapter.read_adapter(folder / "one"), adapter.read_adapter(folder / "two")]


def quiet(model, *stops: int):
    """Suppress the stop tokens, so that the replies of a random model run to the limit."""
    real = model.get_output_embeddings().forward

    def forward(hidden):
        scores = real(hidden)
        scores[..., list(stops)] = -1e4
        return scores

    model.get_output_embeddings().forward = forward
    return model


@pytest.fixture
def model(tiny_gemma):
    made = LoadedModel(Base("someone/tiny", tiny_gemma))
    quiet(made.model, made.tokenizer.eos_token_id)
    return made


def prompt(*ids: int) -> ChatPrompt:
    return ChatPrompt("", [2, *ids])


SHORT, LONG = prompt(301, 302), prompt(*range(270, 300), 310, 300, 350)  # LONG is beyond the sliding window of 16
PROMPTS = {"equal": (SHORT, SHORT, SHORT), "different": (SHORT, LONG, prompt(*range(280, 291)))}


def say(model, columns, sampling=GREEDY, stop_id=NEVER):
    """The last replies."""
    *_, last = stream_replies(model, columns, sampling, stop_id)
    return last


def is_busy() -> bool:
    """Whether a turn is running on the model."""
    return bool(MODEL_QUEUE.active)


def at(strength, columns):
    return [replace(c, strength=strength) for c in columns]


def changed(model) -> int:
    """The number of LoRA layers whose forward is patched."""
    return sum("forward" in m.__dict__ for m in model.modules() if isinstance(m, LoraLayer))


# ---- the end of a reply


def script(monkeypatch, *steps: list[int]):
    """Replace sampling: the tokens of each column, step by step."""
    todo = iter(steps)
    monkeypatch.setattr(generate.Sampler, "__call__", lambda *_: torch.tensor(next(todo)))


def letters(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
