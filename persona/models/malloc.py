"""Tune glibc's allocator and OpenMP's threads for a process that holds a model. Settings of the whole process."""

import contextlib
import ctypes
import os


def limit_openmp_spin() -> None:
    """Make OpenMP's threads release their core soon after an operation; call it before torch is imported.

    GNU OpenMP's threads wait by spinning for milliseconds, and keep the cores from other processes. With a browser
    running, or a chat beside a training run, a step took five times as long; alone it makes no measurable difference.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def limit_malloc_arenas() -> None:
    """Make all threads share two of glibc's heaps (arenas); call it before there are threads.

    By default new threads get their own, up to eight a core, and memory freed in one serves no other: the page, which
    answers in many threads, grew with use. Does nothing without glibc.
    """
    _call_glibc("mallopt", -8, 2)  # M_ARENA_MAX of malloc.h


def disable_malloc_trim() -> None:
    """Make glibc keep large freed blocks instead of returning them to the kernel.

    A training step frees and allocates the same hundreds of megabytes again; zeroing new pages each time took 40 % of a
    step. Does nothing without glibc.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    _call_glibc("mallopt", mmap_max, 0)
    _call_glibc("mallopt", trim_threshold, 2**31 - 1)


def trim_malloc() -> None:
    """Return freed memory that glibc keeps to the kernel. Call it now and then, not in every step.

    Kernels that oneDNN keeps for each shape lie between freed blocks, and a batch of another length does not fit into
    the gaps: the heap grows, in training and in chat. This frees the pages of the gaps. Does nothing without glibc.
    """
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *args: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), function)(*args)
