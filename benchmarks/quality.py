"""Quality of what a recipe teaches: unseen questions answered by their rules, circles, ends, forgetting, over seeds.

    python -m benchmarks.quality datasets/zhen-huan [--preset quick] [--set epochs=10] [--seeds 3] [--half develop]
    python -m benchmarks.quality datasets/zhen-huan --grid FILE [--minutes 5] [--workers 4] --out results.jsonl

Each trial trains the persona with the project's own run and asks every question of its questions.jsonl with the page's
sampling; training and sampling have the same seed. The questions are in two halves by their hash: recipes are chosen by
`develop`, and `report` is what is told of them. Intervals are 95 % bootstrap, over questions and seeds drawn together.

--grid: a JSON list of trials (the fields of Trial). --out gets a line of JSON, with every answer, for each trial and
seed as it ends, so that a run that is stopped leaves what it had; --read FILE makes the table of such lines again.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from persona.compare import session
from persona.compare.repetition import is_repeating
from persona.judge import measurements, metrics, probes
from persona.judge.scoring import BATCH_COLUMNS, EvalWork
from persona.models import adapter, base, bundled
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.store import persona_folder
from persona.store.persona_folder import Persona, PersonaCard, ProbeRule
from persona.train import launcher, snapshots
from persona.train.config import make_config
from persona.train.run_folder import Run
from persona.write.lint.finding import normalize_text

KINDS = ("identity", "facts", "refusal")
HALVES = ("develop", "report")
QUESTIONS_FILE = "questions.jsonl"  # beside pairs.jsonl; not the card's probes, all of which `persona eval` would ask
RESAMPLES = 2000


@dataclass(frozen=True)
class Question:
    """A question that no pair asks, with the rules of a right answer. kind: one of KINDS, half: one of HALVES."""

    rule: ProbeRule
    kind: str
    half: str


@dataclass(frozen=True)
class Trial:
    """One row of the table. settings: on top of the preset. samplings: name → changes of the page's sampling.

    average: ask the mean of the run's last so many snapshots; 0: its adapter. general: measure forgetting too.
    """

    name: str
    preset: str = "quick"
    settings: dict[str, Any] = field(default_factory=dict)
    samplings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"page": {}})
    average: int = 0
    general: bool = False


@dataclass(frozen=True)
class Job:
    """A trial under one seed. base: as RunConfig's. batch: questions that are answered at once."""

    trial: Trial
    seed: int
    persona: Path
    base: str
    batch: int
    end: float  # time.time() after which it is not begun


def half_of(ask: str) -> str:
    """The half that a question is in, whatever the others are."""
    return HALVES[hashlib.sha256(normalize_text(ask).encode()).digest()[-1] % 2]


def read_questions(persona: Path) -> list[Question]:
    rows = [json.loads(line) for line in (persona / QUESTIONS_FILE).read_text(encoding="utf-8").splitlines()]
    return [Question(ProbeRule(**{k: v for k, v in r.items() if k != "kind"}), r["kind"], half_of(r["ask"]))
            for r in rows]  # fmt: skip


def run_job(job: Job) -> list[dict[str, Any]]:
    """Train and ask; a record for each sampling of the trial. Empty where the time is up."""
    if time.time() > job.end:
        return []
    begun = time.perf_counter()
    source = persona_folder.open_persona(job.persona)
    with tempfile.TemporaryDirectory(prefix="persona-quality-") as scratch:
        copy = persona_folder.create_persona_at(Path(scratch) / job.persona.name, source.card(), source.pairs())
        run = train(copy, job)
        trained = time.perf_counter()
        facts = {
            **asdict(job.trial),
            "persona": job.persona.name,
            "seed": job.seed,
            "base": Path(job.base).name,
            **{k: run.progress().result[k] for k in ("steps", "seconds", "base_nll", "adapter_nll")},
            "chosen_step": run.progress().chosen,
            "train_seconds": round(trained - begun, 1),  # from the click to the adapter
        }
        records = [facts | record for record in ask_run(job, run)]
    for record in records:
        record["wall_seconds"] = round(time.perf_counter() - begun, 1)
    return records


def train(persona: Persona, job: Job) -> Run:
    from persona.train.run import train_run

    run = launcher.create_run(
        persona, make_config(job.trial.preset, base=job.base, seed=job.seed, **job.trial.settings)
    )
    train_run(run)
    return run


