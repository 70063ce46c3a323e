"""Adapters from anywhere: a run, a checkpoint of it, a folder, a zip, the Hub; and the speakers made of them.

Whatever it is, it is checked before it is opened (adapter.check): safetensors only, known settings, a template.
"""

import re
from pathlib import Path

from persona.compare.session import NO_ADAPTER, LoadedModel, Voice, renderer_of
from persona.errors import AdapterError, InputError, ShareError
from persona.models import adapter as adapters
from persona.models.adapter import PICKLE_SUFFIXES, Adapter
from persona.models.download import MODELSCOPE_PREFIX
from persona.share import archive, hub
from persona.store import workspace
from persona.train import snapshots
from persona.train.run_folder import Run

_STEP = re.compile(r"(.+)@(\d+)", re.DOTALL)
_STRENGTH = re.compile(r"(.+)\*(\d*\.?\d+)", re.DOTALL)


def open_adapter(source: str | Path) -> Adapter:
    """The checked adapter that a text or path means.

    A folder (an adapter's, a run's, a persona's: then the newest run), RUN@STEP (that checkpoint of it), a .zip,
    USER/NAME or USER/NAME@REVISION on the Hub, or a share link. From the Hub it is one commit, kept on this machine.
    Raises AdapterError or ShareError saying what is wrong with it.
    """
    text = str(source).strip()
    path = Path(text).expanduser()
    if path.is_dir():
        return adapters.read_adapter(adapters.locate_adapter(path))
    if path.suffix == ".zip":
        return adapters.read_adapter(archive.unpack_adapter(path, workspace.current_workspace() / "adapters"))
    if path.suffix in PICKLE_SUFFIXES:
        raise AdapterError(
            "{path}: a pickle can run code when it is opened, so it is not. Ask its author to save the "
            "adapter as safetensors.",
            path=path.name,
        )
    if path.suffix == ".safetensors":
        raise AdapterError("{path}: weights alone are no adapter. Name the folder that they lie in.", path=path.name)
    step = _STEP.fullmatch(text)
    if step and Path(step[1]).expanduser().is_dir():
        return adapters.read_adapter(find_snapshot(Path(step[1]).expanduser(), int(step[2])))
    try:
        link = hub.HubRef.parse(text)
    except ShareError as e:
        if "://" in text:
            raise
        raise AdapterError(
            "{text}: no adapter here, nor USER/NAME of the Hub. Name a folder or zip.", text=text[:200]
        ) from e
    return adapters.read_adapter(
        archive.copy_adapter(hub.pull_adapter(link), workspace.current_workspace() / "adapters")
    )


def find_snapshot(path: Path, step: int) -> Path:
    """The adapter as it was at a step of a run (or of a persona's newest run that kept its moments)."""
    found = [Run(path), *(Run(p) for p in sorted(path.glob("runs/*"), reverse=True))]
    kept = next(((run, steps) for run in found if (steps := snapshots.list_snapshot_steps(run))), None)
    if kept is None:
        raise AdapterError(
            "{path}: no moment at step {step}. This run has kept none; leave '@' and the step out.",
            path=path,
            step=step,
        )
    run, steps = kept
    if step not in steps:
        raise AdapterError(
            "{path}: no moment at step {step}. It has {steps}.", path=path, step=step, steps=", ".join(map(str, steps))
        )
    return snapshots.snapshot_dir(run, step)


def require_same_base(adapter: Adapter, voices: LoadedModel) -> None:
    """Raises AdapterError when the adapter names another base than the one in memory.

    Equal shapes do not make an equal base: an instruction-tuned one has them too. Without a name, shapes must do.
    """
    own, here = (x.lower().removeprefix(MODELSCOPE_PREFIX) for x in (adapter.base_id, voices.base.id))
    if own and own != here:
        raise AdapterError(
            "{adapter} was trained on {base}, the others here use {other}. Only adapters of the "
            "same base can answer side by side.",
            adapter=adapter.card.name,
            base=adapter.base_id,
            other=voices.base.id,
        )


def open_voice(voices: LoadedModel, text: str, main: Adapter, *, any_base: bool = False) -> Voice:
    """The speaker of a column, as the command line spells it.

    base: no adapter and no persona's prompt. base+prompt: no adapter, the main adapter's system prompt (is training
    better than prompting?). ADAPTER: as open_adapter. ADAPTER*0.7: at that strength. A*0.6 + B*0.4: both at once, asked
    with A's template and prompt. any_base: the user named the base, so what adapters say of theirs does not count.
    """
    label = text.strip()
    if label in ("base", "base+prompt"):
        alone = label == "base"
        renderer = renderer_of(main, voices.tokenizer, "" if alone else None)
        return Voice(
            "base without prompt" if alone else label, NO_ADAPTER, renderer
        )  # "base" is the first column's name
    parts = []
    for part in label.split(" + "):
        weighed = None if Path(part).expanduser().exists() else _STRENGTH.fullmatch(part.strip())
        adapter = open_adapter(weighed[1] if weighed else part)
        if not any_base:
            require_same_base(adapter, voices)
        parts.append((adapter, voices.attach(adapter), float(weighed[2]) if weighed else 1.0))
    adapter, name, weight = parts[0]
    renderer = renderer_of(adapter, voices.tokenizer)
    if len(parts) == 1:
        return Voice(label, name, renderer, weight)
    weights: dict[str, float] = {}
    for _, n, w in parts:
        if n in weights:
            raise InputError("{label}: names one adapter twice. Give it once, with its weight.", label=label)
        weights[n] = w
    return Voice(label, voices.blend(weights), renderer)
