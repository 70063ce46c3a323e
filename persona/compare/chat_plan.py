"""How a base is opened for chat, evaluation and the API: in full precision, or in 4 or 8 bits; and the memory it needs.

Page, command line, API and Python functions all ask `plan_chat`, and say what it says before the base is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from persona.errors import BaseError, InputError, Message, join
from persona.models import memory, placement
from persona.models.base import Base, require_unquantized
from persona.models.hardware import DevicePlan, Machine, plan_device
from persona.models.placement import ONE_DEVICE, Placement
from persona.train.plan import BITSANDBYTES_DEVICES, read_base_shape
from persona.train.validate import check_quantization, require_bitsandbytes

# auto: as the adapter was trained, on a CPU in full precision where that fits
ChatQuantization = Literal["auto", "none", "nf4", "int8"]
FORMS = {"nf4": Message("4 bits (nf4)"), "int8": Message("8 bits (int8)")}


@dataclass(frozen=True)
class ChatPlan:
    """How a base is opened. quantization, dtype, device: as load_base_model takes them; reason: why, for people.

    need: bytes of memory, about; None where the base's shape is not known. free: bytes that it may use on the device.
    in_4_bits: what it would need in nf4; None where that is not possible, or what it is already. chosen: by the user.
    placement: where the weights go that do not fit there.
    """

    base: Base
    device: str
    dtype: str
    quantization: str
    reason: str
    need: int | None
    free: int
    in_4_bits: int | None = None
    chosen: bool = False
    placement: Placement = ONE_DEVICE

    @property
    def fits(self) -> bool:
        return self.need is None or self.need <= self.free or bool(self.placement.kwargs)

    def describe(self) -> Message:
        """The form of the base and its memory, for people."""
        form = FORMS.get(self.quantization, self.dtype)
        if self.need is None:
            return join(" ", [Message("{base} in {form}.", base=self.base.id, form=form), self.reason])
        need = Message("{base} in {form}: about {need} GB of memory, {free} GB are free.", base=self.base.id, form=form,
                       need=_gb(self.need), free=_gb(self.free))  # fmt: skip
        notes = [need, self.reason, self.placement.reason]
        if not self.fits:
            notes.append(Message("It may run out of memory."))
        if not self.fits or self.placement.kwargs:
            notes.append(self._way_on())
        return join(" ", [note for note in notes if note])

    def require_room(self) -> None:
        """Raises BaseError where the base does not fit; not where the user chose this form, and it is tried."""
        if self.fits or self.chosen or self.need is None:
            return
        raise BaseError(
            "{base} in {form} does not fit: it needs about {need} GB of memory, and {free} GB are free. {way} To try "
            "it all the same, set quantization to {quantization} yourself.",
            base=self.base.id, form=FORMS.get(self.quantization, self.dtype), need=_gb(self.need), free=_gb(self.free),
            way=self._way_on(), quantization=self.quantization,
        )  # fmt: skip

    def _way_on(self) -> Message:
        if self.in_4_bits is not None and self.in_4_bits <= self.free:
            return Message("Set quantization to nf4: it then needs about {small} GB.",
                           small=_gb(self.in_4_bits))  # fmt: skip
        return Message("Close other programs, or choose a smaller base.")


def plan_chat(
    base: Base, machine: Machine, free: Sequence[int], quantization: str = "auto", trained: str = "none"
) -> ChatPlan:
    """The plan for a base on this disk.

    free: bytes of memory that it may use, on the device and on each further GPU. quantization: as the user asks, a
    ChatQuantization. trained: how the base was quantized while the adapter was trained (Adapter.quantization). Raises
    InputError for what this machine cannot do, BaseError for a base that is stored quantized otherwise.
    """
    if quantization not in get_args(ChatQuantization):
        raise InputError("quantization={quantization}: is not auto, none, nf4 or int8.", quantization=quantization)
    device, shape = plan_device(machine), read_base_shape(base)
    needs = {} if shape is None else {
        name: memory.estimate_chat_memory(shape, device.chat_dtype, name) for name in ("none", "int8", "nf4")
    }  # fmt: skip
    stored = memory.stored_quantization(base.config())
    fits_whole = needs.get("none", 0) <= free[0]
    chosen, reason = _choose(quantization, trained, stored, device, fits_whole)
    require_unquantized(base, chosen)
    require_bitsandbytes(chosen, "")
    check_quantization(chosen, "", False, device)
    smaller = stored == "none" and chosen != "nf4" and device.device in BITSANDBYTES_DEVICES
    placed = ONE_DEVICE
    if device.device == "cuda" and chosen == "none" and not fits_whole:
        placed = placement.place_for_chat(base.loaded_size(device.chat_dtype), free)
    return ChatPlan(base, device.device, device.chat_dtype, chosen, reason, needs.get(chosen), free[0],
                    needs.get("nf4") if smaller else None, quantization != "auto", placed)  # fmt: skip


def _choose(
    quantization: str, trained: str, stored: str, device: DevicePlan, fits_whole: bool
) -> tuple[str, str | Message]:
    """The quantization to open a base with, and why."""
    if stored != "none" and quantization in ("auto", "none", stored):
        return "none", Message("It is stored in {form}.", form=FORMS[stored])
    if quantization != "auto" or trained == "none":
        return quantization.replace("auto", "none"), ""
    if device.device == "cuda":
        return trained, Message("As the adapter was trained.")
    if device.device in BITSANDBYTES_DEVICES and not fits_whole:
        return trained, Message(
            "As the adapter was trained: in full precision it would not fit. In {form} it is slow without a GPU.",
            form=FORMS[trained],
        )
    return "none", Message(
        "The adapter was trained in {form}; without an NVIDIA GPU, full precision is faster.", form=FORMS[trained]
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
