"""What settings ask of this machine and of each other: packages, a GPU, a base that can do it. All told beforehand."""

import importlib.util

from persona.errors import InputError
from persona.models.hardware import DevicePlan
from persona.models.quantization import BITSANDBYTES_OPTIMIZERS, needs_bitsandbytes
from persona.train.config import RunConfig

# module → what to install: one of the modules is enough. Versions are the user's; none comes with requirements.txt
TRACKER_PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
    "swanlab": (("swanlab",), "swanlab"),
}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require_packages(c: RunConfig) -> None:
    """Raise InputError naming the package that these settings need and that is not installed."""
    require_bitsandbytes(c.quantization, c.optim)
    if c.report_to != "none":
        modules, package = TRACKER_PACKAGES[c.report_to]
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


def check_config(c: RunConfig, plan: DevicePlan) -> None:
    """Raise InputError for settings that cannot go together, or not on this machine; before anything is loaded."""
    if c.engine == "liger" and plan.device != "cuda":
        raise InputError(
            "engine={engine}: its kernels are for an NVIDIA GPU; there is none here. Set it to none.", engine=c.engine
        )
    require_packages(c)
    check_quantization(c.quantization, c.optim, c.use_dora, plan)
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


def require_bitsandbytes(quantization: str, optim: str) -> None:
    """Raise InputError if these settings need bitsandbytes and it is not installed."""
    if needs_bitsandbytes(quantization, optim) and importlib.util.find_spec("bitsandbytes") is None:
        what = f"quantization={quantization}" if quantization != "none" else f"optim={optim}"
        raise InputError(
            "{what} needs bitsandbytes, which is not installed. Install it: pip install bitsandbytes. There is none "
            "for Macs with Intel processors: set quantization to none and optim to adamw_torch there.",
            what=what,
        )


def check_quantization(quantization: str, optim: str, use_dora: bool, plan: DevicePlan) -> None:
    """Raise InputError for what bitsandbytes cannot do here, before anything is loaded."""
    require_bitsandbytes(quantization, optim)
    if plan.device == "mps":
        if quantization != "none":
            raise InputError(
                "quantization={quantization}: needs a CUDA GPU or a CPU. Set it to none on this machine.",
                quantization=quantization,
            )
        if optim in BITSANDBYTES_OPTIMIZERS:
            raise InputError(
                "optim={optim}: needs a CUDA GPU or a CPU. Set it to adamw_torch on this machine.", optim=optim
            )
    if plan.device == "cpu":
        if quantization != "none" and plan.train_dtype == "float16":
            raise InputError(
                "quantization={quantization} with dtype=float16: needs a GPU, which scales the loss; here "
                "small gradients would become zero. Set dtype to auto, bfloat16 or float32.",
                quantization=quantization,
            )
        if quantization == "int8" and use_dora:  # PEFT 0.21 puts a copy in their place that has lost them
            raise InputError(
                "quantization=int8 with use_dora: the scales of the weights are lost on a CPU. Set "
                "quantization to nf4 or none, or use_dora to false."
            )
        if optim in BITSANDBYTES_OPTIMIZERS and optim.startswith("paged_"):
            raise InputError(
                "optim={optim}: pages its state from a GPU's memory to the machine's, and there is no GPU "
                "here. Set it to {instead}.",
                optim=optim,
                instead="adamw_8bit" if optim.endswith("8bit") else "adamw_torch",
            )
