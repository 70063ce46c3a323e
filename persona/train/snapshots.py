"""Snapshots of a run: the adapter at each evaluation, and which of them becomes the run's adapter.

moments/step-000024/   a complete adapter folder: it opens like any other
"""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from persona.errors import Message, RunError
from persona.store.files import explain_disk_error, fsync_folder, read_json, replace_folder
from persona.train.progress import ACTIVE_STATUSES
from persona.train.run_folder import Run

COMPLETE_FILE = "adapter_config.json"  # where it is, the snapshot is complete


def snapshot_dir(run: Run, step: int) -> Path:
    return run.path / "moments" / f"step-{step:06d}"


def list_snapshot_steps(run: Run) -> list[int]:
    """The steps of the complete snapshots, in order."""
    matches = (re.fullmatch(r"step-(\d+)", p.name) for p in (run.path / "moments").glob("step-*"))
    steps = sorted(int(m[1]) for m in matches if m)
    return [step for step in steps if (snapshot_dir(run, step) / COMPLETE_FILE).is_file()]


def choose_best_snapshot(rows: Mapping[int, Sequence[float]], tokens: Sequence[int]) -> int | None:
    """The latest step that is not measurably worse than the best one; None where nothing was evaluated.

    rows: step → NLL of each held-out row in nats; tokens: learned tokens of each row. "Not measurably" is within one
    standard error of the paired difference over the rows, the rule of Breiman et al. (1984) for models that a test set
    cannot tell apart. With thirty rows the minimum moves by chance and comes early; of two steps that cannot be told
    apart, the one that has seen more of the pairs knows more of their facts.
    """
    if not rows:
        return None
    best = min(rows, key=lambda s: (sum(rows[s]), s))
    return max(s for s in rows if s == best or (s > best and _worse_by(rows[s], rows[best], tokens) <= 0))


def _worse_by(later: Sequence[float], best: Sequence[float], tokens: Sequence[int]) -> float:
    """How far the NLL of `later` is above that of `best`, less one standard error; nats per token.

    The error is that of a ratio of sums over rows (Cochran 1977, §2.11: linearization).
    """
    n, total = len(tokens), sum(tokens)
    difference = (sum(later) - sum(best)) / total
    residuals = [(a - b) - difference * t for a, b, t in zip(later, best, tokens, strict=True)]
    error = math.sqrt(sum(r * r for r in residuals) * n / (n - 1)) / total if n > 1 else 0.0
    return difference - error


def select_snapshot(run: Run, step: int) -> None:
    """Make the adapter of `step` the run's adapter. Raises RunError if there is none, or the run is still training."""
    source = snapshot_dir(run, step)
    if step not in list_snapshot_steps(run):
        known = ", ".join(map(str, list_snapshot_steps(run))) or Message("none")
        raise RunError(
            "{run}: no adapter was kept at step {step}. Kept are: {kept}.", run=run.name, step=step, kept=known
        )
    if run.progress().status in ACTIVE_STATUSES:
        raise RunError("{run} is still training. Stop it first, or wait until it is done.", run=run.name)
    replace_adapter(source, run.adapter)
    nll = read_json(source / "run.json", Message("a run")).get("figures", {}).get("adapter_nll")
    run.log("chosen", step=step, nll=nll)


def replace_adapter(source: Path, target: Path) -> None:
    """Replace `target` by a copy of an adapter folder, in one rename."""
    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        shutil.copytree(source, scratch)
        fsync_folder(scratch)
        replace_folder(scratch, target)
    except OSError as e:
        raise RunError(explain_disk_error(target, e)) from e
