"""This machine → a Plan: device and number format; with a base and its rows, how a run fits and how long it takes."""

import contextlib
import ctypes
import os
import platform
import re
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import psutil

from persona import memory
from persona.errors import Message, join
from persona.memory import Memory, Shape, Work


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
class Plan:
    """How to run on a machine, and why, in a sentence for the page."""

    device: str
    train_dtype: str
    chat_dtype: str
    reason: str


@dataclass(frozen=True)
class TrainingPlan(Plan):
    """A Plan for one base and its rows. batch_size × accumulation is what the settings ask for."""

    quantization: str
    batch_size: int
    accumulation: int
    checkpointing: bool
    memory: Memory
    limit: int  # bytes that the run may use
    fits: bool
    lower_dtype: bool  # bfloat16 only because float32 does not fit


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


def make_plan(machine: Machine, dtype: str = "auto") -> Plan:
    """The plan for a machine; `dtype` other than auto is the user's choice and kept."""
    if machine.device == "cuda":
        half = "bfloat16" if machine.bf16 else "float16"
        measured = dict(machine.rates)
        auto = half if measured.get(half, 1.0) > measured.get("float32", 0.0) else "float32"
        chosen = auto if dtype == "auto" else dtype
        return Plan(
            "cuda",
            chosen,
            auto,
            Message("{machine}: training in {chosen} on the GPU.", machine=machine.name, chosen=chosen),
        )
    if machine.device == "mps":
        chosen = "float32" if dtype == "auto" else dtype
        return Plan(
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
    return Plan("cpu", auto if dtype == "auto" else dtype, "float32", reason)


# Of the memory there is: the system wants some, a GPU's allocator leaves gaps, Apple's lets a program have about 70 %
# (Metal's recommendedMaxWorkingSetSize). Not measured by us on a GPU.
USABLE = {"cuda": 0.92, "mps": 0.7, "cpu": 0.9}
BITSANDBYTES = ("cuda", "cpu")  # where it can quantize
READING = 128  # reading all weights for a forward pass is counted like so many tokens: why a batch of 1 is slow


def plan_training(machine: Machine, shape: Shape, work: Work, accumulation: int = 1, dtype: str = "auto",
                  free: int | None = None) -> TrainingPlan:  # fmt: skip
    """The fastest way to run `work` that fits into the machine, the base kept as it is as long as possible.

    work: the user's settings, whose checkpointing and quantization are kept when they are on; its dtype and device
    are not read. free: bytes now free, where that is known. Where nothing fits, the plan is the smallest way.
    """
    plan = make_plan(machine, dtype)
    limit = int(min(machine.memory * USABLE[machine.device], machine.memory if free is None else free))
    dtypes = [plan.train_dtype]
    if dtype == "auto" and plan.train_dtype == "float32" and machine.bf16:
        dtypes.append("bfloat16")  # slower here, but half the size
    kinds = [work.quantization]
    if work.quantization == "none" and machine.device in BITSANDBYTES:
        kinds += ["int8", "nf4"]
    tried = []
    for kind in kinds:
        for name in dtypes:
            start = replace(work, device=machine.device, dtype=name, quantization=kind)
            tried += [(w, memory.estimate(shape, w)) for w in sorted(_ways(start), key=_cost)]
    chosen = next(((w, m) for w, m in tried if m.total <= limit), None)
    w, need = chosen or min(tried, key=lambda x: x[1].total)
    steps = work.batch * accumulation // w.batch
    plan = make_plan(machine, w.dtype if w.dtype != plan.train_dtype else dtype)
    reason = join(" ", [plan.reason, *_changes(work, w, steps, w.dtype != dtypes[0])])
    return TrainingPlan(machine.device, w.dtype, plan.chat_dtype, reason, w.quantization, w.batch, steps,
                        w.checkpointing, need, limit, chosen is not None, w.dtype != dtypes[0])  # fmt: skip


def _ways(work: Work) -> list[Work]:
    """The same rows a step in smaller batches, with and without checkpointing."""
    batches = [b for b in range(1, work.batch + 1) if work.batch % b == 0]
    return [replace(work, batch=b, checkpointing=c) for b in batches for c in {work.checkpointing, True}]


def _cost(work: Work) -> float:
    """How much longer a token takes than in an endless batch."""
    return (1 + READING / (work.batch * work.length)) * (1.5 if work.checkpointing else 1)  # memory.step_flops: 6 for 4


def _changes(asked: Work, w: Work, steps: int, other_dtype: bool) -> list[str]:
    said: list[str] = []
    if other_dtype:
        said.append(Message("float32 would not fit."))
    if w.batch != asked.batch:
        said.append(
            Message("To fit, a step's rows go through {batch} at a time, {steps} times.", batch=w.batch, steps=steps)
        )
    if w.checkpointing and not asked.checkpointing:
        said.append(Message("To fit, activations are recomputed instead of kept (gradient checkpointing): slower."))
    if w.quantization != asked.quantization:
        bits = 4 if w.quantization == "nf4" else 8
        said.append(Message("It fits only with the base's weights in {bits} bits.", bits=bits))
    return said


# Besides its matmuls a step has norms, attention, activations and the optimizer, in float32 and bound by memory. On a
# CPU they cost 0.6 of what the matmuls would in float32, whatever the matmuls' own format: three runs in the tests
# took 9.5 ms a token in float32, 3.8 in bfloat16 and 5.3 with checkpointing; this gives 8.9, 3.9 and 5.0.
REST = 0.6
EFFICIENCY = 0.3  # the part of a GPU's matmul rate that training reaches; a usual figure, not measured by us
STARTING = 20.0  # seconds until the first step: imports, tokenizer, weights


def seconds_needed(machine: Machine, shape: Shape, plan: TrainingPlan, tokens: float, learned: float,
                   evaluated: float, rate: float | None = None) -> float | None:  # fmt: skip
    """Seconds from Start to the adapter, or None where the machine's rate is not known.

    tokens, learned: of all steps; evaluated: tokens of all evaluations, which go forward only. rate: tokens/s of a
    finished run with this base on this machine, which knows better than the measured matmuls.
    """
    if rate:
        return STARTING + tokens / rate + evaluated / rate / 2
    rates = dict(machine.rates)
    if plan.train_dtype not in rates or "float32" not in rates:
        return None
    work = memory.step_flops(shape, tokens, learned, plan.checkpointing)
    work += memory.step_flops(shape, evaluated, evaluated * learned / max(tokens, 1)) / 2
    if machine.device == "cpu":
        return STARTING + work / rates[plan.train_dtype] + work * REST / rates["float32"]
    return STARTING + work / (rates[plan.train_dtype] * EFFICIENCY)


def is_out_of_memory(e: BaseException) -> bool:
    """Of the machine's memory or a GPU's. torch says it for a CPU with a plain RuntimeError."""
    return isinstance(e, MemoryError) or is_gpus(e) or (isinstance(e, RuntimeError) and "DefaultCPUAllocator" in str(e))


def is_gpus(e: BaseException) -> bool:
    return type(e).__name__ == "OutOfMemoryError"  # torch's; not imported for a comparison


def spin_less() -> None:
    """Let a core go soon after its share of an operation is done; call it before torch is imported.

    GNU OpenMP's threads wait by spinning for milliseconds. Beside a browser, or a chat beside a training, they keep
    the cores from whom they wait for: a step then took five times as long. Alone it makes no measurable difference.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def few_arenas() -> None:
    """Let all threads share two of glibc's heaps; call it before there are threads.

    Else each new thread gets one of its own, up to eight a core, and what was freed in one serves no other: the page,
    which answers in many threads, grew with use. Elsewhere than on glibc this does nothing.
    """
    _glibc("mallopt", -8, 2)  # M_ARENA_MAX of malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of giving them back to the kernel.

    A training step frees and asks again for the same hundreds of megabytes; zeroing new pages each time cost 40 % of a
    step. Elsewhere than on glibc this does nothing.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    _glibc("mallopt", mmap_max, 0)
    _glibc("mallopt", trim_threshold, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Let the kernel have freed memory again that glibc keeps. Call it now and then, not in every step.

    Kernels that oneDNN keeps for each shape lie between freed blocks, and a batch of another length finds no room in
    the gaps: the heap grows on, in training and in chat. The pages of the gaps at least can go. Elsewhere than on glibc
    this does nothing.
    """
    _glibc("malloc_trim", 0)


def _glibc(function: str, *given: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), function)(*given)


def peak_resident() -> int:
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
