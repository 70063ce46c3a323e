"""Open a base model by its name: a bundled one, a local folder, a GGUF file, a Hub id or a ModelScope id.

Each becomes a checkpoint folder in Hugging Face format, from which tokenizer and model are loaded. torch and
transformers are imported inside functions, so that resolving a name stays fast.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from persona.errors import BaseError, InputError, Message
from persona.models import bundled, download, gguf_import, hardware
from persona.models.bundled import BUNDLED_MODELS, DEFAULT_BASE, BundledModel
from persona.models.catalogue import load_catalogue
from persona.models.download import MODELSCOPE_PREFIX
from persona.models.memory import DTYPE_BYTES
from persona.models.progress_callback import ProgressCallback, ignore_progress
from persona.models.quantization import (
    is_quantized,
    keep_training_arithmetic,
    make_quantization_kwargs,
    require_quantized_layers,
)
from persona.models.quiet import quiet_transformers, silence_bitsandbytes
from persona.store.files import expand_home, hash_file, is_file, is_folder, read_json
from persona.store.workspace import is_for_visitor

MAX_SHOWN = 200  # characters of a name in a message
QUANT_STATE = ".quant_state.bitsandbytes__"  # in the name of the tensor by which bitsandbytes unpacks a weight
MAX_QUANT_STATE = 10_000  # bytes of it


@dataclass(frozen=True)
class Base:
    """A base model on this disk.

    id: what an adapter stores of it, a Hub id or a folder's name, never a path. revision: the commit on the Hub, or
    gguf-DIGEST; "" where neither is known.
    """

    id: str
    path: Path
    revision: str = ""
    licence: str = ""
    licence_url: str = ""

    @property
    def size(self) -> int:
        """Bytes of its weights on disk."""
        return sum(f.stat().st_size for f in self.path.glob("*.safetensors"))

    def config(self) -> dict[str, Any]:
        """Its config.json. Raises InputError where that cannot be read."""
        return read_json(self.path / "config.json", Message("a base model"))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight, from the files' headers alone. Raises BaseError where one is damaged.

        A weight that is stored in 4 bits has the shape of its matrix, and what unpacks it is left out.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            try:
                with file.open("rb") as f:
                    header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
                    shapes |= _read_shapes(f, header)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as e:
                raise BaseError("{file}: its header cannot be read. Download the base again.", file=file) from e
        return shapes

    def loaded_size(self, dtype: str) -> int:
        """Bytes of its weights in memory in this number format; of one that is stored in fewer bits, as they are."""
        if self.config().get("quantization_config"):
            return self.size
        return int(sum(map(math.prod, self.tensors().values())) * DTYPE_BYTES[dtype])

    def to_dict(self) -> dict[str, str]:
        """What run.json of an adapter stores of its base."""
        return {"id": self.id, "revision": self.revision, "licence": self.licence, "licence_url": self.licence_url}


def _read_shapes(file: BinaryIO, header: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of one safetensors file, which has been read up to the end of its header."""
    data = file.tell()
    shapes = {name: tuple(t["shape"]) for name, t in header.items() if name != "__metadata__"}
    packed = {}
    for name in [n for n in shapes if QUANT_STATE in n]:  # a small JSON text beside each weight in 4 bits
        begin, end = header[name]["data_offsets"]
        file.seek(data + begin)
        state = json.loads(file.read(min(end - begin, MAX_QUANT_STATE)))
        packed[name.partition(QUANT_STATE)[0]] = tuple(state["shape"])
    parts = {n for n in shapes if (place := n.rfind(".weight.")) >= 0 and n[: place + len(".weight")] in packed}
    return {n: shape for n, shape in shapes.items() if n not in parts} | packed


