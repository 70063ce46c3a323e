"""Two runs beside each other: settings, pairs, losses, answers, and a paired test on rows that neither has learned.

Rows are the pairs that both runs held out, and nothing but the runs' own evaluations is read: nothing is computed by a
model here.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from persona.errors import Message, PersonaError
from persona.judge import evaluate, ledger, training_gain
from persona.judge.ledger import PairDifference
from persona.judge.report_model import EvalReport, FrozenModel, HardRow, Interval
from persona.judge.verdict import MIN_ROWS
from persona.store.pairs import Pair
from persona.train.progress import RunProgress
from persona.train.run_folder import Run, RunRow

FLIPS = 10_000  # of signs, in the permutation test
SHOWN_ROWS = 5  # worst and best rows
MIN_TESTED_ROWS = 6  # with fewer, no assignment of signs has p < 0.05


class RowChange(FrozenModel):
    """A held-out pair under both runs. nll: nats per learned token; answers: "" where nobody asked."""

    question: str
    reference: str
    first_nll: float
    second_nll: float
    first_answer: str = ""
    second_answer: str = ""


class ProbeAnswers(FrozenModel):
    """A probe with the answer of each run; None where that run was not asked."""

    probe: str
    first: str | None
    second: str | None


class PairedTest(FrozenModel):
    """The second run against the first on the rows that both held out.

    change: second − first, nats per learned token of the first, so below 0 the second is better. p: two-sided, of
    random signs for the rows' differences; None with fewer than MIN_TESTED_ROWS rows.
    """

    rows: int
    first: Interval
    second: Interval
    change: Interval
    p: float | None


class RunComparison(FrozenModel):
    """What differs between two runs. settings: name → (first, second).

    pairs: from the first to the second; None where one of them learned preferences instead.
    """

    first: str
    second: str
    settings: dict[str, tuple[Any, Any]]
    pairs: list[PairDifference] | None
    test: PairedTest | None
    worse: list[RowChange]
    better: list[RowChange]
    probes: list[ProbeAnswers]
    losses: dict[str, list[tuple[int, float]]]

    def describe(self) -> str:
        """The outcome of the test in a sentence."""
        if self.test is None:
            return Message("No row was held out by both runs and measured by both: nothing can be tested.")
        t, figures = self.test, self.test.change
        change = f"{figures.value:+.3f} [{figures.low:+.3f}, {figures.high:+.3f}]"
        if t.rows < MIN_ROWS:
            return Message(
                "Rows that both held out: {rows}, too few to tell the two apart ({value} nats per token).",
                rows=t.rows, value=f"{figures.value:+.3f}",
            )  # fmt: skip
        p = "–" if t.p is None else f"{t.p:.3f}"
        if figures.high < 0:
            return Message(
                "The second run is better on the {rows} rows that both held out: {change} nats per token, p = {p}.",
                rows=t.rows, change=change, p=p,
            )  # fmt: skip
        if figures.low > 0:
            return Message(
                "The second run is worse on the {rows} rows that both held out: {change} nats per token, p = {p}.",
                rows=t.rows, change=change, p=p,
            )  # fmt: skip
        return Message(
            "On the {rows} rows that both held out the two cannot be told apart: {change} nats per token, p = {p}.",
            rows=t.rows, change=change, p=p,
        )  # fmt: skip


def compare_runs(first: Run, second: Run) -> RunComparison:
    """Raises PersonaError for a damaged run."""
    before, after = first.progress(), second.progress()
    trained, reports = ([run.rows() for run in (first, second)], [_load_report(run) for run in (first, second)])
    rows = _shared_rows(trained[0], before, trained[1], after)
    preferred = [any(row.rejected for row in rows_of_run) for rows_of_run in trained]  # theirs is another loss
    answers = [_held_out_answers(report) for report in reports]
    changes = [
        RowChange(
            question=pair.instruction,
            reference=pair.output,
            first_nll=a / n,
            second_nll=b / n,
            first_answer=answers[0].get(pair.instruction, ""),
            second_answer=answers[1].get(pair.instruction, ""),
        )
        for pair, a, b, n in rows
    ]
    changes.sort(key=lambda row: row.first_nll - row.second_nll)  # the one that lost most comes first
    return RunComparison(
        first=first.name,
        second=second.name,
        settings=_compare_settings(first, second),
        pairs=None if any(preferred) else ledger.diff_pairs(*([r.pair for r in rows] for rows in trained)),
        test=_test_rows(rows),
        worse=[row for row in changes if row.second_nll > row.first_nll][:SHOWN_ROWS],
        better=[row for row in reversed(changes) if row.second_nll < row.first_nll][:SHOWN_ROWS],
        probes=_compare_probes(reports[0], before, reports[1], after),
        losses={
            "first_train": [] if preferred[0] else before.train, "first_held_out": before.held_out,
            "second_train": [] if preferred[1] else after.train, "second_held_out": after.held_out,
        },
    )  # fmt: skip


def list_hard_rows(run: Run, limit: int = SHOWN_ROWS) -> list[HardRow]:
    """The held-out pairs that the run's adapter finds least likely, the worst first: where to write next."""
    p, answers = run.progress(), _held_out_answers(_load_report(run))
    nats = _measured_rows(run.rows(), p)
    learned = training_gain.count_learned_tokens(p)
    rows = [
        HardRow(
            question=pair.instruction, reference=pair.output, nll=n / t, answer=answers.get(pair.instruction, ""),
            history=pair.history,
        )
        for (pair, n), t in zip(nats.items(), learned, strict=False)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row.nll)[:limit]


