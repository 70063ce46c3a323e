"""Liger and Unsloth, up to the edge: stand-ins record what they are called with, and training goes on from there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import check_each
from peft import LoraConfig, PeftModel, get_peft_model
from training import lora
from transformers import AutoModelForCausalLM

from persona.errors import InputError
from persona.models import adapter, attach
from persona.models.hardware import DevicePlan
from persona.train import engines, launcher, validate
from persona.train import run as train_run
from persona.train.config import RunConfig

pytest_plugins = "training"

CPU, GPU = DevicePlan("cpu", "float32", "float32", ""), DevicePlan("cuda", "bfloat16", "bfloat16", "")


class FastModel:
    """Unsloth's class as far as a run uses it: transformers and PEFT, with what it was called with."""

    called: list = []

    @classmethod
    def from_pretrained(cls, name, dtype, **settings):
        cls.called.append(settings)
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype), None

    @classmethod
    def get_peft_model(cls, model, use_gradient_checkpointing, random_state, **settings):
        cls.called.append(settings)
        assert type(settings["target_modules"]) is list, "as Unsloth asserts"
        torch.manual_seed(random_state)
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))


@pytest.fixture
def unsloth(monkeypatch):
    """The stand-in, imported, as in the process of a run."""
    FastModel.called = []
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastModel=FastModel, __spec__=SimpleNamespace()))
    monkeypatch.setattr(validate, "check_config", lambda *_: None)  # which wants a GPU
    return FastModel


@pytest.mark.slow
def test_a_run_with_unsloth_trains_its_model_to_an_ordinary_adapter(make, seen, unsloth, tiny_gemma):
    run = make(
        engine="unsloth",
        max_steps=3,
        lora_r=4,
        lora_alpha=12,
        lora_dropout=0.1,
        use_rslora=True,
        seed=7,
        max_length=128,
    )
    result = train_run.train_run(run)
    loaded, peft = unsloth.called
    assert (loaded["load_in_4bit"], loaded["load_in_8bit"], loaded["load_in_16bit"]) == (False, False, True)
    assert loaded["max_seq_length"] == 128 and loaded["use_gradient_checkpointing"] is False
    assert loaded["use_exact_model_name"] and not loaded["trust_remote_code"]
    assert (peft["r"], peft["lora_alpha"], peft["lora_dropout"], peft["use_rslora"]) == (4, 12, 0.1, True)
    assert (
        all(name.startswith("model.layers.") for name in peft["target_modules"]) and len(peft["target_modules"]) == 14
    )
    model = seen.trainer.model
    assert isinstance(model, PeftModel) and list(model.peft_config) == ["default"], "TRL must not add another one"
    assert result["status"] == "done" and result["adapter_nll"] < result["base_nll"]
    after = lora(model)
    assert all(not torch.equal(before, after[n]) for n, before in seen.before.items())
    opened = adapter.read_adapter(run.adapter)
    assert attach.attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_gemma), opened, "x") is not None
    assert str(tiny_gemma) not in (run.adapter / "adapter_config.json").read_text()


def test_what_unsloth_is_asked_for_follows_the_settings(unsloth, tiny_gemma):
    asked = {
        "4 bits": ({"quantization": "nf4"}, "load_in_4bit", True),
        "8 bits": ({"quantization": "int8"}, "load_in_8bit", True),
        "checkpointing": ({"gradient_checkpointing": True}, "use_gradient_checkpointing", "unsloth"),
    }

    def check(settings, name, value):
        unsloth.called = []
        prepared = SimpleNamespace(config=RunConfig(**settings), plan=CPU, base=SimpleNamespace(path=tiny_gemma))
        engines.load_unsloth_model(prepared)
        assert unsloth.called[0][name] == value

    check_each(asked, check)


