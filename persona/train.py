"""One run, from its rows (or its last checkpoint) to an adapter. The only file that uses TRL.

    python -m persona.train RUN_FOLDER [--deadline SECONDS]

It reads and writes the run folder only. `deadline` stops at a step boundary with a checkpoint; a Stop button, a
shutdown and a time slice on a shared GPU are all this one mechanism.
"""

import argparse
import contextlib
import errno
import math
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each trainer that is built

import psutil
import torch
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from persona import adapter, base, diary, hardware, moments, quantize, runs, stoptoken, tokenrows
from persona.config import RunConfig, steps_of
from persona.errors import InputError, PersonaError, RunError
from persona.lora import lora_config
from persona.loss import Collator, nll_sum, scores
from persona.render import Example, Renderer, check_all
from persona.runs import Run

WHOLE = "whole"  # a file that is written into a checkpoint last: without it, a crash cut the checkpoint short


@dataclass
class Clock:
    """Seconds and tokens of the training loop alone: evaluation and saving do not count."""

    seconds: float = 0.0
    tokens: int = 0
    learned: int = 0
    since: float | None = None

    def go(self) -> None:
        self.since = time.perf_counter()

    def pause(self) -> None:
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.since = None

    def now(self) -> float:
        return self.seconds + (time.perf_counter() - self.since if self.since is not None else 0.0)


class Trainer(SFTTrainer):
    """SFTTrainer with the loss of loss.py, and held-out NLL as its evaluation."""

    control: Any
    loss_is_scaled_for_ga = True  # compute_loss divides by the learned tokens of the whole accumulated batch

    def __init__(self, *args: Any, job: "Job", clock: Clock, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.job, self.clock, self.run = job, clock, job.run
        self.base_nll: float | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.clock.tokens += int(inputs["tokens"])
        total, learned = nll_sum(model, inputs["input_ids"], inputs["labels"])
        self.clock.learned += learned
        loss = total / (num_items_in_batch if num_items_in_batch is not None else learned)
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out NLL, a page of the diary, and the adapter as it is now, kept beside the run's others."""
        self.clock.pause()
        step = self.state.global_step
        nll = self.measure(step)
        save(self.job, self.model, moments.folder(self.run, step), self.figures(step) | {"adapter_nll": nll})
        metrics = {"eval_loss": nll}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock.go()
        return metrics

    def measure(self, step: int) -> float:
        """Held-out NLL of the model as it is, row by row in the events, and its answers in the diary."""
        size = self.args.per_device_train_batch_size
        found = scores(self.model, self.job.held_out, self.data_collator, size)
        self.run.log("eval", step=step, nll=found.mean, rows=[round(nats, 4) for nats in found.nats])
        asked = diary.questions(self.run.card(), self.job.config.diary_probes)
        diary.write(self.run, self.model, self.job.renderer, asked, step)
        return found.mean

    def keep_best(self) -> int | None:
        """Make the best moment so far the run's adapter. Returns its step; None where nothing was evaluated."""
        rows = {e["step"]: e["rows"] for e in self.run.events() if e.get("event") == "eval" and e["step"]}
        kept = moments.steps(self.run)
        best = moments.choose({s: r for s, r in rows.items() if s in kept}, [e.learned for e in self.job.held_out])
        if best is not None:
            moments.put(moments.folder(self.run, best), self.run.adapter)
        return best

    def mean_of(self, step: int | None) -> float | None:
        found = (e["nll"] for e in self.run.events() if e.get("event") == "eval" and e["step"] == step)
        return next(found, None) if step is not None else None

    def figures(self, step: int) -> dict[str, Any]:
        seconds = max(self.clock.now(), 1e-9)
        return {
            "steps": step, "seconds": round(seconds, 2), "tokens_per_s": round(self.clock.tokens / seconds, 1),
            "learned_tokens_per_s": round(self.clock.learned / seconds, 1), "base_nll": self.base_nll,
            "adapter_nll": None,
        }  # fmt: skip

    def _save_checkpoint(self, model, trial):
        self.clock.pause()
        super()._save_checkpoint(model, trial)
        (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / WHOLE).touch()
        self.clock.go()


@dataclass
class Watch(TrainerCallback):
    """Writes the events, and ends the run at a step boundary when asked to."""

    run: Run
    clock: Clock
    until: float = math.inf
    asked: bool = False
    diverged: bool = False
    first: bool = field(default=True, init=False)

    def on_step_end(self, args, state, control, **_):
        if self.asked or time.monotonic() > self.until or (self.run.path / "stop").exists():
            self.asked = True
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True
        return control

    def on_log(self, args, state, control, logs=None, **_):
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self.run.log(
            "step", step=state.global_step, loss=loss, learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"), seconds=round(self.clock.now(), 3), tokens=self.clock.tokens,
            memory=memory_now(),
        )  # fmt: skip
        norm = logs.get("grad_norm")
        # this step's update is made already: with a gradient that is not finite, the weights are not either. In
        # float16 such a gradient is expected, and its step is left out by the scaler.
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm) and not args.fp16):
            self.diverged = True
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False  # the checkpoints of before stay good ones


