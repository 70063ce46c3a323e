"""Training where the GPU is lent for a minute at a time: slice after slice, each of which resumes the one before.

No child process outlives a request on ZeroGPU, so the page's own event does the work. The run folder is what it always
is, and the page watches its events. A slice that is not renewed (a closed tab) leaves a checkpoint: Resume goes on.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from persona.errors import Message, PersonaError, RunError
from persona.models import zerogpu
from persona.train.run_folder import Run, open_run, record_worker

SLICE_SECONDS = 120  # seconds asked for: ZeroGPU lets anyone have this much at once
TRAINING_SECONDS = 60.0  # of them, after which the loop stops; the rest opens the base, measures and saves
MAX_IDLE_SLICES = 3  # slices without one step, after which it would never end


@zerogpu.request_gpu(SLICE_SECONDS)
def train_slice(folder: str) -> None:
    """One slice of the run in `folder`."""
    from persona.train.run import train_run

    train_run(open_run(Path(folder)), TRAINING_SECONDS)


def train_in_slices(run: Run) -> Iterator[str]:
    """Train `run` to its end or until it is stopped. Yields its name, before each slice and at the end."""
    idle = 0
    (run.path / "stop").unlink(missing_ok=True)
    while True:
        yield run.name
        before = run.progress().step
        record_worker(run, os.getpid())  # until the slice has a process of its own
        run.log("state", state="starting", message=Message("Waiting for a share of the GPU …"))
        try:
            train_slice(str(run.path))
        except PersonaError:
            raise
        except Exception as e:  # what crosses from the GPU's process is no PersonaError any more
            seen = run.progress()
            if seen.status == "failed":  # said by the training itself
                raise RunError(Message.of(seen.message)) from e
            # no GPU left for this visitor today: the words are those of the Space
            run.log(
                "state",
                state="failed",
                message=Message("The GPU was not given ({reason}). Resume goes on from here.", reason=e),
            )
            raise RunError(
                "The GPU was not given: {reason}. What was trained is kept; Resume goes on from there.", reason=e
            ) from e
        now = run.progress()
        if now.status != "stopped" or (run.path / "stop").exists():
            yield run.name
            return
        idle = idle + 1 if now.step <= before else 0
        if idle == MAX_IDLE_SLICES:
            raise RunError(
                "{work:g} seconds of GPU are too short for one step of this base. Choose a smaller one.",
                work=TRAINING_SECONDS,
            )