def resolve_base(name: str, progress: ProgressCallback = ignore_progress, revision: str = "") -> Base:
    """Find the base model called `name`; convert or download it where needed.

    Tried in this order: the name or Hub id of a bundled model, modelscope:ORG/NAME or …@REVISION, a .gguf file, a
    folder with config.json, a Hub id; for a visitor neither file nor folder. revision: the commit to take of a Hub id;
    "": its newest. Raises BaseError with what to do, InputError as require_open_name() does.
    """
    name = name.strip() or DEFAULT_BASE
    require_open_name(name)
    model = bundled.find_bundled(name)
    if model and (name == model.name or not download.find_in_hub_cache(name)):
        return _resolve_bundled(model, progress)
    if name.startswith(MODELSCOPE_PREFIX):
        return Base(*download.download_from_modelscope(name, progress))
    if path := _find_path(name):
        return _resolve_gguf(name, path, progress) if path.suffix == ".gguf" else _resolve_folder(name, path)
    _require_hub_id(name)
    return Base(*download.download_from_hub(name, progress, revision))


def check_base(name: str) -> str:
    """Refuse a base that resolve_base() could not open, before anything of it is converted, downloaded or queued.

    Returns a note where that cannot be known yet: the Hub is not reached. Raises BaseError, InputError as that does.
    """
    name = name.strip() or DEFAULT_BASE
    require_open_name(name)
    if bundled.find_bundled(name):
        return ""
    if name.startswith(MODELSCOPE_PREFIX):
        download.require_modelscope(name)
    elif path := _find_path(name):
        _require_gguf(name, path) if path.suffix == ".gguf" else _resolve_folder(name, path)
    else:
        _require_hub_id(name)
        return download.check_on_hub(name)
    return ""


def _find_path(name: str) -> Path | None:
    """The .gguf file, there or not, or the folder that a name is; never one for a visitor."""
    path = expand_home(name)
    return path if not is_for_visitor() and (path.suffix == ".gguf" or is_folder(path)) else None


def _require_hub_id(name: str) -> None:
    if download.is_hub_id(name):
        return
    if known := next((m.id for m in load_catalogue() if m.id.rpartition("/")[2].lower() == name.lower()), ""):
        raise BaseError("{name!r}: its id on the Hub has an owner: {known}.", name=name, known=known)
    raise BaseError(
        "{name!r}: no such folder, GGUF file or Hub id (OWNER/NAME). The embedded base {default!r} always works.",
        name=name[:MAX_SHOWN],
        default=DEFAULT_BASE,
    )


def require_open_name(name: str) -> None:
    """Raises InputError when a visitor of a shared server names a base by anything but its name or id.

    It is the same for every path: the disk is not looked at.
    """
    if not is_for_visitor() or bundled.find_bundled(name.strip() or DEFAULT_BASE):
        return
    if not (download.is_hub_id(name.strip()) or download.is_modelscope_name(name.strip())):
        raise InputError(
            "{path}: this server opens none of its own folders for visitors. Name a Hub id.",
            path=f"{name[:MAX_SHOWN]!r}",
        )


def _resolve_bundled(model: BundledModel, progress: ProgressCallback) -> Base:
    revision = f"gguf-{model.sha256[:12]}" if model.sha256 else "gguf"
    base = Base(model.hub_id, Path(), revision, model.licence, model.licence_url)
    return replace(base, path=bundled.convert_bundled(model, base.to_dict(), progress))


def _require_gguf(name: str, path: Path) -> None:
    if not is_file(path):
        raise BaseError(
            "{name}: no such file. Check the path, or use the embedded base {default!r}.",
            name=name[:MAX_SHOWN],
            default=DEFAULT_BASE,
        )


def _resolve_gguf(name: str, path: Path, progress: ProgressCallback) -> Base:
    _require_gguf(name, path)
    digest = hash_file(path)
    base = Base(path.stem, path, f"gguf-{digest[:12]}")
    return replace(base, path=gguf_import.convert_gguf(path, path.stem, digest, base.to_dict(), progress))


def _resolve_folder(name: str, path: Path) -> Base:
    if not is_file(path / "config.json"):
        raise BaseError(
            "{name}: no config.json in this folder, so it is not a model in Hugging Face format.", name=name
        )
    if not any(path.glob("*.safetensors")):
        raise BaseError("{name}: no .safetensors file here. Pickled weights (.bin, .pt) are not opened.", name=name)
    origin = read_json(path / "config.json", Message("a base model")).get("_name_or_path") or ""
    return Base(origin if download.is_hub_id(origin) else path.resolve().name, path.resolve())


