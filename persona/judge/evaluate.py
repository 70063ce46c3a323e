"""Did it learn? Base and adapter on pairs that were held out, on probes, on trained pairs and on general questions.

`evaluate` measures, `verdict.judge` says what it means, `report.html` shows it. `score_templates` answers an earlier
question: which template suits a base.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persona.compare import session as compare_session
from persona.errors import Message
from persona.judge import llm_judge as judges
from persona.judge import measurements, verdict
from persona.judge import report_html as reports  # for html and fragment
from persona.judge.eval_rows import read_eval_rows
from persona.judge.measurements import EvalBudget, EvalSession
from persona.judge.report_model import AnswerStats, EvalReport, ProbeResult
from persona.judge.scoring import EvalProgress
from persona.judge.template_scores import base_nll, rival_templates, score_templates
from persona.models.adapter import Adapter
from persona.store.files import read_json, to_json, write_atomic
from persona.train.run_folder import Run

__all__ = [
    "EvalBudget",
    "EvalProgress",
    "EvalReport",
    "base_nll",
    "evaluate_adapter",
    "load",
    "reports",
    "rival_templates",
    "run_of",
    "save_report",
    "score_templates",
]


def run_of(adapter: Adapter) -> Run | None:
    """The run that the adapter lies in, as training left it; None for one that came from elsewhere."""
    run = Run(adapter.path.resolve().parent)
    whole = adapter.path.name == "adapter" and all((run.path / f).is_file() for f in ("run.json", "pairs.jsonl"))
    return run if whole else None


def save_report(report: EvalReport, run: Run) -> Path:
    """Write report.json and report.html into the run's folder; returns the latter."""
    value = report.model_dump(mode="json")
    if templates := [note.to_json() for note in report.notes if isinstance(note, Message)]:
        value["notes_templates"] = templates
    write_atomic(run.path / "report.json", to_json(value))
    write_atomic(run.path / "report.html", reports.render_html(report))
    return run.path / "report.html"


def load(file: Path) -> EvalReport:
    """The report in `file`, with the verdict that its figures give today."""
    value = read_json(file, Message("a report"))
    templates = value.pop("notes_templates", None) or []
    report = EvalReport.model_validate(value)
    notes = [next((m for t in templates if isinstance(m := Message.from_json(note, t), Message)), note)
             for note in report.notes]  # fmt: skip
    return report.model_copy(update={"notes": notes, "verdict": verdict.decide_verdict(report)})


def evaluate_adapter(
    adapter: Adapter, *, data: Path | None = None, base: str = "", judge: bool = False,
    progress: Callable[[EvalProgress], None] = lambda _: None, limits: EvalBudget = EvalBudget(),
) -> EvalReport:  # fmt: skip
    """Measure what can be measured, and judge it.

    data: pairs to measure on, in any form that import reads; without it the run's own held-out pairs.
    judge: ask the endpoint of suggest.py too. Raises InputError for data that cannot be used, AdapterError for an
    adapter that does not fit its base, PersonaError when the judge fails.
    """
    start = time.monotonic()
    at = judges.judge_endpoint() if judge else None
    run = run_of(adapter)
    rows = read_eval_rows(run, data)

    def opening(text: str) -> None:
        progress(EvalProgress(0.0, text, None))

    opening(Message("Opening the base …"))
    voices = compare_session.open_model(compare_session.base_of(adapter, base, opening))
    renderer = compare_session.renderer_of(adapter, voices.tokenizer)
    more = min(limits.answers, len(rows.held)) if at else 0
    s = measurements.start_session(voices, adapter, renderer, rows, limits, progress, more)
    likely = measurements.measure_likelihood(s, rows, run)
    heard = measurements.measure_answers(s, rows)
    probes = measurements.measure_probes(s)
    memory = measurements.measure_memorisation(s, rows, heard)
    drift = measurements.measure_drift(s)
    judged = None
    if at and heard:
        s.work.doing = Message("{model} judges", model=at.model)
        judged = judges.judge_answers(at, adapter.card, heard.rows, s.work.tick)
    sure = EvalReport(
        persona=adapter.card.name,
        base=voices.base.id,
        template=adapter.template.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seconds=round(time.monotonic() - start, 1),
        sampling=_describe_sampling(s),
        **_training_facts(adapter),
        likelihood=likely,
        answers=heard,
        probes=probes,
        memory=memory,
        drift=drift,
        ended=_ended_share(heard, probes, False),
        base_ended=_ended_share(heard, probes, True),
        judged=judged,
        notes=[*rows.notes, *s.notes],
    )
    return sure.model_copy(update={"verdict": verdict.decide_verdict(sure)})


def _describe_sampling(s: EvalSession) -> str:
    c = s.sampling
    return (
        f"Answers are sampled as on the page: temperature {c.temperature}, top-p {c.top_p}, repetition penalty "
        f"{c.repetition_penalty}, at most {c.max_new_tokens} tokens, the same random numbers for base and adapter."
    )


def _training_facts(adapter: Adapter) -> dict[str, Any]:
    """What the adapter says of its training; it may come from anywhere, so only numbers are taken."""
    said = {**_dict(adapter.facts.get("config")), **_dict(adapter.facts.get("figures"))}
    wanted = {"steps": int, "train_rows": int, "learning_rate": float}
    return {k: said[k] for k, kind in wanted.items() if type(said.get(k)) is kind}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ended_share(heard: AnswerStats | None, probes: list[ProbeResult], of_base: bool) -> float | None:
    """The share of the answers in her own field that end by themselves; None without any."""
    ended = [h.base_ended if of_base else h.adapter_ended for h in heard.rows] if heard else []
    ended += [r.ended for p in probes for r in ([p.base] if of_base else p.replies)]
    return sum(ended) / len(ended) if ended else None
