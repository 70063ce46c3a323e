"""A stop token that the base never learned, seen in its files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import load

from persona.models import stop_token
from persona.models.base import Base
from persona.template.chat_template import read_template
from persona.template.render import Renderer


@pytest.mark.parametrize("tiny", ["tiny_gemma", "tiny_llama"])
def test_random_rows_have_no_twins(request, tiny):
    weight = load(request.getfixturevalue(tiny)).get_output_embeddings().weight
    assert max(stop_token.count_similar_rows(weight[t], [weight]) for t in range(0, len(weight), 7)) == 0


@pytest.mark.parametrize("alike, count", [(0, 0), (1, 0), (2, 1), (1200, 1199)])
def test_twins_are_counted_by_direction_and_not_by_length(alike, count):
    """Over two tiles of rows, of any length, the token itself not counted."""
    torch.manual_seed(0)
    weight = torch.randn(20_000, 32)
    places = torch.randperm(20_000)[: max(alike, 1)]
    if alike:
        weight[places] = torch.randn(32) + 0.02 * torch.randn(alike, 32)
        weight[places] *= torch.rand(alike, 1) + 0.1
    assert stop_token.count_similar_rows(weight[int(places[0])], weight.split(1000)) == count
    assert stop_token.count_similar_rows(weight.bfloat16()[int(places[0])], [weight.bfloat16()]) == count


def stored(folder: Path, **tensors) -> Base:
    """A base of which only some tensors matter, in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, (name, tensor) in enumerate(tensors.items()):
        save_file({name.replace("__", "."): tensor.contiguous()}, folder / f"model-{n}.safetensors")
    return Base(folder.name, folder)


def unlearned(rows: int, alike: int) -> torch.Tensor:
    torch.manual_seed(1)
    weight = torch.randn(rows, 16)
    weight[3 : 3 + alike] = torch.randn(16)
    return weight


@pytest.mark.parametrize("name", ["lm_head__weight", "model__embed_tokens__weight", "transformer__wte__weight",
                                  "output__weight", "model__tok_embeddings__weight", "gpt_neox__embed_in__weight",
                                  "embed_out__weight", "model__language_model__embed_tokens__weight"])  # fmt: skip
def test_the_output_rows_are_found_in_the_files_whatever_their_name(tmp_path, name):
    """Read in slices of the file, the count is that of the loaded matrix."""
    weight = unlearned(40_000, 1500)
    base = stored(tmp_path / "a", model__norm__weight=torch.ones(16), **{name: weight})
    assert stop_token.count_similar_rows_on_disk(base, 4) == stop_token.count_similar_rows(weight[4], [weight]) == 1499
    assert stop_token.count_similar_rows_on_disk(base, 1) == 0
    assert stop_token.count_similar_rows_on_disk(base, 40_000) is None


def test_an_output_layer_of_its_own_counts_and_not_the_embedding(tmp_path):
    base = stored(tmp_path / "a", model__embed_tokens__weight=unlearned(3000, 2000), lm_head__weight=unlearned(3000, 5))
    assert stop_token.count_similar_rows_on_disk(base, 3) == 4


def test_what_cannot_be_read_is_not_judged(tmp_path):
    assert stop_token.count_similar_rows_on_disk(stored(tmp_path / "a", odd__name=unlearned(2000, 1500)), 3) is None
    assert (
        stop_token.count_similar_rows_on_disk(
            stored(tmp_path / "b", model__layers__0__output__weight=unlearned(2000, 9)), 3
        )
        is None
    )
    broken = stored(tmp_path / "c", lm_head__weight=unlearned(2000, 1500))
    (broken.path / "model-0.safetensors").write_bytes(b"no")
    assert stop_token.count_similar_rows_on_disk(broken, 3) is None


@pytest.fixture
def pretrained(tiny_gemma, tmp_path, sentencepiece_tokenizer, monkeypatch) -> Base:
    """A base whose <end_of_turn> is like 99 other rows, and <eos> like none: 50 are many in so small a vocabulary."""
    monkeypatch.setattr(stop_token, "UNTRAINED_TWINS", 50)
    state = load_file(tiny_gemma / "model.safetensors")
    weight = state["model.embed_tokens.weight"]
    weight[-100:] = weight[-1]
    weight[sentencepiece_tokenizer.convert_tokens_to_ids("<end_of_turn>")] = weight[-1]
    return stored(tmp_path / "pretrained", model__embed_tokens__weight=weight)


def test_the_problem_names_every_way_out(pretrained, sentencepiece_tokenizer):
    why = stop_token.explain_untrained_stop(pretrained, Renderer(sentencepiece_tokenizer, read_template("gemma")))
    assert why.startswith(
        "pretrained with template gemma: this base never learned its stop token <end_of_turn>, whose "
    )
    assert "like those of 100 other" in why and "train_stop_token=true" in why and "instruct version" in why
    assert "(alpaca-en, alpaca-zh, gemma-base)" in why
    assert stop_token.find_templates_with_trained_stop(pretrained, sentencepiece_tokenizer) == [
        "alpaca-en",
        "alpaca-zh",
        "gemma-base",
    ]


def test_a_token_that_it_knows_is_no_problem(pretrained, sentencepiece_tokenizer, tiny_gemma):
    assert (
        stop_token.explain_untrained_stop(pretrained, Renderer(sentencepiece_tokenizer, read_template("gemma-base")))
        == ""
    )
    assert (
        stop_token.explain_untrained_stop(
            Base("x", tiny_gemma), Renderer(sentencepiece_tokenizer, read_template("gemma"))
        )
        == ""
    )
