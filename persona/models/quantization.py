"""The frozen base in 4 or 8 bits while its LoRA is trained (QLoRA, Dettmers et al. 2023), through bitsandbytes.

nf4 with double quantization, or int8. Embedding and output layer stay as they are. The adapter is a plain one: chat
opens it on the base in full precision.

PEFT's prepare_model_for_kbit_training is left out on purpose: it turns whatever is not quantized into float32, which
for a vocabulary of 262,144 is more memory than the quantization has saved, and its freezing is done by PEFT anyway.
"""

import logging
from typing import Any

from persona.errors import BaseError

# PEFT imports bitsandbytes where it is installed, and that warns of an optional kernel package on stderr each time
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
NF4_BLOCK = 64  # weights that share a scale in 4 bits, the default of bitsandbytes
# the names that transformers hands to bitsandbytes
BITSANDBYTES_OPTIMIZERS = {
    "adamw_8bit", "adamw_bnb_8bit", "ademamix", "ademamix_8bit", "lion_32bit", "lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
}  # fmt: skip


def needs_bitsandbytes(quantization: str, optim: str) -> bool:
    return quantization != "none" or optim in BITSANDBYTES_OPTIMIZERS


def make_quantization_kwargs(quantization: str, dtype: str, device: str) -> dict[str, Any]:
    """What from_pretrained needs for it; nothing for none. dtype is the number format of the multiplications."""
    if quantization == "none":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )  # fmt: skip
    return {"quantization_config": config, "device_map": {"": device}}


def is_quantized(model: Any) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def keep_training_arithmetic(model: Any) -> None:
    """Keep evaluation and training on a CPU on the same weights and the same arithmetic.

    In evaluation bitsandbytes takes other paths there. 4 bits, on a CPU with AVX512-BF16: the weights are repacked in
    place for a kernel without gradients, and later backward passes read them as if they were not; the loss stays right
    and the gradients are noise. 8 bits: activations are rounded to 8 bits too, by way of float16, so the held-out loss
    would be that of another model than the one that is trained.

    Raises BaseError for 4-bit layers that a CPU would read with the scales of their neighbours. Those of a vision or
    audio tower may be: a text never goes through them.
    """
    if model.device.type != "cpu":
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    read = set(model.get_decoder().modules())
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            # 0.50.2 with AVX512: wrong by a quarter instead of a tenth for inputs of 16, 32, 48, 80, 96 …, measured
            if layer.in_features % NF4_BLOCK and layer in read:
                raise BaseError(
                    "This base in 4 bits would be read wrongly on a CPU: {name} has {inputs} inputs, not a "
                    "multiple of {block}. Set quantization to int8 or none (with a base in full precision).",
                    name=name,
                    inputs=layer.in_features,
                    block=NF4_BLOCK,
                )
            layer.support_avx512bf16_for_cpu = False
        elif isinstance(layer, Linear8bitLt):
            layer.register_forward_pre_hook(_as_in_training)


def _as_in_training(layer: Any, _: Any) -> None:
    layer.training = True  # it has no dropout: this only chooses the path


def upcast_trainable_weights(model: Any) -> None:
    """TRL makes the LoRA of a quantized base bfloat16, whose eight bits lose a small learning rate's updates.

    An optimizer must not have been made yet. Matrix products still run in the dtype of the plan.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
