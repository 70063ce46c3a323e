"""TRL's SFTTrainer as a run uses it: exact loss, batches and checkpoints that resume exactly, held-out evaluation."""

import itertools
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import SFTTrainer

from persona.models.loss import nll_sum
from persona.template.render import IGNORE_INDEX
from persona.train import checkpoints, distributed
from persona.train.clock import TrainingClock
from persona.train.collator import collate_own_rows
from persona.train.evaluator import Evaluator
from persona.train.monitor import ResourceMonitor
from persona.train.run_folder import Run
from persona.train.sampler import LengthGroupedBatchSampler


class Trainer(SFTTrainer):
    """SFTTrainer with the loss of models/loss.py, an Evaluator's evaluation, and checkpoints that resume exactly."""

    control: Any
    loss_is_scaled_for_ga = True  # compute_loss divides by the learned tokens of the whole accumulated batch

    def __init__(
        self, *args: Any, clock: TrainingClock, callback: "RunCallback", evaluator: Evaluator, **kwargs: Any
    ) -> None:
        super().__init__(*args, callbacks=[callback], **kwargs)
        self.clock, self.callback, self.evaluator = clock, callback, evaluator
        if distributed.process_count() > 1:  # no DistributedDataParallel: see distributed.sum_gradients
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def get_train_dataloader(self) -> DataLoader:
        batches = LengthGroupedBatchSampler(
            self._row_lengths(), self.args.per_device_train_batch_size,
            self.args.gradient_accumulation_steps, self.args.data_seed, lambda: self.state.global_step,
            self.evaluator.prepared.config.group_by_length,
        )  # fmt: skip
        collate = (
            partial(collate_own_rows, self.data_collator) if distributed.process_count() > 1 else self.data_collator
        )
        # with a generator of its own: the loader draws a number at each start
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=collate, generator=torch.Generator(),
                          pin_memory=self.args.dataloader_pin_memory)  # fmt: skip

    def _row_lengths(self) -> list[int]:
        """Tokens of each row of an epoch."""
        return [len(ids) for ids in self.train_dataset["input_ids"]]

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step, and how many tokens all processes together learn from them."""
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
        return loss * distributed.process_count()  # the log takes the mean over processes of it

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out NLL and samples, logged, and the adapter as it is now, saved as a snapshot."""
        self.clock.pause()
        step = self.state.global_step
        nll = self.evaluator.evaluate(self.model, step)
        self.evaluator.save_snapshot(self.model, step, nll)
        metrics = {"eval_loss": nll}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock.resume()
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        """The LoRA alone: the tokenizer is the base's, and Gemma's would add 33 MB to each checkpoint."""
        self.model.save_pretrained(output_dir, save_embedding_layers=False)  # called in the main process alone

    def _save_checkpoint(self, model, trial):
        self.clock.pause()
        folder, step = Path(self.args.output_dir), self.state.global_step
        checkpoint = checkpoints.checkpoint_dir(folder, step)
        # what a killed process has left of it; returns in each process once it is gone
        distributed.run_on_main(lambda: shutil.rmtree(checkpoint, ignore_errors=True))
        super()._save_checkpoint(model, trial)
        distributed.wait_for_all()
        session = {"clock": asdict(self.clock), "misses": self.callback.misses}
        keep = self.evaluator.prepared.config.save_total_limit
        distributed.run_on_main(lambda: checkpoints.mark_complete(checkpoint, session))
        distributed.run_on_main(lambda: checkpoints.prune_checkpoints(folder, step, keep))
        self.clock.resume()


@dataclass
class RunCallback(TrainerCallback):
    """Logs each step, and ends the run at a step boundary: when asked to, or when nothing gets better.

    deadline: time.monotonic() at which to stop. patience: evaluations in a row without gain that end the run; 0: none.
    logging_steps: steps between two losses of the record and of a tracker, each their mean; the last step has one too.
    """

    run: Run
    clock: TrainingClock
    patience: int = 0
    deadline: float = math.inf
    misses: int = 0  # evaluations in a row without gain so far
    stop_requested: bool = False  # a signal handler may set it
    diverged: bool = False
    monitor: ResourceMonitor = field(default_factory=ResourceMonitor)
    logging_steps: int = 1
    losses: list[float] = field(default_factory=list)  # of the steps since the last one that was recorded

    def on_train_begin(self, args, state, control, optimizer, lr_scheduler, **_):
        """Set what a checkpoint brings of the settings that it was made with: the run's may have changed since."""
        state.compute_steps(args, state.max_steps)
        lr_scheduler.base_lrs = [args.learning_rate] * len(lr_scheduler.base_lrs)
        for group, schedule in zip(optimizer.param_groups, lr_scheduler.lr_lambdas, strict=True):
            group["initial_lr"] = args.learning_rate
            group["lr"] = args.learning_rate * schedule(lr_scheduler.last_epoch)
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # which is what is logged

    def is_asked_to_stop(self) -> bool:
        return self.stop_requested or time.monotonic() > self.deadline or self.run.is_asked_to_stop()

    def on_step_end(self, args, state, control, **_):
        self.stop_requested = distributed.any_process(self.is_asked_to_stop(), args.device)
        if self.stop_requested:
            control.should_training_stop = control.should_save = True
        return control

    def on_evaluate(self, args, state, control, metrics, **_):
        improved = state.best_metric is None or metrics["eval_loss"] < state.best_metric
        self.misses = 0 if improved else self.misses + 1
        if self._is_out_of_patience():
            control.should_training_stop = True

    def _is_out_of_patience(self) -> bool:
        return bool(self.patience and self.misses >= self.patience)

    def is_finished(self, state: Any) -> bool:
        """Whether the run has reached its last step, or its early stop. state: the TrainerState."""
        return state.global_step >= state.max_steps or self._is_out_of_patience()

    def on_log(self, args, state, control, logs=None, **_):
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        norm = logs.get("grad_norm")
        self.losses.append(loss)
        is_last = state.global_step >= state.max_steps or not math.isfinite(loss)
        recorded = None
        if is_last or state.global_step % self.logging_steps == 0:
            recorded = sum(self.losses) / len(self.losses)
            self.losses.clear()
        # what a tracker is sent after this
        logs.pop("loss")
        logs.update({} if recorded is None else {"loss": recorded})
        self.run.log(
            "step", step=state.global_step, loss=recorded, learning_rate=logs.get("learning_rate"), grad_norm=norm,
            seconds=round(self.clock.elapsed(), 3), tokens=self.clock.tokens, **self.monitor.sample(),
            **{name: logs[name] for name in ("reward_margin", "reward_chosen") if name in logs},
        )  # fmt: skip
        # this step's update is made already: with a gradient that is not finite, the weights are not either. In
        # float16 such gradients are expected, and the scaler skips their steps.
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm) and not args.fp16):
            self.diverged = True
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False  # the last checkpoint stays a good one
