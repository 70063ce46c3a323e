"""A run on a Ray cluster: its folder goes to storage that every node reaches, trains on one of them, and comes back.

    python -m persona.train.ray_cluster RUN STORAGE [ADDRESS]      started by launch.start_on_cluster()

That process is the run's own, as a local trainer is: it hands the run to Ray, then copies what the worker writes into
the run folder, so that page and command line watch it like any other. STORAGE is any URL that fsspec opens
(file:///shared, s3://bucket/folder); the run is in STORAGE/PERSONA-RUN. A worker that is lost is replaced by Ray, and
the next one goes on from the last whole checkpoint there. Ray is imported here and only when a run is sent.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec

from persona.errors import Message, RunError, join
from persona.store.workspace import PROJECT_DIR, TEMPLATES_DIR
from persona.train import run_folder
from persona.train.checkpoints import COMPLETE_MARKER
from persona.train.progress import ACTIVE_STATUSES
from persona.train.run_folder import Run

SYNC_SECONDS = 1.0  # seconds between two copies of the events
MAX_LOST_WORKERS = 5  # workers that may be lost before the run fails
COMPLETE_FILES = {
    "checkpoints": COMPLETE_MARKER,
    "moments": "adapter_config.json",
}  # the file that is there when all of a folder is
STEP_FOLDER = re.compile(r"(checkpoint|step)-\d+")


@dataclass(frozen=True)
class RunMirror:
    """A copy of the run folder: the local one, or the one on the storage."""

    fs: Any
    root: str

    def path(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def names(self, *parts: str) -> list[str]:
        """What is in that folder; nothing, where there is none."""
        try:
            return [p.rstrip("/").rpartition("/")[2] for p in self.fs.ls(self.path(*parts), detail=False)]
        except FileNotFoundError:
            return []

    def whole(self, kind: str) -> list[str]:
        """The whole folders of "checkpoints" or "moments", the newest last."""
        named = [n for n in self.names(kind) if STEP_FOLDER.fullmatch(n)]  # not one that is just being made
        return sorted((n for n in named if self.fs.exists(self.path(kind, n, COMPLETE_FILES[kind]))), key=_step)

    def checkpoints(self) -> list[str]:
        return self.whole("checkpoints")


def _step(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])


def open_storage(url: str, run: Run | None = None) -> RunMirror:
    """Raises RunError when it cannot be, before anything is sent."""
    if find_spec("ray") is None:
        raise RunError("Training on a cluster needs Ray, which is not installed. Do: pip install ray")
    if "://" not in url:
        raise RunError(
            "{url!r}: no storage. Name one that every node of the cluster reaches, with --storage or "
            "PERSONA_STORAGE, e.g. file:///shared or s3://bucket/folder.",
            url=url,
        )
    try:
        fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as e:  # the package for s3, gcs … is missing, or no such protocol
        raise RunError("{url}: this storage cannot be opened ({reason}).", url=url, reason=e) from e
    return RunMirror(fs, f"{root}/{run.path.parent.parent.name}-{run.name}" if run else root)


def open_local_mirror(run: Run) -> RunMirror:
    return RunMirror(fsspec.filesystem("file"), str(run.path))


def put_file(content: bytes, target: RunMirror, *parts: str) -> None:
    """One file, whole or not at all: a reader of the target sees the old one or the new one."""
    new = target.path(*parts[:-1], f".{parts[-1]}.part")
    target.fs.makedirs(target.path(*parts[:-1]), exist_ok=True)
    target.fs.pipe_file(new, content)
    target.fs.mv(new, target.path(*parts))


def copy_file(source: RunMirror, target: RunMirror, *parts: str) -> None:
    """A file of a run; the largest is the optimizer's state of a LoRA, tens of megabytes."""
    put_file(source.fs.cat_file(source.path(*parts)), target, *parts)


def sync_run(source: RunMirror, target: RunMirror, full: bool = False) -> None:
    """Bring the target up to date. Events are read first and written last: what they tell of is there.

    full: the adapter too, and no checkpoint stays that the source has not; else what changes while a run trains.
    Raises OSError when the storage cannot be reached; what was there before is still whole.
    """
    for side in (source, target):
        side.fs.invalidate_cache()  # others write there
    events = source.fs.cat_file(source.path("events.jsonl"))
    full = full or _ended(events)
    for name in source.names("adapter") if full else ():
        copy_file(source, target, "adapter", name)
    kept, there = source.checkpoints(), target.names("checkpoints")
    for kind, names in {"checkpoints": kept, "moments": source.whole("moments")}.items():
        for name in names:
            if not target.fs.exists(target.path(kind, name, COMPLETE_FILES[kind])):
                _copy_folder(source, target, kind, name)
    for name in set(there) - set(kept) if kept or full else ():
        with contextlib.suppress(FileNotFoundError):
            target.fs.rm(target.path("checkpoints", name, COMPLETE_MARKER))  # first: half of one is none
        target.fs.rm(target.path("checkpoints", name), recursive=True)
    for name in ("run.json", "pairs.jsonl"):
        if full or not _has(target, name, source.fs.size(source.path(name))):
            copy_file(source, target, name)
    if full or not _has(target, "events.jsonl", len(events)):
        put_file(events, target, "events.jsonl")


def _ended(events: bytes) -> bool:
    states = [json.loads(x)["state"] for x in events.split(b"\n") if x.endswith(b"}") and b'"event": "state"' in x]
    return bool(states) and states[-1] not in ACTIVE_STATUSES


