"""Train one run in this process: `python -m persona.train RUN [--wait] [--deadline SECONDS]`.

With --wait, which is how the launcher starts it, the process first waits for the run's turn in the queue, without
torch. Otherwise it trains at once; so does each process of `accelerate launch -m persona.train RUN` or torchrun.
"""

import argparse
import os
from pathlib import Path

from persona.errors import PersonaError
from persona.train import engines, queue, run_folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m persona.train")
    parser.add_argument("run", type=Path)
    parser.add_argument("--deadline", type=float, default=None, help="seconds")
    parser.add_argument("--wait", action="store_true", help="wait for the run's turn in the queue first")
    options = parser.parse_args()
    run = run_folder.open_run(options.run)
    if options.wait:
        run_folder.record_worker(run, os.getpid())
        lock = queue.wait_for_turn(run)  # held for as long as this process lives
        if lock is None:
            return 0
    try:
        engines.import_unsloth(run.config())
    except PersonaError as e:
        run.log("state", state="failed", message=e.message)
        return 1
    from persona.train.run import train_run  # imports torch: not while waiting

    try:
        train_run(run, options.deadline)
    except PersonaError:
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
