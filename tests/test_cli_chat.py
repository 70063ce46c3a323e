"""`chat` with the sampling and the system prompt that other programs take."""

import pytest
from tiny_models import write_adapter

from tests.cli_fixtures import CARD

pytest_plugins = "tests.cli_fixtures"
SHORT = ["--max-new-tokens", "12"]


@pytest.fixture
def ready(tiny_gemma, tmp_path):
    write_adapter(tiny_gemma, tmp_path / "given" / "adapter", template="gemma-base", card=CARD)
    return tmp_path / "given"


def test_chat_takes_the_sampling_that_others_name(value, ready, tiny_gemma):
    def turn(*words) -> dict:
        return value("chat", ready, "--prompt", "hi", "--base", tiny_gemma, *SHORT, *words)["turns"][0]

    greedy = turn("--temperature", 0)
    likeliest = turn("--top-k", 1, "--temperature", 1.5, "--top-p", 1, "--seed", 5)
    assert (likeliest["base"], likeliest["adapter"]) == (greedy["base"], greedy["adapter"])
    assert turn("--temperature", 0, "--repetition-penalty", 2)["adapter"] != greedy["adapter"]
    warm = ("--temperature", 1.5, "--seed", 3)
    assert turn(*warm, "--top-p", 1)["adapter"] != turn(*warm, "--top-p", 0.01)["adapter"]


def test_chat_with_another_system_prompt(value, ready, tiny_gemma):
    words = ["chat", ready, "--prompt", "hi", "--base", tiny_gemma, "--with", "base+prompt", "--with", "base", *SHORT]

    def prompts(*more) -> list[str]:
        return [c["rendered"] for c in value(*words, *more)["turns"][0]["columns"]]

    assert ["Be dry." in p for p in prompts()] == [True, True, True, False]
    assert ["Be loud." in p for p in prompts("--system", "Be loud.")] == [True, True, True, False]
    assert not any("Be dry." in p for p in [*prompts("--system", "Be loud."), *prompts("--system", "")])


def test_chat_refuses_sampling_out_of_range(refused, ready, tiny_gemma):
    words = ["chat", ready, "--prompt", "a", "--base", tiny_gemma]
    assert "top_p=0.0, top_k=0: top_p is in (0, 1]" in refused(*words, "--top-p", 0)
    assert "repetition_penalty=3.0: from 1" in refused(*words, "--repetition-penalty", 3)
    assert "'nope': no such template" in refused(*words, "--template", "nope")
