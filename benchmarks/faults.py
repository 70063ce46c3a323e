"""Fault injection: the page and the trainer are killed, the disk is full or read-only, two windows conflict.

    python -m benchmarks.faults [--kills 50] [--seed 0] [--only kills|disks|windows] [--json]

Kills are SIGKILL at random moments, while a visitor edits and a run trains (a random Gemma of two layers, one thread).
After each kill every acknowledged edit must be on disk and the run must be found; when the run ends, its adapter must
be byte-identical to that of an undisturbed run. Disks: see disks.py. Exit status 1: a guarantee was broken.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.page import Page, kill_trainers, opened, pairs_on_disk, persona_folder, put_tiny_base, wait_for
from benchmarks.visitor import Refused, Visitor
from persona.models.adapter import WEIGHTS_FILE
from persona.store.files import hash_file
from persona.train.progress import ACTIVE_STATUSES
from persona.train.run_folder import Run

SETTINGS = {"set-max-steps": 12, "set-batch-size": 4, "set-dtype": "float32", "set-lora-dropout": 0.2,
            "set-save-steps": 1, "set-diary-probes": 0}  # fmt: skip
ENDS = 300  # seconds within which a run of SETTINGS must have ended


# ---- a visitor who keeps writing, whatever happens to the page


class Writer:
    """Edits the pairs of its own persona one after the other in a thread, and records what was acknowledged."""

    def __init__(self, page: Page, rows: int = 8):
        self.page, self.visitor, self.broken = page, Visitor(page.url), []  # type: ignore[var-annotated]
        self.rows, self.edits = rows, 0
        self.goes, self.over, self.rests = threading.Event(), threading.Event(), threading.Event()
        self.visitor.open()
        self.visitor.start_persona("Writer")
        self.folder = persona_folder(page.home, "Writer")
        for n in range(rows):
            self.visitor.act(do="add", row=n, key="")
        self.pairs = [("", "")] * rows
        self.hoped: tuple[int, tuple[str, str]] | None = None  # sent, but not answered yet
        self.thread = threading.Thread(target=self._work)
        self.goes.set()
        self.thread.start()

    def _work(self) -> None:
        while not self.over.is_set():
            if not self.goes.wait(0.1):
                continue
            self.rests.clear()
            row = self.edits % self.rows
            old, new = self.pairs[row], (f"Question {self.edits}", f"Answer {self.edits}. " + "So. " * 20)
            try:
                for side, name in enumerate(("instruction", "output")):
                    now = self.pairs[row]
                    then = (new[0], now[1]) if side == 0 else new
                    self.hoped = row, then
                    self.visitor.act(do="edit", row=row + 1, field=name, old=now[side], text=new[side])
                    self.pairs[row], self.hoped = then, None
                self.edits += 1
            except httpx.HTTPError:  # the page is gone
                self.goes.clear()
            except Refused as e:
                self.broken.append(f"edit {self.edits} of {old} was refused: {e}")
                self.edits += 1
            self.rests.set()

    def pause(self) -> None:
        self.goes.clear()
        self.rests.wait(60)

    def check(self) -> None:
        """Every acknowledged edit is on disk; the one in progress is there completely or not at all."""
        there = pairs_on_disk(self.folder)
        for n, pair in enumerate(self.pairs):
            either = [pair, self.hoped[1]] if self.hoped and self.hoped[0] == n else [pair]
            if n >= len(there) or there[n] not in either:
                self.broken.append(f"pair {n + 1}: {pair} was acknowledged, {there[n : n + 1]} is on disk")
        self.pairs, self.hoped = there, None

    def again(self) -> None:
        """Reload the page and continue; while a run trains, a new window shows the persona of the run."""
        self.visitor.open()
        self.visitor.choose_persona(self.folder.name)
        self.goes.set()

    def close(self) -> None:
        self.over.set()
        self.thread.join()
        self.visitor.close()


# ---- a visitor who trains


class Trainer:
    """A window on a copy of the example lighthouse-keeper, and the runs that it starts."""

    def __init__(self, page: Page, home: Path):
        self.visitor = Visitor(page.url)
        self.visitor.open()
        self.visitor.fire("open-lighthouse-keeper", "click")
        self.folder = next(p for p in home.glob("**/personas/lighthouse-keeper*"))

    def start(self) -> Run:
        before = set(self.folder.glob("runs/*"))
        self.visitor.go("train")
        for name, value in SETTINGS.items():
            self.visitor.fill(name, value)
        self.visitor.fire("start-training", "click")
        (made,) = set(self.folder.glob("runs/*")) - before
        return Run(made)

    def resume(self) -> None:
        self.visitor.fire("resume-training", "click")


def ended(run: Run) -> bool:
    return run.progress().status not in ACTIVE_STATUSES and not run.alive()


def wait_for_end(run: Run) -> None:
    wait_for(lambda: ended(run), ENDS, f"the end of {run.name}")


# ---- kills


def kills(home: Path, count: int, seed: int = 0) -> dict[str, Any]:
    put_tiny_base(home)
    rng, broken = random.Random(seed), []
    victims: dict[str, int] = {"page": 0, "trainer": 0, "both": 0}
    finished, resumed = 0, 0
    with opened(home, OMP_NUM_THREADS="1") as page:
        trainer = Trainer(page, home)
        start = time.monotonic()
        whole = trainer.start()
        wait_for_end(whole)
        lasts = time.monotonic() - start
        if whole.progress().status != "done":
            raise RuntimeError((whole.path / "log.txt").read_text()[-2000:])
        writer, run = Writer(page), trainer.start()
        # each kind of kill equally often, in random order
        order = [list(victims)[n % 3] for n in range(count)]
        rng.shuffle(order)
        for victim in order:
            await_moment(run, rng, lasts)
            victims[victim] += 1
            broken += kill(page, victim, run)
            if victim != "trainer":
                wait_for(lambda: not writer.goes.is_set(), ENDS, "the writer's error")
                writer.check()
                page.start()
                trainer.visitor.open()
                writer.again()
            if ended(run) and run.progress().status != "done":
                trainer.resume()
                resumed += 1
            elif ended(run):
                finished += 1
                broken += differs(run, whole)
                run = trainer.start()
            done, seen = sum(victims.values()), [*broken, *writer.broken]
            print(f"{done} of {count}: {victim}, {writer.edits} edits, {len(seen)} broken", *seen, file=sys.stderr)
        wait_for_end(run)
        finished += 1
        broken += differs(run, whole)
        writer.pause()
        writer.check()
        writer.close()
    left = list(writer.folder.rglob("*.tmp"))
    return {"kills": count, **victims, "edits": writer.edits, "runs_ended": finished, "resumed": resumed,
            "run_seconds": round(lasts, 1), "stray_files": len(left), "broken": [*broken, *writer.broken]}  # fmt: skip


def await_moment(run: Run, rng: random.Random, lasts: float) -> None:
    """Wait for a random moment of the run: a uniform time, or a few milliseconds after one of its next events."""
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, lasts))
        return
    events = run.path / "events.jsonl"
    wanted = events.read_bytes().count(b"\n") + rng.randint(1, 30)
    with suppress(TimeoutError):
        wait_for(lambda: events.read_bytes().count(b"\n") >= wanted or ended(run), 2 * lasts, f"event {wanted}")
    time.sleep(rng.random() * 0.03)


def kill(page: Page, victim: str, run: Run) -> list[str]:
    """Kill; returns what is wrong right afterwards."""
    alone = victim == "page" and run.alive()
    if victim != "page":
        kill_trainers(page.home)
    if victim != "trainer":
        page.kill()
    if alone:
        time.sleep(0.2)
        if not run.alive() and run.progress().status != "done":
            return [f"the page was killed, and the run ended with it: {run.progress()}"]
    status = run.progress().status
    if victim != "page" and status not in ("interrupted", "done"):
        wait_for(lambda: run.progress().status in ("interrupted", "done"), 10, "the status of a killed run")
    return []


def differs(run: Run, whole: Run) -> list[str]:
    seen = run.progress()
    if seen.status != "done":
        return [f"{run.name}: {seen.status}, {seen.message}"]
    one, other = (hash_file(r.adapter / WEIGHTS_FILE) for r in (run, whole))
    return [] if one == other else [f"{run.name}: its adapter is not that of a run without a kill"]


# ---- two windows


def windows(page: Page, rounds: int) -> dict[str, Any]:
    """Two windows on one persona: neither silently overwrites what the other has saved."""
    a, b = Visitor(page.url), Visitor(page.url)
    a.open()
    a.start_persona("Both")
    folder = persona_folder(page.home, "Both")
    for n in range(4):
        a.act(do="add", row=n, key="")
        a.act(do="edit", row=n + 1, field="output", old="", text=f"Pair {n + 1}")
    b.http.cookies = a.http.cookies  # the same visitor in two windows
    b.kept = dict(a.kept)
    b.open()
    broken = stale(a, b, folder)
    for n in range(rounds):
        old = pairs_on_disk(folder)[0][1]
        texts = [f"{n} of a", f"{n} of b"]
        edit = {"do": "edit", "row": 1, "field": "output", "old": old}
        good = together([partial(v.act, **edit, text=t) for v, t in zip((a, b), texts, strict=True)])
        won = [t for t, g in zip(texts, good, strict=True) if g]
        if len(won) != 1 or pairs_on_disk(folder)[0][1] != won[0]:
            broken.append(f"two edits at once of {old!r}: accepted {won}, on disk {pairs_on_disk(folder)[0][1]!r}")
    for v in (a, b):
        v.close()
    return {"rounds": rounds, "broken": broken}


def together(acts: list[Callable[[], Any]]) -> list[bool]:
    """Do all at the same moment; returns whether each was accepted."""
    good, line = [False] * len(acts), threading.Barrier(len(acts))

    def do(n: int) -> None:
        line.wait()
        with suppress(Refused):
            acts[n]()
            good[n] = True

    threads = [threading.Thread(target=do, args=(n,)) for n in range(len(acts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return good


def stale(a: Visitor, b: Visitor, folder: Path) -> list[str]:
    """Window b still shows the state before a's changes; its actions must be refused."""
    broken = []

    def refused(what: str, act: Callable[[], Any]) -> None:
        before = (folder / "pairs.jsonl").read_bytes(), (folder / "persona.json").read_bytes()
        with suppress(Refused):
            act()
        if before != ((folder / "pairs.jsonl").read_bytes(), (folder / "persona.json").read_bytes()):
            broken.append(f"{what}: was accepted and has changed what the other window had saved")

    a.act(do="edit", row=1, field="output", old="Pair 1", text="Pair 1, by a")
    refused(
        "an edit of a text that has changed", lambda: b.act(do="edit", row=1, field="output", old="Pair 1", text="b")
    )
    saw = {f"Pair {n}": ["", f"Pair {n}"] for n in (1, 2, 3, 4)}
    a.act(do="delete", row=2, saw=saw["Pair 2"])
    refused("an edit of a row that has moved", lambda: b.act(do="edit", row=3, field="output", old="Pair 3", text="b"))
    for do in ("delete", "duplicate", "split", "join"):
        refused(f"{do} of a row that has moved", partial(b.act, do=do, row=3, saw=saw["Pair 3"]))
    a.fill("card-system", "By a.")
    a.fire("card-system", "blur")
    refused("leaving a field of the card untouched", lambda: b.fire("card-greeting", "blur"))
    b.fill("card-system", "By b.")
    refused("the same field of the card, otherwise", lambda: b.fire("card-system", "blur"))
    return broken


def main() -> None:
    from benchmarks import disks

    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("kills", "disks", "windows"))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    value: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="persona-faults-") as folder:
        place = Path(folder)
        if given.only in (None, "windows"):
            put_tiny_base(place / "windows")
            with opened(place / "windows") as page:
                value["windows"] = windows(page, 100)
        if given.only in (None, "disks"):
            value["disks"] = disks.disks(place / "disks")
        if given.only in (None, "kills"):
            value["kills"] = kills(place / "kills", given.kills, given.seed)
    if given.json:
        print(json.dumps(value))
    else:
        for name, part in value.items():
            print(name, *(f"{k} {v}" for k, v in part.items() if k != "broken"), sep="  ")
            print(*(f"BROKEN: {b}" for b in part["broken"]), sep="\n", end="\n" if part["broken"] else "")
    sys.exit(1 if any(part["broken"] for part in value.values()) else 0)


if __name__ == "__main__":
    main()
