"""Train with LLaMA-Factory from an export, and compare the tokens that it learns with the label mask.

    python scripts/llama_factory_check.py FOLDER RUN [--steps 3]

RUN is the folder of a run whose base is on this disk. The first call makes an environment with LLaMA-Factory in FOLDER:
it needs the network and 6 GB. The export is used as it is, except for the number of steps and the folder of the base.
Prints how many rows have equal ids and labels, and the losses; the exit status is 1 where a row differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from persona.models.base import load_tokenizer, resolve_base
from persona.share.exports.material import load_material
from persona.share.exports.trainer_configs import export_dataset
from persona.template.character_prompt import CharacterPrompt
from persona.template.render import IGNORE_INDEX, Renderer

LLAMA_FACTORY = "0.9.5"
# run by LLaMA-Factory's Python: its own data pipeline on its own configuration → ids and labels of each row
READ_ROWS = """
import json, sys
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
model, data, training, tuning, _ = get_train_args(json.loads(sys.argv[1]))
loaded = load_tokenizer(model)
template = get_template_and_fix_tokenizer(loaded["tokenizer"], data)
rows = get_dataset(template, model, data, training, stage="sft", **loaded)["train_dataset"]
json.dump([[r["input_ids"], r["labels"]] for r in rows], open(sys.argv[2], "w"))
"""


def make_environment(folder: Path) -> Path:
    """The Python of an environment with LLaMA-Factory in `folder`, which is made on the first call."""
    python = folder / "llama-factory/bin/python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "llama-factory")], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"llamafactory=={LLAMA_FACTORY}"], check=True)
    return python


def our_rows(run: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the run's training rows up to the last learned token: what follows is in no loss."""
    material = load_material(run)
    assert material.template, "a run has one"
    renderer = Renderer(
        load_tokenizer(resolve_base(material.base_id)), material.template, material.card.system,
        material.config.max_length, character=CharacterPrompt.of(material.card),
    )  # fmt: skip
    examples = renderer.iterate_examples([row.pair for row in material.rows if not row.held_out])
    rows = []
    for e in examples:
        if not e.problems:
            end = 1 + max(n for n, label in enumerate(e.labels) if label != IGNORE_INDEX)
            rows.append((e.input_ids[:end], e.labels[:end]))
    return rows


def export(run: Path, folder: Path, steps: int) -> dict[str, Any]:
    """The export's configuration, with the base's folder instead of its id, and as many steps."""
    shutil.rmtree(folder, ignore_errors=True)
    material = load_material(run)
    export_dataset(material, folder)
    config = yaml.safe_load((folder / "llama-factory.yaml").read_text(encoding="utf-8"))
    base = resolve_base(material.base_id)
    config |= {"model_name_or_path": str(base.path), "max_steps": steps, "overwrite_cache": True}
    (folder / "tried.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment and the export go")
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    chosen = parser.parse_args()
    folder, run = chosen.folder.resolve(), chosen.run.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = make_environment(folder)
    config, out = export(run, folder / "export", chosen.steps), folder / "rows.json"
    variables = os.environ | {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    calls = {"cwd": folder / "export", "env": variables, "check": True}
    subprocess.run([python, "-c", READ_ROWS, json.dumps(config), str(out)], **calls)
    theirs = [(ids, labels) for ids, labels in json.loads(out.read_text(encoding="utf-8"))]
    ours = our_rows(run)
    equal = sum(a == b for a, b in zip(theirs, ours, strict=True))
    print(f"rows with equal ids and labels: {equal} of {len(ours)}")
    if chosen.steps:
        subprocess.run([python.with_name("llamafactory-cli"), "train", "tried.yaml"], **calls)
        state = json.loads(
            (folder / "export" / config["output_dir"] / "trainer_state.json").read_text(encoding="utf-8")
        )
        print("losses:", *(entry["loss"] for entry in state["log_history"] if "loss" in entry))
    raise SystemExit(0 if equal == len(ours) else 1)


if __name__ == "__main__":
    main()
