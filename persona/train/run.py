"""One run, from its rows (or its last checkpoint) to an adapter.

    python -m persona.train RUN_FOLDER [--deadline SECONDS]

It reads and writes the run folder only. `deadline` stops at a step boundary with a checkpoint; a Stop button, a
shutdown and a time slice on a shared GPU are all this one mechanism. A run that goes on after it, or after a crash,
takes the very steps of one that was never stopped.
"""

import argparse
import contextlib
import math
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerState
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from persona.errors import InputError, Message, PersonaError, RunError
from persona.models import base, hardware, malloc, quantization, trained_tokens
from persona.train import (
    checkpoints,
    collator,
    cpu_kernels,
    distributed,
    gpu_kernels,
    oom_recovery,
    run_folder,
    snapshots,
)
from persona.train import lora_config as train_lora_config
from persona.train.collator import Collator
from persona.train.config import count_steps
from persona.train.lora_config import make_lora_config
from persona.train.prepare import PreparedRun, prepare_run, save_run_adapter
from persona.train.run_folder import Run
from persona.train.trainer import RunCallback, Trainer, TrainingClock


def make_sft_config(job: PreparedRun, output: Path) -> SFTConfig:
    """RunConfig → SFTConfig, every field in one place."""
    c, cpu = job.config, job.plan.device == "cpu"
    _, every = count_steps(c, len(job.train))
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
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        eval_strategy=evaluates,
        eval_steps=every,
        save_strategy="steps",
        save_steps=c.save_steps or every,
        metric_for_best_model="eval_loss" if job.held_out else None,
        greater_is_better=False if job.held_out else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=c.report_to,
        run_name=job.run.name,
        project="persona",
        trackio_static_space_id=False,  # else it publishes a Space at the end
        seed=c.seed,
        data_seed=c.seed,
        disable_tqdm=True,
    )


def build_trainer(job: PreparedRun, clock: TrainingClock, watch: RunCallback) -> Trainer:
    """The model with its LoRA, and the trainer around them."""
    torch.manual_seed(job.config.seed)  # LoRA's A is drawn here
    model = base.load_base_model(job.base, job.plan.train_dtype, job.plan.device, job.config.quantization)
    gpu_kernels.apply_liger_kernels(model, job.config)
    token_rows = (
        trained_tokens.select_trainable_tokens(model, job.renderer.stop_id) if job.config.train_stop_token else None
    )
    rows = Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in job.train])
    held = Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in job.held_out])
    watch.patience = job.config.early_stopping_patience if job.held_out else 0
    tokenizer, pack = job.renderer.tokenizer, job.config.max_length if job.config.packing else 0
    if pack:
        collator.check_packing(model, job.base.id)
    try:
        trainer = Trainer(
            model=model, args=make_sft_config(job, job.run.checkpoints), train_dataset=rows,
            eval_dataset=held if job.held_out else None, data_collator=Collator(tokenizer.pad_token_id, pack=pack),
            processing_class=tokenizer, peft_config=make_lora_config(job.config, model, token_rows), callbacks=[watch],
            job=job, clock=clock, watch=watch,
        )  # fmt: skip
    except (ValueError, ImportError, RuntimeError) as e:  # RuntimeError: a tracker that is not installed
        if hardware.is_out_of_memory(e):
            raise
        raise InputError("These settings do not work with {base}: {reason}", base=job.base.id, reason=e) from e
    if train_lora_config.is_pissa(job.config.init_lora_weights):
        train_lora_config.initialize_pissa(trainer.model, job.config.init_lora_weights, job.config.lora_r)
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):  # its own place is among the checkpoints, which go at the end
            callback.logging_dir = callback.logging_dir or str(job.run.path / "tensorboard")
    if quantization.is_quantized(trainer.model):
        quantization.upcast_trainable_weights(trainer.model)
    for layer in trainer.model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = job.plan.device != "cpu"  # autocast casts the few weights instead
    return trainer


def train_run(run: Run, deadline: float | None = None) -> dict[str, Any]:
    """Train `run` to its end, or for `deadline` seconds. Returns the result that the command line prints.

    Raises InputError for rows or settings that cannot be right (nothing was trained then), RunError when training
    diverged (the best adapter of before is written then); the events say it too.
    """
    run = replace(run, helper=not distributed.is_main_process())
    with contextlib.ExitStack() as cleanup:
        try:
            return _train_run(run, deadline, cleanup)
        except BaseException as e:
            with contextlib.suppress(OSError):  # the disk that is full is this one: log.txt has the error
                run.log("state", state="failed", **describe_failure(run, e))
            raise


def _train_run(run: Run, deadline: float | None, cleanup: contextlib.ExitStack) -> dict[str, Any]:
    until = time.monotonic() + deadline if deadline is not None else math.inf
    run_folder.record_worker(run, os.getpid())
    malloc.disable_malloc_trim()
    distributed.init_processes()
    job = prepare_run(run)
    clock = TrainingClock()
    watch = RunCallback(run, clock, until)
    alone = threading.current_thread() is threading.main_thread()  # not so in a slice of a lent GPU
    for name in (signal.SIGTERM, signal.SIGINT) if alone else ():
        previous = signal.signal(name, lambda *_: setattr(watch, "asked", True))
        cleanup.callback(signal.signal, name, previous)
    run.log("state", state="starting", message=Message("Loading {base} …", base=job.base.id))
    trainer = build_trainer(job, clock, watch)
    if job.plan.device == "cpu":
        cleanup.enter_context(cpu_kernels.cpu_kernels(trainer.model))
    total, _ = count_steps(job.config, len(job.train))
    run.log(
        "plan", steps=total, rows=len(job.train), held_out=len(job.held_out), device=job.plan.device,
        dtype=job.plan.train_dtype, reason=job.plan.reason, base=job.base.id, template=job.renderer.template.name,
        tokens=sum(len(e.input_ids) for e in job.train), learned=sum(e.learned for e in job.train),
    )  # fmt: skip
    checkpoint = distributed.broadcast_from_main(
        checkpoints.find_last_checkpoint(run.checkpoints) if distributed.is_main_process() else None
    )
    trainer.base_nll = measure_base(
        trainer, known=distributed.broadcast_from_main(run.progress().base_nll) if checkpoint else None
    )
    run.log("state", state="running")
    start_or_resume(trainer, checkpoint)
    return finish_run(trainer)


