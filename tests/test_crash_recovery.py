"""Killed at any moment, short of disk, robbed of its files: a run goes on from what is whole, to the very same adapter."""

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from cases import check_each
from safetensors.torch import load_file
from training import hash_weights
from waiting import wait_for

from persona.models import adapter
from persona.models.adapter import WEIGHTS_FILE
from persona.store import files
from persona.store.files import fsync_folder
from persona.store.workspace import PROJECT_DIR
from persona.train import checkpoints, run_folder
from persona.train import run as train_run
from persona.train.run_folder import Run

pytest_plugins = "training"
# two steps between evaluations, each with a checkpoint; three steps an epoch
SETTINGS = {"max_steps": 12, "lora_dropout": 0.2}


@pytest.fixture
def make(make):
    return partial(make, **SETTINGS)


# ---- kill -9


class Server:
    """Starts a run in a process of its own, in a moment: see fork_server.py."""

    def __init__(self):
        tests = Path(__file__).parent
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT_DIR), str(tests)]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, str(tests / "fork_server.py")], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env=env, text=True)  # fmt: skip

    def start(self, run: Run, die: int = 0, deadline: float | None = None, rank: int = 0, **env: str) -> int:
        assert self.process.stdin and self.process.stdout
        asked = {"run": str(run.path), "die": die, "deadline": deadline, "env": {**env, "RANK": str(rank)}}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if rank == 0:
            run_folder.record_worker(run, pid)  # as launcher.start_run does
        return pid

    def close(self):
        self.process.communicate(timeout=300)


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


def wait_for_end(pid: int):
    wait_for(lambda: not psutil.pid_exists(pid), what=f"the end of process {pid}", every=0.002)


def kill_after(run: Run, pid: int, events: int, seconds: float):
    """kill -9, so many seconds after the run's next so many events; nothing if it ends before."""
    wanted = lines(run) + events
    wait_for(lambda: lines(run) >= wanted or not psutil.pid_exists(pid), every=0.002)
    time.sleep(seconds)
    if psutil.pid_exists(pid):
        os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def lines(run: Run) -> int:
    return (run.path / "events.jsonl").read_bytes().count(b"\n")


def assert_sound(run: Run):
    """What must be true after any kill."""
    seen = run.progress()
    assert seen.status in ("interrupted", "done"), seen
    written = (run.path / "events.jsonl").read_bytes().split(b"\n")[:-1]
    assert len([json.loads(x) for x in written]) == len(list(run.events())), "every line that ended is whole"
    assert [s for s, _ in seen.train] == list(range(1, len(seen.train) + 1)), "each step once, and in order"
    if run.adapter.exists():
        assert adapter.read_adapter(run.adapter)
        assert {f.name for f in run.adapter.iterdir()} == set(adapter.ADAPTER_FILES) - {"loss.png"}
    if seen.status == "done":
        assert run.adapter.exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "how, most", [
        ("at-a-file", 3),
        pytest.param("at-a-file", 16, marks=pytest.mark.release),
        pytest.param("at-a-moment", 16, marks=pytest.mark.release),
    ],
)  # fmt: skip
def test_kill_at_any_moment(make, server, how, most):
    """Kills at a file operation of the run's, or some milliseconds after one of its events."""
    dice = random.Random(7)
    whole = make()
    server.start(whole)
    wait_for(lambda: not whole.alive())
    assert whole.progress().status == "done", (whole.path / "log.txt").read_text()
    touched, events = int(Path(f"{whole.path}.touched").read_text()), lines(whole)
    assert touched > 100
    kills, reached = 0, set()
    run = make()
    while kills < most:
        if how == "at-a-file":
            wait_for_end(server.start(run, die=dice.randrange(1, touched)))
        else:
            kill_after(run, server.start(run), dice.randrange(1, events), dice.random() * 0.03)
        assert_sound(run)
        newest = checkpoints.find_last_checkpoint(run.checkpoints)
        reached.add(newest and newest.name)
        if run.progress().status == "done":
            assert hash_weights(run) == hash_weights(whole)
            run = make()
        else:
            kills += 1
    if run.progress().status != "done":
        server.start(run)
        wait_for(lambda: not run.alive())
    assert run.progress().status == "done", (run.path / "log.txt").read_text()
    assert hash_weights(run) == hash_weights(whole)
    assert run.progress().held_out == whole.progress().held_out and run.progress().train == whole.progress().train
    assert len(reached) > most // 4, reached


# ---- what a lost power cable leaves behind


def cut(file: Path):
    file.write_bytes(file.read_bytes()[:-7])


