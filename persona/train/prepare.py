"""A run made concrete on this machine: its base, its rows rendered and split; and its adapter written."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message
from persona.models import adapter, base, hardware, open_renderer, quantization, stop_token
from persona.template.render import Renderer, TrainingExample, render_examples
from persona.train import distributed, validate
from persona.train.config import RunConfig
from persona.train.run_folder import Run


@dataclass(frozen=True)
class PreparedRun:
    """A run made concrete on this machine."""

    run: Run
    config: RunConfig
    base: base.Base
    renderer: Renderer
    plan: hardware.DevicePlan
    train: list[TrainingExample]
    held_out: list[TrainingExample]


def prepare_run(run: Run) -> PreparedRun:
    """Open the base's tokenizer, choose the template, render and check every row. Raises before anything is trained."""
    config, card, rows = run.config(), run.card(), run.rows()
    # a run that goes on keeps its number format, though speeds measured anew might choose another
    dtype = run.manifest().get("dtype", "auto") if config.dtype == "auto" else config.dtype
    plan = distributed.broadcast_from_main(hardware.plan_device(hardware.this_machine(), dtype))
    validate.check_config(config, plan)
    found, renderer = open_renderer.open_renderer(
        card, config.base, config.template, config.max_length, config.learn_history,
        progress=lambda text: run.log("state", state="starting", message=text),
    )  # fmt: skip
    if not config.train_stop_token and (why := stop_token.explain_untrained_stop(found, renderer)):
        raise InputError(Message.of(why))
    examples = render_examples(renderer, [r.pair for r in rows])
    packages = ["torch", "transformers", "trl", "peft", "accelerate", "gradio"]
    packages += ["bitsandbytes"] * quantization.needs_bitsandbytes(config.quantization, config.optim)
    run.update_manifest(
        base=found.to_dict(),
        dtype=plan.train_dtype,
        template={"name": renderer.template.name, "text": renderer.template.text},
        versions={p: version(p) for p in packages},
    )
    held = [e for e, r in zip(examples, rows, strict=True) if r.held_out]
    train_rows = [e for e, r in zip(examples, rows, strict=True) if not r.held_out]
    return PreparedRun(run, config, found, renderer, plan, train_rows, held)


def save_run_adapter(job: PreparedRun, model: Any, target: Path, figures: dict[str, Any]) -> None:
    """Write the adapter of a run, with what it was made from and how well it does."""
    config = job.config.model_dump()
    if Path(config["base"]).expanduser().exists():
        config["base"] = job.base.id  # a local path says where the author's files are
    config["template"] = job.renderer.template.name
    manifest = job.run.manifest()
    counts = {"train_rows": len(job.train), "held_out_rows": len(job.held_out)}
    facts = {"config": config, "figures": {**figures, **counts}, "data_sha256": manifest["data_sha256"],
             "stop": {"id": job.renderer.stop_id},
             "versions": manifest["versions"], "created": manifest["created"]}  # fmt: skip
    adapter.save_adapter(model, target, base=job.base, template=job.renderer.template, card=job.run.card(), facts=facts)
