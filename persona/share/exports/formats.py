"""Every form that a persona can leave in, for the command line and the page alike."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from persona.errors import InputError


class ExportFormat(StrEnum):
    """What an export may be."""

    zip = "zip"
    merged = "merged"
    gguf = "gguf"
    card = "card"
    dataset = "dataset"


@dataclass(frozen=True)
class ExportOptions:
    """What some forms can be told. strength: 0 is the base, 1 as trained; merged models only.

    base: in place of the adapter's own. merge: a whole model as GGUF. version, picture: of a character card.
    """

    base: str = ""
    strength: float = 1.0
    merge: bool = False
    version: int = 3
    picture: Path | None = None


def write_export(path: Path, out: Path, form: ExportFormat, wishes: ExportOptions = ExportOptions(),
          progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # fmt: skip
    """Write what `path` (an adapter, run or persona folder) holds to `out`, which must not be there yet.

    Returns what was made: "file" or "folder", and "notes" and "difference" where there are any. Raises InputError or
    AdapterError with the reason where this form is not possible.
    """
    if form in (ExportFormat.card, ExportFormat.dataset):
        return _export_pairs(path, out, form, wishes)
    return _export_weights(path, out, form, wishes, progress)


def _export_pairs(path: Path, out: Path, form: ExportFormat, wishes: ExportOptions) -> dict[str, Any]:
    from persona.share.exports import character_card, trainer_configs

    made = trainer_configs.load_material(path)
    if form is ExportFormat.dataset:
        return trainer_configs.export_dataset(made, out)
    return character_card.export_card(made.card, made.pairs, out, wishes.version, wishes.picture)


def _export_weights(
    path: Path, out: Path, form: ExportFormat, wishes: ExportOptions, progress: Callable[[str], None]
) -> dict[str, Any]:
    from persona.models import adapter as adapters

    if wishes.strength != 1 and (form is ExportFormat.zip or (form is ExportFormat.gguf and not wishes.merge)):
        raise InputError(
            "strength={strength}: an adapter goes out as it was trained; only a merged model has one.",
            strength=wishes.strength,
        )
    folder = adapters.locate_adapter(path)
    if form is ExportFormat.zip:
        from persona.share import archive, refresh_card
        from persona.share.exports import new_output

        new_output.require_new(out)
        refresh_card.refresh_model_card(folder, refresh_card.find_persona_card(folder))
        packed = archive.pack_adapter(folder, out)
        return {"file": str(packed), "bytes": packed.stat().st_size}
    from persona.compare import session
    from persona.share.exports import gguf_folder, merged_model

    adapter = adapters.read_adapter(folder)
    found = session.base_of(adapter, wishes.base, progress)
    if form is ExportFormat.merged:
        return merged_model.export_merged_model(adapter, found, out, wishes.strength, progress)
    if wishes.merge:
        return gguf_folder.export_merged_gguf(adapter, found, out, wishes.base, wishes.strength, progress)
    return gguf_folder.export_adapter_gguf(adapter, found, out, wishes.base, progress)
