"""The moments of a run: the adapter as it was at each evaluation, and which of them is "the adapter".

runs/…/moments/step-000024/   an adapter folder, complete in itself: it opens like any other
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


def snapshot_dir(run: Run, step: int) -> Path:
    return run.path / "moments" / f"step-{step:06d}"


def list_snapshot_steps(run: Run) -> list[int]:
    """The steps at which an adapter was kept, in order."""
    found = (re.fullmatch(r"step-(\d+)", p.name) for p in (run.path / "moments").glob("step-*"))
    return sorted(int(m[1]) for m in found if m and (snapshot_dir(run, int(m[1])) / "adapter_config.json").is_file())


def choose_best_snapshot(rows: Mapping[int, Sequence[float]], tokens: Sequence[int]) -> int | None:
    """The latest step that is not measurably worse than the best one; None where nothing was evaluated.

    rows: step → NLL of each held-out row in nats; tokens: learned tokens of each row. "Not measurably" is within one
    standard error of the paired difference over the rows (Breiman et al. 1984 use one for choosing among models that
    a test set cannot tell apart). With thirty rows the minimum wanders by chance and comes early, and of two that
    cannot be told apart the one that has read more knows more of her facts.
    """
    if not rows:
        return None
    best = min(rows, key=lambda s: (sum(rows[s]), s))
    return max(s for s in rows if s == best or (s > best and _worse_by(rows[s], rows[best], tokens) <= 0))


def _worse_by(later: Sequence[float], best: Sequence[float], tokens: Sequence[int]) -> float:
    """How far the mean of `later` is above `best` beyond one standard error, nats per token.

    The error is that of a ratio of sums over rows (Cochran 1977, §2.11: linearization).
    """
    n, total = len(tokens), sum(tokens)
    worse = sum(later) - sum(best)
    mean = worse / total
    rests = [(a - b) - mean * t for a, b, t in zip(later, best, tokens, strict=True)]
    error = math.sqrt(sum(r * r for r in rests) * n / (n - 1)) / total if n > 1 else 0.0
    return mean - error


def select_snapshot(run: Run, step: int) -> None:
    """Make the adapter of `step` the run's adapter. Raises RunError if there is none, or the run is still training."""
    source = snapshot_dir(run, step)
    if step not in list_snapshot_steps(run):
        kept = ", ".join(map(str, list_snapshot_steps(run))) or Message("none")
        raise RunError(
            "{run}: no adapter was kept at step {step}. Kept are: {kept}.", run=run.name, step=step, kept=kept
        )
    if run.progress().status in ACTIVE_STATUSES:
        raise RunError("{run} is still training. Stop it first, or wait until it is done.", run=run.name)
    replace_adapter(source, run.adapter)
    nll = read_json(source / "run.json", Message("a run")).get("figures", {}).get("adapter_nll")
    run.log("chosen", step=step, nll=nll)


def replace_adapter(source: Path, target: Path) -> None:
    """Copy an adapter folder to `target` in one move; what was there is replaced."""
    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        shutil.copytree(source, scratch)
        fsync_folder(scratch)
        replace_folder(scratch, target)
    except OSError as e:
        raise RunError(explain_disk_error(target, e)) from e