def zeros(file: Path):
    file.write_bytes(bytes(file.stat().st_size))


DAMAGE = {
    "weights-cut": (cut, WEIGHTS_FILE),
    "weights-of-zeros": (zeros, WEIGHTS_FILE),
    "optimizer-cut": (cut, "optimizer.pt"),
    "no-schedule": (Path.unlink, "scheduler.pt"),
    "dice-of-zeros": (zeros, "rng_state.pth"),
    "state-cut": (cut, "trainer_state.json"),
    "session-empty": (lambda f: f.write_bytes(b""), checkpoints.SESSION_FILE),
    "mark-cut": (cut, checkpoints.COMPLETE_MARKER),
    "mark-empty": (lambda f: f.write_bytes(b""), checkpoints.COMPLETE_MARKER),
    "mark-a-list": (lambda f: f.write_bytes(b"[1]"), checkpoints.COMPLETE_MARKER),
    "no-mark": (Path.unlink, checkpoints.COMPLETE_MARKER),
}


def fake(folder: Path, step: int, best: int | None = None) -> Path:
    """A checkpoint of small files, sealed."""
    here = checkpoints.checkpoint_dir(folder, step)
    here.mkdir(parents=True)
    for name in (WEIGHTS_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (here / name).write_bytes(os.urandom(100))
    (here / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    checkpoints.mark_complete(here, {"clock": {}, "misses": 0})
    return here


@pytest.mark.parametrize("damage, name", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, name):
    whole, other = fake(tmp_path, 9), fake(tmp_path, 10)
    assert checkpoints.find_last_checkpoint(tmp_path) == other, "by number, not by name"
    damage(other / name)
    assert checkpoints.find_last_checkpoint(tmp_path) == whole


@pytest.mark.parametrize(
    "there, newest, kept", [((1, 2, 3), 3, {2, 3}), ((1,), 1, {1}), ((1, 2, 9), 2, {1, 2}), ((3, 6, 7), 7, {6, 7})]
)
def test_two_checkpoints_are_kept(tmp_path, there, newest, kept):
    for step in there:
        fake(tmp_path, step)
    checkpoints.prune_checkpoints(tmp_path, newest)
    assert set(checkpoints.list_checkpoint_steps(tmp_path)) == kept


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path):
    for step in range(1, 6):
        fake(tmp_path, step)
    checkpoints.prune_checkpoints(tmp_path, 5, keep=3)
    assert checkpoints.list_checkpoint_steps(tmp_path) == [5, 4, 3]
    checkpoints.prune_checkpoints(tmp_path, 5, keep=1)
    assert checkpoints.list_checkpoint_steps(tmp_path) == [5]


def test_everything_is_on_the_disk_before_the_mark(tmp_path, monkeypatch):
    order, flush, write = [], files.fsync_folder, files.write_atomic

    def flushing(folder, **options):
        order.append(("flush", folder.name, len(list(folder.iterdir()))))
        flush(folder, **options)

    def writing(path, text):
        order.append(("write", path.name))
        write(path, text)

    monkeypatch.setattr(checkpoints, "fsync_folder", flushing)
    monkeypatch.setattr(checkpoints, "write_atomic", writing)
    assert checkpoints.is_complete(fake(tmp_path, 1))
    assert order == [("write", checkpoints.SESSION_FILE), ("flush", "checkpoint-1", 6), ("write", checkpoints.COMPLETE_MARKER),
                     ("flush", tmp_path.name, 2 if (tmp_path / "home").exists() else 1)]  # fmt: skip


def test_flushing_a_folder_waits_for_each_file(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text(name)
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino) or real(handle))
    fsync_folder(tmp_path)
    assert {(tmp_path / name).stat().st_ino for name in "abc"} < set(synced)


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_damaged_ends_the_same(make, plain_cpu):
    whole, run = make(max_steps=6), make(max_steps=6)
    train_run.train_run(whole)
    for damaged in (1, 2):
        result = train_run.train_run(run, deadline=0.0)
        assert (result["status"], result["steps"]) == ("stopped", damaged)
        if damaged == 2:
            zeros(run.checkpoints / "checkpoint-2" / WEIGHTS_FILE)
    assert train_run.train_run(run)["steps"] == 6
    assert [e["step"] for e in run.events() if e["event"] == "step"][:3] == [1, 2, 2]
    assert hash_weights(run) == hash_weights(whole)


# ---- a full disk, a folder that cannot be written


