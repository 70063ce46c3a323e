"""Raise every pinned dependency to the newest version that is compatible with the others.

    python scripts/renew_pins.py [options of pip install]      # then: make setup, make test-all, and read the diff

pip resolves all names of requirements.txt and requirements-dev.txt at once, as a dry run; the versions that it would
install are written into the two files, and README's sdk_version follows gradio. If pip finds no solution, nothing is
written.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FILES = ("requirements.txt", "requirements-dev.txt")
SPACE = "gradio[oauth,mcp]"  # a Space's builder installs it with requirements.txt: the pins have to go with it
PIN = re.compile(r"^(?P<name>[\w.-]+)(?P<extras>\[[\w,.-]+\])?==(?P<version>[^\s;]+)", re.M)


def plain(name: str) -> str:
    """A name normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def newest(texts: list[str], options: list[str]) -> dict[str, str]:
    """Normalised name → version of all that pip would install. Raises CalledProcessError if there is no solution."""
    wanted = [SPACE, *(f"{m['name']}{m['extras'] or ''}" for text in texts for m in PIN.finditer(text))]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", report]
        subprocess.run([*map(str, command), *options, *wanted], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {plain(x["metadata"]["name"]): x["metadata"]["version"] for x in found}


def renewed(text: str, versions: dict[str, str]) -> str:
    """The text of a requirements file with new versions; comments, extras, markers and order stay. A version's local
    part (+cpu) is dropped, because it names an index.
    """

    def pin(m: re.Match[str]) -> str:
        version = versions[plain(m["name"])].split("+")[0]
        return f"{m['name']}{m['extras'] or ''}=={version}"

    return PIN.sub(pin, text)


def renew(project: Path, options: list[str]) -> list[str]:
    """Write the files of `project`. Returns the changes, one per line."""
    old = {name: (project / name).read_text(encoding="utf-8") for name in FILES}
    versions = newest(list(old.values()), options)
    new = {name: renewed(text, versions) for name, text in old.items()}
    readme = (project / "README.md").read_text(encoding="utf-8")
    if "gradio" in versions:
        readme = re.sub(r"^sdk_version: .*$", f"sdk_version: {versions['gradio']}", readme, count=1, flags=re.M)
    for name, text in [*new.items(), ("README.md", readme)]:
        (project / name).write_text(text, encoding="utf-8")
    pairs = zip(*(PIN.finditer("\n".join(texts.values())) for texts in (old, new)), strict=True)
    return [f"{was['name']} {was['version']} → {now['version']}" for was, now in pairs if was[0] != now[0]]


if __name__ == "__main__":
    changed = renew(PROJECT, sys.argv[1:])
    print("\n".join(changed) if changed else "All pins are up to date.")