def ask_run(job: Job, run: Run) -> Iterator[dict[str, Any]]:
    """The figures and answers of a trained run, for each sampling."""
    opened = adapter.read_adapter(run.adapter)
    model = session.open_model(base.resolve_base(job.base), "none")
    renderer = session.renderer_of(opened, model.tokenizer)
    name = model.attach(opened)
    if n := job.trial.average:
        steps = snapshots.list_snapshot_steps(run)[-n:]
        parts = [model.attach(adapter.read_adapter(snapshots.snapshot_dir(run, step))) for step in steps]
        name = model.blend({part: 1 / len(parts) for part in parts})
    questions = read_questions(job.persona)
    columns = [session.Column(name, renderer.render_prompt([], q.rule.ask)) for q in questions]
    general = measure_general(model, name, renderer, opened.card) if job.trial.general else None
    for label, changes in job.trial.samplings.items():
        sampling = Sampling(**{"seed": job.seed, **changes})
        replies = answer(model, columns, sampling, renderer.stop_id, job.batch)
        yield {
            "sampling": label,
            "general": general,
            "answers": [describe_answer(q, r) for q, r in zip(questions, replies, strict=True)],
        }


def answer(
    model: session.LoadedModel, columns: Sequence[session.Column], sampling: Sampling, stop_id: int, batch: int
) -> list[Generation]:
    replies: list[Generation] = []
    for start in range(0, len(columns), batch):
        *_, last = session.stream_replies(model, columns[start : start + batch], sampling, stop_id)
        replies += last
    return replies


def describe_answer(question: Question, reply: Generation) -> dict[str, Any]:
    return {
        "ask": question.rule.ask,
        "kind": question.kind,
        "half": question.half,
        "kept": not probes.find_broken_rules(question.rule, reply.text),
        "ended": reply.ended,
        "circle": is_repeating(reply.text),
        "text": reply.text,
    }


def measure_general(model: session.LoadedModel, name: str, renderer: Any, card: PersonaCard) -> dict[str, float]:
    """What `persona eval` measures of forgetting: general questions right, and the NLL of right answers."""
    asked = measurements.EvalSession(
        model, name, renderer, [], [], [], measurements.EvalBudget(), Sampling(), EvalWork(lambda _: None)
    )
    drift = measurements.measure_drift(asked)
    if drift is None:
        return {}
    return {"right": drift.adapter_right, "base_right": drift.base_right, "nll": drift.adapter.value,
            "base_nll": drift.base.value}  # fmt: skip


