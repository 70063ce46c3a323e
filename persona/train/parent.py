"""Going on from an adapter: where a new run begins, what it takes over, and which of its pairs are new since then.

    parent/    in the run folder: the files of the adapter that the run goes on from

The copy makes the run folder complete in itself: it can be resumed, repeated or sent to a cluster when the adapter is
gone. `parent` in run.json names it. The optimizer is a fresh one.
"""

import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message
from persona.models import adapter as adapters
from persona.models import base
from persona.models.adapter import ADAPTER_FILES, WEIGHTS_FILE, Adapter
from persona.models.download import MODELSCOPE_PREFIX
from persona.store.files import explain_disk_error, fsync_folder, hash_file
from persona.store.pairs import Pair
from persona.store.preferences import Preference
from persona.template.chat_template import shipped_templates
from persona.train.config import RunConfig, make_config
from persona.train.run_folder import Run, RunRow
from persona.train.split import split_held_out

PARENT_FOLDER = "parent"
MAX_SHOWN_DIFFERENCES = 5  # tensors that an error names
MIN_OLD_ROWS = 64  # of an epoch that repeats new ones: with few new ones it still has some steps


@dataclass(frozen=True)
class Parent:
    """The adapter that a run goes on from.

    name: how it is called in run.json and on the card, never a path. rows: those of the run that made it; None where
    that run is not on this disk, so that nobody knows which pairs are new. base, template: the settings of these names
    with which a run opens the same; "" where that is not known.
    """

    adapter: Adapter
    name: str
    rows: tuple[RunRow, ...] | None
    base: str
    template: str


def read_parent(folder: Path, name: str = "") -> Parent:
    """The adapter in `folder`, with the rows of its run where it lies in one: RUN/adapter, RUN/moments/step-000077.

    name: default: that of its run, RUN@STEP for a snapshot, else of the folder. Raises AdapterError, or RunError for a
    damaged run.
    """
    adapter = adapters.read_adapter(folder)
    run = find_run_of(folder)
    own_name = folder.resolve().name
    shipped, thinking = shipped_templates().get(adapter.template.name), adapter.template.thinking
    template = shipped.name if shipped and shipped.with_thinking(thinking).text == adapter.template.text else ""
    if run is None:
        named = adapter.base_id if base.is_portable_base_name(adapter.base_id) else ""
        return Parent(adapter, name or own_name, None, named, template)
    own_name = run.name if own_name == run.adapter.name else f"{run.name}@{int(own_name.removeprefix('step-'))}"
    config = run.config()
    return Parent(adapter, name or own_name, tuple(run.rows()), config.base, template or config.template)


def find_run_of(folder: Path) -> Run | None:
    """The run that an adapter's folder lies in; None for one that lies elsewhere."""
    folder = folder.resolve()
    if re.fullmatch(r"moments/step-\d+", f"{folder.parent.name}/{folder.name}"):
        path = folder.parents[1]
    elif folder.name == "adapter":
        path = folder.parent
    else:
        return None
    return Run(path) if (path / "run.json").is_file() and (path / "pairs.jsonl").is_file() else None


def reopen_parent(run: Run) -> Parent | None:
    """The parent of a run, from its own copy; None where the run began from a new LoRA."""
    recorded = run.manifest().get("parent")
    if not recorded:
        return None
    # what the parent's run did not know of is new to a repeated run too
    rows = tuple(row for row in run.rows() if not row.is_new) if recorded.get("rows_known") else None
    config = run.config()
    return Parent(
        adapters.read_adapter(run.path / PARENT_FOLDER), recorded["adapter"], rows, config.base, config.template
    )


# ---- settings


def adopt_settings(config: RunConfig, parent: Parent, given: Collection[str] = ()) -> RunConfig:
    """The settings with the parent's base, template and LoRA. Raises InputError for others that are `given`."""
    own = _settings_of(parent)
    wrong = [
        f"{name}={getattr(config, name)} ≠ {value}".lower()
        for name, value in own.items()
        if name in given and getattr(config, name) != value and name not in ("base", "template")
    ]
    if wrong:
        raise InputError(
            "{parent} was trained with other settings ({differences}), and a run that goes on from it keeps them. "
            "Leave these settings out, go on from another adapter, or start a new run without one.",
            parent=parent.name,
            differences=", ".join(wrong),
        )
    adopted = make_config(**{**config.model_dump(), **{n: v for n, v in own.items() if n not in given}})
    if found := base.find_local_base(adopted.base):  # another name may be the same base; a template is compared later
        _require_base_id(parent, found.id)
    return adopted


