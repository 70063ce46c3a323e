"""Checks of a run's settings: against each other, this machine, its packages, and the base's behaviour.

Importing it loads no torch, so that page and command line can check settings before a run is created. Each check raises
InputError, naming the setting and what to set instead.
"""

import importlib.util
from typing import Any

from persona.errors import InputError, Message
from persona.models import stop_token
from persona.models.base import Base
from persona.models.hardware import DevicePlan
from persona.models.quantization import BITSANDBYTES_OPTIMIZERS, needs_bitsandbytes
from persona.template.render import Renderer
from persona.train import engines
from persona.train.config import RunConfig
from persona.train.distributed import process_count

PROBE_TOKENS = 24  # tokens of each row that packing is tried with: more than a convolution's kernel spans
# report_to → (modules, of which one is enough; what to install). Any version will do; requirements.txt has none of them
TRACKER_PACKAGES = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
    "swanlab": (("swanlab",), "swanlab"),
}


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require_packages(c: RunConfig) -> None:
    """Raise InputError if a package that these settings need is not installed."""
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
    engines.require_engine(c)


def check_config(c: RunConfig, plan: DevicePlan, gpus: int = 1) -> None:
    """Raise InputError for settings that do not go together or do not work on this machine. Loads nothing.

    gpus: of this machine.
    """
    if c.engine != "none" and plan.device != "cuda":
        raise InputError(
            "engine={engine}: its kernels are for an NVIDIA GPU; there is none here. Set it to none.", engine=c.engine
        )
    if c.spread_layers and (plan.device != "cuda" or gpus < 2 or process_count() > 1):
        raise InputError(
            "spread_layers: needs several GPUs in one process; here are {gpus}, and {processes} processes train. "
            "Set it to false.",
            gpus=gpus if plan.device == "cuda" else 0,
            processes=process_count(),
        )
    if c.tf32 and plan.device != "cuda":
        raise InputError("tf32: is a number format of NVIDIA GPUs; there is none here. Set it to false.")
    require_packages(c)
    check_quantization(c.quantization, c.optim, c.use_dora, plan)
    _check_pissa(c)
    if c.bias != "none" and c.use_dora:
        raise InputError(
            "bias={bias} and use_dora do not go together. Set bias to none, or use_dora to false.", bias=c.bias
        )
    if c.train_stop_token and c.modules_to_save.strip():
        raise InputError(
            "train_stop_token and modules_to_save do not go together: lm_head and embed_tokens hold that row. Set "
            "train_stop_token to false."
        )
    if c.train_stop_token and c.use_dora:
        raise InputError("train_stop_token and use_dora do not go together. Set one of them to false.")
    if c.thinking != "none" and c.rehearsal_fraction:
        raise InputError(
            "thinking={thinking} and rehearsal_fraction do not go together: the base's general answers are kept "
            "without their thinking. Set rehearsal_fraction to 0, or thinking to none.",
            thinking=c.thinking,
        )
    if c.packing and c.neftune_noise_alpha:
        raise InputError(
            "packing and neftune_noise_alpha do not go together: the noise depends on the length of a row. "
            "Set packing to false, or neftune_noise_alpha to 0."
        )


def _check_pissa(c: RunConfig) -> None:
    if not c.is_pissa:
        return
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


def require_bitsandbytes(quantization: str, optim: str) -> None:
    """Raise InputError if these settings need bitsandbytes and it is not installed."""
    if needs_bitsandbytes(quantization, optim) and not _installed("bitsandbytes"):
        setting = f"quantization={quantization}" if quantization != "none" else f"optim={optim}"
        raise InputError(
            "{setting} needs bitsandbytes, which is not installed. Install it: pip install bitsandbytes. There is none "
            "for Macs with Intel processors: set quantization to none and optim to adamw_torch there.",
            setting=setting,
        )


def check_quantization(quantization: str, optim: str, use_dora: bool, plan: DevicePlan) -> None:
    """Raise InputError for what bitsandbytes cannot do on this machine."""
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
        if quantization == "int8" and use_dora:  # PEFT 0.21 replaces the weights by a copy without their scales
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


def check_stop_token(base: Base, renderer: Renderer) -> None:
    """Raise InputError if the base never learned the token that ends a reply; its weights are read from disk."""
    if reason := stop_token.explain_untrained_stop(base, renderer):
        raise InputError(Message.of(reason))


def check_packing(model: Any, name: str) -> None:
    """Raise InputError if in this base a row that is packed behind another could attend to it.

    Tried on numbers rather than looked up: the same row behind two different ones, and alone.
    """
    import torch

    def packed_logits(*rows: torch.Tensor) -> torch.Tensor:
        """Logits of the last of the packed rows, (PROBE_TOKENS, vocabulary) float32."""
        ids, positions = torch.cat(rows), torch.arange(PROBE_TOKENS, device=model.device).repeat(len(rows))
        logits = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits
        return logits[0, -PROBE_TOKENS:].float()

    vocabulary = model.config.get_text_config().vocab_size
    first, other, row = (
        (torch.arange(PROBE_TOKENS, device=model.device) * step % 97 + 1) % vocabulary for step in (3, 5, 7)
    )
    with torch.no_grad():
        behind_first, behind_other, alone = packed_logits(first, row), packed_logits(other, row), packed_logits(row)
    scale = alone.std()
    # behind both rows the shapes are the same, and so is the rounding; alone they differ, in bfloat16 by a hundredth
    differs = (behind_first - behind_other).abs().max() > 1e-5 * scale
    if differs or (behind_first - alone).abs().mean() > 0.05 * scale:
        raise InputError(
            "packing: in {name} packed rows would see each other. Set packing to false for this base.", name=name
        )