def find_local_base(name: str, revision: str = "") -> Base | None:
    """The base called `name` if its checkpoint folder is on this disk already; nothing is converted or downloaded."""
    name = name.strip() or DEFAULT_BASE
    require_open_name(name)
    if model := bundled.find_bundled(name):
        folder = bundled.find_converted(model)
        return Base(model.hub_id, folder) if folder else None
    if name.startswith(MODELSCOPE_PREFIX):
        folder = download.find_in_modelscope_cache(name)
        return Base(name, folder, download.split_modelscope_name(name)[1]) if folder else None
    path = expand_home(name)
    if not is_for_visitor() and is_file(path / "config.json"):
        return Base(path.resolve().name, path.resolve())
    if download.is_hub_id(name) and (cached := download.find_in_hub_cache(name, revision)):
        return Base(name, cached)
    return None


def is_portable_base_name(name: str) -> bool:
    """Whether an adapter from outside may name its base so: a plain name or a Hub id, never a path."""
    return download.is_modelscope_name(name) or download.is_hub_id(name) or download.is_hub_id(f"x/{name}")


def list_base_choices() -> list[tuple[str, str, str]]:
    """The base models to choose from, each as (name, title, note): the bundled ones, then the catalogue by size."""
    models = BUNDLED_MODELS.values()
    choices = [(m.name, m.about, "" if bundled.is_installed(m) else Message("not installed")) for m in models]
    others = [m for m in load_catalogue() if m.id not in {b.hub_id for b in models}]
    return choices + [(m.id, m.id, m.about) for m in sorted(others, key=lambda m: (m.parameters, m.id))]


def _load_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for files that are not a model, or whose config.json has values of a wrong type."""
    from huggingface_hub.errors import StrictDataclassError

    # ImportError: a package that an image or audio tower needs
    return ValueError, OSError, RuntimeError, ImportError, TypeError, LookupError, AttributeError, StrictDataclassError


@lru_cache(maxsize=4)
def load_tokenizer(base: Base) -> Any:
    """The tokenizer, padding on the right with its pad token, or eos where it has none. Cached: Gemma's takes 3 s."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
    except _load_errors() as e:
        raise BaseError("{base}: its tokenizer cannot be opened ({reason}).", base=base.id, reason=e) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def require_unquantized(base: Base, quantization: str) -> None:
    """Raise BaseError where a base that is stored in 4 or 8 bits should be quantized again."""
    if quantization != "none" and base.config().get("quantization_config"):
        raise BaseError(
            "{base}: its weights are quantized already. Set quantization to none for this base.", base=base.id
        )


def load_base_model(
    base: Base, dtype: str, device: str = "cpu", quantization: str = "none", placed: Mapping[str, Any] | None = None
) -> Any:
    """The causal language model in evaluation mode.

    dtype: float32, bfloat16 or float16. quantization: none, nf4 or int8, of all linear layers but the output layer.
    placed: arguments of from_pretrained that place the weights elsewhere than on `device` (placement.py).
    Raises BaseError.
    """
    import torch
    from transformers import AutoModelForCausalLM

    silence_bitsandbytes()
    require_unquantized(base, quantization)
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                base.path, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True,
                **{**make_quantization_kwargs(quantization, dtype, device), **(placed or {})},
            )  # fmt: skip
    except _load_errors() as e:
        if hardware.is_out_of_memory(e):
            raise
        raise BaseError(
            "{base}: cannot be opened ({kind}: {reason}).", base=base.id, kind=type(e).__name__, reason=e
        ) from e
    if quantization != "none":
        require_quantized_layers(model, base.id)
    if is_quantized(model):  # here, or as stored
        keep_training_arithmetic(model)
    if quantization == "none" and not placed:  # a quantized one is on its device already
        model = model.to(device)
    return model.eval()
