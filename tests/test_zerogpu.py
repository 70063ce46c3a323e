"""The page on ZeroGPU, with the package `spaces` itself and a local scheduler (zerogpu_standin.py)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zerogpu_standin

from persona.store.workspace import PROJECT_DIR

# test_space.py runs a run in slices in this process, in `make test`
pytestmark = [pytest.mark.slow, pytest.mark.release]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, tiny_gemma: Path) -> dict[str, Any]:
    """What came of each use of the page, by name."""
    home = tmp_path_factory.mktemp("space")
    cached = home / "hf" / "hub" / f"models--{zerogpu_standin.BASE.replace('/', '--')}"
    shutil.copytree(tiny_gemma, cached / "snapshots" / "r1")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("r1")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_DIR), "OMP_NUM_THREADS": "1"}
    with (home / "log").open("w") as log:  # the workers outlive the page, and would keep a pipe open
        ran = subprocess.run([sys.executable, zerogpu_standin.__file__, home, home / "result.json"], env=env, stdout=log,
                             stderr=log, cwd=home, timeout=900)  # fmt: skip
    assert ran.returncode == 0, (home / "log").read_text()[-4000:]
    return json.loads((home / "result.json").read_text())


def test_the_page_starts_and_plans_for_the_gpu_that_it_will_get(space: dict[str, Any]) -> None:
    assert space["page"] == 200 and space["calls"][0] == ["/startup-report", {}]
    assert "device='cuda'" in space["machine"] and "rates=()" in space["machine"]
    assert "training in bfloat16 on the GPU" in space["plan"]


def test_a_run_trains_in_slices_in_8_bits_with_a_template_of_its_own(space: dict[str, Any]) -> None:
    assert space["train"] == 3 and space["trained"] == ["done", 2, ""]


def test_the_model_answers_scores_and_measures_in_workers(space: dict[str, Any]) -> None:
    assert "tokens/s" in space["chat"] and "done" in space["chat"]
    assert "2 voices" in space["questions"] and "csv=<gradio.components.download_button" in space["questions"]
    assert "(chosen)" in space["scores"] and "NLL" in space["measured"]


def test_a_worker_that_is_used_again_speaks_each_visitors_language(space: dict[str, Any]) -> None:
    assert "same prompt" in space["chat"] and "提示词相同" in space["chat in Chinese"]
    assert "same prompt" not in space["chat in Chinese"]


def test_errors_of_a_worker_and_of_the_scheduler_keep_their_words(space: dict[str, Any]) -> None:
    assert "There is no adapter yet" in space["refused"]
    assert "GPU was not given" in space["no quota"] and "GPU limit" in space["no quota"]


def test_no_function_asks_for_more_than_anyone_gets(space: dict[str, Any]) -> None:
    asked = [int(values["durationSeconds"]) for path, values in space["calls"] if path == "/schedule"]
    assert min(asked) < max(asked) <= zerogpu_standin.GRANTED_SECONDS
    failed = [values["fail"] for path, values in space["calls"] if path == "/release"]
    assert failed.count("true") == 1  # the refused question; every GPU is given back
    assert len(failed) == len(asked) - 1  # the last one was not given
