"""This machine's device, memory and speed, and the plan for it: the device and number formats to compute with."""

import contextlib
import gc
import os
import platform
import re
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import psutil

from persona.errors import Message
from persona.store import deployment


@dataclass(frozen=True)
class Machine:
    """A machine, as far as it matters for training. memory: bytes on the device; rates: matmul FLOP/s by dtype."""

    device: str  # cuda, mps or cpu
    name: str
    memory: int
    cores: int
    rates: tuple[tuple[str, float], ...] = ()
    bf16: bool = True  # whether the device supports bfloat16
    gpus: int = 1  # of this kind; `memory` is that of one


@dataclass(frozen=True)
class DevicePlan:
    """Device and number formats for training and chat; reason: why, in a sentence for people."""

    device: str
    train_dtype: str
    chat_dtype: str
    reason: str


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """This machine, cached. A few milliseconds of matmul are timed: a CPU's name says little about its bfloat16.

    On ZeroGPU nothing is: this may be asked where there is no GPU yet, only its properties.
    """
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        # with emulation every GPU has it: a T4 then computes bfloat16 many times slower than float16
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        timed = () if deployment.has_zerogpu() else ("float32", "bfloat16" if bf16 else "float16")
        rates = tuple((d, _matmul_rate(d, "cuda")) for d in timed)
        return Machine("cuda", gpu.name, gpu.total_memory, os.cpu_count() or 1, rates, bf16, torch.cuda.device_count())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total = psutil.virtual_memory().total
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    rates = tuple((d, _matmul_rate(d, device)) for d in ("float32", "bfloat16"))
    return Machine(device, platform.processor() or platform.machine(), total, cores, rates)


def free_memory(machine: Machine) -> int:
    """Bytes of the device's memory that are free now; what this process has loaded counts as used."""
    if machine.device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def free_gpu_memory(machine: Machine) -> list[int]:
    """Bytes that are free now on each GPU, with what torch keeps of models that are gone; [] without a GPU."""
    if machine.device != "cuda":
        return []
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return [torch.cuda.mem_get_info(n)[0] for n in range(machine.gpus)]


_fastest: dict[tuple[str, str], float] = {}  # (dtype, device) → FLOP/s


def best_machine() -> Machine:
    """this_machine(), at the most that was measured since this process started: it may have been busy at the start."""
    machine = this_machine()
    best = tuple((dtype, max(rate, _fastest.get((dtype, machine.device), 0.0))) for dtype, rate in machine.rates)
    return replace(machine, rates=best)


@lru_cache(maxsize=1)
def _rates_at(minute: int) -> tuple[tuple[str, float], ...]:
    machine = this_machine()
    return tuple((dtype, _matmul_rate(dtype, machine.device, 12, best=False)) for dtype, _ in machine.rates)


def rates_now() -> tuple[tuple[str, float], ...]:
    """Matmul FLOP/s by dtype that this machine gives beside what else it does now, timed once a minute.

    On a CPU no less than a fair share: a timing of milliseconds is easily stalled for many times as long.
    """
    measured, machine = _rates_at(int(time.monotonic() / 60)), best_machine()
    if machine.device != "cpu":
        return measured
    others = max(psutil.getloadavg()[0], 2.0 * machine.cores)  # the load of the last minute may be less than now
    share = machine.cores / (machine.cores + others)
    return tuple((dtype, max(rate, share * dict(machine.rates)[dtype])) for dtype, rate in measured)


def _matmul_rate(dtype: str, device: str, times: int = 6, best: bool = True) -> float:
    """FLOP/s of a matrix product, best or mean: (512, 640) × (640, 2048), the shape of a small model's layers.

    On a GPU (2048, 4096) × (4096, 4096): with the small one, mostly the launch would be measured.
    """
    import torch

    n, k, m = (512, 640, 2048) if device == "cpu" else (2048, 4096, 4096)
    a = torch.randn(n, k, device=device).to(getattr(torch, dtype))
    b = torch.randn(m, k, device=device).to(getattr(torch, dtype))
    synchronize = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device, lambda: None)
    seconds = []
    for _ in range(times):
        synchronize()
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        synchronize()
        seconds.append(time.perf_counter() - start)
    work, mean = 2 * n * k * m, sum(seconds) / times
    fastest = _fastest[dtype, device] = max(work / min(seconds), _fastest.get((dtype, device), 0.0))
    return fastest if best else work / mean


def plan_device(machine: Machine, dtype: str = "auto") -> DevicePlan:
    """The plan for a machine. dtype: the user's choice for training; auto: the fastest format that was measured."""
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
    # chat in float32: a step of generation reads all weights once, on a CPU as fast as in bfloat16 or faster (measured)
    return DevicePlan("cpu", auto if dtype == "auto" else dtype, "float32", reason)


def is_out_of_memory(e: BaseException) -> bool:
    """Whether an error means that the machine's or a GPU's memory ran out. On a CPU, torch raises a RuntimeError."""
    return (
        isinstance(e, MemoryError)
        or is_gpu_out_of_memory(e)
        or (isinstance(e, RuntimeError) and "DefaultCPUAllocator" in str(e))
    )


def is_gpu_out_of_memory(e: BaseException) -> bool:
    """Whether it is torch's OutOfMemoryError; by name, so that torch need not be imported."""
    return type(e).__name__ == "OutOfMemoryError"


def peak_resident_memory() -> int:
    """The most memory that this process has held, in bytes.

    On Linux from VmHWM of proc(5). ru_maxrss is not the program's own there: after fork and exec it starts with the
    peak of the parent process, such as a page that holds a model.
    """
    with contextlib.suppress(OSError):  # no Linux
        if match := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(match[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
