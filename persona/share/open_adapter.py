"""Opens what an AdapterRef names: an adapter, checked before use, or the voice of a column."""

from dataclasses import replace
from pathlib import Path

from persona.compare.session import NO_ADAPTER, LoadedModel, Voice, renderer_of
from persona.errors import AdapterError, InputError, PersonaError, RunError
from persona.models import adapter as adapters
from persona.models import blend
from persona.models.adapter import Adapter
from persona.models.blend import Blend
from persona.models.download import split_modelscope_name
from persona.share import archive, hub
from persona.share.adapter_ref import AdapterRef, RefKind, find_persona_folder
from persona.share.archive import NO_SUPPLEMENT, Supplement
from persona.store import persona_folder
from persona.store.files import path_exists, safe_join
from persona.store.workspace import current_workspace
from persona.template.chat_template import read_template
from persona.train import run_folder, snapshots
from persona.train.parent import Parent, read_parent
from persona.train.run_folder import Run

_PARENT_KINDS = (RefKind.FOLDER, RefKind.PERSONA)  # may name a run's or persona's folder, with the adapter inside


def opened_dir() -> Path:
    """Where adapters from a zip or the Hub are kept, a folder each."""
    return current_workspace() / "adapters"


def locate_folder(ref: AdapterRef, supplement: Supplement = NO_SUPPLEMENT) -> Path:
    """The folder that `ref` names: an adapter's, a run's or a persona's.

    A zip is unpacked, an adapter on the Hub is downloaded. supplement: what the adapter does not say itself; it is
    added to a copy, whose folder is returned. Raises PersonaError.
    """
    match ref.kind:
        case RefKind.ZIP:
            return archive.unpack_adapter(ref.path, opened_dir(), supplement)
        case RefKind.HUB:  # one commit, kept on this machine
            source, template = hub.HubRef.parse(ref.name), supplement.template
            pulled = hub.pull_adapter(source, template=template) if template else hub.pull_adapter(source)
            return archive.copy_adapter(pulled, opened_dir(), supplement)
    folder = _locate_local(ref)
    if supplement == NO_SUPPLEMENT:
        return folder
    return archive.copy_adapter(adapters.locate_adapter(folder), opened_dir(), supplement)


def _locate_local(ref: AdapterRef) -> Path:
    match ref.kind:
        case RefKind.FOLDER:
            return ref.path if ref.step is None else find_snapshot(ref.path, ref.step)
        case RefKind.PERSONA if folder := find_persona_folder(ref.name):
            return folder if ref.step is None else find_snapshot(folder, ref.step)
        case RefKind.RUN:
            folder = safe_join(persona_folder.find_persona(ref.name).runs_dir, ref.run)
            if not folder.is_dir():  # another window has deleted it
                raise RunError("{run}: this run is not there (any more). Choose another adapter.", run=ref.run)
            run = run_folder.open_run(folder)
            return run.adapter if ref.step is None else snapshots.snapshot_dir(run, ref.step)
        case RefKind.OPENED:
            return safe_join(opened_dir(), ref.name)
    raise PersonaError("There is no adapter yet. Train one in the step before, or open one here.")


def read_supplement(template: str = "", base_id: str = "") -> Supplement:
    """template: the name of a shipped one or a .jinja file, "" for the adapter's own. Raises TemplateError."""
    return Supplement(read_template(template) if template else None, base_id)


def open_adapter(ref: AdapterRef, supplement: Supplement = NO_SUPPLEMENT) -> Adapter:
    """The checked adapter that `ref` names; of a persona, its newest run's. supplement: as for locate_folder().

    Raises PersonaError saying what is wrong with it.
    """
    folder = locate_folder(ref, supplement)
    try:
        return adapters.read_adapter(adapters.locate_adapter(folder) if ref.kind in _PARENT_KINDS else folder)
    except AdapterError as e:
        if ref.kind is RefKind.PERSONA:  # by the name that the user knows, not by its folder
            raise AdapterError(e.message.replaced(str(folder), ref.name)) from e
        raise


def open_parent(ref: AdapterRef) -> Parent:
    """The checked adapter that `ref` names, for a run to go on from. Raises PersonaError."""
    folder = open_adapter(ref).path
    return read_parent(folder, _public_name(ref, folder))


