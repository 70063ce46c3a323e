"""Tiny models with a random, non-zero LoRA, for tests of loss, adapters, chat and training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from persona.models import adapter
from persona.models.adapter import Adapter
from persona.models.base import Base, load_base_model
from persona.models.hardware import Machine
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.template.chat_template import ChatTemplate, read_template
from persona.train.config import make_config
from persona.train.launcher import create_run
from persona.train.run_folder import Run

# a plain CPU, without measuring
PLAIN_CPU = Machine("cpu", "test", 10**9, 2, (("float32", 1e9), ("bfloat16", 1e9)))
CARD = PersonaCard(name="Mags", system="You keep the light.")
FACTS = {
    "config": {"learning_rate": 5e-4, "lora_r": 4, "target_modules": "all-linear", "max_length": 64},
    "figures": {"train_rows": 9, "held_out_rows": 1, "steps": 3, "base_nll": 4.0, "adapter_nll": 3.0},
}


def load(folder: Path, dtype: str = "float32") -> Any:
    return load_base_model(Base(folder.name, folder), dtype)


def with_lora(model: Any, seed: int = 1, size: float = 0.3, **settings: Any) -> Any:
    """`model` with a LoRA whose B is not zero: an untrained LoRA would change nothing."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(model, LoraConfig(**{**options, **settings}))
    for name, weight in wrapped.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    return wrapped.eval()


def lora_gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def write_adapter(folder: Path, target: Path, seed: int = 1, template: str | ChatTemplate = "chatml", card: PersonaCard = CARD,
                  size: float = 0.3, **settings: Any) -> Any:  # fmt: skip
    """An adapter folder for the base in `folder`; returns the model that it was written from."""
    model = with_lora(load(folder), seed, size, **settings)
    chosen = read_template(template) if isinstance(template, str) else template
    base = Base("someone/tiny", folder, "r1", "MIT")
    adapter.save_adapter(model, target, base=base, template=chosen, card=card, facts=FACTS)
    return model


def make_adapter(folder: Path, target: Path, template: str = "chatml", **settings: Any) -> tuple[Adapter, Base]:
    """Write an adapter into `target` for the base in `folder`; returns both, opened."""
    write_adapter(folder, target, template=template, **settings)
    return adapter.read_adapter(target), Base("someone/tiny", folder, "r1", "MIT", "https://example.org/mit")


def new_run(place: Path, card: PersonaCard, pairs: Sequence[Pair], **settings: Any) -> Run:
    """Create a run, not started, of a new persona in a separate folder in `place`."""
    folder = place / f"mags-{len(list(place.glob('mags-*')))}"
    return create_run(create_persona_at(folder, card, list(pairs)), make_config(**settings))


def write_adapter_to_go_on_from(base: Path, folder: Path) -> Path:
    """A LoRA on the tiny Gemma whose base is named as its folder, so that a run on that folder can begin with it."""
    write_adapter(base, folder, template="gemma-base", size=0.02)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"base": {"id": base.name}}))
    return folder
