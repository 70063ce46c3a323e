"""Persona: write pairs, train a LoRA, talk to base and persona side by side, share the adapter."""

import tomllib
from importlib import metadata
from pathlib import Path


def _version() -> str:
    """pyproject.toml's of a checkout, whatever else is installed; else that of the installed package.

    Code that was sent to a machine by itself, as to the workers of a cluster, has neither.
    """
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return metadata.version("persona")
    except metadata.PackageNotFoundError:
        return "0+unknown"


__version__ = _version()
