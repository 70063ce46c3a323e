"""Which quantizations and 8-bit optimizers are refused on which device, and what is said without bitsandbytes."""

import importlib.util

import pytest
from training import CARD, PAIRS

from persona.errors import InputError
from persona.models import open_renderer, quantization
from persona.models.hardware import DevicePlan
from persona.store.persona_folder import create_persona_at
from persona.train import prepare, run_folder, validate
from persona.train.config import RunConfig
from persona.train.launcher import create_run
from persona.train.run_folder import Run


def test_the_optimizers_are_those_that_transformers_takes_from_bitsandbytes():
    from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS

    assert {o.value for o in _BITSANDBYTES_OPTIMIZERS} == quantization.BITSANDBYTES_OPTIMIZERS


@pytest.mark.parametrize(
    "device, dtype, kind, optim, why",
    [
        ("cpu", "float16", "nf4", "adamw_torch", "quantization=nf4 with dtype=float16: .*Set dtype to auto"),
        ("cpu", "float16", "int8", "adamw_torch", "quantization=int8 with dtype=float16"),
        ("cpu", "float32", "none", "paged_adamw_8bit", "optim=paged_adamw_8bit: .*no GPU here. Set it to adamw_8bit"),
        ("cpu", "float32", "nf4", "paged_adamw_32bit", "optim=paged_adamw_32bit: .*Set it to adamw_torch"),
        ("mps", "float32", "nf4", "adamw_torch", "quantization=nf4: needs a CUDA GPU or a CPU"),
        ("mps", "float32", "none", "adamw_8bit", "optim=adamw_8bit: needs a CUDA GPU or a CPU"),
    ],
)
def test_what_cannot_work_here_is_refused(monkeypatch, device, dtype, kind, optim, why):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(InputError, match=why):
        validate.check_quantization(kind, optim, False, DevicePlan(device, dtype, dtype, ""))


@pytest.mark.parametrize(
    "device, dtype, kind, optim",
    [
        ("cpu", "float32", "nf4", "adamw_8bit"), ("cpu", "bfloat16", "int8", "adamw_torch_fused"),
        ("cuda", "float16", "nf4", "paged_adamw_8bit"), ("mps", "float16", "none", "adamw_torch"),
        ("cpu", "float16", "none", "adamw_torch"),
    ],
)  # fmt: skip
def test_what_can_work_is_not(monkeypatch, device, dtype, kind, optim):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    validate.check_quantization(kind, optim, False, DevicePlan(device, dtype, dtype, ""))


@pytest.mark.parametrize(
    "settings, what",
    [({"quantization": "nf4"}, "quantization=nf4"), ({"quantization": "int8"}, "quantization=int8"),
     ({"optim": "adamw_8bit"}, "optim=adamw_8bit")],
)  # fmt: skip
def test_without_bitsandbytes_it_says_how_to_install_it(monkeypatch, tmp_path, settings, what):
    """Before a run folder is made, and in a run whose machine has lost it: before anything is opened."""
    real = importlib.util.find_spec
    persona = create_persona_at(tmp_path / "mags", CARD, PAIRS)
    run = Run(tmp_path / "old") if not real("bitsandbytes") else create_run(persona, RunConfig(**settings))
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else real(n, *a))
    monkeypatch.setattr(open_renderer, "open_renderer", lambda *_, **__: pytest.fail("opened"))
    before = run_folder.list_runs(persona)
    with pytest.raises(InputError, match=rf"{what} needs bitsandbytes.*: pip install bitsandbytes\."):
        create_run(persona, RunConfig(**settings))
    assert run_folder.list_runs(persona) == before
    if before:
        with pytest.raises(InputError, match=f"{what} needs bitsandbytes"):
            prepare.prepare_run(run)
    create_run(persona, RunConfig(optim="adamw_torch_fused"))
