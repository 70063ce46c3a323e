"""One run, from its rows (or its last checkpoint) to an adapter.

It reads and writes the run folder only. `deadline` stops it at a step boundary with a checkpoint; the Stop button, a
shutdown and a time slice on a shared GPU use this same mechanism. A run that is resumed after it, or after a crash,
takes the very steps of one that was never stopped.
"""

import contextlib
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerState
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from persona.errors import InputError, Message, PersonaError, RunError
from persona.models import base, flat_batch, hardware, malloc, quantization, trained_tokens
from persona.template.render import IGNORE_INDEX, TrainingExample
from persona.train import (
    checkpoints,
    distributed,
    engines,
    fused_kernels,
    lora_config,
    monitor,
    oom_recovery,
    rehearsal,
    run_folder,
    snapshots,
    validate,
)
from persona.train.clock import TrainingClock
from persona.train.collator import Collator
from persona.train.config import count_steps
from persona.train.evaluator import Evaluator
from persona.train.parent import load_parent_weights
from persona.train.preference import PreferenceCollator, PreferenceEvaluator, PreferenceTrainer, to_rows
from persona.train.prepare import PreparedRun, prepare_run
from persona.train.progress import RunProgress
from persona.train.run_folder import Run
from persona.train.trainer import RunCallback, Trainer

# the same setting; transformers 5.17, which Unsloth needs, knows only the second name
CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(SFTConfig, n))


def make_sft_config(prepared: PreparedRun, output: Path) -> SFTConfig:
    """RunConfig → SFTConfig. output: the folder of the checkpoints."""
    c, cpu = prepared.config, prepared.plan.device == "cpu"
    _, steps_between = count_steps(c, len(prepared.train))
    args = SFTConfig(
        output_dir=str(output),
        use_cpu=cpu,
        bf16=not cpu and prepared.plan.train_dtype == "bfloat16",
        fp16=not cpu and prepared.plan.train_dtype == "float16",
        tf32=True if c.tf32 else None,  # None: as PyTorch has it
        max_length=None,  # rendering has checked every row; none may be cut here
        num_train_epochs=c.epochs,
        max_steps=c.max_steps,
        learning_rate=c.learning_rate,
        lr_scheduler_type=c.lr_scheduler_type,
        warmup_steps=c.warmup,
        max_grad_norm=c.max_grad_norm,
        adam_beta1=c.adam_beta1,
        adam_beta2=c.adam_beta2,
        weight_decay=c.weight_decay,
        neftune_noise_alpha=c.neftune_noise_alpha or None,
        optim=c.optim,
        per_device_train_batch_size=c.batch_size,
        per_device_eval_batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        eval_strategy="steps" if prepared.held_out else "no",
        eval_steps=steps_between,
        save_strategy="steps",
        save_steps=c.save_steps or steps_between,
        metric_for_best_model="eval_loss" if prepared.held_out else None,
        greater_is_better=False if prepared.held_out else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=c.report_to,
        run_name=prepared.run.name,
        project="persona",
        trackio_static_space_id=False,  # else it publishes a Space at the end
        seed=c.seed,
        data_seed=c.seed,
        disable_tqdm=True,
        **{CHECKPOINTING: c.gradient_checkpointing},
    )
    # else, on a machine with several GPUs, transformers wraps the model in nn.DataParallel and multiplies the batch
    args._n_gpu = min(args.n_gpu, 1)
    return args


def build_trainer(prepared: PreparedRun, clock: TrainingClock, callback: RunCallback, evaluator: Evaluator) -> Trainer:
    """The base with a new LoRA, or with that of the run's parent, and the trainer around them."""
    config, renderer = prepared.config, prepared.renderer
    torch.manual_seed(config.seed)  # LoRA's A is drawn from it
    model, lora = _load_model(prepared)
    if config.packing:
        validate.check_packing(model, prepared.base.id)
    pack = config.max_length if config.packing else 0
    rehearsed = rehearsal.render_rehearsal(prepared, model, lambda: callback.is_asked_to_stop())
    try:
        collate = Collator(renderer.tokenizer.pad_token_id, pack=pack)
        learns_preferences = isinstance(evaluator, PreferenceEvaluator)
        trainer = (PreferenceTrainer if learns_preferences else Trainer)(
            model=model, args=make_sft_config(prepared, prepared.run.checkpoints),
            train_dataset=_to_dataset([*prepared.train, *rehearsed], prepared.rejected),
            eval_dataset=_to_dataset(prepared.held_out) if prepared.held_out else None,
            data_collator=PreferenceCollator(collate) if learns_preferences else collate,
            processing_class=renderer.tokenizer, peft_config=lora,
            clock=clock, callback=callback, evaluator=evaluator,
        )  # fmt: skip
    except (ValueError, ImportError, RuntimeError) as e:  # RuntimeError: a tracker that is not installed
        if hardware.is_out_of_memory(e):
            raise
        raise InputError("These settings do not work with {base}: {reason}", base=prepared.base.id, reason=e) from e
    if config.is_pissa:
        lora_config.initialize_pissa(trainer.model, config.init_lora_weights, config.lora_r)
    if prepared.parent:
        load_parent_weights(trainer.model, prepared.parent)
    _set_up_callbacks(trainer, prepared.run)
    _set_layer_dtypes(trainer.model, prepared.plan.device)
    return trainer


