"""The export formats by name: chooses the writer for the command line and the page."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from persona.errors import InputError


class ExportFormat(StrEnum):
    """zip: for this app; merged, gguf: weights; card, dataset: text."""

    zip = "zip"
    merged = "merged"
    gguf = "gguf"
    card = "card"
    dataset = "dataset"


class Quantization(StrEnum):
    """Bits of the weights in a merged GGUF file; `none` is 16 bits."""

    none = "none"
    q8_0 = "q8_0"
    q6_k = "q6_k"
    q5_k_m = "q5_k_m"
    q5_0 = "q5_0"
    q4_k_m = "q4_k_m"
    q4_0 = "q4_0"


@dataclass(frozen=True)
class ExportOptions:
    """Options of some formats. strength: of a merged model; 0 is the base, 1 the adapter as trained.

    base: a name, "" for the adapter's own. merge: GGUF of the whole model; quantize: bits of its weights.
    version, picture: of a character card.
    """

    base: str = ""
    strength: float = 1.0
    merge: bool = False
    quantize: Quantization = Quantization.none
    version: int = 3
    picture: Path | None = None


def write_export(path: Path, out: Path, form: ExportFormat, options: ExportOptions = ExportOptions(),
          progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:  # fmt: skip
    """Export `path`, an adapter, run or persona folder, to the new file or folder `out`.

    Returns "file" or "folder", "bytes", and "notes" and "difference" where there are any. Raises InputError or
    AdapterError where this format is not possible.
    """
    if form in (ExportFormat.card, ExportFormat.dataset):
        return _export_pairs(path, out, form, options)
    return _export_weights(path, out, form, options, progress)


def _export_pairs(path: Path, out: Path, form: ExportFormat, options: ExportOptions) -> dict[str, Any]:
    from persona.share.exports import character_card, trainer_configs
    from persona.share.exports.material import load_material

    material = load_material(path)
    if form is ExportFormat.dataset:
        return trainer_configs.export_dataset(material, out)
    return character_card.export_card(
        material.card, material.pairs, out, options.version, options.picture, kept=material.kept,
        home=material.home,
    )  # fmt: skip


def _export_weights(
    path: Path, out: Path, form: ExportFormat, options: ExportOptions, progress: Callable[[str], None]
) -> dict[str, Any]:
    from persona.models import adapter as adapters
    from persona.share import archive

    if options.strength != 1 and (form is ExportFormat.zip or (form is ExportFormat.gguf and not options.merge)):
        raise InputError(
            "strength={strength}: an adapter goes out as it was trained; only a merged model has one.",
            strength=options.strength,
        )
    if options.quantize is not Quantization.none and not (form is ExportFormat.gguf and options.merge):
        raise InputError(
            "quantize={quantize}: only a merged GGUF file is quantized. Add --as gguf --merge.",
            quantize=options.quantize.value,
        )
    folder = adapters.locate_adapter(path)
    if form is ExportFormat.zip:
        from persona.share import refresh_card
        from persona.share.exports import new_output
        from persona.train.run_folder import find_persona_card

        new_output.require_new(out)
        refresh_card.refresh_model_card(folder, find_persona_card(folder))
        packed = archive.pack_adapter(folder, out)
        return {"file": str(packed), "bytes": packed.stat().st_size}
    from persona.compare import session
    from persona.share.exports import gguf_folder, merged_model

    with archive.seal_adapter(folder) as adapter:
        base = session.base_of(adapter, options.base, progress)
        if form is ExportFormat.merged:
            return merged_model.export_merged_model(adapter, base, out, options.strength, progress)
        if options.merge:
            return gguf_folder.export_merged_gguf(
                adapter, base, out, options.base, options.strength, options.quantize, progress
            )
        return gguf_folder.export_adapter_gguf(adapter, base, out, options.base, progress)
