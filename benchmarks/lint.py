"""Speed of importing and checking a large data set: seconds per stage, pairs/s, peak memory.

    python -m benchmarks.lint [--pairs 100000] [--json]

The set is made up, half Chinese and half English, and the same in every run; 1 % are exact repeats, 1 % are pairs
with one word changed, and a few rows have each of the usual defects. The number of findings is printed too.
"""

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from pathlib import Path

from persona.models.hardware import peak_resident_memory
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona, PersonaCard
from persona.write import importers, lint
from persona.write.importers import registry, text_source
from persona.write.lint import finding, summary

CARD = PersonaCard(name="Mags", probes=("Who are you?", "你是谁？"))

HAN = "山水云月风花雪夜灯茶书琴棋画船桥路门窗石松竹梅兰春夏秋冬东西南北红白青黄高低远近新旧冷暖早晚来去说听看想走坐问答"
SOUNDS = (
    "ba",
    "co",
    "di",
    "fen",
    "gar",
    "hol",
    "ist",
    "jo",
    "kem",
    "lan",
    "mor",
    "ni",
    "pel",
    "quo",
    "ras",
    "tu",
    "vi",
)
DEFECTS = [
    "<br>and so",
    "<|im_end|>",
    " As an AI language model, I cannot.",
    " Call 13812345678.",
    " â€œyesâ€\x9d",
    " （笑）",
]


def sentence(rng: random.Random, chinese: bool, words: int) -> str:
    if chinese:
        return "".join(rng.choice(HAN) for _ in range(words * 2))
    return " ".join("".join(rng.choices(SOUNDS, k=rng.randint(1, 3))) for _ in range(words))


def pair(rng: random.Random, chinese: bool) -> Pair:
    question = sentence(rng, chinese, rng.randint(3, 9)) + ("？" if chinese else "?")
    answer = (sentence(rng, chinese, rng.randint(5, 12)) + ("。" if chinese else ".") for _ in range(rng.randint(1, 2)))
    history = (("你来了？", "来了，坐。"),) if chinese and rng.random() < 0.1 else ()
    return Pair(question.capitalize(), ("" if chinese else " ").join(answer).capitalize(), history)


def made_up(count: int) -> list[Pair]:
    rng = random.Random(0)
    pairs = [pair(rng, chinese=bool(n % 2)) for n in range(count)]
    few = max(1, count // 100)
    for row in rng.sample(range(count // 2, count), 2 * few):  # copies of rows in the first half
        model = pairs[rng.randrange(count // 2)]
        if row % 2:
            pairs[row] = model
        else:
            at = rng.randrange(len(model.output) - 2)
            pairs[row] = Pair(model.instruction, model.output[:at] + "变" + model.output[at + 1 :], model.history)
    for n, row in enumerate(rng.sample(range(count // 2), min(len(DEFECTS) * 50, count // 2))):
        pairs[row] = Pair(pairs[row].instruction, pairs[row].output + DEFECTS[n % len(DEFECTS)])
    return pairs


def bring_in(folder_: Path, made: list[Pair]) -> tuple[Persona, float, float]:
    """Import a JSON list in Alpaca's format: (persona, seconds, peak MB of traced memory)."""
    file = folder_ / "made-up.json"
    rows = [{"instruction": p.instruction, "input": "", "output": p.output, "history": list(p.history)} for p in made]
    file.write_text(json.dumps(rows, ensure_ascii=False, indent=4), encoding="utf-8")
    seconds = traced = 0.0
    for watched in (False, True):  # tracing costs time, so time and memory are measured separately
        persona = persona_folder.create_persona_at(folder_ / f"persona-{watched}", CARD)
        if watched:
            tracemalloc.start()
        start = time.perf_counter()
        source = text_source.open_source(file)
        registry.import_into(persona, source, registry.detect_format(source), importers.ImportOptions())
        if watched:
            traced = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
        else:
            seconds = time.perf_counter() - start
    return persona, seconds, traced


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lint")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        persona, importing, traced = bring_in(Path(name), made_up(given.pairs))
        start = time.perf_counter()
        pairs, card = persona.pairs(), persona.card()
        reading = time.perf_counter() - start
    before = peak_resident_memory() / 1e6
    start = time.perf_counter()
    findings = lint.lint_pairs(pairs, card)
    checking = time.perf_counter() - start
    start = time.perf_counter()
    summary.summarize_dataset(pairs, card, findings)
    summing = time.perf_counter() - start
    peak = peak_resident_memory() / 1e6
    value = {
        "pairs": len(pairs),
        "import_s": round(importing, 2),
        "import_traced_mb": round(traced, 2),
        "read_s": round(reading, 2),
        "lint_s": round(checking, 2),
        "summary_s": round(summing, 2),
        "pairs_per_s": round(len(pairs) / (importing + reading + checking)),
        "peak_mb": round(peak),
        "peak_mb_before_lint": round(before),
        "found": finding.count_by_rule(findings),
    }
    words = (
        f"{len(pairs):,} pairs: imported in {importing:.2f} s ({traced:.1f} MB held), read in {reading:.2f} s, "
        f"checked in {checking:.2f} s, summary {summing:.2f} s, "
        f"{value['pairs_per_s']:,} pairs/s, peak {peak:.0f} MB ({before:.0f} before the check)\n{value['found']}"
    )
    print(json.dumps(value) if given.json else words)


if __name__ == "__main__":
    main()
