"""The pairs as data sets, with configurations for other trainers: LLaMA-Factory, Axolotl, Unsloth.

None of the three installs beside the versions pinned here, so their files say "not verified": keys and values are from
their documentation, and the tests only parse them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from persona.errors import InputError, Message, join
from persona.share.exports import new_output
from persona.share.exports.material import ExportMaterial
from persona.store.files import slugify, to_json, write_atomic
from persona.store.pairs import Pair, find_unfinished
from persona.template.character_prompt import resolve_system
from persona.template.chat_template import ChatTemplate, build_messages, read_template
from persona.train.config import RunConfig

UNVERIFIED_NOTE = Message("Not verified: made by Persona from this program's documentation and never run in it.")
# our template → the name of the same format in LLaMA-Factory, where it has one that ends a reply with the same token
LLAMA_FACTORY_TEMPLATES = {
    "chatml": "chatml", "gemma": "gemma", "internlm": "intern2", "llama-3": "llama3",
    "mistral-v3": "mistral", "phi-3": "phi", "phi-4": "phi4", "qwen2.5": "qwen",
    "smollm2": "smollm2",
}  # fmt: skip
TARGET_LAYERS = {
    "all-linear": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def export_dataset(material: ExportMaterial, out: Path) -> dict[str, Any]:
    """Write the new folder `out`: pairs as Alpaca rows and as messages, one configuration per trainer, README.

    The pairs held out of the run are a data set of their own. Returns folder, pairs, held_out and files. Raises
    InputError.
    """
    if not material.rows:
        raise InputError(
            "{adapter}: the pairs are not here, only the adapter. Name the persona's folder, or the run's.",
            adapter=material.card.name,
        )
    if missing := find_unfinished(material.pairs):
        wrong = [Message("pair {row}: {problem}.", row=row, problem=why) for row, why in missing[:20]]
        raise InputError("{problems}\nFinish it, then try again.", problems=join("\n", wrong))
    name = slugify(out.name)
    sets = {name: [r.pair for r in material.rows if not r.held_out],
            f"{name}-held-out": [r.pair for r in material.rows if r.held_out]}  # fmt: skip
    sets = {k: v for k, v in sets.items() if v}
    with new_output.create_output(out) as folder:
        folder.mkdir()
        system = resolve_system(material.card)
        for key, pairs in sets.items():
            write_atomic(folder / f"{key}.json", to_json([_alpaca(p, system) for p in pairs]))
            lines = (json.dumps(_messages(p, system), ensure_ascii=False) + "\n" for p in pairs)
            write_atomic(folder / f"{key}.messages.jsonl", lines)
        template = material.template or read_template("chatml")
        write_atomic(folder / "chat_template.jinja", template.text)
        write_atomic(folder / "dataset_info.json", to_json({key: _info(key) for key in sets}))
        base = material.base_id or "PUT-A-HUB-ID-HERE"
        for program, value in (("llama-factory", llama_factory_config(material.config, base, list(sets), template)),
                               ("axolotl", axolotl_config(material.config, base, list(sets), template))):  # fmt: skip
            text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
            write_atomic(folder / f"{program}.yaml", f"# {UNVERIFIED_NOTE}\n{text}")
        write_atomic(folder / "unsloth_train.py", new_output.render_template_file(
            "unsloth.py.jinja", unverified=UNVERIFIED_NOTE, base=base, c=material.config, sets=list(sets),
            layers=_layers(material.config)))  # fmt: skip
        counts = {key: len(pairs) for key, pairs in sets.items()}
        write_atomic(folder / "README.md", new_output.render_template_file(
            "dataset-card.md.jinja", card=material.card, base=material.base_id, name=name, counts=counts,
            template=template.name if material.template else "", same=LLAMA_FACTORY_TEMPLATES.get(template.name, ""),
            about=template.about, unverified=UNVERIFIED_NOTE))  # fmt: skip
        files = sorted(f.name for f in folder.iterdir())
    held = len(material.rows) - len(sets[name]) if name in sets else len(material.rows)
    return {"folder": str(out), "pairs": len(material.rows), "held_out": held, "files": files}


def _alpaca(pair: Pair, system: str) -> dict[str, Any]:
    row = {"instruction": pair.instruction, "input": "", "output": pair.output, "system": pair.system or system,
           "history": [list(t) for t in pair.history]}  # fmt: skip
    return row | ({"source": pair.source} if pair.source else {})


def _messages(pair: Pair, system: str) -> dict[str, Any]:
    chat = build_messages(pair.system or system, pair.history, pair.instruction, pair.output)
    return {"messages": chat} | ({"source": pair.source} if pair.source else {})


def _info(key: str) -> dict[str, Any]:
    columns = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    }
    return {"file_name": f"{key}.json", "formatting": "alpaca", "columns": columns}


def _layers(c: RunConfig) -> list[str]:
    return TARGET_LAYERS.get(c.target_modules) or [m.strip() for m in c.target_modules.split(",")]


def llama_factory_config(c: RunConfig, base: str, sets: Sequence[str], template: ChatTemplate) -> dict[str, Any]:
    """The run's settings under LLaMA-Factory's names. A template it does not know is left to the tokenizer's."""
    known_template = LLAMA_FACTORY_TEMPLATES.get(template.name)
    targets = "all" if c.target_modules == "all-linear" else ",".join(_layers(c))
    return {
        "model_name_or_path": base,
        "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": c.lora_r, "lora_alpha": c.lora_alpha, "lora_dropout": c.lora_dropout, "lora_target": targets,
        "use_rslora": c.use_rslora, "use_dora": c.use_dora,
        **({"quantization_bit": 4 if c.quantization == "nf4" else 8} if c.quantization != "none" else {}),
        "dataset_dir": ".", "dataset": sets[0],
        **({"eval_dataset": sets[1], "eval_strategy": "epoch"} if len(sets) > 1 else {}),
        **({"template": known_template} if known_template else {}),
        "cutoff_len": c.max_length, "mask_history": not c.learn_history,
        "output_dir": f"output/{sets[0]}",
        "per_device_train_batch_size": c.batch_size, "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "learning_rate": c.learning_rate, "num_train_epochs": c.epochs, "max_steps": c.max_steps,
        "lr_scheduler_type": c.lr_scheduler_type, **_warmup(c), "weight_decay": c.weight_decay, "seed": c.seed,
        "logging_steps": 1, "report_to": "none",
    }  # fmt: skip


