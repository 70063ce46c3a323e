"""Tuning of glibc's allocator and of OpenMP's threads for a process that holds a model."""

import contextlib
import ctypes
import os


def limit_openmp_spin() -> None:
    """Let a core go soon after its share of an operation is done; call it before torch is imported.

    GNU OpenMP's threads wait by spinning for milliseconds. Beside a browser, or a chat beside a training, they keep
    the cores from whom they wait for: a step then took five times as long. Alone it makes no measurable difference.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def limit_malloc_arenas() -> None:
    """Let all threads share two of glibc's heaps; call it before there are threads.

    Else each new thread gets one of its own, up to eight a core, and what was freed in one serves no other: the page,
    which answers in many threads, grew with use. Elsewhere than on glibc this does nothing.
    """
    _call_glibc("mallopt", -8, 2)  # M_ARENA_MAX of malloc.h


def disable_malloc_trim() -> None:
    """Let glibc keep large freed blocks instead of giving them back to the kernel.

    A training step frees and asks again for the same hundreds of megabytes; zeroing new pages each time cost 40 % of a
    step. Elsewhere than on glibc this does nothing.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    _call_glibc("mallopt", mmap_max, 0)
    _call_glibc("mallopt", trim_threshold, 2**31 - 1)


def trim_malloc() -> None:
    """Let the kernel have freed memory again that glibc keeps. Call it now and then, not in every step.

    Kernels that oneDNN keeps for each shape lie between freed blocks, and a batch of another length finds no room in
    the gaps: the heap grows on, in training and in chat. The pages of the gaps at least can go. Elsewhere than on glibc
    this does nothing.
    """
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *given: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), function)(*given)
