"""Several processes train one run together: `accelerate launch -m persona.train RUN`. One of them writes.

On CPUs accelerate starts a single process without MPI; `torchrun --nproc-per-node 2 -m persona.train RUN` starts two.

A run is the same run on any number of processes: each step learns from the same batch_size × accumulation rows, of
which each process takes its share. More processes make it faster and never another run, and a run that was stopped on
two continues on one. With a single process every function here is a no-op.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate and torchrun


def process_rank() -> int:
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes to the run folder; a page or command line always is."""
    return process_rank() == 0


def init_processes() -> None:
    """Connect the processes. To be called before anything else here."""
    if process_count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def wait_for_all() -> None:
    if process_count() > 1:
        import torch.distributed as dist

        dist.barrier()


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` in the main process alone; every process returns its result.

    For what writes to disk, and for what is measured or read and might differ between processes.
    """
    result: list[Any] = [function() if is_main_process() else None]
    if process_count() > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(result, src=0)
    return result[0]


def sum_over_processes(value: int, device: Any) -> int:
    if process_count() == 1:
        return value
    import torch
    import torch.distributed as dist

    total = torch.tensor(value, device=device)
    dist.all_reduce(total)
    return int(total)


def any_process(flag: bool, device: Any) -> bool:
    """Whether `flag` is true in any process: what one decides alone would leave the others waiting for it."""
    return sum_over_processes(int(flag), device) > 0


def take_own_rows(rows: list[Any]) -> list[Any]:
    """The rows that this process computes, of a batch that every process is given whole."""
    return rows[process_rank() :: process_count()]


def sum_gradients(parameters: Iterable[Any]) -> None:
    """Replace each gradient by its sum over all processes.

    DistributedDataParallel would need its own forward(), which the loss bypasses, and gains nothing where gradients
    are a few megabytes.
    """
    import torch
    import torch.distributed as dist

    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten().float() for g in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
