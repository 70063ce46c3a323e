"""Where a LoRA goes and how it begins: names, regular expressions, PiSSA."""

import contextlib
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import load
from training import build

from persona.errors import InputError
from persona.models import adapter, attach, placement
from persona.models.loss import nll_sum
from persona.train import fused_kernels, lora_config
from persona.train import run as train_run
from persona.train.config import RunConfig

pytest_plugins = "training"
pytestmark = pytest.mark.usefixtures("plain_cpu")
ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def make(make):
    return partial(make, max_steps=6, lora_r=4)


def chosen(folder, wanted: str) -> set[str]:
    from peft import get_peft_model

    model = get_peft_model(
        load(folder), lora_config.make_lora_config(RunConfig(target_modules=wanted, lora_r=2), load(folder))
    )
    return {n for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")}


# ---- where


def both(parts) -> set[str]:
    """These parts in both layers."""
    return {f"model.layers.{n}.{'self_attn' if p in ATTENTION else 'mlp'}.{p}" for n in (0, 1) for p in parts}


WANTED = {
    "all-linear": both(ATTENTION | MLP),
    "attention": both(ATTENTION),
    "mlp": both(MLP),
    " attention+mlp ": both(ATTENTION | MLP),
    "q_proj, up_proj": both({"q_proj", "up_proj"}),
    "mlp.up_proj": both({"up_proj"}),
    r"re:.*\.(q|v)_proj": both({"q_proj", "v_proj"}),
    r"re:model\.layers\.1\..*": {n for n in both(ATTENTION | MLP) if ".1." in n},
}


@pytest.mark.parametrize("wanted", WANTED)
def test_the_layers_that_are_asked_for(tiny_gemma, wanted):
    assert chosen(tiny_gemma, wanted) == WANTED[wanted]


NOT_THERE = {
    "nope": r"this base has no layer 'nope'\. It has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
    "q_proj, nope, no": r"no layer 'nope, no'\.",
    "proj": r"no layer 'proj'\.",
    "embed_tokens": r"no layer 'embed_tokens'\.",
    ", ": r"no layer ','\.",
    "re:q_proj": r"re:q_proj: matches no linear layer\. It must match a whole name, such as model\.layers\.0\.self_attn\.q_proj or lm_head",
    "re:(": r"re:\(: not a regular expression \(missing \)",
}  # fmt: skip


@pytest.mark.parametrize("wanted", NOT_THERE)
def test_what_is_not_there_is_refused_with_what_is(tiny_gemma, wanted):
    with pytest.raises(InputError, match=NOT_THERE[wanted]):
        lora_config.select_target_modules(load(tiny_gemma), wanted)


# ---- PiSSA


def halves(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer part → its trained and its fixed half."""
    found = {}
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            found[name] = weight.detach().clone().chunk(2, 0)
        elif "lora_B" in name:
            found[name] = weight.detach().clone().chunk(2, 1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_it_is_pissa(make, tiny_gemma, changes):
    """Loss and gradients are those of PEFT's own, which changes the base; here the base is not touched."""
    from peft import LoraConfig, get_peft_model

    prepared, trainer = build(make(init_lora_weights="pissa", **changes))
    batch = trainer.data_collator([{"input_ids": e.input_ids, "labels": e.labels} for e in prepared.train])
    settings = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights="pissa",
                          task_type="CAUSAL_LM", **changes)  # fmt: skip
    theirs = get_peft_model(load(tiny_gemma), settings).train()
    stored = load(tiny_gemma).state_dict()
    inner = trainer.model.get_base_model().state_dict()
    assert all(torch.equal(inner[n] if n in inner else inner[n.replace(".weight", ".base_layer.weight")], w)
               for n, w in stored.items())  # fmt: skip
    losses = []
    for model in (trainer.model, theirs):
        total, _ = nll_sum(model, batch["input_ids"], batch["labels"])
        total.backward()
        losses.append(total.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    want = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for name, weight in trainer.model.named_parameters():
        if "lora_" not in name:
            continue
        grad = weight.grad
        if "lora_magnitude" not in name:
            grad, still = grad.chunk(2, 0 if "lora_A" in name else 1)
            assert not still.any()
        # a direction may come out with the other sign: A's and B's turn together
        assert torch.allclose(grad.abs(), want[name].abs(), atol=2e-4 * want[name].abs().max().item()), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "init, dtype",
    [
        ("pissa", "float32"),
        pytest.param("pissa_niter_4", "bfloat16", marks=pytest.mark.release),
        pytest.param("pissa", "bfloat16", marks=pytest.mark.release),
        pytest.param("pissa_niter_4", "float32", marks=pytest.mark.release),
    ],
)
def test_a_pissa_run_leaves_a_plain_adapter_and_the_base_as_it_is(make, seen, tiny_gemma, monkeypatch, dtype, init):
    # they round differently in the last bit
    monkeypatch.setattr(fused_kernels, "fused_kernels", lambda model: contextlib.nullcontext())
    run = make(init_lora_weights=init, dtype=dtype)
    result = train_run.train_run(run)
    assert result["adapter_nll"] < result["base_nll"] - 0.05
    trained, opened = seen.trainer.model.eval(), adapter.read_adapter(run.adapter)
    assert (opened.settings["r"], opened.settings["lora_alpha"]) == (8, 128)
    ids = torch.tensor([seen.prepared.train[0].input_ids])
    plain = load(tiny_gemma, dtype)
    with torch.no_grad(), placement.lora_autocast(plain):
        alone = plain(input_ids=ids).logits
        with trained.disable_adapter():
            assert torch.equal(trained(input_ids=ids).logits, alone)
        model = attach.attach_adapter(load(tiny_gemma, dtype), opened, "x")
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, alone)
        out, want = model(input_ids=ids).logits, trained(input_ids=ids).logits
    assert torch.equal(out, want) and (out - alone).abs().max() > 0.01
    for a, b in halves(trained).values():
        assert not torch.equal(a.abs(), b.abs())