def _load_model(prepared: PreparedRun) -> tuple[Any, LoraConfig | None]:
    """The base, and the LoRA that TRL is to add; Unsloth has added its own, and there is none to add."""
    config = prepared.config
    if config.engine == "unsloth":
        return engines.load_unsloth_model(prepared), None
    placed = {"device_map": "auto"} if config.spread_layers else None
    model = base.load_base_model(
        prepared.base, prepared.plan.train_dtype, prepared.plan.device, config.quantization, placed
    )
    if config.engine == "liger":
        engines.apply_liger_kernels(model)
    stop_id = prepared.renderer.stop_id
    token_rows = trained_tokens.select_trainable_tokens(model, stop_id) if config.train_stop_token else None
    return model, lora_config.make_lora_config(config, model, token_rows)


def _to_dataset(examples: Sequence[TrainingExample], rejected: Sequence[TrainingExample] = ()) -> Dataset:
    if rejected:
        return Dataset.from_list(to_rows(examples, rejected))
    return Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples])


def _set_up_callbacks(trainer: Trainer, run: Run) -> None:
    trainer.remove_callback(PrinterCallback)
    # the run's own goes before the trackers', which are sent the losses that it records
    trainer.callback_handler.callbacks.sort(key=lambda callback: callback is not trainer.callback)
    for callback in trainer.callback_handler.callbacks:
        # its default is among the checkpoints, which are deleted at the end
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(run.path / "tensorboard")


def _set_layer_dtypes(model: Any, device: str) -> None:
    """The number formats in which the layers of a PeftModel compute."""
    quantization.upcast_trainable_weights(model)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.cast_input_dtype_enabled = device == "mps"  # elsewhere autocast casts the few weights instead


def train_run(run: Run, deadline: float | None = None) -> dict[str, Any]:
    """Train `run` to its end, or for `deadline` seconds. Returns the result that the command line prints.

    Raises InputError for rows or settings that cannot work (nothing was trained then), RunError when training
    diverged (the best adapter up to then is written); both are logged as the run's state too.
    """
    with contextlib.ExitStack() as cleanup:
        try:
            return _train_run(run, deadline, cleanup)
        except BaseException as e:
            with contextlib.suppress(OSError):  # the full disk may be this one: log.txt has the error
                run.log("state", state="failed", **describe_failure(run, e))
            raise


def _train_run(run: Run, deadline: float | None, cleanup: contextlib.ExitStack) -> dict[str, Any]:
    end = time.monotonic() + deadline if deadline is not None else math.inf
    run_folder.record_worker(run, os.getpid())
    malloc.disable_malloc_trim()
    distributed.init_processes()
    prepared = prepare_run(run)
    clock = TrainingClock()
    evaluator = (PreferenceEvaluator if prepared.rejected else Evaluator)(prepared, clock)
    patience = prepared.config.early_stopping_patience if prepared.held_out else 0
    callback = RunCallback(run, clock, patience, end, logging_steps=prepared.config.logging_steps)
    _stop_on_signals(callback, cleanup)
    run.log("state", state="starting", message=Message("Loading {base} …", base=prepared.base.id))
    try:
        trainer = build_trainer(prepared, clock, callback, evaluator)
    except rehearsal.AnsweringStopped:
        run.log("state", state="stopped")
        return {"run": str(run.path), "status": "stopped"}
    if fused_kernels.are_used(prepared.plan, prepared.config.engine):
        cleanup.enter_context(fused_kernels.fused_kernels(trainer.model))
    if engines.may_flatten(prepared.config, prepared.plan.device):
        cleanup.enter_context(flat_batch.flat_batches(trainer.model))
    _log_plan(prepared, trainer.train_dataset)
    checkpoint = distributed.run_on_main(lambda: checkpoints.find_last_checkpoint(run.checkpoints))
    known = distributed.run_on_main(lambda: run.progress()) if checkpoint else RunProgress()
    if isinstance(evaluator, PreferenceEvaluator):
        evaluator.measure_reference(trainer.model)
    evaluator.base_nll = measure_base(trainer.model, evaluator) if known.base_nll is None else known.base_nll
    evaluator.start_nll = measure_start(trainer.model, evaluator) if known.start_nll is None else known.start_nll
    run.log("state", state="running")
    start_or_resume(trainer, clock, callback, checkpoint)
    return finish_run(trainer.model, trainer.state, callback, evaluator)


