"""Processes that begin at the same moment."""

import subprocess
from collections.abc import Sequence


def let_go(children: Sequence[subprocess.Popen]) -> None:
    """Each has said a line when it stands ready, and waits for one. All must end well."""
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=60)
    assert [c.returncode for c in children] == [0] * len(children)
