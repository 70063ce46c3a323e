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
from persona.share.exports.trainer_settings import (
    LLAMA_FACTORY_TEMPLATES,
    PROGRAMS,
    axolotl_config,
    list_lost_settings,
    llama_factory_config,
    peft_targets,
    training_arguments,
)
from persona.store.files import slugify, to_json, write_atomic
from persona.store.pairs import Pair, find_unfinished, own_exchanges
from persona.template.character_prompt import resolve_system
from persona.template.chat_template import build_messages, read_template
from persona.template.render import find_learned_turns

UNVERIFIED_NOTE = Message("Not verified: made by Persona from this program's documentation and never run in it.")


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
    elsewhere = own_exchanges(material.pairs)

    def learned(pair: Pair) -> list[int]:
        return find_learned_turns(pair, material.config.learn_history, elsewhere)

    with new_output.create_output(out) as folder:
        folder.mkdir()
        system = resolve_system(material.card)
        for key, pairs in sets.items():
            write_atomic(folder / f"{key}.json", to_json([_alpaca(p, system) for p in pairs]))
            lines = (json.dumps(_messages(p, system, learned(p)), ensure_ascii=False) + "\n" for p in pairs)
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
            targets=peft_targets(material.config), arguments=training_arguments(material.config)))  # fmt: skip
        counts = {key: len(pairs) for key, pairs in sets.items()}
        write_atomic(folder / "README.md", new_output.render_template_file(
            "dataset-card.md.jinja", card=material.card, base=material.base_id, name=name, counts=counts,
            template=template.name if material.template else "", same=LLAMA_FACTORY_TEMPLATES.get(template.name, ""),
            about=template.about, unverified=UNVERIFIED_NOTE, weighted=sum(bool(p.weights) for p in material.pairs),
            lost={name: list_lost_settings(name, material.config) for name in PROGRAMS}))  # fmt: skip
        files = sorted(f.name for f in folder.iterdir())
    held = len(material.rows) - len(sets[name]) if name in sets else len(material.rows)
    return {"folder": str(out), "pairs": len(material.rows), "held_out": held, "files": files}


def _alpaca(pair: Pair, system: str) -> dict[str, Any]:
    row = {"instruction": pair.instruction, "input": "", "output": pair.output, "system": pair.system or system,
           "history": [list(t) for t in pair.history]}  # fmt: skip
    return row | ({"source": pair.source} if pair.source else {})


def _messages(pair: Pair, system: str, learned: Sequence[int]) -> dict[str, Any]:
    """learned: the turns whose reply this row teaches; the others have the weight 0, as in OpenAI's files."""
    chat = build_messages(pair.system or system, pair.history, pair.instruction, pair.output)
    replies = [message for message in chat if message["role"] == "assistant"]
    for turn, reply in enumerate(replies):
        reply["weight"] = int(turn in learned)
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
