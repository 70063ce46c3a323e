"""Did it learn? Base and adapter on held-out pairs, probes, trained pairs and general questions, as one report."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from persona.compare import session as compare_session
from persona.compare.blind_votes import BlindQuestion
from persona.compare.chat_plan import FORMS
from persona.errors import Message
from persona.judge import llm_judge, long_talk, measurements, report_html, verdict
from persona.judge.eval_rows import EvalRows, read_eval_rows
from persona.judge.measurements import EvalBudget, EvalSession
from persona.judge.report_model import AnswerPair, AnswerStats, EvalReport, JudgeTally, ProbeResult
from persona.judge.scoring import EvalProgress
from persona.models.adapter import Adapter
from persona.models.sampling import Sampling
from persona.store.files import read_json, to_json, write_atomic
from persona.store.persona_folder import PersonaCard
from persona.train import run_folder
from persona.train.run_folder import Run
from persona.write.llm_client import LlmEndpoint


def run_of(adapter: Adapter) -> Run | None:
    """The run that the adapter lies in, as training left it; None for an adapter from elsewhere."""
    run = Run(adapter.path.resolve().parent)
    whole = adapter.path.name == "adapter" and all((run.path / f).is_file() for f in ("run.json", "pairs.jsonl"))
    return run if whole else None


def save_report(report: EvalReport, run: Run) -> Path:
    """Write report.json and report.html into the run's folder; returns the latter."""
    value = report.model_dump(mode="json")
    if templates := [note.to_json() for note in report.notes if isinstance(note, Message)]:
        value["notes_templates"] = templates
    write_atomic(run.path / "report.json", to_json(value))
    write_atomic(run.path / "report.html", report_html.render_html(report))
    return run.path / "report.html"


def load_report(file: Path) -> EvalReport:
    """The report in `file`, with the verdict that its figures give today."""
    value = read_json(file, Message("a report"))
    templates = value.pop("notes_templates", None) or []
    report = EvalReport.model_validate(value)
    notes = [next((m for t in templates if isinstance(m := Message.from_json(note, t), Message)), note)
             for note in report.notes]  # fmt: skip
    return report.model_copy(update={"notes": notes, "verdict": verdict.decide_verdict(report)})


class EvaluationStopped(Exception):
    """Raised by a progress callback to stop: the report has what was measured until then."""


def evaluate_adapter(
    adapter: Adapter, *, data: Path | None = None, base: str = "", judge: bool = False,
    votes: Sequence[BlindQuestion] = (), visitor: str = "",
    quantization: str = "auto", progress: Callable[[EvalProgress], None] = lambda _: None,
    limits: EvalBudget = EvalBudget(), begun: EvalReport | None = None,
) -> EvalReport:  # fmt: skip
    """Measure what can be measured, and decide the verdict.

    data: pairs to measure on, in any form that import reads; without it the run's own held-out pairs.
    Probes are those of the run's persona as it is now, of an adapter from elsewhere its own.
    judge: ask the LLM endpoint (PERSONA_LLM_URL), too. votes: the author's blind votes, to compare it with.
    visitor: whose work it is in the queue before the model. quantization: of the base in memory, a ChatQuantization;
    its memory is the first progress.
    begun: the report of an evaluation of this adapter that was stopped; only what it lacks is measured, unless the base
    was in another precision.
    Raises InputError for data that cannot be used, AdapterError for an adapter that does not fit its base, PersonaError
    when the judge fails, EvaluationStopped when it is stopped before anything was measured.
    """
    start = time.monotonic()
    endpoint = llm_judge.judge_endpoint() if judge else None
    run = run_of(adapter)
    rows = read_eval_rows(run, data)

    def report_opening(text: str) -> None:
        progress(EvalProgress(0.0, text, None))

    report_opening(Message("Opening the base …"))
    opening = compare_session.base_of(adapter, base, report_opening), quantization, adapter.quantization
    report_opening(compare_session.plan_opening(*opening).describe())
    model = compare_session.open_model(*opening)
    if begun and begun.quantization != model.quantization:
        begun = None
    renderer = compare_session.renderer_of(adapter, model.tokenizer)
    card = (run_folder.find_persona_card(adapter.path) if run else None) or adapter.card
    session = measurements.start_session(model, adapter, renderer, card, rows, limits, progress, visitor)
    if begun and [p.ask for p in begun.probes] != [rule.ask for rule in session.rules]:  # edited since it was stopped
        begun = begun.model_copy(update={"missing": [*begun.missing, "probes"]})
    judging = (endpoint, llm_judge.select_votes(votes)) if endpoint else None
    parts = _measure_parts(session, adapter.card, rows, run, judging, begun)
    probes = parts.get("probes") or []
    wanted = [*_count_work(session), *(["judged"] if endpoint else [])]
    report = EvalReport(
        persona=adapter.card.name,
        base=model.base.id,
        template=adapter.template.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seconds=round(time.monotonic() - start + (begun.seconds if begun else 0.0), 1),
        quantization=model.quantization,
        sampling=_describe_sampling(session.sampling),
        **_training_facts(adapter),
        **{**parts, "probes": probes, "pressure": parts.get("pressure") or []},
        ended=_ended_share(parts.get("answers"), probes, of_base=False),
        base_ended=_ended_share(parts.get("answers"), probes, of_base=True),
        missing=[part for part in wanted if part not in parts],
        notes=[*rows.notes, *_quantization_notes(model.quantization), *session.notes],
    )
    return report.model_copy(update={"verdict": verdict.decide_verdict(report)})


