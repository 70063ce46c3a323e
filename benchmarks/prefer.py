"""Learn from votes made by a rule: the held-out accuracy before and after, and whether the answers follow the rule.

    python -m benchmarks.prefer datasets/lighthouse-keeper RUN/adapter [--rule shorter named random] [--votes 120]

The adapter answers questions of the persona's pairs twice, with two seeds. Of two answers the rule prefers the shorter
one, the one that names the persona, or one by lot. On these votes `persona prefer COPY --from ADAPTER` is run, and the
questions of questions.jsonl, on which nobody voted, are answered before and after, greedily. One line of JSON a rule.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.further import answer_all
from benchmarks.quality import read_questions
from persona.models.sampling import Sampling
from persona.store import files
from persona.store.persona_folder import Persona, open_persona

KEPT = ("accuracy_before", "accuracy_after", "margin_after", "seconds", "tokens_per_s")
Rule = Callable[[str], float]  # how much it likes an answer


def rules(name: str) -> dict[str, Rule]:
    """The rules by name, for a persona of this name."""
    names = re.compile("|".join(map(re.escape, name.split())), re.I)
    dice = random.Random(1)
    return {
        "shorter": lambda answer: -len(answer),
        "named": lambda answer: bool(names.search(answer)),
        "random": lambda answer: dice.random(),
    }


def vote(asked: Sequence[str], answers: Sequence[Sequence[str]], rule: Rule) -> list[dict[str, str]]:
    """Preferences as TRL has them; a pair of answers that the rule finds equal is no vote."""
    rated = [(question, a, rule(a), b, rule(b)) for question, a, b in zip(asked, *answers, strict=True) if a != b]
    return [
        {"prompt": question, "chosen": max((x, a), (y, b))[1], "rejected": min((x, a), (y, b))[1]}
        for question, a, x, b, y in rated
        if x != y
    ]


def learn(folder: Path, parent: Path, votes: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The JSON of `persona prefer` on these votes."""
    file = folder / "votes.jsonl"
    files.write_atomic(file, "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in votes))
    command = [
        sys.executable,
        "-m",
        "persona",
        "prefer",
        str(folder),
        "--from",
        str(parent),
        "--data",
        str(file),
        "--json",
    ]
    done = subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(persona: Persona, parent: Path, name: str, answers: Sequence[Sequence[str]], asked: Sequence[str]) -> dict:
    rule = rules(persona.card().name)[name]
    votes = vote(asked, answers, rule)
    with tempfile.TemporaryDirectory(prefix="persona-prefer-") as place:
        folder = shutil.copytree(persona.path, Path(place) / "copy", ignore=shutil.ignore_patterns("runs"))
        made = learn(folder, parent, votes)
        unseen = [question.rule.ask for question in read_questions(persona.path)]
        said = [list(answer_all(adapter, unseen)) for adapter in (parent, Path(made["run"]) / "adapter")]
    kept = {k: made[k] for k in KEPT if k in made}
    liked = {when: round(mean(map(rule, texts)), 2) for when, texts in zip(("before", "after"), said, strict=True)}
    lengths = {when: round(mean(map(len, texts)), 1) for when, texts in zip(("before", "after"), said, strict=True)}
    return {"rule": name, "votes": len(votes), **kept, "liked": liked, "characters": lengths, "answers": len(unseen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("persona", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--rule", nargs="+", default=["shorter", "named", "random"], choices=rules("x"))
    parser.add_argument("--votes", type=int, default=120, help="pairs of answers. Default: 120")
    given = parser.parse_args()
    persona, parent = open_persona(given.persona), given.adapter.resolve()
    pairs = [pair for pair in persona.pairs() if not pair.history]
    asked = [pair.instruction for pair in random.Random(0).sample(pairs, min(given.votes, len(pairs)))]
    warm = [Sampling(temperature=1, repetition_penalty=1, max_new_tokens=64, seed=seed) for seed in (1, 2)]
    answers = [list(answer_all(parent, asked, sampling)) for sampling in warm]
    for name in given.rule:
        print(json.dumps(measure(persona, parent, name, answers, asked), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
