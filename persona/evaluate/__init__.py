"""Did it learn? Base and adapter on pairs that were held out, on probes, on trained pairs and on general questions.

`evaluate` measures, `verdict.judge` says what it means, `report.html` shows it. `score_templates` answers an earlier
question: which template suits a base.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona import chat
from persona.adapter import Adapter
from persona.errors import Message
from persona.evaluate import judge as judges
from persona.evaluate import report as reports  # for html and fragment
from persona.evaluate import session, verdict
from persona.evaluate.fitting import base_nll, rivals, score_templates
from persona.evaluate.found import Answers, Probe, Report
from persona.evaluate.measuring import Progress
from persona.evaluate.rows import read_rows
from persona.evaluate.session import Limits, Session
from persona.files import read_json, to_json, write_atomic
from persona.runs import Run

__all__ = [
    "Limits",
    "Progress",
    "Report",
    "base_nll",
    "evaluate",
    "load",
    "reports",
    "rivals",
    "run_of",
    "save",
    "score_templates",
]


def run_of(adapter: Adapter) -> Run | None:
    """The run that the adapter lies in, as training left it; None for one that came from elsewhere."""
    run = Run(adapter.path.resolve().parent)
    whole = adapter.path.name == "adapter" and all((run.path / f).is_file() for f in ("run.json", "pairs.jsonl"))
    return run if whole else None


def save(report: Report, run: Run) -> Path:
    """Write report.json and report.html into the run's folder; returns the latter."""
    value = report.model_dump(mode="json")
    if templates := [note.to_json() for note in report.notes if isinstance(note, Message)]:
        value["notes_templates"] = templates
    write_atomic(run.path / "report.json", to_json(value))
    write_atomic(run.path / "report.html", reports.html(report))
    return run.path / "report.html"


def load(file: Path) -> Report:
    """The report in `file`, with the verdict that its figures give today."""
    value = read_json(file, Message("a report"))
    templates = value.pop("notes_templates", None) or []
    report = Report.model_validate(value)
    notes = [next((m for t in templates if isinstance(m := Message.from_json(note, t), Message)), note)
             for note in report.notes]  # fmt: skip
    return report.model_copy(update={"notes": notes, "verdict": verdict.judge(report)})


def evaluate(
    adapter: Adapter, *, data: Path | None = None, base: str = "", judge: bool = False,
    progress: Callable[[Progress], None] = lambda _: None, limits: Limits = Limits(),
) -> Report:  # fmt: skip
    """Measure what can be measured, and judge it.

    data: pairs to measure on, in any form that import reads; without it the run's own held-out pairs.
    judge: ask the endpoint of suggest.py too. Raises InputError for data that cannot be used, AdapterError for an
    adapter that does not fit its base, PersonaError when the judge fails.
    """
    start = time.monotonic()
    at = judges.judge_endpoint() if judge else None
    run = run_of(adapter)
    rows = read_rows(run, data)

    def opening(text: str) -> None:
        progress(Progress(0.0, text, None))

    opening(Message("Opening the base …"))
    voices = chat.open_voices(chat.base_of(adapter, base, opening))
    renderer = chat.renderer_of(adapter, voices.tokenizer)
    more = min(limits.answers, len(rows.held)) if at else 0
    s = session.begin(voices, adapter, renderer, rows, limits, progress, more)
    likely = session.likelihood(s, rows, run)
    heard = session.answers(s, rows)
    probes = session.asked_probes(s)
    memory = session.memory(s, rows, heard)
    drift = session.drift(s)
    judged = None
    if at and heard:
        s.work.doing = Message("{model} judges", model=at.model)
        judged = judges.compare(at, adapter.card, heard.rows, s.work.tick)
    sure = Report(
        persona=adapter.card.name, base=voices.base.id, template=adapter.template.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"), seconds=round(time.monotonic() - start, 1),
        sampling=_in_words(s), **_facts(adapter), likelihood=likely, answers=heard, probes=probes, memory=memory,
        drift=drift, ended=_ended(heard, probes, False), base_ended=_ended(heard, probes, True), judged=judged,
        notes=[*rows.notes, *s.notes],
    )  # fmt: skip
    return sure.model_copy(update={"verdict": verdict.judge(sure)})


def _in_words(s: Session) -> str:
    c = s.sampling
    return (
        f"Answers are sampled as on the page: temperature {c.temperature}, top-p {c.top_p}, repetition penalty "
        f"{c.repetition_penalty}, at most {c.max_new_tokens} tokens, the same random numbers for base and adapter."
    )


def _facts(adapter: Adapter) -> dict[str, Any]:
    """What the adapter says of its training; it may come from anywhere, so only numbers are taken."""
    said = {**_dict(adapter.facts.get("config")), **_dict(adapter.facts.get("figures"))}
    wanted = {"steps": int, "train_rows": int, "learning_rate": float}
    return {k: said[k] for k, kind in wanted.items() if type(said.get(k)) is kind}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ended(heard: Answers | None, probes: list[Probe], of_base: bool) -> float | None:
    """The share of the answers in her own field that end by themselves; None without any."""
    ended = [h.base_ended if of_base else h.adapter_ended for h in heard.rows] if heard else []
    ended += [r.ended for p in probes for r in ([p.base] if of_base else p.replies)]
    return sum(ended) / len(ended) if ended else None
