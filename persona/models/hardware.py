"""This machine → a Plan: device and number format; with a base and its rows, how a run fits and how long it takes."""

import contextlib
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from persona.errors import Message


@dataclass(frozen=True)
class Machine:
    """What matters for training. memory: bytes that a model may use on the device; rates: matmul FLOP/s by dtype."""

    device: str  # cuda, mps or cpu
    name: str
    memory: int
    cores: int
    rates: tuple[tuple[str, float], ...] = ()
    bf16: bool = True  # whether the device computes in bfloat16 at all


@dataclass(frozen=True)
class DevicePlan:
    """How to run on a machine, and why, in a sentence for the page."""

    device: str
    train_dtype: str
    chat_dtype: str
    reason: str


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Look once, and measure a few milliseconds of matmul: what a CPU is called says little about its bfloat16."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        # with emulation every GPU says yes: a T4 then computes bfloat16 many times slower than float16
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        rates = tuple((d, _matmul_rate(d, "cuda")) for d in ("float32", "bfloat16" if bf16 else "float16"))
        return Machine("cuda", gpu.name, gpu.total_memory, os.cpu_count() or 1, rates, bf16)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = psutil.virtual_memory().total
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    rates = tuple((d, _matmul_rate(d, device)) for d in ("float32", "bfloat16"))
    return Machine(device, platform.processor() or platform.machine(), total, cores, rates)


def free_memory(machine: Machine) -> int:
    """Bytes that nobody uses at this moment, this program's own models included in what is used."""
    if machine.device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def _matmul_rate(dtype: str, device: str) -> float:
    """FLOP/s of a (512, 640) × (640, 2048) product, the shape of a small model's layers; the best of a few.

    On a GPU (2048, 4096) × (4096, 4096): the small one would only time its launch.
    """
    import torch

    n, k, m = (512, 640, 2048) if device == "cpu" else (2048, 4096, 4096)
    a = torch.randn(n, k, device=device).to(getattr(torch, dtype))
    b = torch.randn(m, k, device=device).to(getattr(torch, dtype))
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    best = float("inf")
    for _ in range(6):
        wait()
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * n * k * m / best


def plan_device(machine: Machine, dtype: str = "auto") -> DevicePlan:
    """The plan for a machine; `dtype` other than auto is the user's choice and kept."""
    if machine.device == "cuda":
        half = "bfloat16" if machine.bf16 else "float16"
        measured = dict(machine.rates)
        auto = half if measured.get(half, 1.0) > measured.get("float32", 0.0) else "float32"
        chosen = auto if dtype == "auto" else dtype
        return DevicePlan(
            "cuda",
            chosen,
            auto,
            Message("{machine}: training in {chosen} on the GPU.", machine=machine.name, chosen=chosen),
        )
    if machine.device == "mps":
        chosen = "float32" if dtype == "auto" else dtype
        return DevicePlan(
            "mps", chosen, "float32", Message("Apple GPU: training in {chosen}. Not verified by us.", chosen=chosen)
        )
    rate = dict(machine.rates)
    gain = rate["bfloat16"] / rate["float32"]
    auto = "bfloat16" if gain > 1.3 else "float32"
    reason = Message(
        "No GPU: training on {cores} CPU cores in {auto}; measured here, bfloat16 matmuls run at {gain:.1f}× "
        "the float32 rate.",
        cores=machine.cores,
        auto=auto if dtype == "auto" else dtype,
        gain=gain,
    )
    # decoding one token reads all weights once per step; float32 reads are as fast or faster on CPUs (measured)
    return DevicePlan("cpu", auto if dtype == "auto" else dtype, "float32", reason)


def is_out_of_memory(e: BaseException) -> bool:
    """Of the machine's memory or a GPU's. torch says it for a CPU with a plain RuntimeError."""
    return (
        isinstance(e, MemoryError)
        or is_gpu_out_of_memory(e)
        or (isinstance(e, RuntimeError) and "DefaultCPUAllocator" in str(e))
    )


def is_gpu_out_of_memory(e: BaseException) -> bool:
    return type(e).__name__ == "OutOfMemoryError"  # torch's; not imported for a comparison


def peak_resident_memory() -> int:
    """Bytes of memory that this process has held at most.

    Linux tells it of the program alone (VmHWM of proc(5)). Its ru_maxrss is not that: a process started by fork and
    exec begins with the peak of the one that started it, such as a page that holds a model.
    """
    with contextlib.suppress(OSError):  # no Linux
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
