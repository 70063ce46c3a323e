"""What an adapter holds beside its LoRA: biases (PEFT's bias and lora_bias) and whole layers (modules_to_save).

A trained bias of a linear layer is attached as the bias of its LoRA's B, which follows the LoRA's strength; a layer
without one gets a LoRA of rank 1 that is zero. Every other trained layer, its weight or a norm's bias alone, is a copy
in PEFT's ModulesToSaveWrapper; in a mixed batch (mixed_lora.py) each row adds the difference of its adapter's copy to
the base's output. Embeddings, linear layers and norms are linear in their weights, so half of the difference is half of
the change.
"""

from collections.abc import Mapping
from typing import Any

from persona.errors import AdapterError, Message

PEFT_PREFIX = "base_model.model."
BIAS_MODES = ("none", "all", "lora_only")
MAX_NAMES = 100  # of modules_to_save: PEFT compares each with each layer
TrainedLayers = dict[str, dict[str, Any]]  # layer → its trained tensors: weight, bias


def is_plain_layer(module: Any) -> bool:
    """Whether it is a layer of a weight and perhaps a bias alone, as embeddings, output layers and norms are."""
    parameters = dict(module.named_parameters(recurse=False))
    return not any(True for _ in module.children()) and "weight" in parameters and set(parameters) <= {"weight", "bias"}


def take_trained_layers(state: dict[str, Any], settings: dict[str, Any], model: Any) -> TrainedLayers:
    """Remove what is trained beside the LoRA from an adapter's tensors `state`, check it against the base, return it.

    A bias of B (lora_bias) is called lora_bias here. settings: the adapter's. Raises AdapterError.
    """
    found: TrainedLayers = {}
    if settings.get("lora_bias"):
        for key in [k for k in state if k.endswith(".lora_B.bias")]:
            layer = key.removeprefix(PEFT_PREFIX).removesuffix(".lora_B.bias")
            found.setdefault(layer, {})["lora_bias"] = state.pop(key)
    if settings.get("bias", "none") != "none" or settings.get("modules_to_save"):
        for key in [k for k in state if ".lora_" not in k and k.startswith(PEFT_PREFIX)]:
            layer, _, name = key.removeprefix(PEFT_PREFIX).rpartition(".")
            found.setdefault(layer.removesuffix(".base_layer"), {})[name] = state.pop(key)
    modules = dict(model.named_modules())
    for layer, tensors in found.items():
        module = modules.get(layer)
        module = getattr(module, "original_module", getattr(module, "base_layer", module))
        for name, tensor in tensors.items():
            own = getattr(module, name.removeprefix("lora_"), None) if module is not None else None
            if own is None or not is_plain_layer(module) or tensor.shape != own.shape:
                raise AdapterError(
                    "Its trained {name} of {layer} ({size}) does not fit this base. Open it with its own.",
                    name=name,
                    layer=layer,
                    size="×".join(map(str, tensor.shape)),
                )
    return found


def split_trained_layers(
    found: TrainedLayers, lora_layers: list[str], use_dora: bool, model: Any
) -> tuple[TrainedLayers, list[str]]:
    """(biases of linear layers, for their LoRA; the layers to copy).

    Raises AdapterError for what cannot be attached.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    biases: TrainedLayers = {}
    for layer, tensors in found.items():
        module = model.get_submodule(layer)
        if "weight" in tensors and (layer in lora_layers or isinstance(module, LoraLayer)):
            raise AdapterError(
                "Its layer {layer} has both a LoRA, here or in an adapter beside it, and a weight of its own, which is "
                "not supported.",
                layer=layer,
            )
        if "weight" not in tensors and isinstance(module, torch.nn.Linear | Conv1D | LoraLayer):
            biases[layer] = tensors
    if biases and use_dora:
        raise AdapterError("Its trained biases and use_dora do not go together: only one of them can be opened here.")
    return biases, [layer for layer in found if layer not in biases]


def fill_copies(copied: list[str], found: TrainedLayers, model: Any) -> dict[str, Any]:
    """The tensors of the copied layers by the names of an adapter's file; the base's where one is not trained."""
    state: dict[str, Any] = {}
    for path in copied:
        layer = model.get_submodule(path)
        layer = getattr(layer, "original_module", layer)
        state |= {
            f"{PEFT_PREFIX}{path}.{name}": found[path].get(name, own.data) for name, own in layer.named_parameters()
        }
    return state


def set_biases(model: Any, name: str, biases: TrainedLayers) -> None:
    """Give the LoRA `name` of these layers their trained bias. model: a PeftModel's base."""
    import torch

    for path, tensors in biases.items():
        layer = model.get_submodule(path)
        own, bias = layer.get_base_layer().bias, tensors.get("lora_bias")
        if bias is None:
            bias = (tensors["bias"].to(own.device, torch.float32) - own.data.float()) / layer.scaling[name]
        layer.lora_B[name].bias = torch.nn.Parameter(bias.to(own.device, torch.float32), requires_grad=False)
        layer.lora_bias[name] = True


def blend_trained_layers(model: Any, name: str, strength: float) -> None:
    """Move the copies of an attached adapter to `strength` between the base's weights, 0, and its own, 1. Once only."""
    import torch
    from peft.utils.other import ModulesToSaveWrapper

    for layer in model.modules():
        if isinstance(layer, ModulesToSaveWrapper) and name in layer.modules_to_save:
            with torch.no_grad():
                for own, trained in zip(layer.original_module.parameters(), layer.modules_to_save[name].parameters(),
                                        strict=True):  # fmt: skip
                    trained.copy_(own + strength * (trained - own))


def restore_base_layers(model: Any) -> None:
    """Before PEFT's unload(), which would leave an adapter's copies in the base."""
    from peft.utils.other import ModulesToSaveWrapper

    for layer in model.modules():
        if isinstance(layer, ModulesToSaveWrapper):
            for name in layer.modules_to_save:
                layer.modules_to_save[name] = layer.original_module


def find_more_than_lora(settings: Mapping[str, Any]) -> str:
    """What an adapter holds that an engine for plain LoRA cannot express, in words; "" for a plain LoRA.

    settings: of its adapter_config.json.
    """
    if settings.get("use_dora"):
        return Message("a DoRA adapter")
    if settings.get("trainable_token_indices"):
        return Message("trained rows of tokens")
    if any(settings.get(key) not in (None, "none", False, []) for key in ("bias", "lora_bias", "modules_to_save")):
        return Message("trained biases and layers")
    return ""
