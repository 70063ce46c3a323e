"""Runs on a Ray cluster: what goes to the storage and comes back, and one that survives its worker."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import fsspec
import psutil
import pytest
from standins import wait_for

from persona import cli
from persona.errors import RunError
from persona.models import adapter
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.store.workspace import PROJECT_DIR
from persona.train import checkpoints, launcher, ray_cluster, run_folder, snapshots
from persona.train.config import RunConfig
from persona.train.launcher import create_run
from persona.train.ray_cluster import RunMirror, open_local_mirror, sync_run, upload_run
from persona.train.run_folder import Run

PAIRS = [Pair(f"question {n}?", f"answer {n}.") for n in range(56)]


@pytest.fixture
def new(tmp_path):
    def new(name="mags", **settings) -> Run:
        return create_run(
            create_persona_at(tmp_path / "personas" / name, PersonaCard(name=name), PAIRS), RunConfig(**settings)
        )

    return new


@pytest.fixture
def storage():
    """Storage that is no disk: nothing may lean on paths."""
    fs = fsspec.filesystem("memory")
    yield RunMirror(fs, "/shared/mags-run")
    fs.rm("/shared", recursive=True)


def checkpoint(run: Run, step: int, whole: bool = True) -> None:
    path = run.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(bytes(step))
    state = {"best_model_checkpoint": str(path), "global_step": step}
    (path / "trainer_state.json").write_text(json.dumps(state))
    if whole:
        (path / checkpoints.COMPLETE_MARKER).touch()


@pytest.fixture
def fails_at(monkeypatch):
    """From now on the copying of a file of that name fails."""
    real = ray_cluster.copy_file

    def fail(name: str) -> None:
        def dying(source, target, *parts):
            if parts[-1] == name:
                raise OSError("no route to host")
            real(source, target, *parts)

        monkeypatch.setattr(ray_cluster, "copy_file", dying)

    return fail


# ---- the copy on the storage


def test_what_is_sent_comes_back_the_same(new, storage, tmp_path):
    run = new()
    run.log("state", state="running")
    (run.path / "rehearsal.jsonl").write_text("what another worker has to rehearse too\n")
    checkpoint(run, 3)
    sync_run(open_local_mirror(run), storage)
    other = Run(tmp_path / "elsewhere")
    sync_run(storage, open_local_mirror(other))
    assert (other.rows(), other.manifest(), list(other.events())) == (run.rows(), run.manifest(), list(run.events()))
    assert (other.checkpoints / "checkpoint-3" / "adapter_model.safetensors").read_bytes() == bytes(3)
    assert not list(other.path.rglob("*.part"))
    assert (other.path / "rehearsal.jsonl").read_bytes() == (run.path / "rehearsal.jsonl").read_bytes()


def test_a_checkpoint_counts_when_it_is_whole_and_goes_when_it_is_gone(new, storage):
    run = new()
    checkpoint(run, 9)
    checkpoint(run, 10, whole=False)
    sync_run(open_local_mirror(run), storage)
    assert storage.names("checkpoints") == storage.checkpoints() == ["checkpoint-9"]
    (run.checkpoints / "checkpoint-10" / checkpoints.COMPLETE_MARKER).touch()
    (run.checkpoints / "checkpoint-9" / checkpoints.COMPLETE_MARKER).unlink()
    sync_run(open_local_mirror(run), storage)
    assert storage.names("checkpoints") == ["checkpoint-10"]


def test_moments_are_kept_for_the_next_worker(new, storage, tmp_path, monkeypatch, fails_at):
    """The adapter of each evaluation, whole or not at all; what the storage has is not deleted by one who has less."""
    run = new()
    path = snapshots.snapshot_dir(run, 8)
    path.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (path / name).write_bytes(name.encode())

    fails_at("adapter_model.safetensors")
    with pytest.raises(OSError, match="no route"):
        sync_run(open_local_mirror(run), storage)
    assert storage.complete_folders("moments") == []
    monkeypatch.undo()
    sync_run(open_local_mirror(run), storage)
    other = Run(tmp_path / "elsewhere")
    sync_run(storage, open_local_mirror(other))
    assert snapshots.list_snapshot_steps(other) == [8]
    assert (snapshots.snapshot_dir(other, 8) / "adapter_model.safetensors").read_bytes() == b"adapter_model.safetensors"
    sync_run(open_local_mirror(new("bo")), storage, full=True)
    assert storage.complete_folders("moments") == ["step-000008"]


def test_a_moment_that_is_just_being_made_is_left_alone(new, storage):
    """It lies beside the others under a name of its own until it is whole; the copying must not stumble over it."""
    run = new()
    for name in ("step-000008", ".step-000016.new"):
        (run.path / "moments" / name).mkdir(parents=True)
        (run.path / "moments" / name / "adapter_config.json").write_text("{}")
    sync_run(open_local_mirror(run), storage)
    assert storage.names("moments") == ["step-000008"]


def test_a_copy_that_is_cut_short_leaves_no_whole_checkpoint(new, storage, monkeypatch, fails_at):
    """The worker dies, or the storage fails, in the middle."""
    run = new()
    checkpoint(run, 4)
    fails_at("trainer_state.json")
    with pytest.raises(OSError, match="no route"):
        sync_run(open_local_mirror(run), storage)
    assert storage.checkpoints() == [] and storage.names("checkpoints") == ["checkpoint-4"]
    monkeypatch.undo()
    sync_run(open_local_mirror(run), storage)
    assert storage.checkpoints() == ["checkpoint-4"]
    assert storage.fs.exists(storage.path("checkpoints", "checkpoint-4", "trainer_state.json"))


def test_a_checkpoint_that_is_deleted_while_it_is_copied_is_not_whole(new, storage, monkeypatch):
    """The trainer keeps two: it deletes an old one, file by file, whenever it likes."""
    run, real = new(), ray_cluster.copy_file
    checkpoint(run, 4)

    def copy(source, target, *parts):
        real(source, target, *parts)
        (run.checkpoints / "checkpoint-4" / "adapter_model.safetensors").unlink(missing_ok=True)

    monkeypatch.setattr(ray_cluster, "copy_file", copy)
    sync_run(open_local_mirror(run), storage)
    assert storage.names("checkpoints") == ["checkpoint-4"] and storage.checkpoints() == []


def test_events_follow_and_never_tell_of_what_is_not_there(new, storage, monkeypatch):
    run, real, order = new(), ray_cluster.put_file, []
    sync_run(open_local_mirror(run), storage)
    monkeypatch.setattr(
        ray_cluster, "put_file", lambda content, t, *parts: order.append(parts[-1]) or real(content, t, *parts)
    )
    sync_run(open_local_mirror(run), storage)
    assert order == [], "nothing is sent twice"
    checkpoint(run, 3)
    run.log("eval", step=3, nll=1.0)
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    sync_run(open_local_mirror(run), storage)
    assert order[-2:] == [checkpoints.COMPLETE_MARKER, "events.jsonl"] and not storage.names("adapter")
    run.log("state", state="done")
    sync_run(open_local_mirror(run), storage)
    assert order[-4:] == ["adapter_config.json", "run.json", "pairs.jsonl", "events.jsonl"]


def test_the_end_is_told_when_the_adapter_is_there(new, storage, monkeypatch):
    """It is written while the rest is copied: the events that tell of it wait for the next round."""
    run, real = new(), ray_cluster.put_file
    checkpoint(run, 3)

    def put(*args):
        real(*args)
        if not run.adapter.exists():
            run.adapter.mkdir()
            (run.adapter / "adapter_config.json").write_text("{}")
            run.log("state", state="done")

    monkeypatch.setattr(ray_cluster, "put_file", put)
    sync_run(open_local_mirror(run), storage)
    assert b"done" not in storage.fs.cat_file(storage.path("events.jsonl")) and not storage.names("adapter")
    sync_run(open_local_mirror(run), storage)
    assert b"done" in storage.fs.cat_file(storage.path("events.jsonl")) and storage.names("adapter")


def test_a_run_that_is_done_leaves_no_checkpoints(new, storage):
    run = new()
    checkpoint(run, 3)
    sync_run(open_local_mirror(run), storage)
    (run.checkpoints / "checkpoint-3").rename(run.path / "gone")
    sync_run(open_local_mirror(run), storage)
    assert storage.checkpoints() == ["checkpoint-3"], "in the middle of a run, none is no news"
    sync_run(open_local_mirror(run), storage, full=True)
    assert storage.names("checkpoints") == []


@pytest.mark.parametrize("here, there, want", [(3, 12, 12), (12, 3, 12), (None, 3, 3), (3, None, 3), (9, 10, 10)])
def test_a_run_sent_again_goes_on_from_where_it_was_furthest(new, storage, tmp_path, here, there, want):
    run, other = new(), Run(tmp_path / "elsewhere")
    sync_run(open_local_mirror(run), open_local_mirror(other))
    for copy, step in ((run, here), (other, there)):
        if step:
            checkpoint(copy, step)
            copy.log("step", step=step, loss=1.0, seconds=1.0)
    sync_run(open_local_mirror(other), storage)
    storage.fs.touch(storage.path("stop"))
    upload_run(open_local_mirror(run), storage)
    for side in (open_local_mirror(run), storage):
        assert side.checkpoints() == [f"checkpoint-{want}"]
    assert [s for s, _ in run.progress().train] == [want]
    assert not storage.fs.exists(storage.path("stop")), "the wish to stop was that of the last time"


# ---- asked for


@pytest.mark.parametrize(
    "url, why",
    [
        ("", "'': no storage. Name one that every node of the cluster reaches, with --storage or PERSONA_STORAGE"),
        ("/shared", "'/shared': no storage. "),
        ("nonsense://x", "nonsense://x: this storage cannot be opened ("),
    ],
)
def test_storage_that_cannot_be(new, monkeypatch, url, why):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: True)
    with pytest.raises(RunError) as e:
        ray_cluster.open_storage(url, new())
    assert str(e.value).startswith(why)


def test_without_ray_one_sentence_says_what_to_do(new, monkeypatch, capsys, tmp_path):
    persona = persona_folder.Persona(new().path.parent.parent)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    monkeypatch.setattr(
        sys, "argv", ["persona", "train", str(persona.path), "--launcher", "ray", "--storage", "file:///x"]
    )
    assert cli.main() == 1
    out, err = capsys.readouterr()
    assert (out, err.strip()) == (
        "",
        "Training on a cluster needs Ray, which is not installed. Do: pip install ray",
    )
    assert len(run_folder.list_runs(persona)) == 1, "no run was made"


def test_the_command_line_sends_it(new, monkeypatch, tmp_path):
    class Sent(Exception):
        pass

    def started(run, storage, address):
        raise Sent(run.config().epochs, storage, address)

    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: True)
    monkeypatch.setattr(launcher, "start_on_cluster", started)
    monkeypatch.setenv("PERSONA_STORAGE", "file:///shared")
    words = ["train", str(new().path.parent.parent), "--set", "epochs=2", "--launcher", "ray", "--address", "auto"]
    monkeypatch.setattr(sys, "argv", ["persona", *words])
    with pytest.raises(Sent) as e:
        cli.main()
    assert e.value.args == (2.0, "file:///shared", "auto")


def test_ray_is_not_imported_before_it_is_asked_for():
    code = "import sys; from persona import cli; from persona.train import launcher, ray_cluster; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"ray", "torch"}


# ---- a cluster of two nodes on this machine


@pytest.fixture
def nodes():
    pytest.importorskip("ray", reason="Ray is an extra: pip install ray")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    made.add_node(**size)
    yield made
    made.shutdown()


@pytest.fixture
def followed():
    """Runs whose process must not outlive the test."""
    made: list[Run] = []
    yield made
    left = [r.process() for r in made]
    for pid in (e["pid"] for r in made for e in events(r, "worker")):
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker takes minutes to notice that its node is gone
            worker = psutil.Process(pid)
            left += [worker] if "ray::" in "".join(worker.cmdline()) else []
    for process in filter(None, left):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(10)


def events(run: Run, kind: str) -> list[dict]:
    return [e for e in run.events() if e["event"] == kind]


@pytest.mark.release
@pytest.mark.slow
def test_two_at_once_one_worker_killed_one_stopped_one_cancelled(nodes, new, tmp_path, tiny_gemma, followed):
    """The killed one goes on from its last checkpoint in another process, to its end."""
    settings = {"base": str(tiny_gemma), "dtype": "float32", "batch_size": 4, "max_steps": 200, "learning_rate": 1e-2}
    killed, cancelled = (new(name, **settings) for name in ("ada", "cy"))
    stopped = new("bo", **settings | {"max_steps": 100_000})  # it must not end before it is told to
    followed += [killed, stopped, cancelled]
    shared = f"file://{tmp_path}/shared"
    for run in (killed, stopped):
        launcher.start_on_cluster(run, shared, nodes.address)
    with pytest.raises(RunError, match="already"):
        launcher.start_on_cluster(killed, shared, nodes.address)
    wait_for(lambda: all(events(r, "worker") for r in (killed, stopped)))
    first, other = (events(r, "worker")[0]["pid"] for r in (killed, stopped))
    assert first != other, "both at once"

    launcher.start_on_cluster(cancelled, shared, nodes.address)
    wait_for(lambda: cancelled.progress().status == "queued")
    launcher.stop_run(cancelled)

    wait_for(open_local_mirror(killed).checkpoints)
    os.kill(first, signal.SIGKILL)
    launcher.stop_run(stopped)
    wait_for(lambda: not stopped.alive() and not cancelled.alive())
    seen = stopped.progress()
    assert seen.status == "stopped" and seen.step > 0, (stopped.path / "log.txt").read_text()
    (last, *_) = open_local_mirror(stopped).checkpoints()[::-1]
    assert last == f"checkpoint-{seen.step}" and adapter.read_adapter(stopped.adapter)
    assert checkpoints.find_last_checkpoint(stopped.checkpoints).name == last, "it can be resumed on this machine"
    assert cancelled.progress().status == "stopped" and not events(cancelled, "worker")

    wait_for(lambda: not killed.alive())
    seen = killed.progress()
    assert (seen.status, seen.result["steps"]) == ("done", 200), (killed.path / "log.txt").read_text()
    assert len(events(killed, "worker")) == 2 and events(killed, "worker")[1]["pid"] != first
    assert not psutil.pid_exists(first)
    said = [e["message"] for e in events(killed, "state") if "It goes on from checkpoint-" in e.get("message", "")]
    assert len(said) == 1 and [s for s, _ in seen.train] == list(range(1, 201))
    reached = int(said[0].rstrip(".").rpartition("-")[2])
    kinds = [e["event"] for e in killed.events()]
    second = len(kinds) - 1 - kinds[::-1].index("worker")
    then = next(e["step"] for e in list(killed.events())[second:] if e["event"] == "step")
    assert then == reached + 1 and adapter.read_adapter(killed.adapter)
    kept = {e["step"] for e in events(killed, "eval") if e["step"]}
    assert set(snapshots.list_snapshot_steps(killed)) == kept and min(kept) <= reached, "those of the first worker too"
    assert not killed.checkpoints.exists() or not any(killed.checkpoints.iterdir())