@dataclass(frozen=True)
class Job:
    """A run made concrete on this machine."""

    run: Run
    config: RunConfig
    base: base.Base
    renderer: Renderer
    plan: hardware.Plan
    train: list[Example]
    held_out: list[Example]


def prepare(run: Run) -> Job:
    """Open the base's tokenizer, choose the template, render and check every row. Raises before anything is trained."""
    config, card, rows = run.config(), run.card(), run.rows()
    plan = hardware.make_plan(hardware.this_machine(), config.dtype)
    quantize.check(config.quantization, config.optim, config.use_dora, plan)
    found, renderer = base.open_renderer(
        card, config.base, config.template, config.max_length, config.learn_history,
        progress=lambda text: run.log("state", state="starting", message=text),
    )  # fmt: skip
    if config.train_stop_token and config.use_dora:
        raise InputError("train_stop_token and use_dora do not go together. Set one of them to false.")
    if not config.train_stop_token and (why := stoptoken.problem(found, renderer)):
        raise InputError(why)
    examples = check_all(renderer, [r.pair for r in rows])
    packages = ["torch", "transformers", "trl", "peft", "accelerate", "gradio"]
    packages += ["bitsandbytes"] * quantize.needed(config.quantization, config.optim)
    run.update_manifest(
        base=found.to_dict(),
        template={"name": renderer.template.name, "text": renderer.template.text},
        versions={p: version(p) for p in packages},
    )
    held = [e for e, r in zip(examples, rows, strict=True) if r.held_out]
    train_rows = [e for e, r in zip(examples, rows, strict=True) if not r.held_out]
    return Job(run, config, found, renderer, plan, train_rows, held)


def trainer_args(job: Job, output: Path) -> SFTConfig:
    """RunConfig → SFTConfig, every field in one place."""
    c, cpu = job.config, job.plan.device == "cpu"
    _, every = steps_of(c, len(job.train))
    evaluates = "steps" if job.held_out else "no"
    return SFTConfig(
        output_dir=str(output),
        use_cpu=cpu,
        bf16=not cpu and job.plan.train_dtype == "bfloat16",
        fp16=not cpu and job.plan.train_dtype == "float16",
        activation_checkpointing=c.gradient_checkpointing,
        max_length=None,  # render.py has measured every row; nothing may be cut behind its back
        num_train_epochs=c.epochs,
        max_steps=c.max_steps,
        learning_rate=c.learning_rate,
        lr_scheduler_type=c.lr_scheduler_type,
        warmup_steps=c.warmup,
        weight_decay=c.weight_decay,
        neftune_noise_alpha=c.neftune_noise_alpha or None,
        optim=c.optim,
        per_device_train_batch_size=c.batch_size,
        per_device_eval_batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        train_sampling_strategy="group_by_length",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        eval_strategy=evaluates,
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,  # for resuming; the adapter of each evaluation is kept apart, in moments/
        metric_for_best_model="eval_loss" if job.held_out else None,
        greater_is_better=False if job.held_out else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=c.report_to,
        seed=c.seed,
        data_seed=c.seed,
        disable_tqdm=True,
    )


def build(job: Job, clock: Clock, watch: Watch) -> Trainer:
    """The model with its LoRA, and the trainer around them."""
    torch.manual_seed(job.config.seed)  # LoRA's A is drawn here
    model = base.load_model(job.base, job.plan.train_dtype, job.plan.device, job.config.quantization)
    token_rows = tokenrows.to_train(model, job.renderer.stop_id) if job.config.train_stop_token else None
    rows = Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in job.train])
    held = Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in job.held_out])
    callbacks: list[TrainerCallback] = [watch]
    if job.held_out and job.config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(job.config.early_stopping_patience))
    tokenizer = job.renderer.tokenizer
    try:
        trainer = Trainer(
            model=model, args=trainer_args(job, job.run.checkpoints), train_dataset=rows,
            eval_dataset=held if job.held_out else None, data_collator=Collator(tokenizer.pad_token_id),
            processing_class=tokenizer, peft_config=lora_config(job.config, model, token_rows), callbacks=callbacks,
            job=job, clock=clock,
        )  # fmt: skip
    except (ValueError, ImportError, RuntimeError) as e:  # RuntimeError: a tracker that is not installed
        if isinstance(e, torch.OutOfMemoryError):
            raise
        raise InputError(f"These settings do not work with {job.base.id}: {e}") from e
    trainer.remove_callback(PrinterCallback)
    if quantize.is_quantized(trainer.model):
        quantize.train_in_float32(trainer.model)
    for layer in trainer.model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = job.plan.device != "cpu"  # autocast casts the few weights instead
    return trainer


def last_checkpoint(run: Run) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [p for p in run.checkpoints.glob("checkpoint-*") if (p / WHOLE).is_file()]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def train(run: Run, deadline: float | None = None) -> dict[str, Any]:
    """Train `run` to its end, or for `deadline` seconds. Returns the result that the command line prints.

    Raises InputError for rows or settings that cannot be right (nothing was trained then), RunError when training
    diverged; the events say it too.
    """
    with contextlib.ExitStack() as handlers:
        try:
            return _train(run, deadline, handlers)
        except BaseException as e:
            with contextlib.suppress(OSError):  # the disk that is full is this one: log.txt has the error
                run.log("state", state="failed", message=explain(e))
            raise