def measure_base(trainer: Trainer, known: float | None) -> float | None:
    """Held-out NLL of the base, and the first page of the diary. known: from before a pause."""
    if known is not None or not trainer.job.held_out:
        return known
    trainer.run.log("state", state="starting", message=Message("Measuring the base on the held-out pairs …"))
    with trainer.model.disable_adapter():
        return trainer.measure(0)


def start_or_resume(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from the start, to the end or to where the run is asked to stop."""
    clock, watch = trainer.clock, trainer.watch
    if checkpoint:
        session = checkpoints.read_session(checkpoint)
        clock.seconds, clock.tokens, clock.learned = (session["clock"][k] for k in ("seconds", "tokens", "learned"))
        watch.misses = session["misses"]
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if watch.ended(state):  # killed between its last step and its adapter: the Trainer would take another step
            trainer.state = state
            trainer.load_checkpoint_weights(checkpoint)
            return
    clock.go()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    clock.pause()


def save_best_adapter(trainer: Trainer) -> tuple[int, float | None] | None:
    """Make the best that was learned (moments.choose) the run's adapter.

    Returns its step and held-out NLL, None where nothing was held out; None in all: there is nothing to keep.
    """
    run, step, watch = trainer.run, trainer.state.global_step, trainer.watch
    evals = {e["step"]: e for e in run.events() if e.get("event") == "eval" and e["step"]}
    kept = [s for s in snapshots.list_snapshot_steps(run) if s in evals]
    rows, now = {s: evals[s]["rows"] for s in kept}, None
    if watch.asked and not watch.diverged and not watch.ended(trainer.state) and kept:
        now = trainer.held_out()  # stopped in between: it may be the best there is
        rows[step] = now.nats
    best = snapshots.choose_best_snapshot(rows, [e.learned for e in trainer.job.held_out])
    if best in kept:
        snapshots.replace_adapter(snapshots.snapshot_dir(run, best), run.adapter)
        return best, evals[best]["nll"]
    if watch.diverged:
        last = checkpoints.find_last_checkpoint(run.checkpoints)
        if last is None:
            return None
        trainer.load_checkpoint_weights(last)
        step = int(last.name.rpartition("-")[2])
    now = now or (trainer.held_out() if trainer.job.held_out else None)
    nll = now.mean if now else None
    save_run_adapter(trainer.job, trainer.model, run.adapter, trainer.figures(step) | {"adapter_nll": nll})
    return step, nll


def finish_run(trainer: Trainer) -> dict[str, Any]:
    """Write the best adapter, then say done, stopped or failed."""
    run, state, watch = trainer.run, trainer.state, trainer.watch
    diverged = Message(
        "The loss became infinite at step {step}. Lower learning_rate (now {rate}) and start again",
        step=state.global_step,
        rate=trainer.job.config.learning_rate,
    )
    run.log("state", state="running", message=Message("Saving the best adapter …"))
    kept = distributed.broadcast_from_main(save_best_adapter(trainer) if distributed.is_main_process() else None)
    if kept is None:
        raise RunError("{diverged}.", diverged=diverged)
    status = "failed" if watch.diverged else "done" if watch.ended(state) else "stopped"
    figures = trainer.figures(state.global_step)
    figures |= {"status": status, "adapter_nll": kept[1], "peak_memory_bytes": peak_memory()}
    result = {"run": str(run.path), "adapter": str(run.adapter), **figures}
    run.log("result", **result)
    run.log("chosen", step=kept[0], nll=kept[1])
    if watch.diverged:
        raise RunError("{diverged}; the adapter holds the best that was learned before.", diverged=diverged)
    run.log("state", state=status)
    if status == "done" and distributed.is_main_process():
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return result


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else the most that this process has held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return hardware.peak_resident_memory()


def describe_failure(run: Run, e: BaseException) -> dict[str, Any]:
    """What the event of a failed run says: `message`, and `remedy` where smaller settings may help."""
    with contextlib.suppress(PersonaError):  # settings that cannot be read are the failure itself, then
        if changed := oom_recovery.propose_changes(run.config(), e):
            return {
                "message": Message("Out of memory. {advice}", advice=oom_recovery.make_memory_advice(changed)),
                "remedy": changed,
            }
    return {"message": explain_error(e, run.path)}


def explain_error(e: BaseException, folder: Path) -> str:
    """A failure in a sentence with the next step. folder: the run's."""
    if isinstance(e, PersonaError):
        return e.message
    if hardware.is_out_of_memory(e):
        return Message("Out of memory. {advice}", advice=oom_recovery.make_memory_advice({}))
    otherwise = Message(
        "{kind}: {reason}. The details are in the run's log.txt; it can be resumed.", kind=type(e).__name__, reason=e
    )
    return run_folder.explain_write_error(folder, e) or otherwise


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m persona.train")
    parser.add_argument("run", type=Path)
    parser.add_argument("--deadline", type=float, default=None, help="seconds")
    given = parser.parse_args()
    run = run_folder.open_run(given.run)
    try:
        train_run(run, given.deadline)
    except PersonaError:
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
