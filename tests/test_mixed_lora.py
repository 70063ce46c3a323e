"""A batch whose rows have their own LoRAs: each row is what PEFT computes for it alone."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tiny_models import load, with_lora, write_adapter

from persona.models import adapter, attach
from persona.models.mixed_lora import MixedLora

IDS = torch.tensor([[2, 301, 302, 5, 280, 7], [2, 290, 291, 9, 6, 300]])


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def mixed(model, mixes, ids=IDS):
    with MixedLora(model, mixes):
        return logits(model, ids)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_gemma):
    """Four adapters on one base: all layers; two layers of another rank; DoRA; rank-stabilised."""
    folder = tmp_path_factory.mktemp("mixed")
    settings = {
        "one": {}, "two": {"r": 2, "target_modules": ["q_proj", "up_proj"]}, "dora": {"use_dora": True},
        "stable": {"use_rslora": True, "r": 3},
    }  # fmt: skip
    made = load(tiny_gemma)
    for seed, (name, chosen) in enumerate(settings.items(), 1):
        write_adapter(tiny_gemma, folder / name, seed=seed, template="gemma-base", **chosen)
        made = attach.attach_adapter(made, adapter.read_adapter(folder / name), name)
    for layer in made.modules():
        if isinstance(layer, LoraLayer) and "dora" in layer.lora_magnitude_vector:
            with torch.no_grad():  # as a training would move it
                layer.lora_magnitude_vector["dora"].weight.mul_(1 + 0.3 * torch.rand(layer.out_features))
    return made


@pytest.fixture
def alone(model):
    """What PEFT itself computes with one adapter switched on."""

    def run(name, ids=IDS):
        if not name:
            with model.disable_adapter():
                return logits(model, ids)
        model.set_adapter(name)
        return logits(model, ids)

    return run


@pytest.mark.parametrize("pair", [("", "one"), ("one", "two"), ("dora", ""), ("two", "dora"), ("stable", "stable")])
def test_every_row_is_what_peft_computes_for_it_alone(model, alone, pair):
    got = mixed(model, [((name, 1.0),) if name else () for name in pair])
    for row, name in enumerate(pair):
        assert torch.allclose(got[row], alone(name)[row], atol=1e-5)
    assert (alone(pair[0] or pair[1]) - alone("")).abs().max() > 0.1, "or this test sees nothing"


def test_it_is_what_pefts_own_mixed_batch_computes(model):
    names = ["__base__", "one", "two", "stable"]
    ids = IDS[:1].repeat(4, 1)
    with torch.no_grad():
        want = model(input_ids=ids, use_cache=False, adapter_names=names).logits
    assert torch.allclose(mixed(model, [(), *(((n, 1.0),) for n in names[1:])], ids), want, atol=1e-5)


def test_half_an_adapter_is_what_peft_scales_it_to(model, alone):
    full = alone("one")
    attach.set_adapter_strength(model, "one", 0.5)
    half = alone("one")
    attach.set_adapter_strength(model, "one", 1)
    got = mixed(model, [(("one", 0.5),), (("one", 1.0),)])
    assert torch.allclose(got[0], half[0], atol=1e-5) and torch.allclose(got[1], full[1], atol=1e-5)
    assert (half - full).abs().max() > 0.1


def test_a_blend_is_the_sum_of_both_updates(model, alone):
    """Against PEFT's add_weighted_adapter, which stacks them too (cat, for ranks that differ)."""
    model.add_weighted_adapter(["one", "two"], [0.7, 0.4], "both", combination_type="cat")
    want = alone("both")
    model.delete_adapter("both")
    for mix in ((("one", 0.7), ("two", 0.4)), (("two", 0.4), ("one", 0.7))):
        got = mixed(model, [(), mix])
        assert torch.allclose(got[1], want[1], atol=1e-5) and torch.allclose(got[0], alone("")[0], atol=1e-5)
    assert (want - alone("one")).abs().max() > 0.1


def test_strength_of_dora_goes_from_the_base_to_what_was_trained(model, alone, tiny_gemma):
    """Half of it is half the way of the weights: compared with a model whose weights were moved there."""
    got = mixed(model, [(("dora", 0.0),), (("dora", 0.5),)])
    assert torch.allclose(got[0], alone("")[0], atol=1e-5)
    model.set_adapter("dora")
    moved = load(tiny_gemma)
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            with torch.no_grad():
                weight = layer.base_layer.weight
                whole = weight + layer.get_delta_weight("dora")
                whole *= (layer.lora_magnitude_vector["dora"].weight / whole.norm(dim=1))[:, None]
                moved.get_submodule(name).weight.copy_((weight + whole) / 2)
    assert torch.allclose(got[1], logits(moved)[1], atol=1e-5)
    assert (got[1] - alone("")[1]).abs().max() > 0.05


def test_rows_leave_and_the_others_keep_their_adapters(model, alone):
    with MixedLora(model, [(("one", 1.0),), (), (("two", 1.0),)]) as batch:
        batch.keep_rows([1, 2])
        got = logits(model)
        batch.keep_rows([1])
        last = logits(model, IDS[1:])
    assert torch.allclose(got[0], alone("")[0], atol=1e-5) and torch.allclose(got[1], alone("two")[1], atol=1e-5)
    assert torch.allclose(last[0], alone("two")[1], atol=1e-5)


def test_the_model_is_as_before_after_the_end_and_after_an_error(model, alone):
    before = alone("one")
    for error in (None, KeyboardInterrupt):
        try:
            with MixedLora(model, [(("two", 1.0),), ()]):
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert not any("forward" in m.__dict__ for m in model.modules())
        assert torch.equal(alone("one"), before)


def test_a_layer_with_a_bias_keeps_it():
    """DoRA scales what the weights say, never the bias."""
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(8, 6))
    model = with_lora(inner, target_modules=["0"], use_dora=True, task_type=None)
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].weight.mul_(1.5)
        x = torch.randn(2, 3, 8)
        want = model(x)
        with MixedLora(model, [(("default", 1.0),), ()]):
            got = model(x)
        assert torch.allclose(got[0], want[0], atol=1e-5) and torch.allclose(got[1], layer.base_layer(x)[1])


def test_a_plain_model_has_nothing_to_mix(tiny_gemma):
    plain = load(tiny_gemma)
    assert not isinstance(plain, PeftModel)
    assert torch.equal(mixed(plain, [(), ()]), logits(plain))
