"""The versions that Unsloth takes, and Unsloth itself: training with them, before a release. pip fetches them.

PERSONA_TEST_UNSLOTH names folders that have them already, as a PYTHONPATH. Without it, and without an index, skipped.
"""

import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from test_install import imported, requirements
from tiny_models import load
from training import events

from persona.models import adapter, attach
from persona.store.workspace import PROJECT_DIR
from persona.train import run as train_run
from persona.train.prepare import installed_versions
from scripts import gpu_pack

pytest_plugins = "training"

FILE = "requirements-unsloth.txt"
TRAINING = ("persona/errors.py", "persona/store", "persona/template", "persona/models", "persona/train")
# of what the training process imports: extras, and what only the launcher or a Space needs
ELSEWHERE = {"liger-kernel", "modelscope", "ray", "rich", "spaces"}
NEW_VERSIONS = {"transformers", "trl", "datasets", "huggingface_hub", "fsspec"}  # that Unsloth takes others of


def pins(name: str) -> dict[str, str]:
    lines = (PROJECT_DIR / name).read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {r.name: str(r.specifier) for r in parsed}


def test_the_environment_has_all_that_the_training_process_imports():
    declared = requirements(FILE)
    assert imported(*TRAINING) - ELSEWHERE <= declared
    assert declared <= imported(*TRAINING) | {"gguf", "unsloth-zoo"}, "and no more; transformers reads .gguf with gguf"


def test_its_pins_are_the_apps_but_for_what_unsloth_does_not_take():
    ours, theirs = pins("requirements.txt"), pins(FILE)
    assert {name for name in theirs if name in ours and theirs[name] != ours[name]} == NEW_VERSIONS
    assert all(version.startswith("==") for version in theirs.values())


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> str:
    """A PYTHONPATH on which Unsloth and its versions come before the installed ones. torch is the installed one."""
    if found := os.environ.get("PERSONA_TEST_UNSLOTH"):
        return found
    folder = tmp_path_factory.mktemp("unsloth")
    wanted = [gpu_pack.pin(p, FILE) for p in gpu_pack.UNSLOTH_PACKAGES]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *wanted]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot fetch them: {done.stderr[-500:]}")
    return str(folder)


def run_python(packages: str, *arguments: str, **environment: str) -> str:
    path = os.pathsep.join([str(PROJECT_DIR), str(PROJECT_DIR / "tests"), packages])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=PROJECT_DIR, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", ["train", "loss", "resume", "trained_tokens", "lora_config"])
def test_training_is_the_same_with_its_versions(packages, file):
    versions = run_python(packages, "-c", "import trl, transformers; print(trl.__version__, transformers.__version__)")
    assert versions.split() == [pins(FILE)[name].removeprefix("==") for name in ("trl", "transformers")]
    run_python(
        packages, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not release", f"tests/test_{file}.py"
    )


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("base", ["tiny_gemma", "tiny_llama"])
def test_a_run_with_unsloth_itself_learns_what_one_without_it_does(packages, make, monkeypatch, request, base):
    """On a CPU, nothing compiled: unsloth_on_cpu.py says how far that is from a GPU."""
    monkeypatch.setenv("PERSONA_UNSLOTH_PYTHON", sys.executable)
    folder = request.getfixturevalue(base)
    plain, run = (make(base=str(folder), engine=engine, lora_r=4) for engine in ("none", "unsloth"))
    train_run.train_run(plain)
    printed = run_python(packages, "tests/unsloth_on_cpu.py", str(run.path))
    assert "trainer: Trainer UnslothSFTTrainer" in printed
    for kind, figure in (("step", "loss"), ("eval", "nll")):
        want = [e[figure] for e in events(plain, kind)]
        assert [e[figure] for e in events(run, kind)] == pytest.approx(want, abs=3e-3)
    assert run.progress().status == "done" and not list(run.path.glob("unsloth*"))
    assert run.manifest()["versions"]["unsloth"] == pins(FILE)["unsloth"].removeprefix("==")
    opened = adapter.read_adapter(run.adapter)
    attach.attach_adapter(load(folder), opened, "x")
    assert sorted(p.name for p in run.adapter.iterdir()) == sorted(p.name for p in plain.adapter.iterdir())
    assert installed_versions(["unsloth"]) == {}, "this process has none of it"
