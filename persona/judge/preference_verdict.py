"""What a run on preferences has changed, in words."""

from persona.errors import Message, join
from persona.judge import training_gain
from persona.judge.verdict import FEW_ROWS, MIN_ROWS
from persona.train.progress import RunProgress, is_number


def rate_preferences(p: RunProgress) -> str:
    """How to draw that description: "good", "hint" where no more choices than before are preferred or too few were
    measured, or "problem" where fewer are, or the better answers became less likely."""
    before, after = (p.result.get(f"accuracy_{when}") or 0 for when in ("before", "after"))
    change = training_gain.estimate_change(p)
    if after < before or (change is not None and change.change.low > 0):
        return "problem"
    return "good" if after > before and (training_gain.count_held_out(p) or 0) >= MIN_ROWS else "hint"


def describe_preferences(p: RunProgress) -> str:
    """How often the better held-out answer is the likelier one, and whether it became less likely; "" otherwise."""
    before, after = (p.result.get(f"accuracy_{when}", -1) for when in ("before", "after"))
    if not (is_number(before) and is_number(after)) or min(before, after) < 0:
        return ""
    count = training_gain.count_held_out(p) or 0
    verdict = Message(
        "Of held-out choices it now prefers yours in {after:.0f} % (before {before:.0f} %; {count} choice(s)).",
        after=100 * after,
        before=100 * before,
        count=count,
    )
    if count < FEW_ROWS:
        verdict = join(" ", [verdict, Message("So few say little: vote more, or vote again blind.")])
    change = training_gain.estimate_change(p)
    if change is None or change.change.low <= 0:
        return verdict
    return join(" ", [verdict, Message(
        "But your chosen answers themselves have become less likely: {before:.2f} → {after:.2f} nats per token. Raise "
        "sft_weight, or lower learning_rate.", before=change.before.value, after=change.after.value)])  # fmt: skip


def warn_while_running(p: RunProgress) -> str:
    """While a run on preferences trains: whether the better held-out answers have become less likely; "" if not.

    A known failure of DPO: both answers become less likely, the worse one faster.
    """
    step = max(p.held_out_rows, default=0)
    change = training_gain.estimate_change(p, step) if p.learns_preferences and step else None
    if change is None or change.change.low <= 0:
        return ""
    return Message(
        "At step {step} your chosen answers have become less likely than before the run: {before:.2f} → {after:.2f} "
        "nats per token. If that goes on, stop, and train again with a higher sft_weight or a lower learning_rate.",
        step=step,
        before=change.before.value,
        after=change.after.value,
    )