def _has(side: RunMirror, name: str, size: int) -> bool:
    return side.fs.exists(side.path(name)) and side.fs.size(side.path(name)) == size


def _copy_folder(source: RunMirror, target: RunMirror, kind: str, name: str) -> None:
    """The mark that it is whole comes last, and only if the trainer has not begun to delete it meanwhile."""
    files, mark = sorted(source.names(kind, name)), COMPLETE_FILES[kind]
    with contextlib.suppress(FileNotFoundError):
        for file in files:
            if file != mark:
                copy_file(source, target, kind, name, file)
        if sorted(source.names(kind, name)) == files:
            copy_file(source, target, kind, name, mark)


def train_on_worker(storage: RunMirror) -> None:
    """What a worker does: fetch the run, train it, and send back events and checkpoints as they come."""
    with tempfile.TemporaryDirectory(prefix="persona-") as folder:
        run = Run(Path(folder) / "persona" / "runs" / storage.root.rpartition("/")[2])
        here, over = open_local_mirror(run), threading.Event()
        sync_run(storage, here)
        told = [Message("A worker on {host} has it.", host=socket.gethostname())]
        if reached := here.checkpoints():
            told.append(Message("It goes on from {checkpoint}.", checkpoint=reached[-1]))
        run.log("worker", host=socket.gethostname(), pid=os.getpid())
        run.log("state", state="starting", message=join(" ", told))

        def report() -> None:
            while not over.wait(SYNC_SECONDS):
                with contextlib.suppress(OSError):  # storage that hiccups: the next round, or the last, sends it
                    sync_run(here, storage)
                    if storage.fs.exists(storage.path("stop")):
                        run.stop()

        sender = threading.Thread(target=report, daemon=True)
        sync_run(here, storage)
        sender.start()
        try:
            from persona.train import run as train_run  # seconds of torch: those who watch know already who has it

            train_run.train_run(run)
        finally:
            over.set()
            sender.join()
            sync_run(here, storage, full=True)


def upload_run(here: RunMirror, storage: RunMirror) -> None:
    """The run as it is here goes to the storage; what was sent before and trained further there is fetched first."""
    reached = [max(map(_step, side.checkpoints()), default=0) for side in (here, storage)]
    if reached[1] > reached[0]:  # who followed it then was killed
        sync_run(storage, here, full=True)
    sync_run(here, storage, full=True)
    if storage.fs.exists(storage.path("stop")):
        storage.fs.rm(storage.path("stop"))


def run_on_cluster(run: Run, url: str, address: str) -> None:
    """Send the run to the cluster and follow it to its end."""
    here, storage = open_local_mirror(run), open_storage(url, run)
    run.log("state", state="queued", message=Message("in line for a worker of the Ray cluster"))
    upload_run(here, storage)
    ray = connect_to_ray(address)
    task = ray.remote(max_calls=1, max_retries=MAX_LOST_WORKERS, **_worker_resources(ray))(train_on_worker).remote(
        storage
    )
    over = False
    while not over and run.progress().status in ACTIVE_STATUSES:
        over = bool(ray.wait([task], timeout=SYNC_SECONDS)[0])
        with contextlib.suppress(OSError):
            sync_run(storage, here)
        if (run.path / "stop").exists():
            if run.progress().status == "queued":
                ray.cancel(task)
                run.log("state", state="stopped", message=Message("Cancelled before a worker had it."))
                return
            storage.fs.touch(storage.path("stop"))
    try:
        ray.get(task)  # its last words; the run is here, and may be resumed already
    except ray.exceptions.RayError as e:
        print(e, file=sys.stderr)  # into log.txt
        if run.progress().status in ACTIVE_STATUSES:
            why = Message(
                "The cluster gave the run up ({kind}, see log.txt). It can be resumed.", kind=type(e).__name__
            )
            run.log("state", state="failed", message=why)


def connect_to_ray(address: str) -> Any:
    """Join the cluster, or start one on this machine, with this very code of ours for the workers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with tempfile.TemporaryDirectory() as code:
        left_out = shutil.ignore_patterns("__pycache__", "_data")
        for part in (PROJECT_DIR / "persona", TEMPLATES_DIR):  # laid out as in a checkout
            shutil.copytree(part, Path(code) / part.name, ignore=left_out)
        try:
            ray.init(address or None, runtime_env={"working_dir": code}, log_to_driver=False)
        except (ConnectionError, ValueError) as e:
            raise RunError(
                "No Ray cluster answers at {address}: {reason}",
                address=address or Message("the usual address"),
                reason=e,
            ) from e
    return ray


def _worker_resources(ray: Any) -> dict[str, float]:
    """One run a GPU; without any, one run a machine: as many cores as the smallest node has."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if any(n.get("GPU") for n in nodes):
        return {"num_gpus": 1}
    return {"num_cpus": min(n["CPU"] for n in nodes if n.get("CPU"))}


def main() -> int:
    from persona.train import ray_cluster  # so that workers know `work` by this name, and not as a part of __main__

    run = run_folder.open_run(Path(sys.argv[1]))
    run_folder.record_worker(run, os.getpid())
    try:
        ray_cluster.run_on_cluster(run, *sys.argv[2:])
    except Exception as e:
        run.log("state", state="failed", message=e.message if isinstance(e, RunError) else f"{type(e).__name__}: {e}")
        raise
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
