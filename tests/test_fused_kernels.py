"""The kernels of a training step compute what the stock modules compute, forward and backward, and go at its end."""

import contextlib
from typing import Any

import pytest
import torch
from tiny_models import load, lora_gradients, with_lora
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama

from persona.models.hardware import DevicePlan
from persona.models.loss import nll_sum
from persona.template.render import IGNORE_INDEX
from persona.train import fused_kernels
from persona.train import run as train_run
from persona.train.collator import Collator

pytest_plugins = "training"
LENGTHS = (23, 9, 31, 16)


@pytest.fixture(params=["tiny_gemma", "tiny_llama"])
def base(request):
    return request.getfixturevalue(request.param)


def batch(vocabulary: int, lengths=LENGTHS, **settings):
    torch.manual_seed(0)
    rows = [torch.randint(3, vocabulary, (n,)).tolist() for n in lengths]
    return Collator(0, **settings)(
        [{"input_ids": ids, "labels": [IGNORE_INDEX] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in rows]
    )


def learn(model, given):
    value, _ = nll_sum(model, given["input_ids"], given["labels"], given.get("position_ids"))
    value.backward()
    return value.item(), lora_gradients(model)


def both(base, given, dtype="float32", **settings):
    stock = learn(with_lora(load(base, dtype), **settings), given)
    fast = with_lora(load(base, dtype), **settings)
    with fused_kernels.fused_kernels(fast):
        return stock, learn(fast, given)


def used(monkeypatch, *functions: str) -> dict[str, int]:
    """How often each of the autograd functions is applied from now on."""
    counts = dict.fromkeys(functions, 0)
    for name in functions:
        plain = getattr(fused_kernels, name).apply

        def count(*args, name=name, plain=plain):
            counts[name] += 1
            return plain(*args)

        monkeypatch.setattr(getattr(fused_kernels, name), "apply", count)
    return counts


@pytest.mark.parametrize("settings", [{}, {"target_modules": ["q_proj", "o_proj"]}, {"use_rslora": True},
                                      {"lora_bias": True}, {"use_dora": True}],
                         ids=["all", "attention", "rslora", "bias", "dora"])  # fmt: skip
def test_loss_and_gradients_are_the_stock_ones(base, settings):
    (want, expected), (got, found) = both(base, batch(200), **settings)
    assert got == pytest.approx(want, rel=1e-5)
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-5 * gradient.abs().max().item(), msg=name)


def test_in_bfloat16_they_are_as_near_to_float32_as_the_stock_ones(base):
    true, expected = both(base, batch(200))[0]
    (_, stock), (got, found) = both(base, batch(200), "bfloat16")
    assert got == pytest.approx(true, rel=0.01)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        off = [(g[name] - gradient).norm() / gradient.norm() for g in (stock, found)]
        assert off[1] < 1.5 * off[0] + 0.01, name


def test_every_layer_takes_the_faster_way(base, monkeypatch):
    counts = used(monkeypatch, "RMSNorm", "Rotate", "LoraLinear")
    model = with_lora(load(base))
    with fused_kernels.fused_kernels(model):
        tried = counts["RMSNorm"], counts["Rotate"]
        learn(model, batch(200))
    norms = sum("RMSNorm" in type(m).__name__ for m in model.modules())
    assert counts["RMSNorm"] - tried[0] == norms
    assert counts["Rotate"] - tried[1] == 2 * 2, "queries and keys, two layers"
    assert counts["LoraLinear"] == 2 * 7


def test_the_base_alone_and_generation_are_the_stock_ones(base):
    stock, fast = with_lora(load(base)), with_lora(load(base))
    ids = torch.arange(5, 12)[None]
    with torch.no_grad(), fused_kernels.fused_kernels(fast):
        with stock.disable_adapter(), fast.disable_adapter():
            assert torch.allclose(stock(ids).logits, fast(ids).logits, atol=1e-5)
        said = [m.generate(ids, max_new_tokens=8, do_sample=False) for m in (stock, fast)]
    assert said[0].tolist() == said[1].tolist()


def test_a_norm_that_computes_something_else_keeps_its_own():
    class OddRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.rand(8), requires_grad=False), 1e-6

        def forward(self, x):
            return x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + self.eps) * self.weight

    assert fused_kernels._find_norm_kernel(OddRMSNorm()) is None


# --- what a run changes in this process, and takes back -------------------------------------------------------------


def patched(model=None) -> dict[str, Any]:
    """All that the kernels replace: in transformers' modules, and in a model."""
    state: dict[str, Any] = {c.__name__: dict(vars(c)) for c in (modeling_gemma3, modeling_llama)}
    if model is not None:
        state["forwards"] = {n: vars(m)["forward"] for n, m in model.named_modules() if "forward" in vars(m)}
    return state


@pytest.mark.parametrize("error", [None, ValueError], ids=["after the end", "after an error"])
def test_model_and_transformers_are_as_before(base, error):
    model = with_lora(load(base))
    before = patched(model)
    with contextlib.suppress(ValueError), fused_kernels.fused_kernels(model):
        during = patched(model)
        assert during["forwards"]
        code = type(model.get_base_model()).__module__
        assert during[code]["apply_rotary_pos_emb"] is not before[code]["apply_rotary_pos_emb"]
        if error:
            raise error
    assert patched(model) == before


@pytest.mark.parametrize("error", [None, ZeroDivisionError], ids=["done", "failed"])
def test_a_run_in_this_process_leaves_transformers_as_it_was(make, monkeypatch, error):
    before, during = patched(), []

    real = train_run.start_or_resume

    def start(*args):
        during.append(patched())
        if error:
            raise error
        real(*args)

    monkeypatch.setattr(train_run, "start_or_resume", start)
    with contextlib.suppress(ZeroDivisionError):
        train_run.train_run(make(max_steps=1))
    assert during and during[0] != before
    assert patched() == before


@pytest.mark.parametrize(
    ("device", "dtype", "engine", "used"),
    [
        ("cpu", "float32", "none", True),
        ("cuda", "bfloat16", "none", True),
        ("cuda", "float16", "none", False),  # on a card other losses than the stock modules'
        ("cuda", "bfloat16", "liger", False),
    ],
)
def test_which_runs_train_with_the_kernels(device, dtype, engine, used):
    assert fused_kernels.are_used(DevicePlan(device, dtype, dtype, ""), engine) is used