def _compare_settings(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    one, other = first.config().model_dump(), second.config().model_dump()
    parents = [(run.manifest().get("parent") or {}).get("adapter") for run in (first, second)]
    differing = {name: (one[name], other[name]) for name in one if one[name] != other[name]}
    if parents[0] != parents[1]:
        differing["parent"] = (parents[0], parents[1])
    systems = first.card().system, second.card().system
    if systems[0] != systems[1]:
        differing["system"] = systems
    return differing


def _shared_rows(
    first: list[RunRow], a: RunProgress, second: list[RunRow], b: RunProgress
) -> list[tuple[Pair, float, float, float]]:
    """(pair, nats under each run's adapter, its learned tokens) of the pairs that both held out and measured."""
    nats_of_first, nats_of_second = _measured_rows(first, a), _measured_rows(second, b)
    learned = dict(zip(nats_of_first, training_gain.count_learned_tokens(a), strict=False))
    return [
        (pair, nats, nats_of_second[pair], learned[pair])
        for pair, nats in nats_of_first.items()
        if pair in nats_of_second and pair in learned
    ]


def _measured_rows(rows: list[RunRow], p: RunProgress) -> dict[Pair, float]:
    """Held-out pair, without its source → nats under the run's adapter; in the order of the run."""
    held_out = [replace(r.pair, source="") for r in rows if r.held_out]
    nats = p.held_out_rows.get(p.chosen, []) if p.chosen else []
    if len(set(held_out)) != len(held_out) or len(nats) != len(held_out) or not np.isfinite(nats).all():
        return {}
    return dict(zip(held_out, nats, strict=True))


def _test_rows(rows: Sequence[tuple[Pair, float, float, float]]) -> PairedTest | None:
    found = training_gain.compare_rows([a for _, a, _, _ in rows], [b for _, _, b, _ in rows], [n for *_, n in rows])
    if found is None:
        return None
    differences = np.array([b - a for _, a, b, _ in rows])
    p = permutation_p(differences) if len(rows) >= MIN_TESTED_ROWS else None
    return PairedTest(rows=len(rows), first=found.before, second=found.after, change=found.change, p=p)


def permutation_p(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences, by random signs (Fisher's permutation test).

    differences: (rows,). Counts the observed assignment too, so it is never 0.
    """
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (FLIPS, len(differences)))
    extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12
    return float((extreme.sum() + 1) / (FLIPS + 1))


def _compare_probes(
    first: EvalReport | None, a: RunProgress, second: EvalReport | None, b: RunProgress
) -> list[ProbeAnswers]:
    one, other = _probe_answers(first, a), _probe_answers(second, b)
    return [ProbeAnswers(probe=q, first=one.get(q), second=other.get(q)) for q in dict.fromkeys([*one, *other])]


def _probe_answers(report: EvalReport | None, p: RunProgress) -> dict[str, str]:
    """Probe → answer: of the last evaluation by the judge where there is one, else of the chosen step's samples."""
    sampled = {a.get("probe", ""): a.get("text", "") for a in dict(p.samples).get(p.chosen or -1, [])}
    return sampled | ({r.ask: r.replies[0].text for r in report.probes if r.replies} if report else {})


def _held_out_answers(report: EvalReport | None) -> dict[str, str]:
    """Question → answer of the adapter, as far as it was asked."""
    if report is None:
        return {}
    asked = {row.question: row.adapter for row in report.answers.rows} if report.answers else {}
    return asked | {row.question: row.answer for row in report.hard}


def _load_report(run: Run) -> EvalReport | None:
    file = run.path / "report.json"
    try:
        return evaluate.load_report(file) if file.is_file() else None
    except PersonaError:  # of an older version, or damaged: its figures are not shown here
        return None
