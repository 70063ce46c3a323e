"""The pairs as data sets, with configurations for other trainers: LLaMA-Factory, Axolotl, Unsloth, TRL, ms-swift.

None but TRL installs beside the versions pinned here, so the tests only parse their files. What was tried with each in
an environment of its own stands in TRIED, and at the head of its file.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from persona.errors import InputError, Message, PersonaError, join
from persona.models.base import find_local_base, load_tokenizer
from persona.share.exports import new_output
from persona.share.exports.material import ExportMaterial
from persona.share.exports.trainer_settings import (
    CHAT_SETS,
    LLAMA_FACTORY_TEMPLATES,
    PROGRAMS,
    SWIFT_PLUGIN,
    SWIFT_TEMPLATE,
    axolotl_config,
    list_lost_settings,
    llama_factory_config,
    ms_swift_config,
    peft_targets,
    rendered_set,
    training_arguments,
    trl_config,
)
from persona.store.files import slugify, to_json, write_atomic
from persona.store.jsonl import dump_rows
from persona.store.pairs import Pair, find_unfinished, own_exchanges
from persona.template.character_prompt import CharacterPrompt, resolve_system
from persona.template.chat_template import build_messages, read_template
from persona.template.render import IGNORE_INDEX, Renderer, find_learned_turns, leave_out_thinking

UNVERIFIED_NOTE = Message("Not verified: made by Persona from this program's documentation and never run in it.")
# program → what was tried (scripts/trainers_check.py; Axolotl's own schema)
TRIED = {
    "LLaMA-Factory": "Tried with LLaMA-Factory 0.9.5 on a CPU: it makes equal token ids and labels of all rows of an "
    "example, and trained three steps.",
    "Axolotl": "Not verified: Axolotl 0.19.0 knows every key of a file like this one, by its own schema; nothing was "
    "trained with it.",
    "Unsloth": "Not verified: the data preparation of Unsloth 2026.10.9 makes equal token ids and labels of all rows "
    "of an example; nothing was trained with this file.",
    "TRL": "Tried with TRL 1.16 on a CPU: its command line makes equal token ids and labels of all rows of an example; "
    "nothing was trained with it.",
    "ms-swift": UNVERIFIED_NOTE,
}
# the template under which ms-swift takes a rendered row as it is
SWIFT_TEMPLATE_FILE = f"""from swift.template import TemplateMeta, register_template

