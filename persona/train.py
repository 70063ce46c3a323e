"""One run, from its rows (or its last checkpoint) to an adapter. The only file that uses TRL.

    python -m persona.train RUN_FOLDER [--deadline SECONDS]
    accelerate launch -m persona.train RUN_FOLDER

It reads and writes the run folder only. `deadline` stops at a step boundary with a checkpoint; a Stop button, a
shutdown and a time slice on a shared GPU are all this one mechanism. A pause leaves no trace: what is resumed takes
the very steps, and ends with the very adapter, of a run that was never stopped.
"""

import argparse
import contextlib
import itertools
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each trainer that is built

import torch
from datasets import Dataset
from peft import set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig, SFTTrainer

from persona import adapter, base, checkpoints, hardware, processes, quantize, runs, stoptoken, tokenrows
from persona.config import RunConfig, steps_of
from persona.errors import InputError, PersonaError, RunError
from persona.lora import lora_config
from persona.loss import Collator, mean_nll, nll_sum
from persona.render import IGNORED, Example, Renderer, check_all
from persona.runs import Run


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


class Order(Sampler[list[int]]):
    """Batches of rows of like length, in an order that seed and epoch alone decide.

    The stock sampler draws it from the random numbers that dropout uses too, so it would be another one after a pause.
    """

    def __init__(self, trainer: Any, lengths: list[int]):
        self.trainer, self.lengths = trainer, lengths
        self.size, self.joined = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.trainer.state.global_step // math.ceil(len(self) / self.joined)
        dice = torch.Generator().manual_seed(self.trainer.args.data_seed + epoch)
        order = get_length_grouped_indices(self.lengths, self.size * self.joined, generator=dice)
        yield from (order[n : n + self.size] for n in range(0, len(order), self.size))


