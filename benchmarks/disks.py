"""A full or read-only disk under the running page and a run, and recovery once there is space again.

Three ways, each used if the machine allows it: a small tmpfs in its own mount namespace (`unshare -rm`, which needs no
privileges where user namespaces are allowed), filled to the last byte; the same, remounted read-only; and RLIMIT_FSIZE
= 0 for the page's process, which refuses every file write as a quota does. faults.py reports them.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.faults import ENDS, Trainer, differs, ended, wait_for_end
from benchmarks.page import Page, drawn_adapter, opened, pairs_on_disk, persona_folder, put_tiny_base, wait_for
from benchmarks.visitor import Refused, Visitor

SIZE = "48m"  # of the small disk: the tiny base, a persona and the checkpoints of a run
MOUNTED = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={SIZE} tmpfs "$PERSONA_HOME" && exec "$@"', "sh")
FULL, LOCKED, LIMITED = "disk is full", "no permission to write", "could not be written"


def disks(place: Path) -> dict[str, Any]:
    """Try each way that this machine allows; the others are listed in `not_tried`."""
    value: dict[str, Any] = {"tried": [], "not_tried": [], "broken": []}
    home = place / "limit"
    zipped = drawn_adapter(put_tiny_base(home), place / "mags.zip")
    with opened(home, OMP_NUM_THREADS="1") as page:
        value["tried"].append("RLIMIT_FSIZE")
        value["broken"] += through(page, home, zipped, *limited(page), LIMITED)
    if not can_mount(place):
        value["not_tried"] += ["full tmpfs", "read-only tmpfs"]
        return value
    with small_disk(place / "small") as (page, home):
        put_tiny_base(home)
        value["tried"] += ["full tmpfs", "read-only tmpfs"]
        value["broken"] += through(page, home, zipped, *filled(home), FULL)
        value["broken"] += through(page, home, zipped, *locked(page), LOCKED)
        value["broken"] += run_through(page, home)
    return value


def can_mount(place: Path) -> bool:
    place.mkdir(parents=True, exist_ok=True)
    try:
        return not subprocess.run([*MOUNTED, "true"], env={**os.environ, "PERSONA_HOME": str(place)}, timeout=20,
                                  capture_output=True).returncode  # fmt: skip
    except OSError:  # no such program
        return False


class small_disk:
    """The page on a disk of SIZE that only it sees; yields the page and the path of its home as seen from outside."""

    def __init__(self, home: Path):
        home.mkdir(parents=True)
        scratch = home.with_name("scratch")
        scratch.mkdir()
        self.page = Page(home, before=MOUNTED, OMP_NUM_THREADS="1", TMPDIR=str(scratch))
        self.home = Path(f"/proc/{self.page.process.pid}/root{home}")

    def __enter__(self) -> tuple[Page, Path]:
        return self.page, self.home

    def __exit__(self, *_: object) -> None:
        self.page.close(self.home)


# ---- how each fault is made and undone


def limited(page: Page) -> tuple[Callable[[], None], Callable[[], None]]:
    process = psutil.Process(page.process.pid)
    _, most = process.rlimit(psutil.RLIMIT_FSIZE)
    return (lambda: process.rlimit(psutil.RLIMIT_FSIZE, (0, most)),
            lambda: process.rlimit(psutil.RLIMIT_FSIZE, (most, most)))  # fmt: skip


def filled(home: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    ballast = home / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as out:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while out.write(bytes(size)):
                        pass
                except OSError:
                    continue

    return fill, ballast.unlink


def locked(page: Page) -> tuple[Callable[[], None], Callable[[], None]]:
    def mount(how: str) -> None:
        enter = ["nsenter", "-t", str(page.process.pid), "-U", "-m", "--preserve-credentials"]
        subprocess.run([*enter, "mount", "-o", f"remount,bind,{how}", str(page.home)], check=True, timeout=20)

    return lambda: mount("ro"), lambda: mount("rw")


# ---- what must hold


def through(
    page: Page, home: Path, zipped: Path, spoil: Callable[[], None], restore: Callable[[], None], words: str
) -> list[str]:
    """Every write is refused with `words` in its message and changes nothing; after `restore` the same is accepted."""
    name, broken = f"Under {words}", []
    v = Visitor(page.url)
    v.open()
    v.start_persona(name)
    v.act(do="add", row=0, key="")
    v.act(do="edit", row=1, field="output", old="", text="Before.")
    v.go("compare")
    v.open_zip(zipped)
    v.settle_chat(0, 16)
    v.say("Before?")
    folder = persona_folder(home, name)
    saved = texts(folder)
    v.fill("card-greeting", "Now.")
    acts: dict[str, Callable[[], Any]] = {
        "an edit": lambda: v.act(do="edit", row=1, field="output", old="Before.", text="Now."),
        "one more pair": lambda: v.act(do="add", row=1, key=""),
        "the card": lambda: v.fire("card-greeting", "blur"),
        "a question": lambda: v.say("Now?"),
        "undo": lambda: v.fire("undo-edit", "click"),
    }
    spoil()
    for what, act in acts.items():
        try:
            act()
            # a line may still fit into the last block of its file: then it was really saved
            if what != "a question" or not any(b"Now?" in text for text in texts(folder).values()):
                broken.append(f"{words}: {what} was accepted")
        except Refused as e:
            if words not in str(e):
                broken.append(f"{words}: {what} was refused with {e}")
    if any(not texts(folder)[name].startswith(text) for name, text in saved.items()):
        broken.append(f"{words}: what was saved has changed")
    if httpx.get(page.url).status_code != 200:
        broken.append(f"{words}: the page does not open")
    restore()
    for what, act in acts.items():
        try:
            act()
        except Refused as e:
            broken.append(f"after {words}: {what} was refused with {e}")
    if pairs_on_disk(folder) != [("", "Now.")]:  # undo removed the added pair
        broken.append(f"after {words}: {pairs_on_disk(folder)}")
    v.close()
    return broken


def texts(folder: Path) -> dict[str, bytes]:
    """Everything that the visitor has written: pairs, card, conversations."""
    files = [folder / "pairs.jsonl", folder / "persona.json", *folder.glob("talks/*/*.jsonl")]
    return {f.name: f.read_bytes() for f in files}


def run_through(page: Page, home: Path) -> list[str]:
    """The disk fills up under a run, which says so; resumed with space again, it ends with the undisturbed adapter."""
    trainer = Trainer(page, home)
    whole = trainer.start()
    wait_for_end(whole)
    run = trainer.start()
    fill, free = filled(home)
    wait_for(lambda: run.progress().step >= 2 or ended(run), ENDS, "the second step")
    fill()
    wait_for_end(run)
    seen, broken = run.progress(), []
    if seen.status == "done" or "Free some space" not in seen.message:
        broken.append(f"a run on a full disk: {seen.status}, {seen.message}")
    for what, act in {"resume": trainer.resume, "start": trainer.start}.items():
        try:
            act()
            broken.append(f"{FULL}: {what} was accepted")
        except Refused as e:
            if FULL not in str(e):
                broken.append(f"{FULL}: {what} was refused with {e}")
    free()
    trainer.resume()
    wait_for_end(run)
    return [*broken, *differs(run, whole)]
