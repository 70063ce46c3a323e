"""Train in slices on a ZeroGPU Space, where a GPU is lent for two minutes at a time: each slice resumes the one before.

No child process outlives a request there, so an event of the page trains, while the page watches the run folder as
usual. When the slices end early (a closed tab), the last one has left a checkpoint from which the run can be resumed.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from persona.errors import Message, PersonaError, RunError
from persona.models import zerogpu
from persona.train.run_folder import Run, open_run, record_worker

TRAINING_SECONDS = 60.0  # of a slice, for steps
OVERHEAD_SECONDS = 60.0  # of a slice: opening the base, measuring and saving
MAX_IDLE_SLICES = 3  # slices in a row without a step, after which the run fails: it would never end


def slice_seconds(folder: str) -> float:
    """Seconds of the GPU for the next slice: less than a whole one where the run is known to end in it."""
    progress = open_run(Path(folder)).progress()
    pace = progress.seconds / progress.step if progress.step else math.inf
    return OVERHEAD_SECONDS + min(TRAINING_SECONDS, (progress.steps - progress.step) * pace)


@zerogpu.request_gpu(slice_seconds)
def train_slice(folder: str) -> None:
    """Train one slice of the run in `folder`."""
    from persona.train.run import train_run

    train_run(open_run(Path(folder)), TRAINING_SECONDS)


def train_in_slices(run: Run) -> Iterator[str]:
    """Train a run to its end, or until it is stopped. Yields its name before each slice and at the end.

    Raises PersonaError where a slice fails or no GPU is granted; the run can be resumed then.
    """
    idle = 0
    (run.path / "stop").unlink(missing_ok=True)
    while True:
        yield run.name
        step_before = run.progress().step
        record_worker(run, os.getpid())  # until the slice has a process of its own
        run.log("state", state="starting", message=Message("Waiting for a share of the GPU …"))
        try:
            train_slice(str(run.path))
        except PersonaError:
            raise
        except Exception as e:  # from the GPU's process, where a PersonaError does not stay one
            progress = run.progress()
            if progress.status == "failed":  # the training itself has failed
                raise RunError(Message.of(progress.message)) from e
            # no GPU left for this visitor today: the Space says why
            run.log(
                "state",
                state="failed",
                message=Message("The GPU was not given ({reason}). Resume goes on from here.", reason=e),
            )
            raise RunError(
                "The GPU was not given: {reason}. What was trained is kept; Resume goes on from there.", reason=e
            ) from e
        progress = run.progress()
        if progress.status != "stopped" or (run.path / "stop").exists():
            yield run.name
            return
        idle = idle + 1 if progress.step <= step_before else 0
        if idle == MAX_IDLE_SLICES:
            raise RunError(
                "{work:g} seconds of GPU are too short for one step of this base. Choose a smaller one.",
                work=TRAINING_SECONDS,
            )
