"""This machine → a Plan: device, number format, batch, and an estimate of the memory that a run needs."""

import ctypes
import os
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psutil


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


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Look once, and measure a few milliseconds of matmul: what a CPU is called says little about its bfloat16."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Machine("cuda", gpu.name, gpu.total_memory, os.cpu_count() or 1, bf16=torch.cuda.is_bf16_supported())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    if torch.backends.mps.is_available():
        return Machine("mps", platform.machine(), memory, cores)
    rates = tuple((dtype, _matmul_rate(dtype)) for dtype in ("float32", "bfloat16"))
    return Machine("cpu", platform.processor() or platform.machine(), memory, cores, rates)


def _matmul_rate(dtype: str) -> float:
    """FLOP/s of a (512, 640) × (640, 2048) product, the shape of a small model's layers; the best of a few."""
    import torch

    a = torch.randn(512, 640, dtype=getattr(torch, dtype))
    b = torch.randn(2048, 640, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * 512 * 640 * 2048 / best


def make_plan(machine: Machine, dtype: str = "auto") -> Plan:
    """The plan for a machine; `dtype` other than auto is the user's choice and kept."""
    if machine.device == "cuda":
        auto = "bfloat16" if machine.bf16 else "float16"
        chosen = auto if dtype == "auto" else dtype
        return Plan("cuda", chosen, auto, f"{machine.name}: training in {chosen} on the GPU.")
    if machine.device == "mps":
        chosen = "float32" if dtype == "auto" else dtype
        return Plan("mps", chosen, "float32", f"Apple GPU: training in {chosen}. Not verified by us.")
    rate = dict(machine.rates)
    gain = rate["bfloat16"] / rate["float32"]
    auto = "bfloat16" if gain > 1.3 else "float32"
    reason = (
        f"No GPU: training on {machine.cores} CPU cores in {auto if dtype == 'auto' else dtype}; measured here, "
        f"bfloat16 matmuls run at {gain:.1f}× the float32 rate."
    )
    # decoding one token reads all weights once per step; float32 reads are as fast or faster on CPUs (measured)
    return Plan("cpu", auto if dtype == "auto" else dtype, "float32", reason)


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def estimate_memory(config: dict[str, Any], weights: int, dtype: str, batch: int, length: int, lora_r: int) -> int:
    """Bytes that a LoRA run needs at its peak, roughly: weights, activations, logits, adapter, runtime.

    config: the base's config.json; weights: number of parameters. Activations kept for the backward pass are counted
    as about 34 hidden-size vectors and 6 MLP-size vectors a token and layer (Korthikanti et al. 2022, §4, without
    recomputation), logits for a third of the positions in float32, three times (logits, softmax, gradient).
    """
    text = config.get("text_config", config)
    hidden, layers, vocab = text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]
    inner = text.get("intermediate_size", 4 * hidden)
    tokens = batch * length
    size = BYTES.get(dtype, 4)
    activations = tokens * layers * (14 * hidden + 6 * inner) * size
    logits = tokens // 3 * vocab * 4 * 3
    adapter = lora_r * layers * (8 * hidden + 3 * inner + 3 * hidden) * 4 * 4
    return weights * size + activations + logits + adapter + 700_000_000


def spin_less() -> None:
    """Let a core go soon after its share of an operation is done; call it before torch is imported.

    GNU OpenMP's threads wait by spinning for milliseconds. Beside a browser, or a chat beside a training, they keep
    the cores from whom they wait for: a step then took five times as long. Alone it makes no measurable difference.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of giving them back to the kernel.

    A training step frees and asks again for the same hundreds of megabytes; zeroing new pages each time cost 40 % of a
    step. Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
