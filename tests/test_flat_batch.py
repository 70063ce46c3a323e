"""A batch without padding, whose shared beginning is computed once, has the loss and the gradients of the padded one."""

import contextlib
from typing import Any

import pytest
import torch
from cases import check_each
from test_packing import leaky
from tiny_models import load, lora_gradients, with_lora
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from persona.models import flat_batch, loss
from persona.models.loss import nll_sum
from persona.template.render import IGNORE_INDEX
from persona.train import run as train_run
from persona.train.collator import Collator

pytest_plugins = "training"
SHARED = [5, 6, 7, 8, 9]


@pytest.fixture(params=["tiny_gemma", "tiny_llama"])
def base(request):
    return request.getfixturevalue(request.param)


def batch(*rows: tuple[list[int], list[bool]]) -> dict[str, torch.Tensor]:
    """Rows of token ids, and which of them are learned, padded."""
    return Collator(0)(
        [
            {"input_ids": ids, "labels": [i if on else IGNORE_INDEX for i, on in zip(ids, learned, strict=True)]}
            for ids, learned in rows
        ]
    )


def row(*numbers: int, start: list[int] = SHARED, learned: int = 2) -> tuple[list[int], list[bool]]:
    """A row that begins with `start`, of which the last tokens are learned."""
    ids = [*start, *numbers]
    return ids, [n >= len(ids) - learned for n in range(len(ids))]


def learn(model: Any, given: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    value, _ = nll_sum(model, given["input_ids"], given["labels"], given.get("position_ids"))
    value.backward()
    return value.item(), lora_gradients(model)


@contextlib.contextmanager
def seen_tokens(model: Any):
    """How many tokens the base is given by each call."""
    counts: list[int] = []
    hook = model.get_base_model().get_input_embeddings().register_forward_hook(
        lambda module, ids, out: counts.append(ids[0].numel())
    )  # fmt: skip
    yield counts
    hook.remove()


def test_the_layout():
    flat = flat_batch.flatten_batch(**{
        name: batch(row(10, 11, 12), row(20, 21, 22, 23, 24), row(30, 31, learned=1))[name] for name in ("input_ids", "labels")
    })  # fmt: skip
    assert flat.prefix == 5
    # the last token of a row predicts nothing
    assert flat.ids[0, :12].tolist() == [*SHARED, 10, 11, 20, 21, 22, 23, 30]
    assert flat.positions[0, :12].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 5]
    assert flat.ids.shape == (1, flat_batch.FLAT_MULTIPLE)
    assert flat.place[1, :9].tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10]


def many(length: int) -> list[int]:
    torch.manual_seed(length)
    return torch.randint(3, 140, (length,)).tolist()


BATCHES = {
    "a shared beginning": [row(*many(9)), row(*many(4)), row(*many(11))],
    "none": [row(*many(9), start=[10]), row(*many(4), start=[11])],
    "one row": [row(*many(9))],
    "the same row twice": [row(*many(9)), row(*many(9))],
    "a row that is another's beginning": [row(1, 2, 3), row(1, 2, 3, 4, 5, 6)],
    "a row that learns nothing": [row(*many(6)), row(*many(11), learned=0), row(*many(7))],
    "the shared beginning is learned too": [row(*many(3), learned=6), row(*many(5), learned=8)],
    "several replies in a row": [
        (SHARED + many(8), [n in (7, 8, 11, 12) for n in range(13)]), (SHARED + many(6), [n == 6 for n in range(11)]),
    ],
    "all is learned": [(many(8), [True] * 8), (many(5), [True] * 5)],
}  # fmt: skip


@pytest.mark.parametrize("limit", [flat_batch.MAX_SHORT_ROW, 8], ids=["short", "long"])
def test_loss_and_gradients_are_those_of_the_padded_batch(base, limit, monkeypatch):
    """limit: rows of more tokens take torch's attention."""
    monkeypatch.setattr(flat_batch, "MAX_SHORT_ROW", limit)
    stock, model = with_lora(load(base)), with_lora(load(base))

    def check(name: str, rows: Any) -> None:
        given = batch(*rows)
        want, expected = learn(stock, given)
        with flat_batch.flat_batches(model), seen_tokens(model) as seen:
            got, found = learn(model, given)
        assert seen == [flat_batch.flatten_batch(given["input_ids"], given["labels"]).ids.numel()]
        assert got == pytest.approx(want, rel=1e-5)
        assert found.keys() == expected.keys() and expected
        for weight, gradient in expected.items():
            near = 2e-5 * max(gradient.abs().max().item(), 1e-3)
            torch.testing.assert_close(found[weight], gradient, rtol=1e-3, atol=near, msg=f"{name}: {weight}")

    check_each({name: (name, rows) for name, rows in BATCHES.items()}, check)


