"""A run on a Ray cluster: its folder goes to storage that every node reaches, trains on one of them, and comes back.

    python -m persona.train.ray_cluster RUN STORAGE [ADDRESS]      started by launcher.start_on_cluster()

That process is the run's own, as a local trainer is: it submits the run to Ray, then copies what the worker writes into
the run folder, so that page and command line watch it like any other. STORAGE is any URL that fsspec opens
(file:///data, s3://bucket/folder); the run is in STORAGE/PERSONA-RUN. Ray replaces a worker that is lost, and the new
one resumes from the last complete checkpoint there. Ray is imported only when a run is sent.
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
from persona.train import checkpoints, run_folder, snapshots
from persona.train.progress import ACTIVE_STATUSES
from persona.train.run_folder import Run

SYNC_SECONDS = 1.0  # seconds between two copies of the events
MAX_LOST_WORKERS = 5  # workers that may be lost before the run fails
# folder of the run → the file that its own folders end with: where it is, the rest is
COMPLETE_FILES = {"checkpoints": checkpoints.COMPLETE_MARKER, "moments": snapshots.COMPLETE_FILE}
STEP_FOLDER = re.compile(r"(checkpoint|step)-\d+")


@dataclass(frozen=True)
class RunMirror:
    """A run folder as fsspec sees it: the local one, or its copy on the storage."""

    fs: Any
    root: str

    def path(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def names(self, *parts: str) -> list[str]:
        """The names in that folder; none where it does not exist."""
        try:
            return [p.rstrip("/").rpartition("/")[2] for p in self.fs.ls(self.path(*parts), detail=False)]
        except FileNotFoundError:
            return []

    def complete_folders(self, kind: str) -> list[str]:
        """The complete folders of "checkpoints" or "moments", the newest last."""
        names = [n for n in self.names(kind) if STEP_FOLDER.fullmatch(n)]  # none that is being written
        return sorted((n for n in names if self.fs.exists(self.path(kind, n, COMPLETE_FILES[kind]))), key=_step)

    def checkpoints(self) -> list[str]:
        return self.complete_folders("checkpoints")


def _step(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])


def open_storage(url: str, run: Run | None = None) -> RunMirror:
    """The storage at `url`, or the copy of `run` on it. Raises RunError where it cannot be opened; sends nothing."""
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
    return RunMirror(fs, f"{root}/{run.persona_slug}-{run.name}" if run else root)


def open_local_mirror(run: Run) -> RunMirror:
    return RunMirror(fsspec.filesystem("file"), str(run.path))


def put_file(content: bytes, target: RunMirror, *parts: str) -> None:
    """Write one file atomically: a reader of the target sees the old one or the new one."""
    scratch = target.path(*parts[:-1], f".{parts[-1]}.part")
    target.fs.makedirs(target.path(*parts[:-1]), exist_ok=True)
    target.fs.pipe_file(scratch, content)
    target.fs.mv(scratch, target.path(*parts))


def copy_file(source: RunMirror, target: RunMirror, *parts: str) -> None:
    """Copy a file of a run; the largest is the optimizer's state of a LoRA, tens of megabytes."""
    put_file(source.fs.cat_file(source.path(*parts)), target, *parts)


def sync_run(source: RunMirror, target: RunMirror, full: bool = False) -> None:
    """Bring the target up to date. Events are read first and written last: what they tell of is there by then.

    full: the adapter too, and checkpoints that the source does not have are deleted; else only what changes while a run
    trains. Raises OSError when the storage cannot be reached; what was there before is still complete.
    """
    for side in (source, target):
        side.fs.invalidate_cache()  # another machine writes there too
    events = source.fs.cat_file(source.path("events.jsonl"))
    full = full or _has_ended(events)
    for name in source.names("adapter") if full else ():
        copy_file(source, target, "adapter", name)
    source_names, target_names = source.checkpoints(), target.names("checkpoints")
    for kind, names in {"checkpoints": source_names, "moments": source.complete_folders("moments")}.items():
        for name in names:
            if not target.fs.exists(target.path(kind, name, COMPLETE_FILES[kind])):
                _copy_folder(source, target, kind, name)
    for name in set(target_names) - set(source_names) if source_names or full else ():
        with contextlib.suppress(FileNotFoundError):  # the marker first: half a checkpoint is none
            target.fs.rm(target.path("checkpoints", name, checkpoints.COMPLETE_MARKER))
        target.fs.rm(target.path("checkpoints", name), recursive=True)
    for name in ("run.json", "pairs.jsonl", "rehearsal.jsonl"):
        if not source.fs.exists(source.path(name)):  # the last: only where the run rehearses
            continue
        if full or not _has(target, name, source.fs.size(source.path(name))):
            copy_file(source, target, name)
    if full or not _has(target, "events.jsonl", len(events)):
        put_file(events, target, "events.jsonl")