def _settings_of(parent: Parent) -> dict[str, Any]:
    """Base, template and LoRA of the parent, by the names of RunConfig. Raises InputError where they have no name."""
    settings, config = parent.adapter.settings, parent.adapter.facts.get("config")
    config = config if isinstance(config, dict) else {}
    if (
        settings.get("rank_pattern")
        or settings.get("alpha_pattern")
        or settings["lora_alpha"] != int(settings["lora_alpha"])
    ):
        raise InputError(
            "{parent}: its layers have ranks or scales of their own, which no run can go on with. Start a new run, or "
            "go on from an adapter that was made here.",
            parent=parent.name,
        )
    written = config.get("target_modules")
    own = {
        "lora_r": settings["r"],
        "lora_alpha": int(settings["lora_alpha"]),
        # as it was set where it was made here: PEFT stores what it found by it
        "target_modules": written if isinstance(written, str) else _write_modules(settings["target_modules"]),
        "init_lora_weights": "default",
        "use_rslora": bool(settings.get("use_rslora")),
        "use_dora": bool(settings.get("use_dora")),
        "train_stop_token": bool(settings.get("trainable_token_indices")),
        "thinking": parent.adapter.template.thinking or "none",
    }
    opened_by = {"base": parent.base, "template": parent.template}
    return own | {name: value for name, value in opened_by.items() if value}


def _write_modules(modules: str | list[str]) -> str:
    """PEFT's target_modules as the setting of that name."""
    if isinstance(modules, list):
        return ",".join(sorted(modules))
    return modules if modules == "all-linear" else f"re:{modules}"


def _same_id(one: str, other: str) -> bool:
    return one.lower().removeprefix(MODELSCOPE_PREFIX) == other.lower().removeprefix(MODELSCOPE_PREFIX)


def require_same_base(parent: Parent, opened: base.Base, template: str) -> None:
    """Raises InputError unless the parent was trained on this base, with the template of this text.

    Equal shapes do not make an equal base: an instruction-tuned one has them too.
    """
    trained = parent.adapter.facts.get("base")
    revision = str(trained.get("revision") or "") if isinstance(trained, dict) else ""
    _require_base_id(parent, opened.id)
    if revision and opened.revision and revision != opened.revision:
        raise InputError(
            "{parent} was trained on {base} in revision {revision}, and here is {other}. Start a new run on this one.",
            parent=parent.name,
            base=opened.id,
            revision=revision,
            other=opened.revision,
        )
    if parent.adapter.template.text != template:
        raise InputError(
            "{parent} was trained with the template {template}, and this run has another. Choose that template, or "
            "start a new run.",
            parent=parent.name,
            template=parent.adapter.template.name,
        )


def _require_base_id(parent: Parent, base_id: str) -> None:
    if parent.adapter.base_id and not _same_id(parent.adapter.base_id, base_id):
        raise InputError(
            "{parent} was trained on {base}, and this run is on {other}. Set base to the first, or start a new run.",
            parent=parent.name,
            base=parent.adapter.base_id,
            other=base_id,
        )


# ---- pairs


def split_since(pairs: list[Pair], parent: Parent | None, config: RunConfig) -> list[RunRow]:
    """The rows of a run on `pairs`: what is held out, and what is new since the parent's run.

    A run that goes on holds out what its parent held out, as far as it is still there, whatever its system prompt is
    now: of anything else the parent has seen a part, so that it would measure memory. All other new pairs are learned
    from. Where the parent's rows are not known, or it held out nothing that is left, pairs are drawn; from the new ones
    where some are.
    """
    drawn = split_held_out(pairs, config.eval_fraction, config.seed, config.max_eval_rows)
    if parent is None or parent.rows is None:
        return drawn
    held_out_before = {row.pair.identity: row.held_out for row in parent.rows}
    held_out_turns = {row.pair.turns for row in parent.rows if row.held_out}
    rows = [
        RunRow(p, held_out_before.get(p.identity, p.turns in held_out_turns), p.identity not in held_out_before)
        for p in pairs
    ]
    if not config.eval_fraction:
        return [RunRow(row.pair, False, row.is_new) for row in rows]
    if any(row.held_out for row in rows):
        return rows
    new = [row.pair for row in rows if row.is_new]
    drawn_new = iter(split_held_out(new, config.eval_fraction, config.seed, config.max_eval_rows))
    return [RunRow(r.pair, next(drawn_new).held_out, True) if r.is_new and len(new) > 1 else r for r in rows]