def _public_name(ref: AdapterRef, folder: Path) -> str:
    """How a card names an adapter: never by a path."""
    return str(replace(ref, strength=1.0) if ref.kind is RefKind.HUB else AdapterRef.from_folder(folder))


def save_blend(ref: AdapterRef, target: Path, rank: int = 0) -> Blend:
    """Write a blend, or an adapter at a strength, as an adapter of its own: a folder that must not exist yet.

    rank: to reduce it to; 0: exact, of the sum of the ranks. Raises PersonaError.
    """
    if path_exists(target):
        raise InputError("{path}: is there already. Choose another name, or delete it first.", path=target)
    parts = []
    for part in ref.parts or (ref,):
        adapter = open_adapter(part)
        parts.append((adapter, _public_name(part, adapter.path), part.strength))
    return blend.save_blend(parts, target, rank)


def find_snapshot(path: Path, step: int) -> Path:
    """The adapter at `step` of a run, or of a persona's newest run that kept snapshots. Raises AdapterError."""
    runs = [Run(path), *(Run(p) for p in sorted(path.glob("runs/*"), reverse=True))]
    run, steps = next(((run, steps) for run in runs if (steps := snapshots.list_snapshot_steps(run))), (None, []))
    if run is None:
        raise AdapterError(
            "{path}: no snapshot of step {step}. This run has kept none; leave '@' and the step out.",
            path=path,
            step=step,
        )
    if step not in steps:
        raise AdapterError(
            "{path}: no snapshot of step {step}. It has {steps}.",
            path=path,
            step=step,
            steps=", ".join(map(str, steps)),
        )
    return snapshots.snapshot_dir(run, step)


def require_same_base(adapter: Adapter, model: LoadedModel) -> None:
    """Raises AdapterError when the adapter names another base than the one in memory.

    Equal shapes do not make an equal base: an instruction-tuned one has them too. Without a name, shapes must do.
    """
    named, loaded = (split_modelscope_name(x.lower())[0] for x in (adapter.base_id, model.base.id))
    if named and named != loaded:
        raise AdapterError(
            "{adapter} was trained on {base}, the others here use {other}. Only adapters of the "
            "same base can answer side by side.",
            adapter=adapter.card.name,
            base=adapter.base_id,
            other=model.base.id,
        )


def attach(
    model: LoadedModel, ref: AdapterRef, *, any_base: bool = False, supplement: Supplement = NO_SUPPLEMENT
) -> tuple[Adapter, str]:
    """The adapter, and its name in the model. Raises AdapterError when it is of another base, unless `any_base`."""
    adapter = open_adapter(ref, supplement)
    if not any_base:
        require_same_base(adapter, model)
    return adapter, model.attach(adapter)


def open_voice(
    model: LoadedModel, text: str, main: Adapter, *, any_base: bool = False, system: str | None = None,
    supplement: Supplement = NO_SUPPLEMENT,
) -> Voice:  # fmt: skip
    """The voice that `text` names (see AdapterRef.parse_voice), labelled with it.

    base: no adapter and no system prompt. base+prompt: no adapter, the main adapter's system prompt (is training better
    than prompting?). A blend is asked with its first adapter's template and prompt.
    any_base: the user named the base, so the bases that adapters name do not count. system: instead of the prompts of
    the adapters. supplement: as for locate_folder().
    """
    ref, label = AdapterRef.parse_voice(text), text.strip()
    if ref.kind is RefKind.BASE:  # "base" is the first column's label
        return Voice("base without prompt", NO_ADAPTER, renderer_of(main, model.tokenizer, ""))
    if ref.kind is RefKind.BASE_WITH_PROMPT:
        return Voice(label, NO_ADAPTER, renderer_of(main, model.tokenizer, system))
    opened = []
    for part in ref.parts or (ref,):
        opened.append((*attach(model, part, any_base=any_base, supplement=supplement), part.strength))
    adapter, name, strength = opened[0]
    renderer = renderer_of(adapter, model.tokenizer, system)
    if len(opened) == 1:
        return Voice(label, name, renderer, strength)
    weights = {name: weight for _, name, weight in opened}
    if len(weights) < len(opened):
        raise InputError("{label}: names one adapter twice. Give it once, with its weight.", label=label)
    return Voice(label, model.blend(weights), renderer)
