"""Start processes at the same moment."""

import subprocess
from collections.abc import Sequence


def let_go(children: Sequence[subprocess.Popen]) -> None:
    """Each child prints a line when it is ready and waits for one. All must exit with status 0."""
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=60)
    assert [c.returncode for c in children] == [0] * len(children)
