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
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback
from trl import SFTTrainer

from persona import checkpoints, diary, hardware, memory, moments, processes
from persona.job import Job, save
from persona.loss import Collator, Scores, nll_sum, scores
from persona.render import IGNORED
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
    Rows are sorted within pools of POOL batches, of which few runs have more than one: a short row beside a long one is
    padding, and of 64 rows of one length or another the stock order made 43 % more positions than tokens, this 15 %.
    """

    POOL = 50  # batches; as many as transformers sorts at most

    def __init__(self, trainer: Any, lengths: list[int]):
        self.trainer, self.lengths = trainer, lengths
        self.size, self.joined = trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.trainer.state.global_step // math.ceil(len(self) / self.joined)
        dice = torch.Generator().manual_seed(self.trainer.args.data_seed + epoch)
        shuffled = torch.randperm(len(self.lengths), generator=dice).tolist()
        whole = self.size * self.joined  # the rows of a step stay together, into however many batches they are cut
        steps: list[list[int]] = []
        for start in range(0, len(shuffled), whole * self.POOL):
            pool = shuffled[start : start + whole * self.POOL]
            # stable: who shares a batch changes with the epoch
            pool.sort(key=lambda n: -memory.padded_length(self.lengths[n]))
            steps += [pool[n : n + whole] for n in range(0, len(pool), whole)]
        rest = [steps.pop()] if len(steps[-1]) < whole else []  # a step of fewer rows ends the epoch
        order = torch.randperm(len(steps), generator=dice).tolist()
        longest = max(order, key=lambda i: max(self.lengths[n] for n in steps[i]), default=None)
        order.sort(key=lambda i: i != longest)  # first: if memory is short, it shows at once
        for rows in [*(steps[i] for i in order), *rest]:
            yield from (rows[n : n + self.size] for n in range(0, len(rows), self.size))


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

    def __init__(self, *args: Any, job: Job, clock: Clock, watch: "Watch", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.job, self.clock, self.watch, self.run = job, clock, watch, job.run
        self.base_nll: float | None = None
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
        total, learned = nll_sum(model, inputs["input_ids"], inputs["labels"], inputs.get("position_ids"))
        loss = total / (num_items_in_batch if num_items_in_batch is not None else learned)
        return (loss, {}) if return_outputs else loss

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        if processes.count() > 1 and self.accelerator.sync_gradients:
            processes.sum_gradients(model.parameters())
        return loss * processes.count()  # of which the log takes the mean over processes

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out NLL, a page of the diary, and the adapter as it is now, kept beside the run's others."""
        self.clock.pause()
        step = self.state.global_step
        nll = self.measure(step)
        if processes.is_main():
            save(self.job, self.model, moments.folder(self.run, step), self.figures(step) | {"adapter_nll": nll})
        metrics = {"eval_loss": nll}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.clock.go()
        return metrics

    def measure(self, step: int) -> float:
        """Held-out NLL of the model as it is, row by row in the events, and its answers in the diary."""
        nll = 0.0
        if processes.is_main():
            with untouched_dice():
                found = self.held_out()
                nll = found.mean
                self.run.log("eval", step=step, nll=nll, rows=[round(nats, 4) for nats in found.nats])
                asked = diary.questions(self.run.card(), self.job.config.diary_probes)
                diary.write(self.run, self.model, self.job.renderer, asked, step)
        hardware.give_back_freed_memory()
        return processes.from_main(nll)

    def held_out(self) -> Scores:
        """By the main process alone: a tenth of the pairs, and the same figure on any number of processes."""
        collate, size = Collator(self.data_collator.pad_id), self.args.per_device_train_batch_size
        return scores(self.model, self.job.held_out, collate, size)  # never packed

    def figures(self, step: int) -> dict[str, Any]:
        seconds = max(self.clock.now(), 1e-9)
        return {
            "steps": step, "seconds": round(seconds, 2), "tokens_per_s": round(self.clock.tokens / seconds, 1),
            "learned_tokens_per_s": round(self.clock.learned / seconds, 1), "base_nll": self.base_nll,
            "adapter_nll": None,
        }  # fmt: skip

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
            checkpoints.prune(folder, step)
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
            memory=memory_now(),
        )  # fmt: skip
        norm = logs.get("grad_norm")
        # this step's update is made already: with a gradient that is not finite, the weights are not either. In
        # float16 such a gradient is expected, and its step is left out by the scaler.
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(norm) and not args.fp16):
            self.diverged = True
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False  # the checkpoints of before stay good ones


def memory_now() -> int:
    """Bytes that this process holds: of the GPU where there is one, else of the machine's memory."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