def _stop_on_signals(callback: RunCallback, cleanup: contextlib.ExitStack) -> None:
    """SIGTERM and SIGINT stop the run at its next step, until `cleanup` is closed."""
    if threading.current_thread() is not threading.main_thread():  # in a slice of a shared GPU
        return
    for name in (signal.SIGTERM, signal.SIGINT):
        previous = signal.signal(name, lambda *_: setattr(callback, "stop_requested", True))
        cleanup.callback(signal.signal, name, previous)


def _log_plan(prepared: PreparedRun, rows: Dataset) -> None:
    """rows: of an epoch, those that are rehearsed last."""
    learned = [sum(label != IGNORE_INDEX for label in labels) for labels in rows["labels"]]
    tokens, pairs = [len(ids) for ids in rows["input_ids"]], len(prepared.train)
    steps, _ = count_steps(prepared.config, len(prepared.train))
    prepared.run.log(
        "plan", steps=steps, rows=prepared.train_pairs, held_out=len(prepared.held_out),
        held_out_learned=[e.learned for e in prepared.held_out], device=prepared.plan.device,
        dtype=prepared.plan.train_dtype, reason=prepared.plan.reason, base=prepared.base.id,
        template=prepared.renderer.template.name, tokens=sum(tokens), learned=sum(learned),
        **({"rehearsal": len(rows) - pairs, "rehearsal_tokens": sum(tokens[pairs:])} if len(rows) > pairs else {}),
    )  # fmt: skip


def measure_base(model: Any, evaluator: Evaluator) -> float | None:
    """Held-out NLL of the base, logged as step 0; None where nothing is held out.

    Samples are logged too, unless the run goes on from an adapter: then they are that adapter's.
    """
    prepared = evaluator.prepared
    if not prepared.held_out:
        return None
    prepared.run.log("state", state="starting", message=Message("Measuring the base on the held-out pairs …"))
    with model.disable_adapter():
        return evaluator.evaluate(model, 0, samples=not prepared.parent)


def measure_start(model: Any, evaluator: Evaluator) -> float | None:
    """Held-out NLL of the adapter that the run goes on from, logged with its samples; None where there is none."""
    prepared = evaluator.prepared
    if not prepared.held_out or not prepared.parent:
        return None
    adapter = prepared.parent.name
    prepared.run.log("state", state="starting", message=Message("Measuring {adapter} …", adapter=adapter))
    return evaluator.evaluate(model, 0, event="start")


