"""The line of runs: one trains, the others wait, first come first served, whatever is killed or closed."""

import inspect
import sys

import psutil
import pytest
from standins import REAL, STAND_IN, finish, kill, pid, popen, started, states, status, stray, wait_for

from persona.errors import RunError
from persona.store import persona_folder
from persona.store.persona_folder import trash_persona
from persona.store.workspace import PROJECT_DIR
from persona.train import launcher, queue

pytest_plugins = "standins"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("stand_in")]  # real processes


def test_one_trains_the_others_wait_and_follow_in_the_order_they_came(new):
    a, b, c = new("Ada"), new("Bo"), new("Cy")
    started(a, b, c)
    assert [status(r) for r in (a, b, c)] == ["running", "queued", "queued"]
    assert (queue.find_training_run(), queue.list_waiting_runs()) == (a, [b, c])
    finish(a)
    wait_for(lambda: status(b) == "running")
    assert (status(a), status(c), queue.list_waiting_runs()) == ("done", "queued", [c])
    finish(b)
    wait_for(lambda: status(c) == "running")
    finish(c)
    wait_for(lambda: status(c) == "done" and queue.find_training_run() is None)
    assert stray() == [] and states(c) == ["starting", "queued", "starting", "running", "done"]


def test_who_waits_holds_nothing_heavy(new):
    """Neither torch nor transformers is there until the turn has come, and is then the business of train.py."""
    a, b = new(), new()
    started(a, b)
    assert (a.path / "heavy").read_text() == "[]"
    wait_for(lambda: b.alive())
    assert psutil.Process(pid(b)).memory_info().rss < 150e6


def test_many_started_at_once_by_other_processes_train_one_after_the_other(new, home):
    """Two tabs, a shell and a script: each is a process of its own, and no two train at the same time."""
    made = [new() for _ in range(4)]
    code = (
        f"import subprocess, sys; REAL, STAND_IN = subprocess.Popen, {STAND_IN!r}\n{inspect.getsource(popen)}"
        "from persona.train import launcher, run_folder\nsubprocess.Popen = popen\n"
        "launcher.start_run(run_folder.open_run(run_folder.Path(sys.argv[1])))"
    )
    callers = [REAL([sys.executable, "-c", code, str(r.path)], cwd=PROJECT_DIR) for r in made]
    assert [c.wait(60) for c in callers] == [0] * 4, "and they are gone when their runs train"
    for run in made:
        finish(run)
    wait_for(lambda: not any(r.alive() for r in made))
    assert [status(r) for r in made] == ["done"] * 4


# ---- what is killed, stopped, fails


@pytest.mark.parametrize("end", ["stop", "kill", "fail"])
def test_the_next_starts_however_the_one_before_ends(new, end):
    a, b = new(), new()
    started(a, b)
    if end == "stop":
        assert launcher.stop_run(a) is False, "it trains: it is asked to stop, not taken out of the line"
    elif end == "kill":
        kill(a)
    else:
        psutil.Process(pid(a)).terminate()
    wait_for(lambda: status(b) == "running")
    assert status(a) == {"stop": "stopped"}.get(end, "interrupted")


def test_who_is_killed_while_it_waits_blocks_nobody_and_keeps_its_place(new):
    """The next who opens the page, or starts a run, gives it a new process; it is not the last in line then."""
    a, b, c, d = new("Ada"), new("Bo"), new("Cy"), new("Di")
    started(a, b, c)
    kill(b)
    assert (status(b), queue.list_waiting_runs()) == ("interrupted", [c])
    assert "its place is kept" in b.progress().message
    launcher.start_run(d)
    assert (status(b), queue.list_waiting_runs()) == ("queued", [b, c, d])
    kill(b)
    kill(c)
    finish(a)
    wait_for(lambda: status(d) == "running")
    assert stray() == [b.name, c.name], "passed over"
    launcher.restart_waiting_runs()
    finish(d)
    wait_for(lambda: status(b) == "running")
    assert queue.list_waiting_runs() == [c]


