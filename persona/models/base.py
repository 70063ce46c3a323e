"""Open a base model: the embedded ones, a local folder, a GGUF file, a Hub id, or one of ModelScope.

Wherever it comes from, it is one plain checkpoint folder in the end. torch and transformers are imported inside
functions, so that naming a base costs nothing.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona.errors import BaseError, Message
from persona.models import bundled, download, gguf_import, hardware
from persona.models import quantization as models_quantization
from persona.models.bundled import BUNDLED_MODELS, DEFAULT_BASE, BundledModel
from persona.models.catalogue import load_catalogue
from persona.models.download import MODELSCOPE_PREFIX
from persona.models.progress_callback import ProgressCallback, ignore_progress
from persona.store.files import read_json
from persona.store.workspace import require_in_workspace


@dataclass(frozen=True)
class Base:
    """A base model on this disk. `id` is what travels with an adapter: a Hub id, or a folder's name, never a path."""

    id: str
    path: Path
    revision: str = ""
    licence: str = ""
    licence_url: str = ""

    @property
    def size(self) -> int:
        """Bytes of weights on disk."""
        return sum(f.stat().st_size for f in self.path.glob("*.safetensors"))

    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json", Message("a base model"))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight, from the files' headers alone. Raises BaseError where one is damaged."""
        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            try:
                with file.open("rb") as f:
                    header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
                found |= {name: tuple(t["shape"]) for name, t in header.items() if name != "__metadata__"}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as e:
                raise BaseError("{file}: its header cannot be read. Download the base again.", file=file) from e
        return found

    def to_dict(self) -> dict[str, str]:
        return {"id": self.id, "revision": self.revision, "licence": self.licence, "licence_url": self.licence_url}


def resolve_base(name: str, progress: ProgressCallback = ignore_progress, revision: str = "") -> Base:
    """Find, and where needed convert or download, the base called `name`.

    Tried in this order: an embedded name or its Hub id, modelscope:ORG/NAME, a .gguf file, a folder with config.json,
    a Hub id. revision: the commit of a Hub id that is wanted; empty: its newest.
    Raises BaseError with what to do instead.
    """
    name = name.strip() or DEFAULT_BASE
    own = bundled.find_bundled(name)
    if own and (name == own.name or not download.find_in_hub_cache(name)):
        return _resolve_bundled(own, progress)
    if name.startswith(MODELSCOPE_PREFIX):
        return Base(*download.download_from_modelscope(name, progress))
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.exists():
        require_in_workspace(path)
    if path.suffix == ".gguf":
        return _resolve_gguf(name, path, progress)
    if path.is_dir():
        return _resolve_folder(name, path)
    if not download.is_hub_id(name):
        raise BaseError(
            "{name!r}: no such folder, GGUF file or Hub id (OWNER/NAME). The embedded base {default!r} always works.",
            name=name,
            default=DEFAULT_BASE,
        )
    return Base(*download.download_from_hub(name, progress, revision))


def _resolve_bundled(e: BundledModel, progress: ProgressCallback) -> Base:
    told = Base(e.hub_id, Path(), f"gguf-{e.sha256[:12]}" if e.sha256 else "gguf", e.licence, e.licence_url)
    return replace(told, path=bundled.convert_bundled(e, told.to_dict(), progress))


def _resolve_gguf(name: str, path: Path, progress: ProgressCallback) -> Base:
    if not path.is_file():
        raise BaseError(
            "{name}: no such file. Check the path, or use the embedded base {default!r}.",
            name=name,
            default=DEFAULT_BASE,
        )
    digest = gguf_import.hash_file(path)
    told = Base(path.stem, path, f"gguf-{digest[:12]}")
    return replace(told, path=gguf_import.convert_gguf(path, path.stem, digest, told.to_dict(), progress))


def _resolve_folder(name: str, path: Path) -> Base:
    if not (path / "config.json").is_file():
        raise BaseError(
            "{name}: no config.json in this folder, so it is not a model in Hugging Face format.", name=name
        )
    if not any(path.glob("*.safetensors")):
        raise BaseError("{name}: no .safetensors file here. Pickled weights (.bin, .pt) are not opened.", name=name)
    known = read_json(path / "config.json", Message("a base model")).get("_name_or_path") or ""
    return Base(known if download.is_hub_id(known) else path.resolve().name, path.resolve())


def find_local_base(name: str, revision: str = "") -> Base | None:
    """The base called `name` if it lies on this disk as a checkpoint already. Nothing is converted or downloaded."""
    name = name.strip() or DEFAULT_BASE
    if own := bundled.find_bundled(name):
        made = bundled.find_converted(own)
        return Base(own.hub_id, made) if made else None
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        require_in_workspace(path)
        return Base(path.resolve().name, path.resolve())
    if download.is_hub_id(name) and (cached := download.find_in_hub_cache(name, revision)):
        return Base(name, cached)
    return None


def is_portable_base_name(name: str) -> bool:
    """Whether an adapter from anywhere may name its base so: as a plain name or a Hub id, never as a path."""
    return download.is_hub_id(name.removeprefix(MODELSCOPE_PREFIX)) or download.is_hub_id(f"x/{name}")


def list_base_choices() -> list[tuple[str, str, str]]:
    """(name, title, what to know before choosing it) of the bases to choose from: the embedded ones, then the
    catalogue's, the smallest first.
    """
    own = [
        (e.name, e.about, "" if bundled.is_installed(e) else Message("not installed")) for e in BUNDLED_MODELS.values()
    ]
    other = [e for e in load_catalogue() if e.id not in {x.hub_id for x in BUNDLED_MODELS.values()}]
    return own + [(e.id, e.id, e.about) for e in sorted(other, key=lambda e: (e.parameters, e.id))]


def _load_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for files that are no model, a config.json with values of the wrong kind among them."""
    from huggingface_hub.errors import StrictDataclassError  # as late as transformers itself

    # ImportError: a package that its towers need
    return ValueError, OSError, RuntimeError, ImportError, TypeError, LookupError, AttributeError, StrictDataclassError


@lru_cache(maxsize=4)
def load_tokenizer(base: Base) -> Any:
    """The tokenizer, with a pad token (eos where it has none) and right padding. Kept: reading Gemma's takes 3 s."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
    except _load_errors() as e:
        raise BaseError("{base}: its tokenizer cannot be opened ({reason}).", base=base.id, reason=e) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_base_model(base: Base, dtype: str, device: str = "cpu", quantization: str = "none") -> Any:
    """The causal language model in evaluation mode. `dtype`: float32, bfloat16 or float16; `quantization`: none, nf4
    or int8, of all linear layers but the last. Raises BaseError.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if quantization != "none" and base.config().get("quantization_config"):
        raise BaseError(
            "{base}: its weights are quantized already. Set quantization to none for this base.", base=base.id
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.path, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True,
            **models_quantization.make_quantization_kwargs(quantization, dtype, device),
        )  # fmt: skip
    except _load_errors() as e:
        if hardware.is_out_of_memory(e):
            raise
        raise BaseError(
            "{base}: cannot be opened ({kind}: {reason}).", base=base.id, kind=type(e).__name__, reason=e
        ) from e
    if models_quantization.is_quantized(model):  # by us, or as it was stored
        models_quantization.keep_training_arithmetic(model)
    if quantization == "none":  # else it lies on its device already
        model = model.to(device)
    return model.eval()