@pytest.mark.slow
@pytest.mark.release
def test_the_fixed_half_never_moves_and_a_stopped_run_ends_the_same(make, monkeypatch):
    ends = {}
    for name in ("whole", "stopped"):
        run = make(init_lora_weights="pissa", learning_rate=0.05)
        if name == "stopped":
            run.stop()
            assert train_run.train_run(run)["steps"] == 1
            (run.path / "stop").unlink()
        result = train_run.train_run(run)
        assert (result["status"], result["steps"]) == ("done", 6)
        ends[name] = load_file(run.adapter / "adapter_model.safetensors")
        _, trainer = build(make(init_lora_weights="pissa"))
        for part, (_, still) in halves(trainer.model).items():
            saved = ends[name][part.replace(".default", "")].chunk(2, 0 if "lora_A" in part else 1)
            assert torch.equal(saved[1], still) and not torch.equal(saved[0].abs(), still.abs()), part
    assert all(torch.allclose(w, ends["stopped"][n], atol=1e-6) for n, w in ends["whole"].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, why",
    [
        ({"lora_r": 17}, r"lora_r=17 with pissa: model\.layers\.0\.self_attn\.k_proj has only 16 directions\. Lower"),
        ({"quantization": "nf4"}, "init_lora_weights=pissa begins from .*quantization=nf4 they are rounded"),
        ({"quantization": "int8"}, "init_lora_weights=pissa begins from .*quantization=int8 they are rounded"),
        ({"weight_decay": 0.1}, "init_lora_weights=pissa with weight_decay: .*Set weight_decay to 0"),
    ],
)
def test_where_pissa_cannot_be(make, changes, why):
    run = make(init_lora_weights="pissa", **changes)
    with pytest.raises(InputError, match=why):
        train_run.train_run(run)
    shutil.rmtree(run.path)


def test_only_pissa_is_pissa():
    inits = ("pissa", "pissa_niter_4", "default", "gaussian")
    assert [RunConfig(init_lora_weights=x).is_pissa for x in inits] == [True, True, False, False]