def test_it_computes_what_the_padded_batch_repeats(tiny_llama):
    given = batch(*[row(*many(n), start=many(40)) for n in (4, 9, 5, 12, 7, 6, 11, 8)])
    model = with_lora(load(tiny_llama))
    with flat_batch.flat_batches(model), seen_tokens(model) as seen:
        learn(model, given)
    assert given["input_ids"].numel() == 8 * 56
    assert seen == [96], "40 once, 54 of the rows, filled up"


@pytest.mark.parametrize(("kind", "dtype"), [("lfm2", "float32"), ("qwen3_next", "float32"), ("lfm2", "bfloat16")])
def test_a_base_that_mixes_tokens_without_attention_keeps_padded_batches(kind, dtype):
    model = with_lora(leaky(kind).to(getattr(torch, dtype)), target_modules=["q_proj", "v_proj"])
    given = batch(*[row(*many(n)) for n in (9, 4, 11)])
    with flat_batch.flat_batches(model), seen_tokens(model) as seen:
        learn(model, given)
    assert seen == [given["input_ids"].numel()]


def test_packed_rows_and_long_rows_are_left_to_torchs_attention(tiny_llama, monkeypatch):
    """Of batches that are not flat: the packed ones, and those of a model that computes no flat ones."""
    left, real = [], flat_batch.sdpa_attention_forward
    monkeypatch.setattr(
        flat_batch, "sdpa_attention_forward", lambda *a, **k: (left.append(a[1].shape[2]), real(*a, **k))[1]
    )
    monkeypatch.setattr(loss, "flatten_if_possible", lambda *given: None)
    rows = [row(*many(n)) for n in (9, 4, 30)]
    for limit, pack, expected in ((256, 64, [64] * 2), (256, 0, []), (16, 0, [40] * 2)):
        given = Collator(0, pack=pack)([{"input_ids": ids, "labels": ids} for ids, _ in rows])
        stock, model = with_lora(load(tiny_llama)), with_lora(load(tiny_llama))
        monkeypatch.setattr(flat_batch, "MAX_SHORT_ROW", limit)
        with flat_batch.flat_batches(model):
            left.clear()
            got, found = learn(model, given)
        assert left == expected
        want, gradients = learn(stock, given)
        assert got == pytest.approx(want, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=5e-5 * gradient.abs().max().item())


def test_rows_longer_than_a_layer_sees_are_padded(tiny_gemma):
    """Its first layer sees 16 tokens."""
    stock, model = with_lora(load(tiny_gemma)), with_lora(load(tiny_gemma))
    for length, flat in ((12, True), (13, False)):
        given = batch(row(*many(length)), row(*many(3)), row(*many(4)))
        with flat_batch.flat_batches(model), seen_tokens(model) as seen:
            got, _ = learn(model, given)
        assert (seen != [given["input_ids"].numel()]) is flat
        assert got == pytest.approx(learn(stock, given)[0], rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_bfloat16_it_is_recognized_too(base, dtype):
    model = with_lora(load(base, dtype))
    with flat_batch.flat_batches(model):
        assert model.get_base_model().persona_flat


@pytest.mark.parametrize("error", [None, ValueError], ids=["after the end", "after an error"])
def test_the_model_is_as_before(base, error):
    def state() -> dict[str, Any]:
        return {"attention": dict(ALL_ATTENTION_FUNCTIONS), "masks": dict(ALL_MASK_ATTENTION_FUNCTIONS),
                "implementation": model.get_base_model().config._attn_implementation,
                "attributes": set(vars(model.get_base_model()))}  # fmt: skip

    model = with_lora(load(base))
    before = state()
    with contextlib.suppress(ValueError), flat_batch.flat_batches(model):
        assert all(state()[name] != before[name] for name in before)
        if error:
            raise error
    assert state() == before


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_with_flat_batches_is_the_run(make, monkeypatch, checkpointing):
    settings = {"dtype": "float32", "max_steps": 4, "batch_size": 4, "gradient_checkpointing": checkpointing}
    curves, real = [], flat_batch.flat_batches
    used: list[bool] = []

    @contextlib.contextmanager
    def watched(model):
        with real(model):
            used.append(model.get_base_model().persona_flat)
            yield

    for replacement in (watched, lambda model: contextlib.nullcontext()):
        monkeypatch.setattr(flat_batch, "flat_batches", replacement)
        run = make(**settings)
        train_run.train_run(run)
        progress = run.progress()
        curves.append([*progress.train, *progress.held_out])
    assert used == [True]
    assert curves[0] == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in curves[1]]


@pytest.mark.slow
def test_noise_on_embeddings_goes_by_the_length_of_a_row(make, monkeypatch):
    def fail(model):
        raise AssertionError("a flat batch shows no lengths")

    monkeypatch.setattr(flat_batch, "flat_batches", fail)
    train_run.train_run(make(max_steps=1, neftune_noise_alpha=5))
