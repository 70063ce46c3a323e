"""What the card itself can do: its rates of multiplying and of copying."""

import time
from functools import lru_cache
from typing import Any

import torch

from persona.models import hardware


def measure_card(tiny: bool = False) -> dict[str, Any]:
    """Matmul rates in FLOP/s, and the rate of reading and writing memory in bytes/s."""
    machine = hardware.this_machine()
    return {
        "card": machine.name,
        "device": machine.device,
        "memory_bytes": machine.memory,
        "torch": torch.__version__,
        "rates": dict(machine.rates),
        "matmul_rate": matmul_rate(),
        "bandwidth": copy_rate(machine.device, 2**24 if tiny else 2**30),
    }


def copy_rate(device: str, size: int) -> float:
    """Bytes read and written a second by a copy of `size` bytes, the best of five."""
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        b.copy_(a)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


@lru_cache(maxsize=1)
def matmul_rate() -> float:
    """FLOP/s of the device in half precision: on a GPU the best of ten products of (8192, 8192) matrices."""
    machine = hardware.this_machine()
    half = "bfloat16" if machine.bf16 else "float16"
    if machine.device != "cuda":
        return dict(machine.rates)[half]
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=getattr(torch, half)) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * 8192**3 / best