register_template(
    TemplateMeta("{SWIFT_TEMPLATE}", prefix=[], prompt=["{{{{QUERY}}}}"], chat_sep=None, suffix=[])
)
"""


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
    name, renderer = slugify(out.name), _open_renderer(material)
    is_rendered = renderer is not None
    sets = {name: [r.pair for r in material.rows if not r.held_out],
            f"{name}-held-out": [r.pair for r in material.rows if r.held_out]}  # fmt: skip
    sets = {k: v for k, v in sets.items() if v}
    if material.config.thinking == "none":
        sets = {k: list(map(leave_out_thinking, v)) for k, v in sets.items()}
    elsewhere = own_exchanges(material.pairs)

    def learned(pair: Pair) -> list[int]:
        return find_learned_turns(pair, material.config.learn_history, elsewhere)

    with new_output.create_output(out) as folder:
        (folder / CHAT_SETS).mkdir(parents=True)
        system = resolve_system(material.card)
        for key, pairs in sets.items():
            write_atomic(folder / f"{key}.json", to_json([_alpaca(p, system) for p in pairs]))
            write_atomic(folder / f"{key}.messages.jsonl", dump_rows(_messages(p, system, learned(p)) for p in pairs))
            chats = (_prompt_completion(p, system, learned(p)) for p in pairs if learned(p))
            write_atomic(folder / CHAT_SETS / f"{'train' if key == name else 'test'}.jsonl", dump_rows(chats))
            if renderer:
                write_atomic(folder / f"{key}.rendered.json", to_json(list(_rendered(pairs, renderer))))
        template = material.template or read_template("chatml")
        write_atomic(folder / "chat_template.jinja", template.text)
        write_atomic(folder / "dataset_info.json", to_json(_index(sets, is_rendered)))
        base = material.base_id or "PUT-A-HUB-ID-HERE"
        factory = llama_factory_config(material.config, base, list(sets), template, is_rendered)
        axolotl = axolotl_config(material.config, base, list(sets), template)
        tried = TRIED if is_rendered else TRIED | {"LLaMA-Factory": UNVERIFIED_NOTE}
        configs = {
            "LLaMA-Factory": factory,
            "Axolotl": axolotl,
            "TRL": trl_config(material.config, base, len(sets) > 1),
        }
        if is_rendered:
            configs["ms-swift"] = ms_swift_config(material.config, base, list(sets))
            write_atomic(folder / SWIFT_PLUGIN, SWIFT_TEMPLATE_FILE)
        for program, value in configs.items():
            text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
            write_atomic(folder / f"{program.lower()}.yaml", f"# {tried[program]}\n{text}")
        write_atomic(folder / "unsloth_train.py", new_output.render_template_file(
            "unsloth.py.jinja", unverified=tried["Unsloth"], base=base, c=material.config, sets=list(sets),
            targets=peft_targets(material.config), arguments=training_arguments(material.config)))  # fmt: skip
        counts = {key: len(pairs) for key, pairs in sets.items()}
        write_atomic(folder / "README.md", new_output.render_template_file(
            "dataset-card.md.jinja", card=material.card, base=material.base_id, name=name, counts=counts,
            template=template.name if material.template else "", same=LLAMA_FACTORY_TEMPLATES.get(template.name, ""),
            about=template.about, is_rendered=is_rendered, tried=tried, thinking=template.thinking,
            weighted=sum(bool(p.weights) for p in material.pairs),
            lost={name: list_lost_settings(name, material.config, is_rendered) for name in PROGRAMS}))  # fmt: skip
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


def _prompt_completion(pair: Pair, system: str, learned: Sequence[int]) -> dict[str, Any]:
    """Two lists of messages, as TRL reads them: the first learned reply begins the completion."""
    chat = build_messages(pair.system or system, pair.history, pair.instruction, pair.output)
    replies = [n for n, message in enumerate(chat) if message["role"] == "assistant"]
    first = replies[min(learned)]
    return {"prompt": chat[:first], "completion": chat[first:]}


def _open_renderer(material: ExportMaterial) -> Renderer | None:
    """The renderer of the run; None where the base's tokenizer is not here.

    None too where earlier replies are learned and LLaMA-Factory knows the format: a rendered row has one reply.
    """
    if not material.template or (material.config.learn_history and material.template.name in LLAMA_FACTORY_TEMPLATES):
        return None
    base = None
    with contextlib.suppress(PersonaError):  # a name that cannot be a base's
        base = find_local_base(material.base_id) if material.base_id else None
    if base is None:
        return None
    character = CharacterPrompt.of(material.card)
    return Renderer(
        load_tokenizer(base), material.template, material.card.system, material.config.max_length, character=character
    )


def _rendered(pairs: Sequence[Pair], renderer: Renderer) -> Iterator[dict[str, str]]:
    """Prompt, with the thinking that is kept, and last reply as the texts of the training; a pair that cannot be
    learned is left out.
    """
    for pair, example in zip(pairs, renderer.iterate_examples(pairs), strict=True):
        if not example.problems:
            prompt = renderer.render_prompt(pair.history, pair.instruction, pair.system).text
            learned = [n for n, label in enumerate(example.labels) if label != IGNORE_INDEX]
            start = next(start for n in learned if (start := example.ends[n - 1]) >= len(prompt))
            # without what a template writes after the stop token: LLaMA-Factory would learn it
            yield {"instruction": example.text[:start], "output": example.text[start : example.ends[learned[-1]]]}


def _index(keys: Iterable[str], is_rendered: bool) -> dict[str, Any]:
    """LLaMA-Factory's dataset_info.json."""
    columns = {"prompt": "instruction", "response": "output"}
    more = {"query": "input", "system": "system", "history": "history"}
    found: dict[str, Any] = {}
    for key in keys:
        found[key] = {"file_name": f"{key}.json", "formatting": "alpaca", "columns": columns | more}
        if is_rendered:
            found[rendered_set(key)] = {
                "file_name": f"{key}.rendered.json", "formatting": "alpaca", "columns": columns,
            }  # fmt: skip
    return found
