"""A blend, or an adapter at a strength, as an adapter of its own: it computes what the parts together do."""

import json

import pytest
import torch
from tiny_models import load, write_adapter

from persona.errors import AdapterError, InputError
from persona.models import attach, blend
from persona.models.adapter import read_adapter
from persona.models.mixed_lora import MixedLora
from persona.train.config import RunConfig
from persona.train.parent import adopt_settings, read_parent

pytest_plugins = "tests.cli_fixtures"
pytestmark = pytest.mark.slow  # a base is loaded for nearly every test
IDS = torch.arange(1, 25)[None]


@pytest.fixture
def adapters(tiny_gemma, tmp_path):
    """Two of different rank, scale and layers, on one base."""
    write_adapter(tiny_gemma, tmp_path / "a", seed=1)
    write_adapter(tiny_gemma, tmp_path / "b", seed=2, r=6, use_rslora=True, target_modules=["q_proj", "down_proj"])
    return [read_adapter(tmp_path / name) for name in "ab"]


def logits(tiny_gemma, parts):
    """Of the base with these (adapter, weight) at once, as a chat computes them."""
    model = load(tiny_gemma)
    for n, (adapter, _) in enumerate(parts):
        model = attach.attach_adapter(model, adapter, f"a{n}")
    with torch.no_grad(), MixedLora(model, [tuple((f"a{n}", weight) for n, (_, weight) in enumerate(parts))]):
        return model(IDS).logits


def test_a_blend_computes_what_its_parts_do(adapters, tiny_gemma, tmp_path):
    a, b = adapters
    made = blend.save_blend([(a, "run/mags/x", 0.6), (b, "opened/b", 0.4)], tmp_path / "ab")
    assert (made.rank, made.error) == (10, 0.0)
    both, one = logits(tiny_gemma, [(a, 0.6), (b, 0.4)]), logits(tiny_gemma, [(read_adapter(tmp_path / "ab"), 1.0)])
    assert torch.allclose(both, one, atol=1e-4) and not torch.allclose(both, logits(tiny_gemma, [(a, 1.0)]), atol=1e-2)
    card = (tmp_path / "ab/README.md").read_text()
    assert "- A blend of run/mags/x at 0.6 and opened/b at 0.4, exact" in card and "Not measured" in card
    config = adopt_settings(RunConfig(), read_parent(tmp_path / "ab"))
    assert (config.lora_r, config.lora_alpha) == (10, 10) and config.target_modules == "all-linear"


def test_a_strength_is_kept_exactly_at_the_same_rank(adapters, tiny_gemma, tmp_path):
    made = blend.save_blend([(adapters[1], "b", 0.5)], tmp_path / "half")
    assert (made.rank, made.error) == (6, 0.0)
    half = logits(tiny_gemma, [(adapters[1], 0.5)])
    assert torch.allclose(half, logits(tiny_gemma, [(read_adapter(tmp_path / "half"), 1.0)]), atol=1e-4)


def test_a_lower_rank_has_the_error_that_it_states(adapters, tmp_path):
    a, b = adapters
    parts = [(a, 0.6), (b, 0.4)]
    made = blend.save_blend([(adapter, "x", weight) for adapter, weight in parts], tmp_path / "low", rank=3)
    exact, low = (blend._stack_layers(p) for p in (parts, [(read_adapter(tmp_path / "low"), 1.0)]))
    missing = sum(float(((exact[n][1] @ exact[n][0]) - (low[n][1] @ low[n][0])).square().sum()) for n in exact)
    whole = sum(float((b @ a).square().sum()) for a, b in exact.values())
    assert made.rank == 3 and made.error == pytest.approx((missing / whole) ** 0.5, rel=1e-3) and 0.05 < made.error < 1
    assert blend.save_blend([(a, "x", 1.0)], tmp_path / "same", rank=64).error == 0
    assert "reduced to rank 3 with an error of" in (tmp_path / "low/README.md").read_text()


def test_what_cannot_be_added_is_refused(adapters, tiny_gemma, tiny_llama, tmp_path):
    a = adapters[0]
    write_adapter(tiny_gemma, tmp_path / "dora", use_dora=True)
    write_adapter(tiny_llama, tmp_path / "llama")
    facts = json.loads((tmp_path / "llama/run.json").read_text())
    (tmp_path / "llama/run.json").write_text(json.dumps(facts | {"base": {"id": "someone/llama"}}))
    for name, why in (("dora", "a DoRA, or"), ("llama", "trained on someone/llama, the first one on someone/tiny")):
        with pytest.raises(AdapterError, match=why):
            blend.save_blend([(a, "a", 0.5), (read_adapter(tmp_path / name), name, 0.5)], tmp_path / "out")
    with pytest.raises(InputError, match="between 0 and 2"):
        blend.save_blend([(a, "a", 3.0)], tmp_path / "out")
    with pytest.raises(InputError, match="rank of up to 1024"):
        blend.save_blend([(a, "a", 1.0)], tmp_path / "out", rank=2000)
    assert not (tmp_path / "out").exists()


def test_the_command_line(adapters, tmp_path, value):
    said = value("blend", f"{tmp_path / 'a'}*0.6 + {tmp_path / 'b'}*0.4", tmp_path / "ab", "--rank", "4")
    assert said["rank"] == 4 and 0 < said["error"] < 1 and read_adapter(tmp_path / "ab").settings["r"] == 4
    facts = json.loads((tmp_path / "ab/run.json").read_text())
    assert [p["weight"] for p in facts["blend"]["parts"]] == [0.6, 0.4] and str(tmp_path) not in json.dumps(facts)
