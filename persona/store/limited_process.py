"""A process of its own with limits of memory and CPU time, in which a decoder reads a file that nobody vouches for.

The limits are the operating system's (`resource`): on Windows there are none, on macOS none of memory.
"""

import contextlib
import re
import subprocess
import sys
from collections.abc import Generator

from persona.store.workspace import child_environment

MAX_MEMORY = 1_500_000_000  # bytes of address space; 300 million of them are Python and its libraries
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD", re.I)
_ONE_THREAD = {  # each further thread reserves address space
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


class LimitedProcessError(Exception):
    """The process came to its limits, crashed, or said more in one line than it may."""


def limit_process(memory: int, seconds: int) -> None:
    """Limit this process to `memory` bytes of address space and `seconds` of CPU time, for good."""
    with contextlib.suppress(ImportError):
        import resource

        for what, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
            highest = resource.getrlimit(what)[1]
            limit = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(what, (limit, limit))


def read_process_lines(module: str, *arguments: str, longest: int) -> Generator[bytes, None, None]:
    """The lines that `python -m MODULE ARGUMENTS` writes; the process is killed when the reader stops early.

    The module calls limit_process() first. Its environment holds no keys. longest: bytes of a line.
    Raises LimitedProcessError.
    """
    env = {name: value for name, value in child_environment().items() if not _SECRET.search(name)} | _ONE_THREAD
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdout
    try:
        while line := child.stdout.readline(longest):
            if not line.endswith(b"\n"):
                raise LimitedProcessError
            yield line
        if child.wait():
            raise LimitedProcessError
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
