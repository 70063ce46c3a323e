"""A merge into a base that is stored in 4 or 8 bits: into the model it was made from, or into dequantized weights."""

import importlib.util
import json

import pytest
import torch
from quantized_base import store_quantized
from tiny_models import load, make_adapter

from persona.models import base as bases
from persona.models import quantization
from persona.models.base import Base
from persona.share.exports import full_precision, merged_model

pytest_plugins = "quantized_base"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("plain_cpu"),
    pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed"),
]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_stored_weights_are_dequantized(full, tmp_path, kind):
    adapter, _ = make_adapter(full, tmp_path / "a")
    stored = store_quantized(full, tmp_path / "stored", kind)
    made = merged_model.export_merged_model(adapter, stored, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    assert made["difference"]["largest"] < 0.5 and made["difference"]["kl"] < 0.01
    (note,) = made["notes"]
    assert "was dequantized for the merge" in note and note in (tmp_path / "out/README.md").read_text()
    # the update is whole: merged - dequantized is merged - full, up to the rounding of the base and of bfloat16
    merged_model.export_merged_model(adapter, Base("someone/tiny", full), tmp_path / "plain")
    before, after, wanted = (load(f).state_dict() for f in (full, tmp_path / "out", tmp_path / "plain"))
    small = quantization.dequantize_model(load(stored.path, "bfloat16"), "float32").state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(after[name] - small[name], wanted[name] - before[name], atol=0.02, rtol=0.05)
    assert (small[name] - before[name]).abs().max() > 0


def test_the_model_it_was_made_from_is_taken_where_it_is_there(full, tmp_path, monkeypatch):
    adapter, _ = make_adapter(full, tmp_path / "a")
    stored, asked = store_quantized(full, tmp_path / "stored", "nf4"), []

    def resolve_base(name, progress):
        asked.append(name)
        return Base(name, full)

    monkeypatch.setattr(bases, "resolve_base", resolve_base)
    made = merged_model.export_merged_model(adapter, stored, tmp_path / "out")
    merged_model.export_merged_model(adapter, Base("someone/tiny", full), tmp_path / "plain")
    assert asked == ["someone/tiny"] and made["notes"][0].startswith("Merged into someone/tiny, which")
    assert all(torch.equal(a, b) for a, b in zip(load(tmp_path / "out").parameters(), load(tmp_path / "plain").parameters(), strict=True))  # fmt: skip


def test_another_model_of_that_name_is_not_taken(full, tiny_llama, tmp_path, monkeypatch):
    stored = store_quantized(full, tmp_path / "stored", "nf4")
    monkeypatch.setattr(bases, "resolve_base", lambda name, progress: Base(name, tiny_llama))
    assert full_precision.find_full_precision(stored, print) is None
    assert full_precision.find_full_precision(Base("someone/tiny-gptq", stored.path), print) is None
