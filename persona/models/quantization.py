"""The frozen base in 4 or 8 bits, through bitsandbytes: while its LoRA is trained (QLoRA, Dettmers et al. 2023), and
in chat and evaluation.

nf4 with double quantization, or int8. Embedding and output layer are not quantized. The adapter is an ordinary LoRA,
which opens on the base in any precision (compare/chat_plan.py decides in which).

PEFT's prepare_model_for_kbit_training is not used: it casts every weight that is not quantized to float32, which for a
vocabulary of 262,144 takes more memory than the quantization saves. PEFT freezes the base without it.
"""

from typing import Any

from persona.errors import BaseError
from persona.models.quiet import quiet_transformers

NF4_BLOCK = 64  # weights that share a scale in 4 bits, the default of bitsandbytes
# the names of optimizers for which transformers uses bitsandbytes
BITSANDBYTES_OPTIMIZERS = {
    "adamw_8bit", "adamw_bnb_8bit", "ademamix", "ademamix_8bit", "lion_32bit", "lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
}  # fmt: skip


def needs_bitsandbytes(quantization: str, optim: str) -> bool:
    """Whether these settings of a run use bitsandbytes."""
    return quantization != "none" or optim in BITSANDBYTES_OPTIMIZERS


def make_quantization_kwargs(quantization: str, dtype: str, device: str) -> dict[str, Any]:
    """The arguments of from_pretrained that quantize the base; none for "none". dtype: of the multiplications."""
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


def stored_quantization(config: dict[str, Any]) -> str:
    """How bitsandbytes has quantized the weights on disk, by their config.json: nf4 (any 4 bits), int8 or none."""
    stored = config.get("quantization_config")
    if not isinstance(stored, dict):
        return "none"
    return "nf4" if stored.get("load_in_4bit") else "int8" if stored.get("load_in_8bit") else "none"


def is_quantized(model: Any) -> bool:
    """Whether its linear weights are in 4 or 8 bits, by us or as stored."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def require_quantized_layers(model: Any, name: str) -> None:
    """Raise BaseError where bitsandbytes has left every layer as it was: Falcon's are of a class of their own."""
    if not any(type(module).__name__ in ("Linear4bit", "Linear8bitLt") for module in model.modules()):
        raise BaseError(
            "{base}: bitsandbytes knows none of its linear layers, so it cannot be quantized. Set quantization to "
            "none, or choose another base.",
            base=name,
        )


def keep_training_arithmetic(model: Any) -> None:
    """On a CPU, make a quantized model compute in evaluation as it does in training.

    There bitsandbytes has separate code for evaluation. In 4 bits, with AVX512-BF16, it repacks the weights in place
    for a kernel without gradients; later backward passes read them as if they were not repacked, so the loss is right
    and the gradients are noise. In 8 bits it also rounds the activations, by way of float16, so the held-out loss would
    be that of another model than the one that is trained.

    Raises BaseError for 4-bit layers that a CPU reads with the scales of neighbouring weights. In a vision or audio
    tower they are accepted: text does not pass through it.
    """
    if model.device.type != "cpu":
        return
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    text_layers = set(model.get_decoder().modules())
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            # 0.50.2 with AVX512: wrong by a quarter instead of a tenth for inputs of 16, 32, 48, 80, 96 …, measured
            if layer.in_features % NF4_BLOCK and layer in text_layers:
                raise BaseError(
                    "This base in 4 bits would be read wrongly on a CPU: {name} has {inputs} inputs, not a "
                    "multiple of {block}. Set quantization to int8 or none (with a base in full precision).",
                    name=name,
                    inputs=layer.in_features,
                    block=NF4_BLOCK,
                )
            layer.support_avx512bf16_for_cpu = False
        elif isinstance(layer, Linear8bitLt):
            layer.register_forward_pre_hook(_use_training_path)


def dequantize_weight(layer: Any) -> Any:
    """The weight of a linear layer as a matrix (out, in); of one that is not quantized, the weight itself or a view.

    The layer stays as it is; PEFT's dequantize_module_weight loses the scales of 8 bits on a CPU.
    """
    weight = layer.weight
    if (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state)
    if type(weight).__name__ == "Int8Params":
        scales = layer.state.SCB if weight.SCB is None else weight.SCB  # its first pass moves them
        return weight.data * scales[:, None] / 127
    return weight.T if is_transposed(layer) else weight


def is_transposed(layer: Any) -> bool:
    """Whether it is a Conv1D, as in GPT-2: a linear layer with its weight stored as (in, out)."""
    return type(layer).__name__ == "Conv1D"


def has_transposed_weights(model: Any) -> bool:
    """Whether a base has such layers, which PEFT's fan_in_fan_out stands for."""
    return any(map(is_transposed, model.modules()))


def dequantize_model(model: Any, dtype: str) -> Any:
    """A quantized model with plain weights, which can be merged into and saved."""
    import torch

    with quiet_transformers(warnings=False):  # it warns that it computes in the number format of the quantization
        model = model.dequantize().to(getattr(torch, dtype)).eval()
    # how the file's tensors became the model's is reverted when it is saved, and unpacking 4 bits cannot be
    model._weight_conversions = [c for c in getattr(model, "_weight_conversions", None) or [] if _is_reversible(c)]
    return model


def _is_reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def _use_training_path(layer: Any, _: Any) -> None:
    layer.training = True  # without dropout, this only selects the code path


def upcast_trainable_weights(model: Any) -> None:
    """Cast what is trained to float32: bfloat16, whose 8 bits lose small updates, is what TRL makes of the LoRA of a
    quantized base, and what layers of the base that are trained too (bias, modules_to_save) may be stored in.

    Call it before the optimizer is created. Matrix products still run in the dtype of the plan.
    """
    for layer in model.modules():
        weights = list(layer.parameters(recurse=False))
        if any(weight.requires_grad for weight in weights):
            is_norm = all(weight.dim() == 1 for weight in weights)  # whose weight and bias must be of one dtype
            for weight in weights:
                if is_norm or weight.requires_grad:
                    weight.data = weight.data.float()