def test_a_process_without_unsloth_says_where_it_would_be(monkeypatch):
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    with pytest.raises(InputError, match="engine=unsloth: this process does not have it. Start the run from the page"):
        engines.load_unsloth_model(None)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """A stand-in for the Python of Unsloth's environment: it writes down how it was started."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/started"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PERSONA_UNSLOTH_PYTHON", str(python))
    return python


def test_only_a_run_with_unsloth_is_started_with_its_python(make, environment, tmp_path):
    assert engines.training_python(RunConfig()) == sys.executable
    run = make(engine="unsloth")
    launcher.start_run(run)
    launcher._children[run.path].wait(30)
    assert (tmp_path / "started").read_text() == f"-m persona.train {run.path} --wait\n"


def test_the_environment_beside_the_project_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("PERSONA_UNSLOTH_PYTHON", raising=False)
    monkeypatch.setattr(engines, "PROJECT_DIR", tmp_path)
    assert engines.unsloth_python() is None
    python = tmp_path / ".venv-unsloth/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert engines.unsloth_python() == python


@pytest.mark.parametrize("plan", [GPU, CPU])
def test_without_its_environment_unsloth_is_refused_with_the_command(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_UNSLOTH_PYTHON", str(tmp_path / "none"))
    with pytest.raises(InputError, match="engine=unsloth: it needs an environment of its own.* make unsloth"):
        validate.require_packages(RunConfig(engine="unsloth"))


def test_what_unsloth_does_not_do_is_refused_by_name(environment, monkeypatch):
    def check(changes):
        (name,) = changes
        with pytest.raises(InputError, match=f"engine=unsloth and {name}"):
            validate.require_packages(RunConfig(engine="unsloth", **changes))

    refused = [
        {"use_dora": True},
        {"packing": True},
        {"train_stop_token": True},
        {"init_lora_weights": "pissa_niter_4"},
    ]
    check_each(refused, check)
    with pytest.raises(InputError, match="engine=unsloth: its kernels are for an NVIDIA GPU; there is none here"):
        validate.check_config(RunConfig(engine="unsloth"), CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="engine=unsloth: trains in one process only"):
        validate.require_packages(RunConfig(engine="unsloth"))


def test_the_training_process_imports_unsloth_before_what_it_patches(make, environment, tmp_path):
    """And says why in the run where it cannot be imported. Its patches and its count on the Hub: as it is told to."""
    place = tmp_path / "packages/unsloth"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(
        "import json, os, sys\n"
        "seen = sorted({'torch', 'transformers', 'trl', 'peft'} & set(sys.modules))\n"
        "env = [os.environ['UNSLOTH_DISABLE_STATISTICS'], os.environ['UNSLOTH_COMPILE_LOCATION']]\n"
        "raise RuntimeError(json.dumps([seen, env]))\n"
    )
    run = make(engine="unsloth")
    path = os.pathsep.join([str(tmp_path / "packages"), str(engines.PROJECT_DIR)])
    code = subprocess.run(
        [sys.executable, "-m", "persona.train", run.path], env={**os.environ, "PYTHONPATH": path}
    ).returncode
    message = run.progress().message
    assert code == 1 and message.startswith("engine=unsloth: Unsloth cannot be imported (")
    imported_before, (statistics, cache) = json.loads(message.partition("(")[2].rpartition(")")[0])
    assert imported_before == [] and statistics == "1" and str(run.path) not in cache


def test_liger_wants_its_package_and_a_gpu(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "liger_kernel" else real(n, *a))
    with pytest.raises(InputError, match=r"engine=liger: its package is not installed.*pip install '\.\[liger\]'"):
        validate.check_config(RunConfig(engine="liger"), GPU)
    with pytest.raises(InputError, match="engine=liger: its kernels are for an NVIDIA GPU; there is none here"):
        validate.check_config(RunConfig(engine="liger"), CPU)


@pytest.fixture
def liger(monkeypatch):
    """A stand-in for liger-kernel that knows Gemma 3; the calls that it was given."""
    called: list = []
    patch = SimpleNamespace(
        MODEL_TYPE_TO_APPLY_LIGER_FN={"gemma3_text": None},
        _apply_liger_kernel_to_instance=lambda m, **more: called.append((m, more)),
    )
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__spec__=name))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", patch)
    return called


@pytest.mark.slow
def test_liger_is_given_the_base_without_its_losses(make, liger, monkeypatch, seen):
    monkeypatch.setattr(validate, "check_config", lambda *_: None)
    train_run.train_run(make(max_steps=1, eval_fraction=0))
    assert liger == [], "only where engine asks for it"
    train_run.train_run(make(engine="liger", max_steps=1, eval_fraction=0))
    ((model, settings),) = liger
    assert model is seen.trainer.model.get_base_model()
    assert settings == {"cross_entropy": False, "fused_linear_cross_entropy": False}


def test_an_architecture_without_liger_kernels_is_named(liger):
    model = SimpleNamespace(config=SimpleNamespace(model_type="nope"))
    with pytest.raises(InputError, match=r"engine=liger: has no kernels for this base \(nope\)"):
        engines.apply_liger_kernels(model)
