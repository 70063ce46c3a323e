"""What settings ask for that is not here, or that do not go together: one sentence each, before anything is trained."""

import importlib.util

import pytest
from training import CARD, PAIRS

from persona.errors import InputError
from persona.models import quantization
from persona.models.hardware import DevicePlan
from persona.store.persona_folder import create_persona_at
from persona.train import run as train_run
from persona.train import validate
from persona.train.config import RunConfig, make_config
from persona.train.launcher import create_run

pytest_plugins = "training"

# one of each kind; the others before a release
TRIED_ALWAYS = ("adamw_torch", "adafactor", "adamw_8bit", "paged_adamw_8bit")
OPTIMIZERS = RunConfig.model_fields["optim"].annotation.__args__
CPU, GPU = DevicePlan("cpu", "float32", "float32", ""), DevicePlan("cuda", "bfloat16", "bfloat16", "")


@pytest.fixture
def without(monkeypatch):
    """As if these modules were not installed."""
    real = importlib.util.find_spec

    def without(*names):
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in names else real(n, *a))

    return without


@pytest.mark.parametrize("name, package", [(n, p) for n, (_, p) in validate.TRACKER_PACKAGES.items()])
def test_a_tracker_that_is_not_installed_is_named_before_a_run_is_made(without, tmp_path, name, package):
    without(*validate.TRACKER_PACKAGES[name][0])
    persona = create_persona_at(tmp_path / "mags", CARD, PAIRS)
    with pytest.raises(InputError, match=rf"report_to={name}: .*pip install {package}\. Or set report_to to none"):
        create_run(persona, make_config(report_to=name))
    assert not persona.runs_dir.exists() or not list(persona.runs_dir.iterdir())


def test_tf32_is_for_an_nvidia_gpu():
    validate.check_config(make_config(tf32=True), GPU)
    with pytest.raises(
        InputError, match=r"tf32: is a number format of NVIDIA GPUs; there is none here\. Set it to false"
    ):
        validate.check_config(make_config(tf32=True), CPU)


def test_every_tracker_of_the_settings_is_known():
    assert {"none", *validate.TRACKER_PACKAGES} == set(RunConfig.model_fields["report_to"].annotation.__args__)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"optim": "nope"}, r"optim='nope': Input should be 'adamw_torch', .*'paged_adamw_8bit'"),
        ({"report_to": "clearml"}, r"report_to='clearml': Input should be 'none', 'tensorboard', .* or 'swanlab'"),
        ({"engine": "nope"}, r"engine='nope': Input should be 'none', 'liger' or 'unsloth'"),
        ({"init_lora_weights": "olora"}, r"init_lora_weights='olora': Input should be 'default', .*'pissa'"),
        ({"save_steps": -1}, r"save_steps=-1: "),
    ],
)
def test_names_that_are_not_known_are_refused_with_those_that_are(changes, why):
    with pytest.raises(InputError, match=why):
        make_config(**changes)


def test_optimizers_that_need_bitsandbytes_are_known_to():
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZERS) <= {o.value for o in OptimizerNames}
    plain = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd"}
    assert set(OPTIMIZERS) - plain == set(OPTIMIZERS) & quantization.BITSANDBYTES_OPTIMIZERS


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_an_optimizer_is_refused_without_its_package_and_only_then(without, optim):
    validate.require_packages(RunConfig(optim=optim))
    without("bitsandbytes")
    if optim in quantization.BITSANDBYTES_OPTIMIZERS:
        with pytest.raises(InputError, match=f"optim={optim} needs bitsandbytes.*pip install"):
            validate.require_packages(RunConfig(optim=optim))
    else:
        validate.require_packages(RunConfig(optim=optim))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize(
    "optim", [o if o in TRIED_ALWAYS else pytest.param(o, marks=pytest.mark.release) for o in OPTIMIZERS]
)
def test_every_optimizer_learns_here_or_says_why_not(tmp_path, tiny_gemma, plain_cpu, seen, optim):
    config = make_config(base=str(tiny_gemma), optim=optim, dtype="float32", batch_size=4, eval_fraction=0, max_steps=3,
                         learning_rate=1.0 if optim == "sgd" else 1e-3)  # fmt: skip
    run = create_run(create_persona_at(tmp_path / "mags", CARD, PAIRS), config)
    if optim.startswith("paged_"):
        with pytest.raises(InputError, match=rf"optim={optim}: pages .*no GPU here\. Set it to adamw_"):
            train_run.train_run(run)
        return
    assert train_run.train_run(run)["status"] == "done"
    moved = {n: p.abs().max().item() for n, p in seen.trainer.model.named_parameters() if "lora_B" in n}
    assert len(moved) == 14 and min(moved.values()) > 0
