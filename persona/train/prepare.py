"""A run made ready to train on this machine: base and template opened, rows rendered, checked and split."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from persona.errors import Message
from persona.models import adapter, base, hardware, open_renderer, quantization
from persona.models.progress_callback import ProgressCallback, ignore_progress
from persona.store.files import expand_home, path_exists
from persona.store.pairs import Pair, own_exchanges
from persona.store.persona_folder import PersonaCard
from persona.store.preferences import Preference, PreferenceSet
from persona.template.render import Renderer, TrainingExample, render_examples
from persona.train import distributed, engines, validate
from persona.train.config import RunConfig
from persona.train.parent import Parent, reopen_parent, repeat_new, require_same_base
from persona.train.run_folder import Run


@dataclass(frozen=True)
class PreparedRun:
    """All that a run trains with, but for the model itself.

    train: what an epoch learns from; a pair that is new since the parent's run stands there several times.
    """

    run: Run
    config: RunConfig
    base: base.Base
    renderer: Renderer
    plan: hardware.DevicePlan
    train: list[TrainingExample]
    held_out: list[TrainingExample]
    train_pairs: int  # different ones in `train`
    parent: Parent | None = None  # the adapter that it goes on from
    # of a run on preferences: the worse answers, beside the better ones in `train` and `held_out`
    rejected: Sequence[TrainingExample] = ()
    rejected_held_out: Sequence[TrainingExample] = ()


def prepare_run(run: Run) -> PreparedRun:
    """Open the base's tokenizer, choose the template, render and check every row.

    Raises InputError for settings, base or rows that cannot work, before anything is trained.
    """
    config, rows, parent = run.config(), run.rows(), reopen_parent(run)
    # a resumed run keeps its number format, even where a new measurement would choose another
    dtype = run.manifest().get("dtype", "auto") if config.dtype == "auto" else config.dtype
    plan = distributed.run_on_main(lambda: hardware.plan_device(hardware.this_machine(), dtype))
    validate.check_config(config, plan, hardware.this_machine().gpus)
    opened, renderer = open_run_renderer(
        run.card(),
        config,
        [r.pair for r in rows],
        parent,
        lambda text: run.log("state", state="starting", message=text),
    )
    if not config.train_stop_token:
        validate.check_stop_token(opened, renderer)
    examples = render_examples(renderer, [r.pair for r in rows])
    packages = ["torch", "transformers", "trl", "peft", "accelerate", "gradio"]
    packages += ["bitsandbytes"] * quantization.needs_bitsandbytes(config.quantization, config.optim)
    packages += engines.PACKAGES[config.engine]
    run.update_manifest(
        base=opened.to_dict(),
        dtype=plan.train_dtype,
        template={"name": renderer.template.name, "text": renderer.template.text},
        versions=installed_versions(packages),
    )
    held_out = [e for e, r in zip(examples, rows, strict=True) if r.held_out]
    epoch = repeat_new(rows, config.new_pair_repeats)
    prepared = PreparedRun(
        run, config, opened, renderer, plan, [examples[n] for n in epoch], held_out, len(rows) - len(held_out), parent
    )
    if not rows[0].rejected:
        return prepared
    worse = render_rejected(renderer, [Preference(r.pair, r.rejected) for r in rows])
    rejected_held_out = [e for e, r in zip(worse, rows, strict=True) if r.held_out]
    return replace(prepared, rejected=[worse[n] for n in epoch], rejected_held_out=rejected_held_out)


def open_run_renderer(
    card: PersonaCard, config: RunConfig, pairs: Sequence[Pair], parent: Parent | None = None,
    progress: ProgressCallback = ignore_progress,
) -> tuple[base.Base, Renderer]:  # fmt: skip
    """The base of a run and the renderer of its pairs. Raises InputError unless both are the parent's."""
    opened, renderer = open_renderer.open_renderer(
        card, config.base, config.template, config.max_length, config.learn_history, progress,
        parent.adapter.base_revision if parent else "", config.thinking,
    )  # fmt: skip
    if parent:
        require_same_base(parent, opened, renderer.template.text)
    if config.learn_history:
        renderer = replace(renderer, learned_elsewhere=own_exchanges(pairs))
    return opened, renderer


def select_trainable(
    card: PersonaCard, config: RunConfig, preferences: Sequence[Preference], parent: Parent
) -> PreferenceSet:
    """Those of which both answers can be trained on, and the others with the reason: a vote cannot be corrected."""
    _, renderer = open_run_renderer(card, config, [p.pair for p in preferences], parent)
    kept, left_out = [], []
    for p in preferences:
        sides = renderer.iterate_examples([p.pair, replace(p.pair, output=p.rejected)])
        if problems := [why for example in sides for why in example.problems]:
            question = p.pair.instruction
            left_out.append(Message("“{question}”: {reason}.", question=question, reason=problems[0]))
        else:
            kept.append(p)
    return PreferenceSet(tuple(kept), tuple(left_out))


def render_rejected(renderer: Renderer, preferences: Sequence[Preference]) -> list[TrainingExample]:
    """The worse answer of each to its prompt. Raises InputError naming each row that cannot be trained on."""
    return render_examples(renderer, [replace(p.pair, output=p.rejected) for p in preferences])


def installed_versions(packages: list[str]) -> dict[str, str]:
    """Package → version, of those that are installed: training does not need the page's."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def save_run_adapter(prepared: PreparedRun, model: Any, target: Path, figures: dict[str, Any]) -> None:
    """Write the model's adapter to the folder `target`, with what it was trained from and its figures."""
    config = prepared.config.model_dump()
    if path_exists(expand_home(config["base"])):
        config["base"] = prepared.base.id  # a local path would tell where the author's files are
    config["template"] = prepared.renderer.template.name
    manifest = prepared.run.manifest()
    counts = {"train_rows": prepared.train_pairs, "held_out_rows": len(prepared.held_out)}
    facts = {
        "config": config,
        "figures": {**figures, **counts},
        "data_sha256": manifest["data_sha256"],
        "stop": {"id": prepared.renderer.stop_id},
        "versions": manifest["versions"],
        "created": manifest["created"],
    }
    if prepared.parent:
        facts["parent"] = manifest["parent"]
    adapter.save_adapter(
        model, target, base=prepared.base, template=prepared.renderer.template, card=prepared.run.card(), facts=facts
    )