def _has_ended(events: bytes) -> bool:
    states = [json.loads(x)["state"] for x in events.split(b"\n") if x.endswith(b"}") and b'"event": "state"' in x]
    return bool(states) and states[-1] not in ACTIVE_STATUSES


def _has(side: RunMirror, name: str, size: int) -> bool:
    return side.fs.exists(side.path(name)) and side.fs.size(side.path(name)) == size


def _copy_folder(source: RunMirror, target: RunMirror, kind: str, name: str) -> None:
    """The file that makes it complete comes last, and only if the trainer has not begun to delete it meanwhile."""
    files, marker = sorted(source.names(kind, name)), COMPLETE_FILES[kind]
    with contextlib.suppress(FileNotFoundError):
        for file in files:
            if file != marker:
                copy_file(source, target, kind, name, file)
        if sorted(source.names(kind, name)) == files:
            copy_file(source, target, kind, name, marker)


def train_on_worker(storage: RunMirror) -> None:
    """What a Ray worker does: fetch the run, train it, and send back events and checkpoints as they come."""
    with tempfile.TemporaryDirectory(prefix="persona-") as folder:
        run = Run(Path(folder) / "persona" / "runs" / storage.root.rpartition("/")[2])
        local, finished = open_local_mirror(run), threading.Event()
        sync_run(storage, local)
        messages = [Message("A worker on {host} has it.", host=socket.gethostname())]
        if complete := local.checkpoints():
            messages.append(Message("It goes on from {checkpoint}.", checkpoint=complete[-1]))
        run.log("worker", host=socket.gethostname(), pid=os.getpid())
        run.log("state", state="starting", message=join(" ", messages))

        def sync_until_finished() -> None:
            while not finished.wait(SYNC_SECONDS):
                with contextlib.suppress(OSError):  # a storage that fails for a moment: the next round sends it
                    sync_run(local, storage)
                    if storage.fs.exists(storage.path("stop")):
                        run.stop()

        sender = threading.Thread(target=sync_until_finished, daemon=True)
        sync_run(local, storage)
        sender.start()
        try:
            from persona.train.run import train_run  # takes seconds: the event above is sent before

            train_run(run)
        finally:
            finished.set()
            sender.join()
            sync_run(local, storage, full=True)


def upload_run(local: RunMirror, storage: RunMirror) -> None:
    """Send the run to the storage; if a copy there was trained further than the local one, that is fetched first."""
    local_step, storage_step = (max(map(_step, side.checkpoints()), default=0) for side in (local, storage))
    if storage_step > local_step:  # the process that followed it was killed
        sync_run(storage, local, full=True)
    sync_run(local, storage, full=True)
    if storage.fs.exists(storage.path("stop")):
        storage.fs.rm(storage.path("stop"))


def run_on_cluster(run: Run, url: str, address: str) -> None:
    """Send the run to the cluster and follow it to its end."""
    local, storage = open_local_mirror(run), open_storage(url, run)
    run.log("state", state="queued", message=Message("in line for a worker of the Ray cluster"))
    upload_run(local, storage)
    ray = connect_to_ray(address)
    worker = ray.remote(max_calls=1, max_retries=MAX_LOST_WORKERS, **_worker_resources(ray))(train_on_worker)
    task = worker.remote(storage)
    finished = False
    while not finished and run.progress().status in ACTIVE_STATUSES:
        finished = bool(ray.wait([task], timeout=SYNC_SECONDS)[0])
        with contextlib.suppress(OSError):
            sync_run(storage, local)
        if (run.path / "stop").exists():
            if run.progress().status == "queued":
                ray.cancel(task)
                run.log("state", state="stopped", message=Message("Cancelled before a worker had it."))
                return
            storage.fs.touch(storage.path("stop"))
    try:
        ray.get(task)  # raises how it ended; by now the run is here, and may be resumed already
    except ray.exceptions.RayError as e:
        print(e, file=sys.stderr)  # into log.txt
        if run.progress().status in ACTIVE_STATUSES:
            message = Message(
                "The cluster stopped the run ({kind}, see log.txt). It can be resumed.", kind=type(e).__name__
            )
            run.log("state", state="failed", message=message)


def connect_to_ray(address: str) -> Any:
    """Join the cluster, or start one on this machine. Its workers get a copy of this program's code."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with tempfile.TemporaryDirectory() as code:
        ignore = shutil.ignore_patterns("__pycache__", "_data")
        for folder in (PROJECT_DIR / "persona", TEMPLATES_DIR):  # laid out as in a checkout
            shutil.copytree(folder, Path(code) / folder.name, ignore=ignore)
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
    """What Ray reserves for a run: one GPU; without any, one machine, as the number of cores of the smallest node."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if any(n.get("GPU") for n in nodes):
        return {"num_gpus": 1}
    return {"num_cpus": min(n["CPU"] for n in nodes if n.get("CPU"))}


def main() -> int:
    from persona.train import ray_cluster  # so that Ray pickles train_on_worker by this name, not as one of __main__

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