def _measure_parts(
    session: EvalSession, card: PersonaCard, rows: EvalRows, run: Run | None,
    judging: tuple[LlmEndpoint, list[BlindQuestion]] | None, begun: EvalReport | None,
) -> dict[str, Any]:  # fmt: skip
    """The parts of the report by name, without those that a stop prevents. Raises EvaluationStopped if that is all.

    judging: the endpoint of the judge, and the votes that it is compared with.
    """
    measure: dict[str, Callable[[], Any]] = {
        "likelihood": lambda: measurements.measure_likelihood(session, rows, run),
        "answers": lambda: measurements.measure_answers(session, rows),
        "probes": lambda: measurements.measure_probes(session),
        "pressure": lambda: measurements.measure_pressure(session),
        "hard": lambda: measurements.measure_hard(session, parts["likelihood"], parts["answers"]),
        "memory": lambda: measurements.measure_memorisation(session, rows, parts["answers"]),
        "drift": lambda: measurements.measure_drift(session),
        "talk": lambda: long_talk.measure_long_talk(session, card.language),
    }
    parts = {part: getattr(begun, part) for part in measure if part not in begun.missing} if begun else {}
    planned = {part: work for part, work in _count_work(session).items() if part not in parts}
    requests = 0
    if judging:
        votes = len(judging[1])
        requests = min(session.limits.answers, len(session.held)) + votes * (votes >= verdict.MIN_VOTES)
    work = session.work
    work.planned, work.parts = sum(planned.values(), Counter(judging=requests)), len(planned) + bool(judging)
    try:
        for part in planned:
            work.part += 1
            parts[part] = measure[part]()
        if judging:
            work.part += 1
            work.doing = Message("{model} judges", model=judging[0].model)
            answers = parts["answers"].rows if parts["answers"] else []
            parts["judged"] = _judge(session, card, answers, *judging) if answers else None
    except EvaluationStopped:
        if not parts:
            raise
        session.notes.append(Message("Stopped: not everything is measured yet. Measure goes on where it stopped."))
    return parts


def _judge(
    session: EvalSession, card: PersonaCard, answers: list[AnswerPair], endpoint: LlmEndpoint,
    votes: list[BlindQuestion],
) -> JudgeTally:  # fmt: skip
    tick = partial(session.work.tick, "judging")
    agreement = llm_judge.measure_agreement(endpoint, card, votes, tick)
    tally = llm_judge.judge_answers(endpoint, card, answers, tick)
    return tally.model_copy(update={"agreement": agreement})


def _count_work(session: EvalSession) -> dict[str, Counter[str]]:
    return {**measurements.count_work(session), "talk": long_talk.count_work(session)}


def _quantization_notes(quantization: str) -> list[str]:
    if quantization == "none":
        return []
    return [Message("Measured with the base in {form}.", form=FORMS[quantization])]


def _describe_sampling(s: Sampling) -> str:
    return (
        f"Answers are sampled as on the page: temperature {s.temperature}, top-p {s.top_p}, repetition penalty "
        f"{s.repetition_penalty}, at most {s.max_new_tokens} tokens, the same random numbers for base and adapter."
    )


def _training_facts(adapter: Adapter) -> dict[str, Any]:
    """Figures of the adapter's training for the report; it may come from anywhere, so only numbers are taken."""
    facts = {**_dict(adapter.facts.get("config")), **_dict(adapter.facts.get("figures"))}
    wanted = {"steps": int, "train_rows": int, "learning_rate": float}
    return {k: facts[k] for k, kind in wanted.items() if type(facts.get(k)) is kind}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ended_share(answers: AnswerStats | None, probes: list[ProbeResult], *, of_base: bool) -> float | None:
    """The share of the answers in the persona's own field that end by themselves; None without any."""
    ended = [a.base_ended if of_base else a.adapter_ended for a in answers.rows] if answers else []
    ended += [r.ended for p in probes for r in ([p.base] if of_base else p.replies)]
    return sum(ended) / len(ended) if ended else None
