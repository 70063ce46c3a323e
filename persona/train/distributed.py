"""Several processes that train one run together (`accelerate launch -m persona.train RUN`): one writes, all agree.

On CPUs accelerate starts one process without MPI; `torchrun --nproc-per-node 2 -m persona.train RUN` starts two.

A run is the same run on any number of them: each step learns from the same rows, batch_size × accumulation of them in
all, and each process takes its share. So more processes make it faster, never another run, and a run that was stopped
on two goes on with one. With one process, everything here does nothing.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate and torchrun


def process_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return process_rank() == 0


def init_processes() -> None:
    """Find the others. Before anything else here is called."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def wait_for_all() -> None:
    if process_count() > 1:
        dist.barrier()


def broadcast_from_main(value: Any) -> Any:
    """The value that the main process gave: what is measured or read from a disk may differ."""
    if process_count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_over_processes(value: int, device: Any) -> int:
    """The sum over all processes."""
    if process_count() == 1:
        return value
    box = torch.tensor(value, device=device)
    dist.all_reduce(box)
    return int(box)


def any_process(flag: bool, device: Any) -> bool:
    """Whether it is so in any process: what one decides alone would leave the others waiting for it."""
    return sum_over_processes(int(flag), device) > 0


def take_own_rows(rows: list[Any]) -> list[Any]:
    """The rows of this process: every process is given the same ones."""
    return rows[process_rank() :: process_count()]


def sum_gradients(parameters: Iterable[Any]) -> None:
    """Add up everybody's gradients. DistributedDataParallel would ask for its own forward(), which the loss goes
    around, and has nothing to gain where gradients are a few megabytes.
    """
    found = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten().float() for g in found])
    dist.all_reduce(flat)
    for gradient, part in zip(found, flat.split([g.numel() for g in found]), strict=True):
        gradient.copy_(part.view_as(gradient))
