"""Training, chat and memory estimates on a GPU, against the usual alternatives on the same card.

    python -m benchmarks.gpu [--minutes 7] [--out FOLDER] [--unsloth FOLDER] [--sections card,chat]
    python -m benchmarks.gpu --cpu --tiny    # whether it still runs

Bases are built here with random weights (bases.py), so nothing is downloaded. Each section runs in a process of its own
and has a share of the minutes; what did not fit says so. Results are written as they come: a line of JSON each in
results.jsonl, and table.md after each section, so that a run that is killed leaves what it had. The last line printed
is one JSON object with the card's name.

--unsloth: a folder with Unsloth and the versions of other packages that it wants, made by
`pip install --target FOLDER unsloth`; without it, its rows say "not measured".
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import report
from persona.store.workspace import PROJECT_DIR

RESERVE = 5.0  # seconds before the end of a section's time at which its process is stopped, if it has not ended by then
TINY_SECTIONS = ("card", "training gemma-3-4b", "chat", "estimates")


def main() -> None:
    given = parse_arguments()
    if given.section:
        run_section(given)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    results = given.out / "results.jsonl"
    results.write_text("")
    (given.out / "log.txt").write_text("")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="persona-gpu-", dir=given.scratch) as scratch:
        try:
            run_sections(given, Path(scratch), results)
        finally:
            records = report.read_records(results)
            (given.out / "table.md").write_text(report.render_table(records))
            value = report.summarize(records)
            (given.out / "summary.json").write_text(json.dumps(value) + "\n")
    print(report.render_table(records))
    print(json.dumps(value))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--scratch", type=Path, help="where the bases are built: 20 GB; default: the temporary folder")
    parser.add_argument("--unsloth", type=Path)
    parser.add_argument("--sections", default="", help="names separated by commas; default: all")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--tiny", action="store_true", help="tiny bases and few steps")
    parser.add_argument("--section", nargs=2, metavar=("NAME", "UNTIL"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_sections(given: argparse.Namespace, scratch: Path, results: Path) -> None:
    """Run the sections one after the other; one that ends early leaves its time to the next."""
    from benchmarks.gpu.sections import SECTIONS

    names = [n.strip() for n in given.sections.split(",") if n.strip()]
    names = names or list(TINY_SECTIONS if given.tiny else SECTIONS)
    if "unsloth" in names and not given.unsloth:
        names.remove("unsloth")
        append_record(results, {"section": "unsloth", "skipped": "--unsloth names no folder"})
    end = time.time() + 60 * given.minutes
    for number, name in enumerate(names):
        shares = [SECTIONS[n][0] for n in names[number:]]
        until = time.time() + (end - time.time()) * shares[0] / sum(shares)
        start_section(given, name, until, scratch, results)
        (given.out / "table.md").write_text(report.render_table(report.read_records(results)))


def start_section(given: argparse.Namespace, name: str, until: float, scratch: Path, results: Path) -> None:
    """One section in a process of its own, which is stopped at the end of its time."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, str(until - RESERVE), "--out", given.out,
               "--scratch", scratch, *(["--tiny"] if given.tiny else [])]  # fmt: skip
    environment = os.environ | {"PERSONA_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if given.cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if name == "unsloth":
        environment["PYTHONPATH"] = os.pathsep.join([str(given.unsloth), environment.get("PYTHONPATH", "")])
    print(f"{name}: {until - time.time():.0f} s", file=sys.stderr, flush=True)
    with (given.out / "log.txt").open("a") as log:
        log.write(f"==== {name}\n")
        log.flush()
        process = subprocess.Popen(
            list(map(str, command)), cwd=PROJECT_DIR, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout=max(1.0, until - time.time()))
            if code:
                append_record(results, {"section": name, "skipped": f"its process ended with {code}: see log.txt"})
        except subprocess.TimeoutExpired:
            append_record(results, {"section": name, "skipped": "stopped: out of time"})
        finally:
            process.kill()
            process.wait()


def run_section(given: argparse.Namespace) -> None:
    """In the section's process: measure, and append each record as it comes."""
    name, until = given.section
    if name == "unsloth":
        import unsloth  # noqa: F401  (before the packages that it patches)
    from benchmarks.gpu.cells import Scale
    from benchmarks.gpu.sections import SECTIONS, Job

    scale = Scale(1, 2, tiny=True) if given.tiny else Scale()
    for record in SECTIONS[name][1](Job(given.scratch, scale, float(until))):
        record.pop("adapter", None)
        append_record(given.out / "results.jsonl", {"section": name, **record})


def append_record(results: Path, record: dict) -> None:
    with results.open("a") as f:
        f.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