def collate_share(collate: Collator, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """This process's rows of a batch; where there are fewer rows than processes, one that teaches nothing."""
    unlearned = {"input_ids": rows[0]["input_ids"], "labels": [IGNORED] * len(rows[0]["labels"])}
    return {**collate(processes.share(rows) or [unlearned]),
            "tokens": torch.tensor(sum(len(r["input_ids"]) for r in rows))}  # fmt: skip


@contextlib.contextmanager
def untouched_dice() -> Iterator[None]:
    """Random numbers that are drawn in here leave no trace outside."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield


class Trainer(SFTTrainer):
    """SFTTrainer with the loss of loss.py, held-out NLL as its evaluation, and checkpoints that continue exactly."""

    control: Any
    loss_is_scaled_for_ga = True  # compute_loss divides by the learned tokens of the whole accumulated batch

    def __init__(self, *args: Any, held_out: list[Example], clock: Clock, watch: "Watch", run: Run, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.held_out, self.clock, self.watch, self.run = held_out, clock, watch, run
        if processes.count() > 1:  # no DistributedDataParallel: see processes.sum_gradients
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def get_train_dataloader(self) -> DataLoader:
        order = Order(self, [len(ids) for ids in self.train_dataset["input_ids"]])
        collate = partial(collate_share, self.data_collator) if processes.count() > 1 else self.data_collator
        # a generator of its own: the loader draws a number at each start
        return DataLoader(self.train_dataset, batch_sampler=order, collate_fn=collate, generator=torch.Generator(),
                          pin_memory=self.args.dataloader_pin_memory)  # fmt: skip

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step, and how many tokens all processes learn from them."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        learned = processes.total(sum(int((b["labels"][:, 1:] != IGNORED).sum()) for b in batches), device)
        self.clock.tokens += sum(int(b["tokens"]) for b in batches)
        self.clock.learned += learned
        return batches, learned

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        total, learned = nll_sum(model, inputs["input_ids"], inputs["labels"])
        loss = total / (num_items_in_batch if num_items_in_batch is not None else learned)
        return (loss, {}) if return_outputs else loss

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        if processes.count() > 1 and self.accelerator.sync_gradients:
            processes.sum_gradients(model.parameters())
        return loss * processes.count()  # of which the log takes the mean over processes

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out NLL, logged as an event; the Trainer notes the step where it is lowest."""
        self.clock.pause()
        with untouched_dice():
            nll = self.held_out_nll()
            self.run.log("eval", step=self.state.global_step, nll=nll)
        metrics = {"eval_loss": nll}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock.go()
        return metrics

    def held_out_nll(self) -> float:
        """Measured by the main process alone: a tenth of the pairs, and the same figure on any number of them."""
        rows = self.held_out if processes.is_main() else []
        batch = self.args.per_device_train_batch_size
        return processes.from_main(mean_nll(self.model, rows, self.data_collator, batch) if rows else 0.0)

    def _save(self, output_dir=None, state_dict=None):
        """The LoRA alone: the tokenizer is the base's, 33 MB of Gemma's in each checkpoint."""
        if processes.is_main():
            self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def _save_checkpoint(self, model, trial):
        self.clock.pause()
        folder, step = Path(self.args.output_dir), self.state.global_step
        here = checkpoints.folder_of(folder, step)
        if processes.is_main():
            shutil.rmtree(here, ignore_errors=True)  # what a kill has left of it
        processes.wait()
        super()._save_checkpoint(model, trial)
        processes.wait()
        if processes.is_main():
            checkpoints.seal(here, {"clock": asdict(self.clock), "misses": self.watch.misses})
            checkpoints.prune(folder, step, self.state.best_global_step)
        self.clock.go()

    def put_back(self, checkpoint: Path) -> None:
        """Give the model the weights of a checkpoint."""
        set_peft_model_state_dict(self.model, load_file(checkpoint / "adapter_model.safetensors"))


@dataclass
class Watch(TrainerCallback):
    """Writes the events, and ends the run at a step boundary: when asked to, or when nothing gets better."""

    run: Run
    clock: Clock
    until: float = math.inf
    patience: int = 0  # evaluations in a row without gain that end the run; 0: none do
    misses: int = 0
    asked: bool = False
    diverged: bool = False

    def on_step_end(self, args, state, control, **_):
        asked = self.asked or time.monotonic() > self.until or (self.run.path / "stop").exists()
        self.asked = processes.any_of(asked, args.device)
        if self.asked:
            control.should_training_stop = control.should_save = True
        return control

    def on_evaluate(self, args, state, control, metrics, **_):
        better = state.best_metric is None or metrics["eval_loss"] < state.best_metric
        self.misses = 0 if better else self.misses + 1
        if self.patience and self.misses >= self.patience:
            control.should_training_stop = True

    def ended(self, state: Any) -> bool:
        """Whether the run has come to its own end."""
        return state.global_step >= state.max_steps or bool(self.patience and self.misses >= self.patience)

    def on_log(self, args, state, control, logs=None, **_):
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self.run.log(
            "step", step=state.global_step, loss=loss, learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"), seconds=round(self.clock.now(), 3), tokens=self.clock.tokens,
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
    # a run that goes on keeps its number format, though speeds measured anew might choose another
    dtype = run.manifest().get("dtype", "auto") if config.dtype == "auto" else config.dtype
    plan = processes.from_main(hardware.make_plan(hardware.this_machine(), dtype))
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
        dtype=plan.train_dtype,
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
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        eval_strategy=evaluates,
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
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
    watch.patience = job.config.early_stopping_patience if job.held_out else 0
    tokenizer = job.renderer.tokenizer
    try:
        trainer = Trainer(
            model=model, args=trainer_args(job, job.run.checkpoints), train_dataset=rows,
            eval_dataset=held if job.held_out else None, data_collator=Collator(tokenizer.pad_token_id),
            processing_class=tokenizer, peft_config=lora_config(job.config, model, token_rows), callbacks=[watch],
            held_out=job.held_out, clock=clock, watch=watch, run=job.run,
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


def train(run: Run, deadline: float | None = None) -> dict[str, Any]:
    """Train `run` to its end, or for `deadline` seconds. Returns the result that the command line prints.

    Raises InputError for rows or settings that cannot be right (nothing was trained then), RunError when training
    diverged (the best adapter of before is written then); the events say it too.
    """
    run = replace(run, helper=not processes.is_main())
    with contextlib.ExitStack() as handlers:
        try:
            return _train(run, deadline, handlers)
        except BaseException as e:
            with contextlib.suppress(OSError):  # the disk that is full is this one: log.txt has the error
                run.log("state", state="failed", message=explain(e, run.path))
            raise


def _train(run: Run, deadline: float | None, handlers: contextlib.ExitStack) -> dict[str, Any]:
    until = time.monotonic() + deadline if deadline is not None else math.inf
    runs.note_worker(run, os.getpid())
    hardware.keep_freed_memory()
    processes.join()
    job = prepare(run)
    clock = Clock()
    watch = Watch(run, clock, until)
    for name in (signal.SIGTERM, signal.SIGINT):
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
    checkpoint = processes.from_main(checkpoints.last(run.checkpoints) if processes.is_main() else None)
    base_nll = measure_base(job, trainer, known=processes.from_main(run.progress().base_nll) if checkpoint else None)
    run.log("state", state="running")
    go_on(trainer, checkpoint)
    return finish(job, trainer, clock, watch, base_nll)


def measure_base(job: Job, trainer: Trainer, known: float | None) -> float | None:
    """Held-out NLL of the base. known: from before a pause."""
    if known is not None or not job.held_out:
        return known
    job.run.log("state", state="starting", message="Measuring the base on the held-out pairs …")
    with trainer.model.disable_adapter():
        nll = trainer.held_out_nll()
    job.run.log("eval", step=0, nll=nll)
    return nll


def go_on(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train from the checkpoint, or from the start, to the end or to where the run is asked to stop."""
    clock, watch = trainer.clock, trainer.watch
    if checkpoint:
        session = checkpoints.session(checkpoint)
        clock.seconds, clock.tokens, clock.learned = (session["clock"][k] for k in ("seconds", "tokens", "learned"))
        watch.misses = session["misses"]
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if watch.ended(state):  # killed between its last step and its adapter: the Trainer would take another step
            trainer.state = state
            trainer.put_back(checkpoint)
            return
    clock.go()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    clock.pause()


def keep_best(trainer: Trainer) -> bool:
    """Put the best weights so far into the model; False where there are none to keep."""
    state, watch, folder = trainer.state, trainer.watch, trainer.run.checkpoints
    if watch.diverged:
        last = checkpoints.last(folder)
        best = checkpoints.folder_of(folder, state.best_global_step) if state.best_global_step else last
        if best is None:
            return False
        trainer.put_back(best)
    elif state.best_global_step and (watch.ended(state) or trainer.held_out_nll() >= state.best_metric):
        trainer.put_back(checkpoints.folder_of(folder, state.best_global_step))
    return True


def finish(job: Job, trainer: Trainer, clock: Clock, watch: Watch, base_nll: float | None) -> dict[str, Any]:
    """Measure and write the best adapter, then say done, stopped or failed."""
    run, state = job.run, trainer.state
    diverged = f"The loss became infinite at step {state.global_step}. Lower learning_rate " + (
        f"(now {job.config.learning_rate}) and start again"
    )
    if not keep_best(trainer):
        raise RunError(f"{diverged}.")
    run.log("state", state="running", message="Saving the best adapter …")
    adapter_nll = trainer.held_out_nll() if job.held_out else None
    status = "failed" if watch.diverged else "done" if watch.ended(state) else "stopped"
    figures = {
        "status": status, "steps": state.global_step, "seconds": round(clock.seconds, 2),
        "tokens_per_s": round(clock.tokens / max(clock.seconds, 1e-9), 1),
        "learned_tokens_per_s": round(clock.learned / max(clock.seconds, 1e-9), 1),
        "base_nll": base_nll, "adapter_nll": adapter_nll, "peak_memory_bytes": peak_memory(),
    }  # fmt: skip
    result = {"run": str(run.path), "adapter": str(run.adapter), **figures}
    if processes.is_main():
        write_adapter(job, trainer, figures)
    run.log("result", **result)
    if watch.diverged:
        raise RunError(f"{diverged}; the adapter holds the best that was learned before.")
    run.log("state", state=status)
    if status == "done" and processes.is_main():
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return result


def write_adapter(job: Job, trainer: Trainer, figures: dict[str, Any]) -> None:
    run = job.run
    config = job.config.model_dump()
    if Path(config["base"]).expanduser().exists():
        config["base"] = job.base.id  # a local path says where the author's files are
    config["template"] = job.renderer.template.name
    counts = {"train_rows": len(job.train), "held_out_rows": len(job.held_out)}
    manifest = run.manifest()
    facts = {"config": config, "figures": {**figures, **counts}, "data_sha256": manifest["data_sha256"],
             "versions": manifest["versions"], "created": manifest["created"]}  # fmt: skip
    adapter.write(trainer.model, run.adapter, base=job.base, template=job.renderer.template, card=run.card(),
                  facts=facts)  # fmt: skip


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else the most that this process has held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # ru_maxrss: bytes on macOS, KiB on Linux


def explain(e: BaseException, folder: Path) -> str:
    """A failure in a sentence with the next step. folder: the run's."""
    if isinstance(e, PersonaError):
        return str(e)
    if isinstance(e, MemoryError | torch.OutOfMemoryError):
        return "Out of memory. Lower batch_size, then max_length, or turn gradient_checkpointing on, and resume."
    otherwise = f"{type(e).__name__}: {e}. The details are in the run's log.txt; it can be resumed."
    return runs.disk_trouble(folder, e) or otherwise


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
