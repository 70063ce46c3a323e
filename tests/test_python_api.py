"""The functions of README's Python quickstart: open, train, chat, export."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import persona
from persona.errors import InputError, RunError
from persona.store.workspace import PROJECT_DIR


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, persona; persona.open_persona; print(sorted({'torch', 'gradio', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_DIR)
    assert done.stdout.strip() == "[]"


def test_classes_are_found_by_name():
    from persona.template.render import Renderer

    assert persona.Renderer is Renderer and persona.RunConfig().epochs > 0
    with pytest.raises(AttributeError):
        _ = persona.Nothing


def test_an_example_is_opened_as_an_own_copy(home):
    mags = persona.open_persona("lighthouse-keeper")
    assert mags.path == home / "personas" / "lighthouse-keeper"
    assert persona.open_persona(mags.path).path == mags.path
    with pytest.raises(InputError, match="not a persona folder"):
        persona.open_persona("no-such-persona")


@pytest.mark.slow
def test_train_chat_export(tmp_path, tiny_gemma):
    mags = persona.open_persona("lighthouse-keeper")
    run = persona.train_persona(mags, base=str(tiny_gemma), max_steps=2, diary_probes=0)
    assert run.progress().status == "done"
    (turn,) = persona.chat(run.adapter, ["Who are you?"], base=str(tiny_gemma), temperature=0, max_new_tokens=4)
    assert turn["prompt"] == "Who are you?" and {"base", "adapter"} <= turn.keys()
    made = persona.export_adapter(run.adapter, tmp_path / "mags.zip")
    assert any(name.endswith("adapter_model.safetensors") for name in zipfile.ZipFile(made).namelist())


@pytest.mark.slow
@pytest.mark.release
def test_a_run_goes_on_from_another(tiny_gemma):
    mags = persona.open_persona("lighthouse-keeper")
    run = persona.train_persona(mags, base=str(tiny_gemma), max_steps=1, diary_probes=0)
    further = persona.train_persona(mags, parent=run.path, max_steps=1, diary_probes=0)
    assert further.manifest()["parent"]["adapter"] == f"run/lighthouse-keeper/{run.name}"


@pytest.mark.slow
@pytest.mark.release
def test_a_run_that_fails_is_an_error(tiny_gemma):
    mags = persona.open_persona("lighthouse-keeper")
    with pytest.raises(RunError, match="would be cut"):
        persona.train_persona(mags, base=str(tiny_gemma), max_length=32, max_steps=1)


def test_readme_uses_these_functions():
    readme = (Path(PROJECT_DIR) / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    used = set(re.findall(r"persona\.(\w+)\(", block))
    assert used == {"open_persona", "render_pair", "train_persona", "chat", "export_adapter"}
    compile(block, "README.md", "exec")


def test_nothing_is_reported_to_anybody():
    """TRL reports each trainer and hf_xet each transfer, unless huggingface_hub is told before its import."""
    code = "import persona, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE")}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"
