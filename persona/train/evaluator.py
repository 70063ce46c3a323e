"""What happens at each evaluation of a run: held-out NLL, samples, and a snapshot of the adapter."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from persona.models import malloc
from persona.models.loss import NllScores, score_examples
from persona.template.render import TrainingExample
from persona.train import distributed, sample_log, snapshots
from persona.train.clock import TrainingClock
from persona.train.collator import Collator
from persona.train.config import count_rehearsal
from persona.train.prepare import PreparedRun, save_run_adapter


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Random numbers drawn inside leave the generators' state as it was."""
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield


class Evaluator:
    """Measures and saves a model on behalf of one run. Only the main process does; all get the result.

    base_nll, start_nll: held-out NLL of the base and of the adapter that the run goes on from, once they are known.
    """

    def __init__(self, prepared: PreparedRun, clock: TrainingClock) -> None:
        self.prepared, self.clock = prepared, clock
        self.base_nll: float | None = None
        self.start_nll: float | None = None

    def evaluate(self, model: Any, step: int, *, event: str = "eval", samples: bool = True) -> float:
        """Held-out NLL in nats per learned token, logged with that of each row; then the samples are logged."""
        nll = distributed.run_on_main(lambda: self._evaluate(model, step, event, samples))
        malloc.trim_malloc()
        return nll

    def _evaluate(self, model: Any, step: int, event: str, samples: bool) -> float:
        run, config = self.prepared.run, self.prepared.config
        with preserve_rng_state():
            scores, facts = self.measure(model)
            run.log(event, step=step, nll=scores.mean, rows=[round(nats, 4) for nats in scores.nats], **facts)
            questions = sample_log.choose_sample_questions(run.card(), config.diary_probes if samples else 0)
            sample_log.log_samples(run, model, self.prepared.renderer, questions, step)
        return scores.mean

    def measure(self, model: Any) -> tuple[NllScores, dict[str, Any]]:
        """The held-out scores, and what else an evaluation's event has."""
        return self.score_held_out(model), {}

    def score_held_out(self, model: Any) -> NllScores:
        """By this process alone: it is a few hundred pairs, and the figure is the same on any number of processes."""
        return self._score(model, self.prepared.held_out)

    def _score(self, model: Any, examples: Sequence[TrainingExample]) -> NllScores:
        collate = Collator(self.prepared.renderer.tokenizer.pad_token_id)  # never packed
        return score_examples(model, examples, collate, self.prepared.config.batch_size)

    def final_figures(self, model: Any) -> dict[str, Any]:
        """What else the result of a run has, of the model with the run's adapter."""
        return {}

    def save_snapshot(self, model: Any, step: int, nll: float) -> None:
        target = snapshots.snapshot_dir(self.prepared.run, step)
        distributed.run_on_main(lambda: self.save_adapter(model, target, step, nll))

    def save_adapter(self, model: Any, target: Path, step: int, nll: float | None) -> None:
        """Write the model's adapter of `step` to the folder `target`, with its figures."""
        save_run_adapter(self.prepared, model, target, self.figures(step) | {"adapter_nll": nll})

    def figures(self, step: int) -> dict[str, Any]:
        """The figures of a run at `step`, as its result and its adapter's run.json hold them."""
        nlls = {"base_nll": self.base_nll, "adapter_nll": None}
        if self.start_nll is not None:
            nlls["start_nll"] = self.start_nll
        rehearsed = count_rehearsal(self.prepared.config, len(self.prepared.train))
        return {"steps": step, **self.clock.figures(), **nlls, **({"rehearsal_rows": rehearsed} if rehearsed else {})}
