"""Train with another program from an export, and compare the tokens that it learns with the label mask.

    python scripts/trainers_check.py FOLDER RUN --with llama-factory|ms-swift|trl [--steps 3]

RUN is the folder of a run whose base is on this disk. The first call makes an environment with the program in FOLDER:
it needs the network and 2 to 6 GB; TRL is that of this environment. The export is used as it is, except for the number
of steps and the folder of the base. Prints how many rows have equal ids and labels, and the losses; the exit status is
1 where a row differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from persona.models.base import load_tokenizer, resolve_base
from persona.share.exports.material import load_material
from persona.share.exports.trainer_configs import export_dataset
from persona.template.character_prompt import CharacterPrompt
from persona.template.render import IGNORE_INDEX, Renderer

# run by the program's own Python: its own data pipeline on its own configuration → ids and labels of each row
READ_LLAMA_FACTORY = """
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
READ_MS_SWIFT = """
import json, sys
from swift.cli.main import parse_yaml_args
from swift.pipelines import SwiftSft
arguments = ["tried.yaml", "--dataset_shuffle", "false", "--lazy_tokenize", "false"]
parse_yaml_args(arguments)
rows = SwiftSft(arguments)._prepare_dataset()[0]
json.dump([[r["input_ids"], r["labels"]] for r in rows], open(sys.argv[2], "w"))
"""
READ_TRL = """
import json, sys
import trl
from trl.scripts import sft

class Reader(trl.SFTTrainer):
    def train(self, **_):
        rows = [self.data_collator([row]) for row in self.train_dataset]
        json.dump([[r["input_ids"][0].tolist(), r["labels"][0].tolist()] for r in rows], open(sys.argv[2], "w"))
        sys.exit()

trl.SFTTrainer = Reader
sft.main(*sft.make_parser().parse_args_and_config(["--config", "tried.yaml"]))
"""


@dataclass(frozen=True)
class Trainer:
    """A program, how it reads an export, and how it is started with one."""

    package: str  # pip's name and version; "": installed here
    read: str
    command: tuple[str, ...]
    base: str  # the key of the base in its configuration
    more: dict[str, Any]  # settings for this machine


TRAINERS = {
    "llama-factory": Trainer(
        "llamafactory==0.9.5", READ_LLAMA_FACTORY, ("llamafactory-cli", "train", "tried.yaml"), "model_name_or_path",
        {"overwrite_cache": True},
    ),
    "ms-swift": Trainer("ms-swift==4.6.0", READ_MS_SWIFT, ("swift", "sft", "tried.yaml"), "model",
        {"use_cpu": True},
    ),
    "trl": Trainer("", READ_TRL, ("trl", "sft", "--config", "tried.yaml"), "model_name_or_path", {"use_cpu": True}),
}  # fmt: skip


def make_environment(folder: Path, name: str) -> Path:
    """The Python of an environment with the program in `folder`, which is made on the first call."""
    if not TRAINERS[name].package:
        return Path(sys.executable)
    python = folder / name / "bin/python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", TRAINERS[name].package], check=True)
    return python


def our_rows(run: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of the run's training rows."""
    material = load_material(run)
    assert material.template, "a run has one"
    renderer = Renderer(
        load_tokenizer(resolve_base(material.base_id)), material.template, material.card.system,
        material.config.max_length, character=CharacterPrompt.of(material.card),
    )  # fmt: skip
    examples = renderer.iterate_examples([row.pair for row in material.rows if not row.held_out])
    return [cut(e.input_ids, e.labels) for e in examples if not e.problems]


def cut(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """A row up to its last learned token: what follows is in no loss."""
    end = 1 + max(n for n, label in enumerate(labels) if label != IGNORE_INDEX)
    return ids[:end], labels[:end]


def export(run: Path, folder: Path, name: str, steps: int) -> dict[str, Any]:
    """The export's configuration, with the base's folder instead of its id, and as many steps."""
    shutil.rmtree(folder, ignore_errors=True)
    material, trainer = load_material(run), TRAINERS[name]
    export_dataset(material, folder)
    config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    config |= {trainer.base: str(resolve_base(material.base_id).path), "max_steps": steps, **trainer.more}
    (folder / "tried.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment and the export go")
    parser.add_argument("run", type=Path)
    parser.add_argument("--with", dest="name", choices=TRAINERS, required=True)
    parser.add_argument("--steps", type=int, default=3)
    chosen = parser.parse_args()
    folder, run = chosen.folder.resolve(), chosen.run.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = make_environment(folder, chosen.name)
    config, out = export(run, folder / "export", chosen.name, chosen.steps), folder / "rows.json"
    variables = os.environ | {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    calls: dict[str, Any] = {"cwd": folder / "export", "env": variables, "check": True}
    trainer = TRAINERS[chosen.name]
    subprocess.run([python, "-c", trainer.read, json.dumps(config), str(out)], **calls)
    theirs = [cut(*row) for row in json.loads(out.read_text(encoding="utf-8"))]
    ours = our_rows(run)
    equal = sum(a == b for a, b in zip(theirs, ours, strict=True))
    print(f"rows with equal ids and labels: {equal} of {len(ours)}")
    if chosen.steps:
        program, *arguments = trainer.command
        subprocess.run([python.with_name(program), *arguments], **calls)
        (state,) = sorted((folder / "export/output").rglob("trainer_state.json"))[-1:]
        print("losses:", *(e["loss"] for e in json.loads(state.read_text("utf-8"))["log_history"] if "loss" in e))
    raise SystemExit(0 if equal == len(ours) else 1)


if __name__ == "__main__":
    main()
