"""What a run's own evaluations say about learning, before any evaluation by judge/evaluate.py."""

import math

from persona.judge import metrics
from persona.judge.report_model import Interval
from persona.train.progress import RunProgress


def count_held_out(p: RunProgress) -> int | None:
    """Held-out pairs of the run; None where it does not say."""
    planned = p.plan.get("held_out")
    return len(p.held_out_rows[0]) if 0 in p.held_out_rows else planned if isinstance(planned, int) else None


def estimate_gain(p: RunProgress) -> Interval | None:
    """Gain of the run's adapter over the base on the held-out pairs, in nats per learned token, with its 95 % interval.

    None where the adapter was not measured pair by pair. The events hold no length of a pair, so every pair weighs the
    same in the width of the interval.
    """
    base, adapter = p.held_out_rows.get(0), p.held_out_rows.get(p.chosen or 0)
    if not p.chosen or not base or not adapter or len(base) != len(adapter) or not p.base_nll:
        return None
    if not all(map(math.isfinite, [*base, *adapter])):
        return None
    tokens = sum(base) / p.base_nll / len(base)  # of a pair, on average
    rows = [[(before - after) / tokens] for before, after in zip(base, adapter, strict=True)]
    ((value, low, high),) = metrics.bootstrap(rows, [1] * len(rows))
    return Interval(value=value, low=low, high=high)
