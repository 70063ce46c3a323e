"""What a run's own evaluations say about learning, before any evaluation by judge/evaluate.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from persona.errors import Message
from persona.judge import metrics
from persona.judge.report_model import Interval
from persona.judge.verdict import MIN_ROWS
from persona.train.progress import RunProgress, is_number


@dataclass(frozen=True)
class NllChange:
    """Held-out NLL before and after, nats per learned token. change: after − before, paired by rows."""

    before: Interval
    after: Interval
    change: Interval
    rows: int

    @property
    def is_worse(self) -> bool:
        """Whether it is worse by more than chance alone would make it; never on too few rows to tell."""
        return self.rows >= MIN_ROWS and self.change.low > 0


def count_held_out(p: RunProgress) -> int | None:
    """Held-out pairs of the run; None where it does not say."""
    planned = p.plan.get("held_out")
    return len(p.held_out_rows[0]) if 0 in p.held_out_rows else planned if isinstance(planned, int) else None


def count_learned_tokens(p: RunProgress) -> list[float]:
    """Learned tokens of each held-out row; where an older run does not say, the mean of all; [] without any NLL."""
    rows, learned = p.held_out_rows.get(0, []), p.plan.get("held_out_learned")
    if isinstance(learned, list) and len(learned) == len(rows) and all(is_number(n) and n > 0 for n in learned):
        return learned
    return [sum(rows) / p.base_nll / len(rows)] * len(rows) if rows and p.base_nll else []


def compare_rows(before: Sequence[float], after: Sequence[float], learned: Sequence[float]) -> NllChange | None:
    """The change over the same rows. before, after: nats of each; learned: its tokens. None for unequal or no rows."""
    if not before or not len(before) == len(after) == len(learned) or not all(map(math.isfinite, [*before, *after])):
        return None
    rows = [[b / n, a / n, (a - b) / n] for b, a, n in zip(before, after, learned, strict=True)]
    intervals = [Interval(value=v, low=low, high=high) for v, low, high in metrics.bootstrap(rows, learned)]
    return NllChange(intervals[0], intervals[1], intervals[2], len(rows))


def estimate_gain(p: RunProgress) -> Interval | None:
    """Gain of the run's adapter over the base on the held-out pairs, in nats per learned token, with its 95 % interval.

    None where the adapter was not measured pair by pair.
    """
    found = compare_rows(p.held_out_rows.get(0, []), _adapter_rows(p), count_learned_tokens(p))
    if found is None:
        return None
    change = found.change
    return Interval(value=-change.value, low=-change.high, high=-change.low)


def estimate_change(p: RunProgress, step: int | None = None) -> NllChange | None:
    """From the adapter that the run goes on from to its own, or to that of `step`; None where it was not measured, or
    begins from none."""
    after = _adapter_rows(p) if step is None else p.held_out_rows.get(step, [])
    return compare_rows(p.start_rows, after, count_learned_tokens(p))


def _adapter_rows(p: RunProgress) -> list[float]:
    return p.held_out_rows.get(p.chosen, []) if p.chosen else []


def describe_change(change: NllChange) -> str:
    """The change in words, with the intervals where there are rows enough for them."""
    if change.rows < MIN_ROWS:
        return Message(
            "held-out NLL before {before}, after {after} on {rows} pair(s): too few to tell whether it lost anything.",
            before=f"{change.before.value:.3f}",
            after=f"{change.after.value:.3f}",
            rows=change.rows,
        )
    before, after, moved = (
        _interval_text(change.before),
        _interval_text(change.after),
        _interval_text(change.change, "+"),
    )
    if change.is_worse:
        return Message(
            "held-out NLL before {before}, after {after}; change {change} on {rows} pair(s): it has lost something of "
            "what it knew. Fewer epochs or a lower learning_rate lose less.",
            before=before,
            after=after,
            change=moved,
            rows=change.rows,
        )
    return Message(
        "held-out NLL before {before}, after {after}; change {change} on {rows} pair(s): no worse than chance alone "
        "would make it.",
        before=before,
        after=after,
        change=moved,
        rows=change.rows,
    )


def _interval_text(x: Interval, sign: str = "") -> str:
    return f"{x.value:{sign}.3f} [{x.low:{sign}.3f}, {x.high:{sign}.3f}]"