def split_preferences(preferences: Sequence[Preference], parent: Parent | None, config: RunConfig) -> list[RunRow]:
    """The rows of a run on preferences. Those that the parent, itself such a run, held out stay held out."""
    pairs = [p.pair for p in preferences]
    earlier = parent if parent and any(row.rejected for row in parent.rows or ()) else None
    rows = split_since(pairs, earlier, config)
    return [replace(row, is_new=False, rejected=p.rejected) for row, p in zip(rows, preferences, strict=True)]


def repeat_new(rows: Sequence[RunRow], repeats: int) -> list[int]:
    """The numbers of the rows that one epoch learns from: a new one stands `repeats` times.

    Where these are more than one, the epoch has as many old rows as that makes, at least MIN_OLD_ROWS, evenly spread
    over all: some corrections cost no further pass over hundreds of pairs.
    """
    learned = [n for n, row in enumerate(rows) if not row.held_out]
    new = [n for n in learned if rows[n].is_new] * repeats
    old = [n for n in learned if not rows[n].is_new]
    count = max(MIN_OLD_ROWS, len(new))
    if new and repeats > 1 and count < len(old):
        old = [old[n * len(old) // count] for n in range(count)]
    return sorted([*old, *new])


def describe_pairs(rows: Sequence[RunRow], parent: Parent, repeats: int) -> str:
    """How many pairs of a run are new since the parent's, and how often an epoch learns from each."""
    if parent.rows is None:
        return Message(
            "Going on from {parent}. The pairs that it has seen are not known here, so none counts as new.",
            parent=parent.name,
        )
    learned = [row for row in rows if not row.held_out]
    new = sum(row.is_new for row in learned)
    used, old = sum(not rows[n].is_new for n in repeat_new(rows, repeats)), len(learned) - new
    held_out = len(rows) - len(learned)
    if used < old:
        return Message(
            "Going on from {parent}: {new} new pair(s), each learned {repeats} times an epoch, beside {used} of the "
            "{old} old ones; {held_out} held out.",
            parent=parent.name, new=new, repeats=repeats, used=used, old=old, held_out=held_out,
        )  # fmt: skip
    return Message(
        "Going on from {parent}: {new} new pair(s), each learned {repeats} times an epoch, {old} old ones; {held_out} "
        "held out.",
        parent=parent.name, new=new, repeats=repeats, old=old, held_out=held_out,
    )  # fmt: skip


# ---- in the run folder


def copy_parent(run: Run, parent: Parent, rows: Sequence[RunRow]) -> dict[str, Any]:
    """Copy the parent's files into the run folder. Returns `parent` of run.json. Raises InputError for a full disk."""
    target = run.path / PARENT_FOLDER
    try:
        target.mkdir()
        for name in ADAPTER_FILES:
            if (parent.adapter.path / name).is_file():
                with adapters.open_adapter_file(parent.adapter.path / name) as source, (target / name).open("wb") as f:
                    shutil.copyfileobj(source, f)
        fsync_folder(target)
    except OSError as e:
        raise InputError(explain_disk_error(target, e)) from e
    return {
        "adapter": parent.name,
        "weights_sha256": hash_file(target / WEIGHTS_FILE),
        "rows_known": parent.rows is not None,
        "new_pairs": sum(row.is_new for row in rows),
    }


def load_parent_weights(model: Any, parent: Parent) -> None:
    """Give a new PeftModel the parent's weights. Raises InputError naming each tensor that differs in name or size."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    def shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    state = load_file(parent.adapter.path / WEIGHTS_FILE)
    theirs, ours = shapes(state), shapes(get_peft_model_state_dict(model, save_embedding_layers=False))
    if theirs != ours:
        different = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
        shown = [f"{n}: {theirs.get(n, '–')} ≠ {ours.get(n, '–')}" for n in different[:MAX_SHOWN_DIFFERENCES]]
        raise InputError(
            "{parent} does not fit this run's LoRA in {count} tensors ({tensors}). Set lora_r, target_modules and "
            "use_dora as it was trained, go on from another adapter, or start a new run.",
            parent=parent.name,
            count=len(different),
            tensors="; ".join(shown),
        )
    set_peft_model_state_dict(model, state)
