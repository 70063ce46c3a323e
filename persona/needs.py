"""What settings ask of this machine and of each other: packages, a GPU, a base that can do it. All told beforehand."""

import importlib.util
from typing import Any

from persona import quantize
from persona.config import RunConfig
from persona.errors import InputError
from persona.hardware import Plan

# module → what to install: one of the modules is enough. Versions are the user's; none comes with requirements.txt
TRACKERS = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
    "swanlab": (("swanlab",), "swanlab"),
}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require(c: RunConfig) -> None:
    """Raise InputError naming the package that these settings need and that is not installed."""
    quantize.require(c.quantization, c.optim)
    if c.report_to != "none":
        modules, package = TRACKERS[c.report_to]
        if not any(map(_installed, modules)):
            raise InputError(
                "report_to={report_to}: its package is not installed. Install it: pip install {package}. "
                "Or set report_to to none.",
                report_to=c.report_to,
                package=package,
            )
    if c.engine == "unsloth":  # read in the metadata of its wheel; this app needs transformers 5.23 and TRL 1.16
        raise InputError(
            "engine=unsloth: Unsloth (2026.10) asks for transformers up to 5.17 and TRL up to 1.15, older "
            "than this app's, so both cannot be in one environment. Set engine to liger or none; or export "
            "the pairs with a script for Unsloth: persona export ADAPTER OUT --as dataset."
        )
    if c.engine == "liger" and not _installed("liger_kernel"):
        raise InputError(
            "engine=liger: its package is not installed. Install it: pip install liger-kernel. Or set engine to none."
        )


def check(c: RunConfig, plan: Plan) -> None:
    """Raise InputError for settings that cannot go together, or not on this machine; before anything is loaded."""
    if c.engine == "liger" and plan.device != "cuda":
        raise InputError(
            "engine={engine}: its kernels are for an NVIDIA GPU; there is none here. Set it to none.", engine=c.engine
        )
    require(c)
    quantize.check(c.quantization, c.optim, c.use_dora, plan)
    if c.train_stop_token and c.use_dora:
        raise InputError("train_stop_token and use_dora do not go together. Set one of them to false.")
    if c.init_lora_weights.startswith("pissa"):
        if c.quantization != "none":
            raise InputError(
                "init_lora_weights={init_lora_weights} begins from the base's own weights, and with "
                "quantization={quantization} they are rounded. Set quantization to none, or the other to "
                "default.",
                init_lora_weights=c.init_lora_weights,
                quantization=c.quantization,
            )
        if c.weight_decay:
            raise InputError(
                "init_lora_weights={init_lora_weights} with weight_decay: decay would pull it away from "
                "the base instead of toward it. Set weight_decay to 0.",
                init_lora_weights=c.init_lora_weights,
            )
    if c.packing and c.neftune_noise_alpha:
        raise InputError(
            "packing and neftune_noise_alpha do not go together: the noise depends on the length of a row. "
            "Set packing to false, or neftune_noise_alpha to 0."
        )


def speed_up(model: Any, c: RunConfig) -> None:
    """Put the kernels of `engine` into the model. Not verified: no GPU was at hand; liger-kernel 0.8.5 was read.

    Its losses are left out: loss.py has its own. Raises InputError for an architecture that it does not know.
    """
    if c.engine == "none":
        return
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError("engine=liger: has no kernels for this base ({kind}). Set engine to none.", kind=kind)
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