def start_or_resume(trainer: Trainer, clock: TrainingClock, callback: RunCallback, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from the start, to the end or until the run is asked to stop."""
    if checkpoint:
        session = checkpoints.read_session(checkpoint)
        clock.seconds, clock.tokens, clock.learned = (session["clock"][k] for k in ("seconds", "tokens", "learned"))
        callback.misses = session["misses"]
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        prepared = trainer.evaluator.prepared
        state.max_steps, _ = count_steps(prepared.config, len(prepared.train))  # may have been changed since
        if callback.is_finished(state):  # killed between its last step and its adapter: train() would take another step
            trainer.state = state
            checkpoints.load_weights(trainer.model, checkpoint)
            return
    clock.resume()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    clock.pause()


def save_best_adapter(
    model: Any, state: TrainerState, callback: RunCallback, evaluator: Evaluator
) -> tuple[int, float | None] | None:
    """Make the best snapshot (snapshots.choose_best_snapshot) the run's adapter, or the model as it is if that is best.

    Without load_best_model_at_end, the model as it is at the end of the run; one that stopped early keeps its best.

    Returns its step and held-out NLL, which is None where nothing is held out; None: there is nothing to save, as the
    run diverged before its first checkpoint.
    """
    run, held_out, step = evaluator.prepared.run, evaluator.prepared.held_out, state.global_step
    evals = {e["step"]: e for e in run.events() if e.get("event") == "eval" and e["step"]}
    snapshot_steps = [s for s in snapshots.list_snapshot_steps(run) if s in evals]
    ranks = "losses" if evaluator.prepared.rejected else "rows"  # of an evaluation's event
    row_nats, current = {s: evals[s][ranks] for s in snapshot_steps}, None
    if callback.stop_requested and not callback.diverged and not callback.is_finished(state) and snapshot_steps:
        current, facts = evaluator.measure(model)  # stopped between two evaluations: it may be the best
        row_nats[step] = facts.get("losses", current.nats)
    weights = [1 if evaluator.prepared.rejected else e.learned for e in held_out]
    best = snapshots.choose_best_snapshot(row_nats, weights)
    keeps_last = not evaluator.prepared.config.load_best_model_at_end and step >= state.max_steps
    if best in snapshot_steps and (callback.diverged or not keeps_last):
        snapshots.replace_adapter(snapshots.snapshot_dir(run, best), run.adapter)
        return best, evals[best]["nll"]
    if callback.diverged:
        last = checkpoints.find_last_checkpoint(run.checkpoints)
        if last is None:
            return None
        checkpoints.load_weights(model, last)
        step = checkpoints.checkpoint_step(last)
    if current is None and held_out:
        current = evaluator.score_held_out(model)
    nll = current.mean if current else None
    evaluator.save_adapter(model, run.adapter, step, nll)
    return step, nll


def finish_run(model: Any, state: TrainerState, callback: RunCallback, evaluator: Evaluator) -> dict[str, Any]:
    """Write the best adapter and log the result: done, stopped or, as a RunError, failed. Returns the result."""
    run = evaluator.prepared.run
    run.log("state", state="running", message=Message("Saving the adapter …"))
    saved = distributed.run_on_main(lambda: save_best_adapter(model, state, callback, evaluator))
    diverged = Message(
        "The loss became infinite at step {step}. Lower learning_rate (now {rate}) and start again",
        step=state.global_step,
        rate=evaluator.prepared.config.learning_rate,
    )
    if saved is None:
        raise RunError("{diverged}.", diverged=diverged)
    step, nll = saved
    status = "failed" if callback.diverged else "done" if callback.is_finished(state) else "stopped"
    figures = evaluator.figures(state.global_step)
    trained, total = model.get_nb_trainable_parameters()
    figures |= {"status": status, "adapter_nll": nll, "peak_memory_bytes": monitor.peak_memory(),
                "trainable_parameters": trained, "total_parameters": total}  # fmt: skip
    if saved and evaluator.prepared.rejected:
        checkpoints.load_weights(model, run.adapter)
    figures |= evaluator.final_figures(model)
    result = {"run": str(run.path), "adapter": str(run.adapter), **figures}
    run.log("result", **result)
    run.log("chosen", step=step, nll=nll)
    if callback.diverged:
        raise RunError("{diverged}; the adapter holds the best that was learned before.", diverged=diverged)
    run.log("state", state=status)
    if status == "done":
        distributed.run_on_main(lambda: shutil.rmtree(run.checkpoints, ignore_errors=True))
    return result


def describe_failure(run: Run, e: BaseException) -> dict[str, Any]:
    """The fields of a failed run's event: `message`, and `remedy` where smaller settings may help."""
    with contextlib.suppress(PersonaError):  # where the settings cannot be read, that is the failure
        if changes := oom_recovery.propose_changes(run.config(), e):
            return {
                "message": Message("Out of memory. {advice}", advice=oom_recovery.make_memory_advice(changes)),
                "remedy": changes,
            }
    return {"message": explain_error(e, run.path)}


def explain_error(e: BaseException, folder: Path) -> str:
    """A sentence for a failure, with what to do next. folder: the run's."""
    if isinstance(e, PersonaError):
        return e.message
    if hardware.is_out_of_memory(e):
        return Message("Out of memory. {advice}", advice=oom_recovery.make_memory_advice({}))
    otherwise = Message(
        "{kind}: {reason}. The details are in the run's log.txt; it can be resumed.", kind=type(e).__name__, reason=e
    )
    return run_folder.explain_write_error(folder, e) or otherwise