def axolotl_config(c: RunConfig, base: str, sets: Sequence[str], template: ChatTemplate) -> dict[str, Any]:
    """The run's settings under Axolotl's names, with the text of the chat template."""

    def data(key: str) -> dict[str, Any]:
        return {
            "path": f"{key}.messages.jsonl", "ds_type": "json", "type": "chat_template", "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": ["assistant"], "train_on_eos": "turn",
        }  # fmt: skip

    return {
        "base_model": base,
        **({"load_in_4bit": True} if c.quantization == "nf4" else {}),
        **({"load_in_8bit": True} if c.quantization == "int8" else {}),
        "adapter": "qlora" if c.quantization == "nf4" else "lora",
        "lora_r": c.lora_r, "lora_alpha": c.lora_alpha, "lora_dropout": c.lora_dropout,
        **({"lora_target_linear": True} if c.target_modules == "all-linear" else {"lora_target_modules": _layers(c)}),
        "peft_use_rslora": c.use_rslora, "peft_use_dora": c.use_dora,
        "chat_template": "jinja", "chat_template_jinja": template.text,
        "datasets": [data(sets[0])],
        **({"test_datasets": [data(sets[1]) | {"split": "train"}]} if len(sets) > 1 else {}),
        "sequence_len": c.max_length, "output_dir": f"output/{sets[0]}",
        "micro_batch_size": c.batch_size, "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "learning_rate": c.learning_rate, "num_epochs": c.epochs,
        **({"max_steps": c.max_steps} if c.max_steps > 0 else {}),
        "optimizer": c.optim, "lr_scheduler": c.lr_scheduler_type, **_warmup(c), "weight_decay": c.weight_decay,
        "gradient_checkpointing": c.gradient_checkpointing, "seed": c.seed, "logging_steps": 1,
    }  # fmt: skip


def _warmup(c: RunConfig) -> dict[str, Any]:
    return {"warmup_ratio": c.warmup} if c.warmup < 1 else {"warmup_steps": round(c.warmup)}
