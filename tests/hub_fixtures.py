"""Fixtures for tests of sharing: a separate user, an adapter, a local Hub. Load with pytest_plugins."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persona.models import adapter, model_card
from persona.models.base import Base
from persona.share.loss_plot import draw_loss_plot
from persona.store.persona_folder import PersonaCard
from persona.template.chat_template import read_template
from tests.local_hub import Hub
from tests.local_xet import XetStorage

FACTS = {
    "config": {"learning_rate": 5e-4, "lora_r": 2, "target_modules": "all-linear", "max_length": 64},
    "figures": {"train_rows": 9, "held_out_rows": 1, "steps": 3, "base_nll": 4.0, "adapter_nll": 3.0},
}
SECRETS = {"secret.txt": b"do not share", "training_args.bin": b"pickle", "optimizer.pt": b"pickle", ".env": b"KEY=1"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=2))
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    target = tmp_path_factory.mktemp("run") / "adapter"
    base = Base("someone/tiny-base", Path("/nowhere"), "r1", "MIT")
    card = PersonaCard(name="Zhen Huan 甄嬛", system="你是甄嬛。", rights="CC0")
    adapter.save_adapter(model, target, base=base, template=read_template("chatml"), card=card, facts=FACTS)
    return target


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose folders and login are under tmp_path, with an unreachable Hub."""
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    monkeypatch.setenv("PERSONA_HOME", str(tmp_path / "kept"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def mine(machine: None, trained: Path, tmp_path: Path) -> Path:
    """A copy of the adapter in a folder that also holds files that must not be shared."""
    folder = tmp_path / "run" / "adapter"
    shutil.copytree(trained, folder)
    draw_loss_plot([(1, 4.0), (2, 3.0)], [(0, 4.0), (2, 3.0)], folder / "loss.png")
    for name, data in SECRETS.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def hub(machine: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits between retries
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def allowed(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in adapter.ADAPTER_FILES if (folder / name).is_file()}


def on_hub(folder: Path, repo: str) -> dict[str, bytes]:
    """The allowed files as they must be in `repo`: the code on the card names the repo."""
    files = allowed(folder)
    return {**files, "README.md": model_card.adapt_card_for_hub(files["README.md"].decode(), repo).encode()}


def edit_card(folder: Path, **changes: Any) -> None:
    file = folder / "persona.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}, ensure_ascii=False), "utf-8")


@pytest.fixture
def xet(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> XetStorage:
    """The Hub's Xet storage, as hf_xet is installed: weights go there, and nowhere else."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("huggingface_hub.utils._xet._GLOBAL_XET_HOLDER._session", None)  # reads the environment anew
    monkeypatch.setattr("huggingface_hub.utils._xet.XET_CONNECTION_INFO_CACHE", {})
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "1ms")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "3")
    hub.xet = XetStorage(tmp_path / "xet")
    return hub.xet
