"""Open a base model: the embedded ones, a local folder, a GGUF file, a Hub id, or one of ModelScope.

Wherever it comes from, it is one plain checkpoint folder in the end. torch and transformers are imported inside
functions, so that naming a base costs nothing.
"""

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona import embedded, fetch, hardware, quantize
from persona.catalogue import catalogue
from persona.choose import choose_template
from persona.embedded import DEFAULT, EMBEDDED, Embedded, Progress
from persona.errors import BaseError, Message
from persona.fetch import MODELSCOPE
from persona.files import read_json, require_own
from persona.folder import Card
from persona.render import MAX_LENGTH, Renderer
from persona.templates import Template, read_template


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


def quiet(_: str) -> None:
    pass


def resolve(name: str, progress: Progress = quiet, revision: str = "") -> Base:
    """Find, and where needed convert or download, the base called `name`.

    Tried in this order: an embedded name or its Hub id, modelscope:ORG/NAME, a .gguf file, a folder with config.json,
    a Hub id. revision: the commit of a Hub id that is wanted; empty: its newest.
    Raises BaseError with what to do instead.
    """
    name = name.strip() or DEFAULT
    own = embedded.named(name)
    if own and (name == own.name or not fetch.in_hub_cache(name)):
        return _embedded(own, progress)
    if name.startswith(MODELSCOPE):
        return Base(*fetch.from_modelscope(name, progress))
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.exists():
        require_own(path)
    if path.suffix == ".gguf":
        return _gguf(name, path, progress)
    if path.is_dir():
        return _folder(name, path)
    if not fetch.is_hub_id(name):
        raise BaseError(
            "{name!r}: no such folder, GGUF file or Hub id (OWNER/NAME). The embedded base {default!r} always works.",
            name=name,
            default=DEFAULT,
        )
    return Base(*fetch.from_hub(name, progress, revision))


def _embedded(e: Embedded, progress: Progress) -> Base:
    told = Base(e.hub_id, Path(), f"gguf-{e.sha256[:12]}" if e.sha256 else "gguf", e.licence, e.licence_url)
    return replace(told, path=embedded.checkpoint(e, told.to_dict(), progress))


def _gguf(name: str, path: Path, progress: Progress) -> Base:
    if not path.is_file():
        raise BaseError(
            "{name}: no such file. Check the path, or use the embedded base {default!r}.", name=name, default=DEFAULT
        )
    digest = embedded.sha256(path)
    told = Base(path.stem, path, f"gguf-{digest[:12]}")
    return replace(told, path=embedded.convert(path, path.stem, digest, told.to_dict(), progress))


def _folder(name: str, path: Path) -> Base:
    if not (path / "config.json").is_file():
        raise BaseError(
            "{name}: no config.json in this folder, so it is not a model in Hugging Face format.", name=name
        )
    if not any(path.glob("*.safetensors")):
        raise BaseError("{name}: no .safetensors file here. Pickled weights (.bin, .pt) are not opened.", name=name)
    known = read_json(path / "config.json", Message("a base model")).get("_name_or_path") or ""
    return Base(known if fetch.is_hub_id(known) else path.resolve().name, path.resolve())


def ready(name: str, revision: str = "") -> Base | None:
    """The base called `name` if it lies on this disk as a checkpoint already. Nothing is converted or downloaded."""
    name = name.strip() or DEFAULT
    if own := embedded.named(name):
        made = embedded.made(own)
        return Base(own.hub_id, made) if made else None
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        require_own(path)
        return Base(path.resolve().name, path.resolve())
    if fetch.is_hub_id(name) and (cached := fetch.in_hub_cache(name, revision)):
        return Base(name, cached)
    return None


def travels(name: str) -> bool:
    """Whether an adapter from anywhere may name its base so: as a plain name or a Hub id, never as a path."""
    return fetch.is_hub_id(name.removeprefix(MODELSCOPE)) or fetch.is_hub_id(f"x/{name}")


def choices() -> list[tuple[str, str, str]]:
    """(name, title, what to know before choosing it) of the bases to choose from: the embedded ones, then the
    catalogue's, the smallest first.
    """
    own = [(e.name, e.about, "" if embedded.is_installed(e) else Message("not installed")) for e in EMBEDDED.values()]
    other = [e for e in catalogue() if e.id not in {x.hub_id for x in EMBEDDED.values()}]
    return own + [(e.id, e.id, e.about) for e in sorted(other, key=lambda e: (e.parameters, e.id))]


def open_renderer(
    card: Card,
    name: str = "",
    template: str = "auto",
    max_length: int = MAX_LENGTH,
    learn_history: bool = False,
    progress: Progress = quiet,
) -> tuple[Base, Renderer]:
    """The base called `name` and the renderer for it: what preview, trainer and command line agree on."""
    base = resolve(name, progress)
    tokenizer = load_tokenizer(base)
    chosen = _fitting(base, card.language) if template == "auto" else read_template(template)
    return base, Renderer(tokenizer, chosen, card.system, max_length, learn_history)


@lru_cache(maxsize=64)
def _fitting(base: Base, language: str) -> Template:
    """Kept: the page asks at every key that is pressed, and a tokenizer of 262,144 tokens is searched for it."""
    return choose_template(load_tokenizer(base), language)


def _unfit() -> tuple[type[Exception], ...]:
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
    except _unfit() as e:
        raise BaseError("{base}: its tokenizer cannot be opened ({reason}).", base=base.id, reason=e) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(base: Base, dtype: str, device: str = "cpu", quantization: str = "none") -> Any:
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
            **quantize.arguments(quantization, dtype, device),
        )  # fmt: skip
    except _unfit() as e:
        if hardware.is_out_of_memory(e):
            raise
        raise BaseError(
            "{base}: cannot be opened ({kind}: {reason}).", base=base.id, kind=type(e).__name__, reason=e
        ) from e
    if quantize.is_quantized(model):  # by us, or as it was stored
        quantize.guard(model)
    if quantization == "none":  # else it lies on its device already
        model = model.to(device)
    return model.eval()
