"""Train further on twenty corrections: seconds to the adapter, how many it says right, and what it has lost.

    python -m benchmarks.further datasets/lighthouse-keeper RUN/adapter [--set learning_rate=2e-4]

The adapter is one of this persona. The corrections are those of corrections.jsonl: a question, three paraphrases of it
that are not trained on, the answer, and what an answer to a paraphrase must mention. They become pairs of a copy of the
persona, and `persona train COPY --from ADAPTER` is timed. Then every question is asked of the adapter before and after,
greedily: the questions are to be answered word for word, their paraphrases with the fact.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from persona.compare import session
from persona.judge import training_gain
from persona.models import adapter, base
from persona.models.sampling import Sampling
from persona.store.pairs import Pair, write_pairs
from persona.store.persona_folder import open_persona
from persona.train.run_folder import Run

FILE = Path(__file__).with_name("corrections.jsonl")
BATCH = 20  # questions asked at once


def train_further(folder: Path, parent: Path, corrections: Sequence[dict[str, Any]], options: Sequence[str]) -> Run:
    """A run of the persona in `folder` on its pairs and the corrections. Returns it once it is done."""
    persona = open_persona(folder)
    new = [Pair(c["ask"][0], c["say"], source="correction") for c in corrections]
    write_pairs(persona.pairs_file, [*persona.pairs(), *new])
    command = [sys.executable, "-m", "persona", "train", str(folder), "--from", str(parent), "--json", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Run(Path(json.loads(done.stdout.splitlines()[-1])["run"]))


GREEDY = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=64)


def answer_all(folder: Path, questions: Sequence[str], sampling: Sampling = GREEDY) -> Iterator[str]:
    """The adapter's answers."""
    opened = adapter.read_adapter(folder)
    model = session.open_model(base.resolve_base(opened.base_id), "none")
    renderer, name = session.renderer_of(opened, model.tokenizer), model.attach(opened)
    columns = [session.Column(name, renderer.render_prompt([], question)) for question in questions]
    for start in range(0, len(columns), BATCH):
        *_, last = session.stream_replies(model, columns[start : start + BATCH], sampling, renderer.stop_id)
        yield from (reply.text.strip() for reply in last)


def count_right(folder: Path, corrections: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many corrections are said word for word, with their fact, and how many paraphrases with it."""
    answers = list(answer_all(folder, [question for c in corrections for question in c["ask"]]))
    count = len(corrections[0]["ask"])
    of_each = [answers[n : n + count] for n in range(0, len(answers), count)]
    facts = [[bool(re.search(c["must"], a, re.I)) for a in given]
             for c, given in zip(corrections, of_each, strict=True)]  # fmt: skip
    return {
        "word_for_word": sum(given[0] == c["say"] for c, given in zip(corrections, of_each, strict=True)),
        "right": sum(found[0] for found in facts),
        "paraphrases_right": sum(sum(found[1:]) for found in facts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("persona", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    corrections = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory(prefix="persona-further-") as place:
        folder = shutil.copytree(given.persona, Path(place) / "copy", ignore=shutil.ignore_patterns("runs"))
        start = time.monotonic()
        options = [part for setting in given.set for part in ("--set", setting)]
        run = train_further(folder, given.adapter.resolve(), corrections, options)
        seconds, progress = time.monotonic() - start, run.progress()
        change = training_gain.estimate_change(progress)
        figures = {
            "seconds": round(seconds, 1),
            "steps": progress.steps,
            "in_steps": round(progress.seconds or 0, 1),
            "corrections": len(corrections),
            "before": count_right(given.adapter, corrections),
            "after": count_right(run.adapter, corrections),
            "held_out": change and training_gain.describe_change(change),
        }
    print(json.dumps(figures, ensure_ascii=False))


if __name__ == "__main__":
    main()
