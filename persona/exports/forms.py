"""Every form that a persona can leave in, for the command line and the page alike."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from persona.errors import InputError


class Form(StrEnum):
    """What an export may be."""

    zip = "zip"
    merged = "merged"
    gguf = "gguf"
    card = "card"
    dataset = "dataset"


@dataclass(frozen=True)
class Wishes:
    """What some forms can be told. strength: 0 is the base, 1 as trained; merged models only.

    base: in place of the adapter's own. merge: a whole model as GGUF. version, picture: of a character card.
    """

    base: str = ""
    strength: float = 1.0
    merge: bool = False
    version: int = 3
    picture: Path | None = None


def write(path: Path, out: Path, form: Form, wishes: Wishes = Wishes(),
          progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # fmt: skip
    """Write what `path` (an adapter, run or persona folder) holds to `out`, which must not be there yet.

    Returns what was made: "file" or "folder", and "notes" and "difference" where there are any. Raises InputError or
    AdapterError with the reason where this form is not possible.
    """
    if form in (Form.card, Form.dataset):
        return _of_pairs(path, out, form, wishes)
    return _of_weights(path, out, form, wishes, progress)


def _of_pairs(path: Path, out: Path, form: Form, wishes: Wishes) -> dict[str, Any]:
    from persona.exports import cards, trainers

    made = trainers.material(path)
    if form is Form.dataset:
        return trainers.export(made, out)
    return cards.export(made.card, made.pairs, out, wishes.version, wishes.picture)


def _of_weights(path: Path, out: Path, form: Form, wishes: Wishes, progress: Callable[[str], None]) -> dict[str, Any]:
    from persona import adapter as adapters

    if wishes.strength != 1 and (form is Form.zip or (form is Form.gguf and not wishes.merge)):
        raise InputError(
            "strength={strength}: an adapter goes out as it was trained; only a merged model has one.",
            strength=wishes.strength,
        )
    folder = adapters.locate(path)
    if form is Form.zip:
        from persona import modelcard, share
        from persona.exports import place

        place.must_be_new(out)
        modelcard.restate(folder, modelcard.persona_of(folder))
        packed = share.pack(folder, out)
        return {"file": str(packed), "bytes": packed.stat().st_size}
    from persona import chat
    from persona.exports import llamacpp, merged

    adapter = adapters.check(folder)
    found = chat.base_of(adapter, wishes.base, progress)
    if form is Form.merged:
        return merged.export(adapter, found, out, wishes.strength, progress)
    if wishes.merge:
        return llamacpp.export_merged(adapter, found, out, wishes.base, wishes.strength, progress)
    return llamacpp.export_adapter(adapter, found, out, wishes.base, progress)
