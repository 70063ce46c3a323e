"""What is imported is declared and the other way round; the wheel holds all that an installed copy needs."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from persona import __version__
from persona.models import catalogue
from persona.store.workspace import PROJECT_DIR
from persona.train import validate

OURS = {
    "persona",
    "app",
    "tests",
    "scripts",
    "benchmarks",
    *(f.stem for folder in ("tests", "scripts") for f in (PROJECT_DIR / folder).glob("*.py")),
}
EXTRAS = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
OTHERWISE = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "pynvml": "nvidia-ml-py",
}  # modules that are not named as their distribution
# of requirements-dev.txt: programs and plugins, not imported
TOOLS = {"pytest-timeout", "pytest-xdist", "pytest-cov", "ruff", "mypy", "import-linter", "axe-playwright-python", "tensorboardx",
         "hatchling", "hatch-requirements-txt", "ipykernel", "ipywidgets"}  # fmt: skip


def declared(lines: list[str]) -> set[str]:
    texts = [line for line in lines if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(Requirement(text).name) for text in texts}


def requirements(name: str) -> set[str]:
    return declared((PROJECT_DIR / name).read_text(encoding="utf-8").splitlines())


def imported(*places: str) -> set[str]:
    """The distributions that files of the project import, at their top or later."""
    files = [f for p in places for f in ([PROJECT_DIR / p] if p.endswith(".py") else (PROJECT_DIR / p).rglob("*.py"))]
    found = set()
    for node in (n for f in files for n in ast.walk(ast.parse(f.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return {canonicalize_name(OTHERWISE.get(n, n)) for n in found - OURS - set(sys.stdlib_module_names)}


def test_the_app_imports_what_it_declares_and_declares_what_it_imports():
    required, optional = requirements("requirements.txt"), declared([x for extra in EXTRAS.values() for x in extra])
    used = imported("persona", "app.py")
    assert required <= used and used <= required | optional | {"unsloth"}, "Unsloth has an environment of its own"
    by_name = {package for _, package in validate.TRACKER_PACKAGES.values()} | {
        e.needs for e in catalogue.load_catalogue() if e.needs
    }
    assert optional <= used | {canonicalize_name(p) for p in by_name}, "an extra that nothing asks for"
    assert {canonicalize_name(p) for p in by_name} <= optional


def test_tests_and_tools_import_what_is_declared():
    both = requirements("requirements.txt") | requirements("requirements-dev.txt")
    used = imported("persona", "app.py", "tests", "scripts", "benchmarks")
    optional = declared([x for extra in EXTRAS.values() for x in extra])
    assert used <= both | optional | requirements("requirements-unsloth.txt")
    assert requirements("requirements-dev.txt") <= used | TOOLS


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(PROJECT_DIR)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"))


def read_image_steps() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, in order."""
    lines = (PROJECT_DIR / "Dockerfile").read_text("utf-8").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line[:1].isupper()]


@pytest.mark.slow
def test_the_image_copies_and_starts_what_exists():
    """The image itself is not built here."""
    steps = read_image_steps()
    assert all((PROJECT_DIR / name).exists() for step, names in steps if step == "COPY" for name in names.split())
    given = dict(steps)
    python, *start = json.loads(given["CMD"])
    assert python == "python" and given["EXPOSE"] == "7860", "the default port"
    subprocess.run([sys.executable, *start, "--help"], cwd=PROJECT_DIR, check=True, capture_output=True)


@pytest.mark.parametrize("index", ["", "https://torch.example/cpu"])
def test_the_image_s_commands_run_in_a_folder_with_what_was_copied_before(tmp_path, index):
    """With stand-ins that write down how pip and the others are called."""
    programs, folder, called = tmp_path / "bin", tmp_path / "app", tmp_path / "called"
    for made in (programs, folder):
        made.mkdir()
    for name in ("pip", "useradd", "install"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {called}\n', "utf-8")
        (programs / name).chmod(0o755)
    for step, arguments in read_image_steps():
        if (step, arguments) == ("COPY", ". ."):
            break
        if step == "COPY":
            (folder / arguments.split()[0]).write_bytes((PROJECT_DIR / arguments.split()[0]).read_bytes())
        if step == "RUN":
            environment = {"PATH": f"{programs}:/usr/bin:/bin", "TORCH_INDEX": index}
            subprocess.run(["sh", "-euc", arguments], cwd=folder, env=environment, check=True)
    *first, everything, user, data = called.read_text("utf-8").splitlines()
    assert everything == "pip install --no-cache-dir -r requirements.txt"
    assert (user, data) == ("useradd --create-home persona", "install -d -o persona /data")
    (torch,) = (
        x for x in (PROJECT_DIR / "requirements.txt").read_text("utf-8").splitlines() if x.startswith("torch==")
    )
    assert first == ([f"pip install --no-cache-dir --index-url {index} {torch}"] if index else [])


def test_the_wheel_holds_code_data_and_examples(wheel):
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "persona", "templates", "datasets"],
        cwd=PROJECT_DIR, text=True,
    )  # fmt: skip
    known = {f if f.startswith("persona/") else f"persona/_data/{f}" for f in listed.splitlines()
             if (PROJECT_DIR / f).is_file()}  # fmt: skip
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    # so no runs of a persona either, and no package named `datasets`, which would shadow the library
    assert held == known


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The command of an installed copy, in an environment of its own that sees the libraries of this one."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    python = place / "venv" / Path(sys.executable).relative_to(sys.prefix)
    paths = json.loads(
        subprocess.check_output([python, "-c", "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))"])
    )
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (Path(paths["purelib"]) / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"PERSONA_HOME": str(place / "home"), "HF_HUB_OFFLINE": "1"}

    def run(*words: str, program: str = "persona", **more: str) -> str:
        command = [str(Path(paths["scripts"]) / program), *words]
        done = subprocess.run(command, cwd=elsewhere, env=env | more, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.slow
def test_an_installed_copy_works_in_any_folder(installed):
    where = "import persona, datasets; print(persona.__file__, datasets.load_dataset.__name__)"
    file, library = installed("-c", where, program="python").split()
    assert not Path(file).is_relative_to(PROJECT_DIR) and library == "load_dataset"
    assert installed("--version") == f"persona {__version__}"
    assert json.loads(installed("doctor", "--json"))["persona"] == __version__
    installed("new", "mags", "--name", "Mags")
    assert json.loads(installed("lint", "mags", "--json"))["pairs"] == 0


@pytest.mark.slow
@pytest.mark.release
def test_an_installed_copy_trains_an_example_by_its_name(installed, tiny_gemma):
    settings = ["--base", str(tiny_gemma), "--set", "epochs=0.1", "--set", "diary_probes=0", "--json"]
    run = json.loads(installed("train", "zhen-huan", *settings))
    assert run["status"] == "done" and "home/personas/zhen-huan/runs" in Path(run["run"]).as_posix()
    assert (Path(run["adapter"]) / "README.md").read_text(encoding="utf-8"), "from a template"