def test_after_a_restart_of_the_machine_the_line_goes_on(new):
    """All processes are gone. What trained was interrupted, and is resumed by hand; what waited is not forgotten."""
    a, b, c = new(), new(), new()
    started(a, b, c)
    for run in (c, b, a):
        kill(run)
    launcher._children.clear()
    assert [status(r) for r in (a, b, c)] == ["interrupted"] * 3 and queue.find_training_run() is None
    launcher.restart_waiting_runs()
    wait_for(lambda: status(b) == "running")
    assert (status(a), status(c)) == ("interrupted", "queued")
    launcher.start_run(a)
    assert queue.list_waiting_runs() == [c, a], "resumed, it is the last"
    launcher.restart_waiting_runs()
    assert queue.list_waiting_runs() == [c, a], "nobody is put in line twice"


def test_resume_of_a_run_whose_process_was_killed_while_it_waited_keeps_its_one_place(new):
    a, b, c = new(), new(), new()
    started(a, b, c)
    kill(b)
    launcher.start_run(b)
    assert (queue.list_waiting_runs(), stray()) == ([b, c], [b.name, c.name])


def test_a_run_whose_starter_died_before_its_process_was_there_is_found_again(new):
    a = new()
    with queue.lock_queue():
        queue.enqueue_run(a)
    launcher.restart_waiting_runs()
    wait_for(lambda: status(a) == "running")
    assert "queued" not in states(a), "nothing was before it"


def test_a_persona_that_is_deleted_leaves_the_line(new):
    a, b, c = new("Ada"), new("Bo"), new("Cy")
    started(a, b, c)
    process = b.process()
    trash_persona(persona_folder.Persona(b.path.parent.parent))
    wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    launcher.restart_waiting_runs()
    assert (queue.list_waiting_runs(), stray()) == ([c], [c.name])
    finish(a)
    wait_for(lambda: status(c) == "running")


# ---- cancel


def test_cancel_trains_nothing_and_can_be_taken_back_at_once(new):
    a, b, c = new(), new(), new()
    started(a, b, c)
    process = b.process()
    assert launcher.stop_run(b) is True
    assert (status(b), queue.list_waiting_runs()) == (
        "stopped",
        [c],
    ) and "Resume puts it in line again" in b.progress().message
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not b.adapter.exists() and not b.progress().train
    launcher.start_run(b)
    assert (status(b), queue.list_waiting_runs()) == ("queued", [c, b])
    finish(a)
    finish(c)
    wait_for(lambda: status(b) == "running")


def test_cancel_is_said_however_quick_the_process_that_waits_is(new, monkeypatch):
    """It may find the stop file, and leave the queue, before the one who cancels has looked there."""
    a, b = new(), new()
    started(a, b)
    touch = type(b).stop
    monkeypatch.setattr(type(b), "stop", lambda run: (touch(run), wait_for(lambda: status(run) == "stopped")))
    assert launcher.stop_run(b) is True and status(b) == "stopped"


def test_cancel_works_when_the_process_that_waited_is_gone(new):
    a, b = new(), new()
    started(a, b)
    kill(b)
    assert launcher.stop_run(b) is True and (status(b), stray()) == ("stopped", [])
    launcher.restart_waiting_runs()
    assert not b.alive()


def test_a_stop_file_is_enough_to_cancel(new):
    a, b = new(), new()
    started(a, b)
    b.stop()
    wait_for(lambda: status(b) == "stopped")
    assert stray() == [] and "running" not in states(b)


def test_a_run_is_not_put_in_line_twice(new):
    a, b = new(), new()
    started(a, b)
    with pytest.raises(RunError, match=f"{b.name} is already waiting for its turn"):
        launcher.start_run(b)
    with pytest.raises(RunError, match=f"{a.name} is already running"):
        launcher.start_run(a)


def test_what_has_stopped_can_be_resumed_while_its_process_is_on_its_way_out(new):
    """A trainer takes a second to leave; the click on Resume need not wait for it, and two never train at once."""
    a = new()
    started(a)
    before = a.process()
    a.log("state", state="stopped")
    launcher.start_run(a)
    wait_for(lambda: status(a) == "queued")
    assert pid(a) != before.pid and stray() == [a.name]
    before.kill()
    before.wait(10)
    wait_for(lambda: status(a) == "running" and stray() == [])
