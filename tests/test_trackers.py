"""A tracker is told the losses, on this machine alone; no key from the environment is ever written down."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import CARD, PAIRS

from persona.store.persona_folder import create_persona_at
from persona.train import prepare
from persona.train import run as train_run
from persona.train.config import make_config
from persona.train.launcher import create_run

PROJECT = Path(__file__).resolve().parent.parent
KEYS = {"HF_TOKEN": "hf_" + "k" * 34, "WANDB_API_KEY": "w" * 40, "SWANLAB_API_KEY": "s" * 21, "OPENAI_API_KEY": "sk-" + "o" * 30,
        "HUGGING_FACE_HUB_TOKEN": "hf_" + "g" * 34}  # fmt: skip


def installed(*modules: str) -> bool:
    return any(importlib.util.find_spec(m) for m in modules)


TRACKERS = [
    pytest.param("none", marks=pytest.mark.release),
    pytest.param("tensorboard", marks=pytest.mark.skipif(not installed("tensorboard", "tensorboardX"), reason="not installed")),
    pytest.param("trackio", marks=[pytest.mark.release, pytest.mark.skipif(not installed("trackio"), reason="not installed")]),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_run_with_a_tracker_writes_losses_and_no_key(tmp_path, tiny_gemma, tracker):
    """A process of its own, with keys in its environment, as a run has; everything it leaves is searched for them."""
    persona = create_persona_at(tmp_path / "mags", CARD, PAIRS)
    config = make_config(base=str(tiny_gemma), report_to=tracker, dtype="float32", batch_size=4, max_steps=3, lora_r=2)
    run = create_run(persona, config)
    env = {**os.environ, **KEYS, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]),
           "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "persona.train", str(run.path)], cwd=run.path, env=env, timeout=300,
                          capture_output=True)  # fmt: skip
    (run.path / "log.txt").write_bytes(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr.decode()
    files = [f for f in tmp_path.rglob("*") if f.is_file() and "/home/bases/" not in str(f)]
    assert {"run.json", "events.jsonl", "log.txt", "adapter_config.json"} <= {f.name for f in files}
    leaks = [(f.name, name) for f in files for name, key in KEYS.items() if key.encode() in f.read_bytes()]
    assert leaks == []
    if tracker == "tensorboard":
        (written,) = (run.path / "tensorboard").rglob("events.out.tfevents.*")
        assert b"train/loss" in written.read_bytes(), "beside the adapter, where a finished run is not swept away"
    if tracker == "trackio":
        assert list((tmp_path / "trackio").rglob("*.db"))


@pytest.mark.slow
def test_what_a_tracker_is_told_to_call_the_run(tmp_path, tiny_gemma):
    """The persona's run by its name, in one project; and nothing is sent to a Space."""
    run = create_run(
        create_persona_at(tmp_path / "mags", CARD, PAIRS), make_config(base=str(tiny_gemma), report_to="none")
    )
    args = train_run.make_sft_config(prepare.prepare_run(run), tmp_path)
    assert (args.run_name, args.project, args.report_to) == (run.name, "persona", [])
    assert (args.trackio_space_id, args.trackio_static_space_id, args.push_to_hub) == (None, False, False)
