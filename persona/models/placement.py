"""Bases that do not fit on one GPU: their layers are spread over several GPUs, or wait in the machine's memory.

accelerate's hooks move the inputs to where a layer's weights are; weights that wait elsewhere are on the meta device
and are brought to the GPU for each use. That is for chat only: in training, autograd would keep every weight that was
brought until the backward pass, so that nothing would be saved. Not verified on a GPU; the tests let layers wait on the
disk, beside a CPU.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from persona.errors import Message

CHAT_BYTES = 3 * 10**9  # of a GPU beside the weights: CUDA's context, caches of keys and values; an assumption


@dataclass(frozen=True)
class Placement:
    """Arguments of from_pretrained that place the weights; reason: a sentence for people. Both empty for one device."""

    kwargs: dict[str, Any]
    reason: str = ""


ONE_DEVICE = Placement({})


def place_for_chat(weights: int, free: Sequence[int]) -> Placement:
    """Where the weights go. weights: bytes; free: bytes that are free on each GPU, nothing without a GPU."""
    room = [max(0, n - CHAT_BYTES) for n in free]
    if not room or weights <= room[0]:
        return ONE_DEVICE
    limits: dict[int | str, int] = dict(enumerate(room))
    kwargs = {"device_map": "auto", "max_memory": limits}
    if weights <= sum(room):
        return Placement(
            kwargs,
            Message("The base does not fit on one GPU: its layers are spread over {n}, which work one after the other.",
                    n=len(room)),
        )  # fmt: skip
    limits["cpu"] = weights
    return Placement(
        kwargs,
        Message("The base does not fit on the GPU: layers wait in the machine's memory, and each token waits for them. "
                "A smaller base answers much faster."),
    )  # fmt: skip


def is_divided(model: Any) -> bool:
    """Whether the weights of a model are on more than one device."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def input_device(model: Any) -> Any:
    """The device that takes a model's inputs: that of the first weight that does not wait elsewhere."""
    return next(p.device for p in model.parameters() if not p.is_meta)


def has_waiting_weights(model: Any) -> bool:
    """Whether weights of a model wait elsewhere than on the device that computes with them."""
    return any(p.is_meta for p in model.parameters())


def materialize_adapters(model: Any) -> None:
    """Make room for the LoRA of layers that wait elsewhere on the device that computes: PEFT puts it on theirs."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and layer.get_base_layer().weight.is_meta:
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                if part.weight.is_meta:
                    part.to_empty(device=layer.get_base_layer()._hf_hook.execution_device)


def lora_autocast(model: Any) -> Any:
    """Autocast for a base in half precision: the float32 LoRA weights are cast once a step, not every activation.

    A trainer on a GPU has it on already; with the activations cast to float32 instead, q, k and v would each keep a
    copy of their input, a fifth of all that a layer keeps.
    """
    import torch

    device, half = input_device(model).type, model.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device, model.dtype) if half and device != "mps" else contextlib.nullcontext()
