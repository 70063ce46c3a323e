"""`persona serve --engine vllm`: starts vLLM, which answers many requests at once, with one base and its adapters.

vLLM needs its own build of torch, so it lives in an environment of its own and is started as a program. It gets the
base's folder (the very weights of the training), the adapters' folders, their chat template and their stop token.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona.errors import AdapterError, InputError
from persona.models import hardware, trained_modules
from persona.models.adapter import Adapter
from persona.models.sampling import MAX_CONTEXT_TOKENS, Sampling
from persona.serve.auth import ApiAuth
from persona.serve.model_list import ServedModel
from persona.store.files import to_json, write_atomic

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes, in vLLM 0.32
MAX_LORAS = 8  # adapters that can share a batch: each takes memory from the start
TEMPLATE_FILE, GENERATION_FILE = "chat_template.jinja", "generation_config.json"


def find_vllm() -> Path:
    """The program: PERSONA_VLLM, else `vllm` on the PATH. Raises InputError where there is none."""
    chosen = os.environ.get("PERSONA_VLLM", "")
    found = shutil.which(Path(chosen).expanduser() if chosen else "vllm")
    if found is None:
        raise InputError(
            "{program}: vLLM is not installed there. Install it in an environment of its own, python -m venv ~/vllm "
            "&& ~/vllm/bin/pip install vllm, and name its program: PERSONA_VLLM=~/vllm/bin/vllm. Or serve without "
            "--engine.",
            program=chosen or "vllm",
        )
    return Path(found)


def run_vllm(program: Path, served: Sequence[ServedModel], host: str, port: int, auth: ApiAuth) -> int:
    """Start vLLM and wait for its end. Returns its exit status; 0 where Ctrl-C or SIGTERM, passed on, ended it.

    Raises InputError or AdapterError for models that it cannot serve together.
    """
    with tempfile.TemporaryDirectory(prefix="persona-vllm-") as folder:
        command = build_command(program, served, host, port, Path(folder))
        process, stops = subprocess.Popen(command, env=build_environment(auth)), list[int]()

        def stop(number: int, _: Any) -> None:
            stops.append(number)
            process.terminate()

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = process.wait()
            return 0 if stops else status
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def build_command(program: Path, served: Sequence[ServedModel], host: str, port: int, folder: Path) -> list[str]:
    """The command; template and generation settings are written into `folder`.

    Raises InputError for several bases or chat templates, AdapterError for what vLLM's LoRA does not know.
    """
    adapters = [(m.id, m.adapter) for m in served if m.adapter]
    base = _only_base(served)
    _write_settings(served, folder)
    context = base.base.config().get("max_position_embeddings")
    options = [
        *("--served-model-name", base.id),
        *("--host", host, "--port", str(port)),
        *("--chat-template", str(folder / TEMPLATE_FILE)),
        *("--generation-config", str(folder)),
        *("--max-model-len", str(min(context, MAX_CONTEXT_TOKENS) if isinstance(context, int) else MAX_CONTEXT_TOKENS)),
    ]
    if adapters:
        rank = max(_require_plain_lora(adapter) for _, adapter in adapters)
        options += ["--enable-lora", "--max-lora-rank", str(min(r for r in LORA_RANKS if r >= rank))]
        options += ["--max-loras", str(_count_slots(len(adapters))), "--lora-modules"]
        options += [
            json.dumps({"name": name, "path": str(adapter.path), "base_model_name": base.id}, ensure_ascii=False)
            for name, adapter in adapters
        ]
    if hardware.this_machine().device == "cpu":
        options.append("--enforce-eager")  # to compile the layers it would need a C++ compiler
    return [str(program), "serve", str(base.base.path), *options]


def _count_slots(adapters: int) -> int:
    """How many adapters are ready for a batch at a time.

    Without a GPU one slot stays empty: vLLM 0.32 reads the last one for the base (its lora/ops/torch_ops/lora_ops.py
    takes the slot -1), so that with all slots full the base would answer as an adapter does.
    """
    return adapters + 1 if hardware.this_machine().device == "cpu" else min(adapters, MAX_LORAS)


def build_environment(auth: ApiAuth) -> dict[str, str]:
    """vLLM's environment: the key, no network, no usage statistics. Raises InputError for several keys."""
    if len(auth.keys) > 1:
        raise InputError("PERSONA_API_KEYS: vLLM takes one key, there are {count}. Set one.", count=len(auth.keys))
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, without a GPU
    }
    return defaults | os.environ | ({"VLLM_API_KEY": auth.keys[0]} if auth.keys else {})


def _only_base(served: Sequence[ServedModel]) -> ServedModel:
    """The one base of all models, whose name in the API is that of the listed base."""
    found = {m.base.path: m for m in reversed(served) if not m.adapter}
    if len(found) > 1:
        raise InputError(
            "vLLM serves one base at a time; these models have {bases}. Name the adapters of one base.",
            bases=", ".join(m.id for m in found.values()),
        )
    return next(iter(found.values()))


def _write_settings(served: Sequence[ServedModel], folder: Path) -> None:
    """The one chat template of all models, and as generation settings its stop token and the page's own defaults."""
    renderers = {m.id: m.renderer("") for m in served}
    templates = {r.template.text: (name, r) for name, r in renderers.items()}
    if len(templates) > 1:
        raise InputError(
            "vLLM takes one chat template; these models have different ones: {models}. Serve each by itself.",
            models=", ".join(name for name, _ in templates.values()),
        )
    ((text, (_, renderer)),) = templates.items()
    ends = {renderer.stop_id, renderer.tokenizer.eos_token_id} - {None}
    usual = Sampling()
    generation: dict[str, Any] = {
        "eos_token_id": sorted(ends), "do_sample": True, "temperature": usual.temperature, "top_p": usual.top_p,
    }  # fmt: skip
    write_atomic(folder / TEMPLATE_FILE, text)
    write_atomic(folder / GENERATION_FILE, to_json(generation))


def _require_plain_lora(adapter: Adapter) -> int:
    """The adapter's largest rank. Raises AdapterError for what vLLM does not load."""
    if more := trained_modules.find_more_than_lora(adapter.settings):
        raise AdapterError(
            "{adapter}: vLLM does not load {what}. Export the whole model, --as merged, and serve that folder as "
            "--base.",
            adapter=adapter.card.name,
            what=more,
        )
    rank = max(adapter.settings["r"], *adapter.settings.get("rank_pattern", {}).values(), 0)
    if rank > LORA_RANKS[-1]:
        raise AdapterError(
            "{adapter}: vLLM loads a LoRA rank of up to {limit}, this one has {rank}. Export the whole model, "
            "--as merged, and serve that folder as --base.",
            adapter=adapter.card.name,
            limit=LORA_RANKS[-1],
            rank=rank,
        )
    return int(rank)