def crossed_interval(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(mean, low, high) of seeds × questions, both resampled (a pigeonhole bootstrap, Owen 2007)."""
    table, random = np.asarray(values, dtype=float), np.random.default_rng(0)
    seeds, questions = table.shape
    drawn = [
        table[random.integers(0, seeds, seeds)][:, random.integers(0, questions, questions)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(table.mean()), float(low), float(high)


def summarize(records: Sequence[dict[str, Any]], half: str) -> list[dict[str, Any]]:
    """A row for each trial and sampling, in the order of the records. half: one of HALVES, or "both"."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["persona"], record["name"], record["sampling"]), []).append(record)
    return [summarize_trial(group, half) for group in groups.values()]


def summarize_trial(group: list[dict[str, Any]], half: str) -> dict[str, Any]:
    """The seeds of one trial and sampling."""
    answers = [[a for a in r["answers"] if half in (a["half"], "both")] for r in group]

    def share(key: str, kind: str = "") -> list[float]:
        chosen = [[a[key] for a in row if not kind or a["kind"] == kind] for row in answers]
        return [round(x, 3) for x in crossed_interval(chosen)] if chosen and chosen[0] else []

    def mean(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return round(sum(known) / len(known), 3) if known else None

    return {
        "persona": group[0]["persona"],
        "trial": group[0]["name"],
        "sampling": group[0]["sampling"],
        "half": half,
        "seeds": sorted(r["seed"] for r in group),
        "kept": share("kept"),
        **{kind: share("kept", kind) for kind in KINDS},
        "circles": share("circle"),
        "ended": share("ended"),
        "distinct_2": mean([metrics.distinct_n([a["text"] for a in row], 2) for row in answers]),
        "base_nll": mean([r["base_nll"] for r in group]),
        "nll": mean([r["adapter_nll"] for r in group]),
        "general": {k: mean([r["general"][k] for r in group if r["general"]])
                    for k in ("right", "base_right", "nll", "base_nll")} if group[0]["general"] else None,
        "steps": mean([r["steps"] for r in group]),
        "chosen_step": mean([r["chosen_step"] for r in group]),
        "train_seconds": mean([r["train_seconds"] for r in group]),
    }  # fmt: skip


def render_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; shares in percent, with their interval."""

    def percent(values: Sequence[float]) -> str:
        return "{:.0f} [{:.0f}–{:.0f}]".format(*(100 * v for v in values)) if values else "–"

    head = ("persona, trial, sampling (seeds)", "kept", *KINDS, "circles", "ended", "distinct-2", "NLL",
            "general right", "general NLL", "step", "s")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in rows:
        g = r["general"]
        cells = [
            f"{r['persona']}, {r['trial']}, {r['sampling']} ({len(r['seeds'])})",
            *(percent(r[k]) for k in ("kept", *KINDS, "circles", "ended")),
            str(r["distinct_2"]), f"{r['base_nll']} → {r['nll']}",
            f"{100 * g['base_right']:.0f} → {100 * g['right']:.0f}" if g else "–",
            f"{g['base_nll']} → {g['nll']}" if g else "–",
            f"{r['chosen_step']} of {r['steps']}", str(r["train_seconds"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run_jobs(jobs: Sequence[Job], workers: int, end: float) -> Iterator[list[dict[str, Any]]]:
    """The records of each job as it ends. On one GPU, several workers: launching small kernels is what takes time."""
    if workers == 1:
        yield from map(run_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = pool.imap_unordered(run_job, jobs)
        for _ in jobs:
            try:
                yield results.next(timeout=max(0.0, end - time.time()))
            except multiprocessing.TimeoutError:
                return


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("persona", type=Path, help="a persona's folder with questions.jsonl")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings on top of the preset")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--half", choices=(*HALVES, "both"), default="develop")
    parser.add_argument("--base", default=bundled.DEFAULT_BASE, help="name, folder or .gguf file")
    parser.add_argument("--grid", type=Path, help="a JSON list of trials, in place of --preset and --set")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after it")
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    parser.add_argument("--batch", type=int, default=BATCH_COLUMNS, help="questions answered at once")
    parser.add_argument("--out", type=Path, help="append every trial's record, with its answers, here")
    parser.add_argument("--read", type=Path, help="train nothing: the table of such a file")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE → its value as JSON, or as text where it is none."""
    settings = {}
    for name, _, value in (text.partition("=") for text in texts):
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def main() -> None:
    given = parse_arguments()
    if given.read:
        records = [json.loads(line) for line in given.read.read_text(encoding="utf-8").splitlines()]
        records = [r for r in records if r["persona"] == given.persona.resolve().name]
    else:
        records = run_trials(given)
    rows = summarize(records, given.half)
    print("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) if given.json else render_table(rows))


def run_trials(given: argparse.Namespace) -> list[dict[str, Any]]:
    settings = parse_settings(given.set)
    trials = [Trial(" ".join([given.preset, *given.set]), given.preset, settings, general=True)]
    if given.grid:
        trials = [Trial(**value) for value in json.loads(given.grid.read_text(encoding="utf-8"))]
    end = time.time() + 60 * given.minutes
    place = Path(given.base).expanduser()
    found = str(place.resolve()) if place.exists() else given.base
    jobs = [Job(trial, seed, given.persona.resolve(), found, given.batch, end)
            for trial in trials for seed in range(given.seeds)]  # fmt: skip
    records = []
    for of_job in run_jobs(jobs, given.workers, end):
        records += of_job
        for record in of_job:
            kept = [a["kept"] for a in record["answers"]]
            print(f"{record['name']}, seed {record['seed']}, {record['sampling']}: {sum(kept)} of {len(kept)} kept, "
                  f"{record['wall_seconds']} s", file=sys.stderr, flush=True)  # fmt: skip
        if given.out:
            with given.out.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in of_job)
    return records


if __name__ == "__main__":
    main()
