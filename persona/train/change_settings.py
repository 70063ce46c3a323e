"""Settings of a run that may change before it is resumed, and what they change from there.

What was trained so far stays, so only those may change of which each step has its own: how many steps there are, their
learning rate, what is measured and saved, and how a step is cut into batches. The others would make it a run of which
nobody could say how its adapter was trained.
"""

import time
from collections.abc import Mapping
from typing import Any

from persona.errors import InputError, Message
from persona.train import checkpoints, validate
from persona.train.aliases import resolve_aliases, written_name
from persona.train.config import RunConfig, count_steps, make_config
from persona.train.oom_recovery import RESUMABLE_SETTINGS
from persona.train.parent import repeat_new
from persona.train.run_folder import Run

CHANGEABLE = RESUMABLE_SETTINGS | {
    "epochs", "max_steps", "learning_rate", "early_stopping_patience", "eval_steps", "diary_probes", "save_steps",
    "save_total_limit", "logging_steps", "report_to",
}  # fmt: skip
CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")


def change_settings(run: Run, settings: Mapping[str, Any]) -> list[str]:
    """Change settings of a run that is not training, and record it in its run.json. Returns notes for the user.

    settings: as of make_config(). Raises InputError naming each that cannot change.
    """
    make_config(**settings)  # what is wrong is named as it was written
    before = run.config()
    after = make_config(**{**before.model_dump(), **resolve_aliases(settings)})
    old, new = before.model_dump(), after.model_dump()
    changed = {name: [old[name], new[name]] for name in new if new[name] != old[name]}
    if not changed:
        return []
    _require_changeable(run, before, after, changed, settings)
    validate.require_packages(after)
    rows = len(repeat_new(run.rows(), before.new_pair_repeats))
    steps_before, steps = count_steps(before, rows)[0], count_steps(after, rows)[0]
    last = checkpoints.find_last_checkpoint(run.checkpoints)
    step = checkpoints.checkpoint_step(last) if last else 0
    change = {"step": step, "time": round(time.time(), 3), "settings": changed}
    outdated = {"expected_seconds": None} if steps != steps_before else {}
    run.update_manifest(config=new, changes=[*run.manifest().get("changes", []), change], **outdated)
    return _describe(before, after, changed, step, steps_before, steps)


def _require_changeable(
    run: Run, before: RunConfig, after: RunConfig, changed: dict[str, list[Any]], settings: Mapping[str, Any]
) -> None:
    rows_of_step = [c.batch_size * c.gradient_accumulation_steps for c in (before, after)]
    fixed = {name for name in changed if name not in CHANGEABLE}
    if fixed:
        raise InputError(
            "{settings}: cannot change once a run has begun. Start a new run with the other settings of this one: "
            "--config {run} --set …",
            settings=", ".join(f"{written_name(settings, n)}={changed[n][1]}" for n in changed if n in fixed),
            run=run.path,
        )
    if rows_of_step[0] != rows_of_step[1]:
        raise InputError(
            "batch_size × gradient_accumulation_steps: {rows} rows a step, where this run has {before}. Change both, "
            "so that their product stays.",
            rows=rows_of_step[1],
            before=rows_of_step[0],
        )


def _describe(
    before: RunConfig, after: RunConfig, changed: dict[str, list[Any]], step: int, steps_before: int, steps: int
) -> list[str]:
    shown = "; ".join(f"{name}: {a} → {b}".lower() for name, (a, b) in changed.items())
    notes: list[str] = [Message("Changed from step {step} on: {changes}.", step=step, changes=shown)]
    if steps != steps_before and after.lr_scheduler_type not in CONSTANT_SCHEDULES:
        notes.append(
            Message("{steps} steps in all, instead of {before}: the {schedule} schedule of the learning rate is spread "
                    "over all of them, so the rate changes from here.", steps=steps, before=steps_before,
                    schedule=after.lr_scheduler_type)
        )  # fmt: skip
    if "epochs" in changed and before.max_steps == after.max_steps > 0:
        notes.append(Message("epochs changes nothing: max_steps={steps} counts.", steps=after.max_steps))
    if steps <= step:
        notes.append(Message("The run is past its last step already: it ends at once."))
    return notes
