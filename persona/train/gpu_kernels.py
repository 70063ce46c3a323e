"""Liger's fused kernels for NVIDIA GPUs, where liger-kernel is installed."""

from typing import Any

from persona.errors import InputError
from persona.train.config import RunConfig


def apply_liger_kernels(model: Any, c: RunConfig) -> None:
    """Replace modules of the model by Liger's where `engine` asks for it.

    Not verified on a GPU; written from the source of liger-kernel 0.8.5. Its losses are left out: models/loss.py has
    its own. Raises InputError for an architecture that Liger does not know.
    """
    if c.engine == "none":
        return
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError("engine=liger: has no kernels for this base ({kind}). Set engine to none.", kind=kind)
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