@pytest.mark.slow
@pytest.mark.parametrize("number, said", [(errno.ENOSPC, "The disk is full. Free some space, then resume"),
                                          pytest.param(errno.EROFS, "cannot be written. Change its rights, then resume", marks=pytest.mark.release)])  # fmt: skip
def test_a_disk_that_takes_nothing_more(make, plain_cpu, monkeypatch, number, said):
    """Neither the checkpoint nor the word about it can be written; found all the same, and resumed to the same end."""
    whole, run = make(max_steps=3), make(max_steps=3)
    train_run.train_run(whole)
    real, broken = Run.log, []

    def log(self, event, **facts):
        if broken or (event == "step" and facts["step"] == 2):
            broken.append(event)
            raise OSError(number, os.strerror(number))
        real(self, event, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        with pytest.raises(OSError):
            train_run.train_run(run)
    assert broken[-1] == "state"
    (run.path / "worker.json").write_text(json.dumps({"pid": 999999999, "started": 1.0}))
    seen = run.progress()
    assert seen.status == "interrupted" and "can be resumed" in seen.message
    with monkeypatch.context() as patch:
        if number == errno.ENOSPC:
            usage = shutil.disk_usage(run.path)._replace(free=4096)
            patch.setattr(shutil, "disk_usage", lambda _: usage)
        else:
            patch.setattr(os, "access", lambda path, mode: False)
        assert said in run.progress().message
    assert (
        train_run.explain_error(OSError(number, "x"), run.path)
        == run_folder.explain_write_error(run.path, OSError(number, "x"))
        != ""
    )
    assert train_run.train_run(run)["status"] == "done" and hash_weights(run) == hash_weights(whole)


def test_what_is_wrong_with_the_disk_is_said():
    cases = [
        (OSError(errno.ENOSPC, "x"), "The disk is full"), (OSError(errno.EDQUOT, "x"), "The disk is full"),
        (PermissionError(errno.EACCES, "x", "/run/events.jsonl"), "/run/events.jsonl: cannot be written"),
        (RuntimeError("I/O error: Read-only file system (os error 30)"), "/run: cannot be written"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "The disk is full"),
        (OSError(errno.EIO, "x"), ""), (ValueError("no"), "")]  # fmt: skip

    def check(error, said):
        assert run_folder.explain_write_error(Path("/run"), error).startswith(said) and bool(said) == bool(
            run_folder.explain_write_error(Path("/run"), error)
        )

    check_each(cases, check)


# ---- several processes


def together(server: Server, run: Run, deadline: float | None = None):
    """The run in two processes, with the environment that accelerate and torchrun give to theirs."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = [server.start(run, deadline=deadline, rank=n, LOCAL_RANK=str(n), **env) for n in (0, 1)]
    for pid in pids:
        wait_for_end(pid)


def taken(run: Run) -> list[dict]:
    return [e for e in run.events() if e["event"] in ("step", "eval")]


@pytest.mark.slow
@pytest.mark.release
def test_two_processes_train_the_very_run(make, server):
    """One writer, the same rows at each step, the same losses and adapter as one process; a deadline ends both.

    Not byte for byte: sums are made in another order. Batches of 5 rows are shared 3 to 2; an epoch's last, of one row,
    1 to none.
    """
    settings = {"batch_size": 5, "gradient_accumulation_steps": 2, "eval_fraction": 0.3, "max_steps": 6,
                "early_stopping_patience": 5, "lora_dropout": 0}  # fmt: skip
    whole, run = make(**settings), make(**settings)
    assert sum(not r.held_out for r in whole.rows()) == 11
    server.start(whole)
    wait_for(lambda: not whole.alive())
    for deadline, status, step in ((0.0, "stopped", 1), (None, "done", 6)):
        together(server, run, deadline)
        seen = run.progress()
        assert (seen.status, seen.step) == (status, step), (run.path / "log.txt").read_text()
    states = [e["state"] for e in run.events() if e["event"] == "state"]
    assert states.count("done") == states.count("stopped") == 1, "one process writes"
    one, two = taken(whole), taken(run)
    what = [[(e["event"], e["step"], e.get("tokens"), e.get("learning_rate")) for e in each] for each in (one, two)]
    assert what[0] == what[1]
    for name in ("loss", "nll", "grad_norm"):
        figures = [[e[name] for e in each if name in e] for each in (one, two)]
        assert figures[1] == pytest.approx(figures[0], rel=1e-5), name  # 2e-7 measured
    a, b = (load_file(r.adapter / WEIGHTS_FILE) for r in (whole, run))
    apart = max(float((a[n] - b[n]).norm() / a[n].norm()) for n in a)
    assert apart < 1e-4, apart  # 4e-6 measured
