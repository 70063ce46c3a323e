"""TRL's SFTTrainer as a run uses it: our loss, an order and checkpoints that go on exactly, our evaluation."""

import contextlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each trainer that is built

import psutil
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import SFTTrainer

from persona.models import malloc
from persona.models.loss import NllScores, nll_sum, score_examples
from persona.template.render import IGNORE_INDEX
from persona.train import checkpoints, distributed, sample_log, snapshots
from persona.train.collator import Collator, collate_own_rows
from persona.train.prepare import PreparedRun, save_run_adapter
from persona.train.run_folder import Run
from persona.train.sampler import LengthGroupedBatchSampler


@dataclass
class TrainingClock:
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


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Random numbers that are drawn in here leave no trace outside."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield


class Trainer(SFTTrainer):
    """SFTTrainer with the loss of loss.py, held-out NLL as its evaluation, and checkpoints that continue exactly."""

    control: Any
    loss_is_scaled_for_ga = True  # compute_loss divides by the learned tokens of the whole accumulated batch

    def __init__(self, *args: Any, job: PreparedRun, clock: TrainingClock, watch: "RunCallback", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.job, self.clock, self.watch, self.run = job, clock, watch, job.run
        self.base_nll: float | None = None
        if distributed.process_count() > 1:  # no DistributedDataParallel: see processes.sum_gradients
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def get_train_dataloader(self) -> DataLoader:
        order = LengthGroupedBatchSampler(self, [len(ids) for ids in self.train_dataset["input_ids"]])
        collate = (
            partial(collate_own_rows, self.data_collator) if distributed.process_count() > 1 else self.data_collator
        )
        # a generator of its own: the loader draws a number at each start
        return DataLoader(self.train_dataset, batch_sampler=order, collate_fn=collate, generator=torch.Generator(),
                          pin_memory=self.args.dataloader_pin_memory)  # fmt: skip

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step, and how many tokens all processes learn from them."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        learned = distributed.sum_over_processes(
            sum(int((b["labels"][:, 1:] != IGNORE_INDEX).sum()) for b in batches), device
        )
        self.clock.tokens += sum(int(b["tokens"]) for b in batches)
        self.clock.learned += learned
        return batches, learned

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        total, learned = nll_sum(model, inputs["input_ids"], inputs["labels"], inputs.get("position_ids"))
        loss = total / (num_items_in_batch if num_items_in_batch is not None else learned)
        return (loss, {}) if return_outputs else loss

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        if distributed.process_count() > 1 and self.accelerator.sync_gradients:
            distributed.sum_gradients(model.parameters())
        return loss * distributed.process_count()  # of which the log takes the mean over processes

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out NLL, a page of the diary, and the adapter as it is now, kept beside the run's others."""
        self.clock.pause()
        step = self.state.global_step
        nll = self.measure(step)
        if distributed.is_main_process():
            save_run_adapter(
                self.job, self.model, snapshots.snapshot_dir(self.run, step), self.figures(step) | {"adapter_nll": nll}
            )
        metrics = {"eval_loss": nll}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock.go()
        return metrics

    def measure(self, step: int) -> float:
        """Held-out NLL of the model as it is, row by row in the events, and its answers in the diary."""
        nll = 0.0
        if distributed.is_main_process():
            with preserve_rng_state():
                found = self.held_out()
                nll = found.mean
                self.run.log("eval", step=step, nll=nll, rows=[round(nats, 4) for nats in found.nats])
                asked = sample_log.choose_sample_questions(self.run.card(), self.job.config.diary_probes)
                sample_log.log_samples(self.run, self.model, self.job.renderer, asked, step)
        malloc.trim_malloc()
        return distributed.broadcast_from_main(nll)

    def held_out(self) -> NllScores:
        """By the main process alone: a tenth of the pairs, and the same figure on any number of processes."""
        collate, size = Collator(self.data_collator.pad_id), self.args.per_device_train_batch_size
        return score_examples(self.model, self.job.held_out, collate, size)  # never packed

    def figures(self, step: int) -> dict[str, Any]:
        seconds = max(self.clock.now(), 1e-9)
        return {
            "steps": step, "seconds": round(seconds, 2), "tokens_per_s": round(self.clock.tokens / seconds, 1),
            "learned_tokens_per_s": round(self.clock.learned / seconds, 1), "base_nll": self.base_nll,
            "adapter_nll": None,
        }  # fmt: skip

    def _save(self, output_dir=None, state_dict=None):
        """The LoRA alone: the tokenizer is the base's, 33 MB of Gemma's in each checkpoint."""
        if distributed.is_main_process():
            self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def _save_checkpoint(self, model, trial):
        self.clock.pause()
        folder, step = Path(self.args.output_dir), self.state.global_step
        here = checkpoints.checkpoint_dir(folder, step)
        if distributed.is_main_process():
            shutil.rmtree(here, ignore_errors=True)  # what a kill has left of it
        distributed.wait_for_all()
        super()._save_checkpoint(model, trial)
        distributed.wait_for_all()
        if distributed.is_main_process():
            checkpoints.mark_complete(here, {"clock": asdict(self.clock), "misses": self.watch.misses})
            checkpoints.prune_checkpoints(folder, step)
        self.clock.go()

    def load_checkpoint_weights(self, checkpoint: Path) -> None:
        """Give the model the weights of a checkpoint."""
        set_peft_model_state_dict(self.model, load_file(checkpoint / "adapter_model.safetensors"))


@dataclass
class RunCallback(TrainerCallback):
    """Writes the events, and ends the run at a step boundary: when asked to, or when nothing gets better."""

    run: Run
    clock: TrainingClock
    until: float = math.inf
    patience: int = 0  # evaluations in a row without gain that end the run; 0: none do
    misses: int = 0
    asked: bool = False
    diverged: bool = False

    def on_step_end(self, args, state, control, **_):
        asked = self.asked or time.monotonic() > self.until or (self.run.path / "stop").exists()
        self.asked = distributed.any_process(asked, args.device)
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
            memory=current_memory(),
        )  # fmt: skip
        norm = logs.get("grad_norm")
        # this step's update is made already: with a gradient that is not finite, the weights are not either. In
        # float16 such a gradient is expected, and its step is left out by the scaler.
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm) and not args.fp16):
            self.diverged = True
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False  # the checkpoints of before stay good ones


def current_memory() -> int:
    """Bytes that this process holds: of the GPU where there is one, else of the machine's memory."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