def _train(run: Run, deadline: float | None, handlers: contextlib.ExitStack) -> dict[str, Any]:
    until = time.monotonic() + deadline if deadline is not None else math.inf
    runs.note_worker(run, os.getpid())
    hardware.keep_freed_memory()
    job = prepare(run)
    clock = Clock()
    watch = Watch(run, clock, until)
    alone = threading.current_thread() is threading.main_thread()  # not so in a slice of a lent GPU
    for name in (signal.SIGTERM, signal.SIGINT) if alone else ():
        previous = signal.signal(name, lambda *_: setattr(watch, "asked", True))
        handlers.callback(signal.signal, name, previous)
    run.log("state", state="starting", message=f"Loading {job.base.id} …")
    trainer = build(job, clock, watch)
    total, _ = steps_of(job.config, len(job.train))
    run.log(
        "plan", steps=total, rows=len(job.train), held_out=len(job.held_out), device=job.plan.device,
        dtype=job.plan.train_dtype, reason=job.plan.reason, base=job.base.id, template=job.renderer.template.name,
        tokens=sum(len(e.input_ids) for e in job.train), learned=sum(e.learned for e in job.train),
    )  # fmt: skip
    if job.held_out:
        run.log("state", state="starting", message="Measuring the base on the held-out pairs …")
        with trainer.model.disable_adapter():
            trainer.base_nll = trainer.measure(0)
    checkpoint = last_checkpoint(run)
    run.log("state", state="running")
    clock.go()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    clock.pause()
    if watch.diverged:
        best = trainer.keep_best()
        kept = f"The adapter of step {best} is kept" if best else "The last good checkpoint is kept"
        raise RunError(
            f"The loss became infinite at step {trainer.state.global_step}. Lower learning_rate "
            f"(now {job.config.learning_rate}) and start again. {kept}."
        )
    return finish(trainer, watch)


def finish(trainer: Trainer, watch: Watch) -> dict[str, Any]:
    """Choose and write the adapter, then say done, or stopped."""
    run, state = trainer.run, trainer.state
    run.log("state", state="running", message="Saving the adapter …")
    best = trainer.keep_best()
    if best is None:  # nothing was held out, or it was stopped before the first evaluation
        save(trainer.job, trainer.model, run.adapter, trainer.figures(state.global_step))
    status = "stopped" if watch.asked and state.global_step < state.max_steps else "done"
    figures = trainer.figures(state.global_step)
    figures |= {"status": status, "adapter_nll": trainer.mean_of(best), "peak_memory_bytes": peak_memory()}
    result = {"run": str(run.path), "adapter": str(run.adapter), **figures}
    run.log("result", **result)
    if best is not None:
        run.log("chosen", step=best, nll=result["adapter_nll"])
    run.log("state", state=status)
    if status == "done":
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return result


def save(job: Job, model: Any, target: Path, figures: dict[str, Any]) -> None:
    """Write the adapter of a run, with what it was made from and how well it does."""
    config = job.config.model_dump()
    if Path(config["base"]).expanduser().exists():
        config["base"] = job.base.id  # a local path says where the author's files are
    config["template"] = job.renderer.template.name
    manifest = job.run.manifest()
    counts = {"train_rows": len(job.train), "held_out_rows": len(job.held_out)}
    facts = {"config": config, "figures": {**figures, **counts}, "data_sha256": manifest["data_sha256"],
             "versions": manifest["versions"], "created": manifest["created"],
             "stop": {"id": job.renderer.stop_id}}  # fmt: skip
    adapter.write(model, target, base=job.base, template=job.renderer.template, card=job.run.card(), facts=facts)


def memory_now() -> int:
    """Bytes that this process holds: of the GPU where there is one, else of the machine's memory."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else the most that this process has held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # ru_maxrss: bytes on macOS, KiB on Linux


def explain(e: BaseException) -> str:
    """A failure in a sentence with the next step."""
    if isinstance(e, PersonaError):
        return str(e)
    if isinstance(e, MemoryError | torch.OutOfMemoryError):
        return "Out of memory. Lower batch_size, then max_length, or turn gradient_checkpointing on, and resume."
    # safetensors and torch write past Python, and say it in words of their own
    said = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
    if said or any(words in str(e) for words in ("os error 28", "os error 122", "PytorchStreamWriter failed writing")):
        return "The disk is full. Free some space, then resume: the last whole checkpoint is kept."
    return f"{type(e).__name__}: {e}. The details are in the run's log.txt; it can be resumed."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m persona.train")
    parser.add_argument("run", type=Path)
    parser.add_argument("--deadline", type=float, default=None, help="seconds")
    given = parser.parse_args()
    run = runs.open_run(given.run)
    try:
        train(run, given.deadline)
    except PersonaError:
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
