"""The line of runs: one trains, the others wait, first come first served, whatever is killed or closed.

What is started here are real processes. The module that they go on to when their turn comes is a stand-in: it says that
it runs, ends when it is told to, and needs no torch.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from cases import check_each

from persona import cli, files, launch, runs, waiting
from persona.config import RunConfig
from persona.errors import InputError, RunError
from persona.files import PROJECT
from persona.folder import Card, create, delete, personas_dir
from persona.pairs import Pair
from persona.runs import Run, create_run
from persona.ui import train as page

PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(6)]

# stands in for `persona.train`: it trains until there is a file "finish" (or "stop") in the run folder, and fails when
# another one trains
STAND_IN = """
import os, runpy, sys, time
import psutil
from persona import runs, waiting

def train(*_, **__):
    run, alone = runs.open_run(waiting.Path(sys.argv[1])), waiting.folder() / "alone"
    other = int(alone.read_text()) if alone.exists() else 0
    # a zombie that its parent has not reaped yet trains no more
    if other and psutil.pid_exists(other) and psutil.Process(other).status() != psutil.STATUS_ZOMBIE:
        run.log("state", state="failed", message="two at a time")
        return
    alone.write_text(str(os.getpid()))
    (run.path / "heavy").write_text(str(sorted({"torch", "transformers", "gradio"} & set(sys.modules))))
    run.log("plan", steps=10, rows=5)
    run.log("state", state="running")
    now = time.time()
    run.log("step", step=1, loss=2.0, seconds=60.0, time=now - 20)
    run.log("step", step=2, loss=2.0, seconds=80.0, time=now)
    time.sleep(0.1)
    while not (run.path / "finish").exists() and not (run.path / "stop").exists():
        time.sleep(0.02)
    alone.unlink()
    run.log("state", state="stopped" if (run.path / "stop").exists() else "done")

runpy.run_module, waiting.EVERY = train, 0.05
waiting.main()
"""
REAL = subprocess.Popen


def popen(command, **options):
    """subprocess.Popen, with the stand-in for training."""
    ours = command[:3] == [sys.executable, "-m", "persona.waiting"]
    return REAL([sys.executable, "-c", STAND_IN, *command[3:]] if ours else command, **options)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, home):
    """launch.py starts the stand-in; whatever a test leaves behind is ended by its pid."""
    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    yield
    for run in (runs.Run(p.parent) for p in home.rglob("worker.json")):
        if process := run.process():
            process.kill()
            process.wait(10)
    launch.reap()


@pytest.fixture
def new(home):
    """A run of a persona of that name, in the user's own folder."""

    def new(name="Mags") -> Run:
        path = personas_dir() / name.lower()
        persona = runs.Persona(path) if path.exists() else create(path, Card(name=name), PAIRS)
        return create_run(persona, RunConfig())

    return new


def wait_for(true, seconds: float = 90):
    until = time.monotonic() + seconds
    while not (found := true()):
        launch.reap()
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
    return found


def status(run: Run) -> str:
    return run.progress().status


def started(*made: Run) -> None:
    """Started in this order, and the first has its turn."""
    for run in made:
        launch.start(run)
    wait_for(lambda: status(made[0]) == "running")


def finish(run: Run) -> None:
    (run.path / "finish").touch()


def states(run: Run) -> list[str]:
    return [e["state"] for e in run.events() if e["event"] == "state"]


def pid(run: Run) -> int:
    return json.loads((run.path / "worker.json").read_text())["pid"]


def kill(run: Run) -> None:
    os.kill(pid(run), signal.SIGKILL)
    wait_for(lambda: not run.alive())


def stray() -> list[str]:
    return [t.run.name for t in waiting.tickets()]


# ---- one at a time, in order


def test_one_trains_the_others_wait_and_follow_in_the_order_they_came(new):
    a, b, c = new("Ada"), new("Bo"), new("Cy")
    started(a, b, c)
    assert [status(r) for r in (a, b, c)] == ["running", "queued", "queued"]
    assert (waiting.training(), waiting.line()) == (a, [b, c])
    finish(a)
    wait_for(lambda: status(b) == "running")
    assert (status(a), status(c), waiting.line()) == ("done", "queued", [c])
    finish(b)
    wait_for(lambda: status(c) == "running")
    finish(c)
    wait_for(lambda: status(c) == "done" and waiting.training() is None)
    assert stray() == [] and states(c) == ["starting", "queued", "starting", "running", "done"]


def test_who_waits_holds_nothing_heavy(new):
    """Neither torch nor transformers is there until the turn has come, and is then the business of train.py."""
    a, b = new(), new()
    started(a, b)
    assert (a.path / "heavy").read_text() == "[]"
    wait_for(lambda: b.alive())
    assert psutil.Process(pid(b)).memory_info().rss < 150e6


@pytest.mark.slow
def test_many_started_at_once_by_other_processes_train_one_after_the_other(new, home):
    """Two tabs, a shell and a script: each is a process of its own, and no two train at the same time."""
    made = [new() for _ in range(4)]
    code = (
        f"import subprocess, sys; REAL, STAND_IN = subprocess.Popen, {STAND_IN!r}\n{inspect.getsource(popen)}"
        "from persona import launch, runs\nsubprocess.Popen = popen\n"
        "launch.start(runs.open_run(runs.Path(sys.argv[1])))"
    )
    callers = [REAL([sys.executable, "-c", code, str(r.path)], cwd=PROJECT) for r in made]
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
        assert launch.stop(a) is False, "it trains: it is asked to stop, not taken out of the line"
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
    assert (status(b), waiting.line()) == ("interrupted", [c])
    assert "its place in line is kept" in b.progress().message
    launch.start(d)
    assert (status(b), waiting.line()) == ("queued", [b, c, d])
    kill(b)
    kill(c)
    finish(a)
    wait_for(lambda: status(d) == "running")
    assert stray() == [b.name, c.name], "passed over"
    launch.revive()
    finish(d)
    wait_for(lambda: status(b) == "running")
    assert waiting.line() == [c]


def test_after_a_restart_of_the_machine_the_line_goes_on(new):
    """All processes are gone. What trained was interrupted, and is resumed by hand; what waited is not forgotten."""
    a, b, c = new(), new(), new()
    started(a, b, c)
    for run in (c, b, a):
        kill(run)
    launch._children.clear()
    assert [status(r) for r in (a, b, c)] == ["interrupted"] * 3 and waiting.training() is None
    launch.revive()
    wait_for(lambda: status(b) == "running")
    assert (status(a), status(c)) == ("interrupted", "queued")
    launch.start(a)
    assert waiting.line() == [c, a], "resumed, it is the last"
    launch.revive()
    assert waiting.line() == [c, a], "nobody is put in line twice"


def test_resume_of_a_run_whose_process_was_killed_while_it_waited_keeps_its_one_place(new):
    a, b, c = new(), new(), new()
    started(a, b, c)
    kill(b)
    launch.start(b)
    assert (waiting.line(), stray()) == ([b, c], [b.name, c.name])


def test_a_run_whose_starter_died_before_its_process_was_there_is_found_again(new):
    a = new()
    with waiting.locked():
        waiting.join(a)
    launch.revive()
    wait_for(lambda: status(a) == "running")
    assert "queued" not in states(a), "nothing was before it"


def test_a_persona_that_is_deleted_leaves_the_line(new):
    a, b, c = new("Ada"), new("Bo"), new("Cy")
    started(a, b, c)
    process = b.process()
    delete(runs.Persona(b.path.parent.parent))
    wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    launch.revive()
    assert (waiting.line(), stray()) == ([c], [c.name])
    finish(a)
    wait_for(lambda: status(c) == "running")


# ---- cancel


def test_cancel_trains_nothing_and_can_be_taken_back_at_once(new):
    a, b, c = new(), new(), new()
    started(a, b, c)
    process = b.process()
    assert launch.stop(b) is True
    assert (status(b), waiting.line()) == ("stopped", [c]) and "Resume puts it in line again" in b.progress().message
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert not b.adapter.exists() and not b.progress().train
    launch.start(b)
    assert (status(b), waiting.line()) == ("queued", [c, b])
    finish(a)
    finish(c)
    wait_for(lambda: status(b) == "running")


def test_cancel_works_when_the_process_that_waited_is_gone(new):
    a, b = new(), new()
    started(a, b)
    kill(b)
    assert launch.stop(b) is True and (status(b), stray()) == ("stopped", [])
    launch.revive()
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
        launch.start(b)
    with pytest.raises(RunError, match=f"{a.name} is already running"):
        launch.start(a)


def test_what_has_stopped_can_be_resumed_while_its_process_is_on_its_way_out(new):
    """A trainer takes a second to leave; the click on Resume need not wait for it, and two never train at once."""
    a = new()
    started(a)
    before = a.process()
    a.log("state", state="stopped")
    launch.start(a)
    wait_for(lambda: status(a) == "queued")
    assert pid(a) != before.pid and stray() == [a.name]
    before.kill()
    before.wait(10)
    wait_for(lambda: status(a) == "running" and stray() == [])


# ---- visitors of a shared server take turns


@pytest.fixture
def of(monkeypatch, new):
    """A run of that visitor's persona, on a shared server."""
    monkeypatch.setenv("PERSONA_SHARED", "1")

    def of(visitor: str, name: str) -> Run:
        with files.asking(visitor * 40):
            return new(name)

    return of


def test_many_runs_of_one_visitor_do_not_keep_the_others_waiting(of):
    """a trains; then each visitor's first waiting run, by its number, then each one's second: a's count one more."""
    a1, a2, a3, b1, b2, c1 = (of(who, f"{who}{n}") for who, n in ("a1", "a2", "a3", "b1", "b2", "c1"))
    started(a1, a2, a3, b1, b2, c1)
    assert waiting.line() == [b1, c1, a2, b2, a3]
    finish(a1)
    wait_for(lambda: status(b1) == "running")
    assert waiting.line() == [a2, c1, a3, b2], "b trains now, and has had a turn"
    assert [waiting.place(r).number for r in (a2, c1, a3, b2)] == [1, 2, 3, 4]


def test_a_visitor_learns_a_place_and_a_time_and_nothing_of_others(of):
    a1, b1, b2, c1 = of("a", "Ada"), of("b", "Bea"), of("b", "Bo"), of("c", "Cy")
    waiting.expect(b1, 600.0)
    started(a1, b1, b2, c1)
    assert waiting.line() == [b1, c1, b2]
    said = {r: waiting.progress(r).message for r in (b1, c1, b2)}
    left = "the run that trains now needs about 3 minutes more"
    assert said[b1] == f"1st in line; {left}"
    assert said[c1] == f"2nd in line; {left}, all before it about 13 minutes"
    assert said[b2] == f"3rd in line; {left}", "how long c1 takes is not known"
    for run, words in said.items():
        for other in {a1, b1, b2, c1} - {run}:
            assert other.name not in words and other.path.parent.parent.name.title() not in words


# ---- what people see


def test_the_place_in_line_in_words(new):
    a, b, c = new("Ada"), new("Bo"), new("Cy")
    started(a, b, c)
    left = "the run that trains now needs about 3 minutes more"  # 8 of 10 steps, 20 s each
    assert waiting.progress(b).message == f"1st in line, after {a.name} of Ada; {left}"
    assert waiting.progress(c).message == f"2nd in line, after {b.name} of Bo; {left}"
    assert waiting.progress(a) == a.progress() and waiting.place(a) is None
    assert waiting.words(waiting.Place(1, None, 9000.0)).endswith("needs about 2.5 hours more")


def test_a_resumed_run_does_not_wait_for_itself(new, monkeypatch):
    a = new("Ada")
    waiting.folder().mkdir(parents=True)
    (waiting.folder() / "now.json").write_text(json.dumps({"run": str(a.path)}))  # its turn was the last one
    monkeypatch.setattr(runs.Run, "alive", lambda self: True)
    assert waiting.training() == a
    waiting.join(a)
    assert waiting.training() is None and waiting.place(a) == waiting.Place(1, None, None)


def test_train_in_a_shell_waits_and_ctrl_c_cancels(new, monkeypatch, capsys):
    a = new("Ada")
    persona = runs.Persona(a.path.parent.parent)
    started(a)

    def press():
        b = wait_for(lambda: next(iter(waiting.line()), None))
        wait_for(lambda: said.append(capsys.readouterr().err) or "Waiting" in "".join(said))
        assert status(b) == "queued"
        os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    monkeypatch.setattr(sys, "argv", ["persona", "train", str(persona.path), "--json"])
    thread = threading.Thread(target=press)
    thread.start()
    assert cli.main() == 0
    thread.join()
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (value["status"], value["adapter"], value["steps"]) == ("stopped", None, None)
    assert f"Waiting: 1st in line, after {a.name} of Ada; " in "".join(said) and "Ctrl-C cancels" in "".join(said)
    assert status(runs.Run(runs.Path(value["run"]))) == "stopped" and waiting.training() == a and stray() == []


def test_numbers_in_words():
    cases = [(3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"), (113, "113th")]

    def check(number, text):
        assert waiting.words(waiting.Place(number, None, None)) == f"{text} in line"

    check_each(cases, check)


def test_the_page_puts_in_line_shows_cancel_and_switches(new, monkeypatch):
    """The second click on Start is no error: its run waits, can be cancelled, and the first is still within reach."""
    monkeypatch.setattr(page, "fit", lambda persona, config: (config, None))
    monkeypatch.setattr(page.settings, "to_config", lambda *_: RunConfig())
    slug = new("Mags").path.parent.parent.name
    a = page.start(slug, "quick")
    wait_for(lambda: status(page.find(slug, a)) == "running")
    b = page.start(slug, "quick")
    status_, *_, begin, halt, again, _, which, timer, _, mark = page.watch(slug, b, "")
    assert f"Waiting: 1st in line, after {a} of Mags" in status_
    assert (halt.value, halt.interactive, begin.value, begin.interactive) == ("Cancel", True, "Train after it", True)
    assert which.visible and which.choices == [(f"{a}: training", a), (f"{b}: waiting", b)] and which.value == b
    assert timer.active and not again.visible
    assert all(x == {"__type__": "update"} for x in page.watch(slug, b, mark)), "nothing new"
    assert page.watch(slug, "", "")[-2] == a, "a reloaded page shows what trains, and stays with it"

    monkeypatch.setattr(page.gr, "Info", lambda text: None)
    assert page.stop(slug, b) == b
    status_, *_, halt, again, _, which, _, _, _ = page.watch(slug, b, mark)
    assert "Stopped" in status_ and again.visible and not halt.interactive and which.visible, "back to the other one"
    page.stop(slug, a)
    wait_for(lambda: not waiting.training())
    *_, begin, halt, again, _, which, timer, _, _ = page.watch(slug, a, "")
    assert (begin.value, halt.value, which.visible, timer.active) == ("Start training", "Stop", False, False)


def test_a_process_that_cannot_be_noted_is_not_left_behind(new, monkeypatch):
    """A full disk: nobody could find it again, and the next Resume would start another one beside it."""
    begun, run = [], new()

    def noted(*_):
        raise InputError("the disk is full")

    def remember(*given, **options):
        begun.append(REAL([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[-1]

    with monkeypatch.context() as patch:
        patch.setattr(launch, "note_worker", noted)
        patch.setattr(launch.subprocess, "Popen", remember)
        with pytest.raises(InputError, match="full"):
            launch.start(run)
    assert begun[0].poll() is not None
    started(run)
    finish(run)
    wait_for(lambda: status(run) == "done")


def test_a_page_opens_where_the_line_cannot_be_written(new, monkeypatch):
    """A full disk: who comes is told, and sees what is there."""
    from types import SimpleNamespace

    from persona import ui
    from persona.errors import InputError

    a, b = new(), new()
    started(a, b)
    kill(b)

    def full():
        raise InputError("queue: the disk is full. Free some space and try again.")

    said: list[str] = []
    monkeypatch.setattr(waiting, "locked", full)
    monkeypatch.setattr(ui.gr, "Warning", said.append)
    slug, *_ = ui.arrive("mags", SimpleNamespace(query_params={}))
    assert slug == "mags" and said == ["queue: the disk is full. Free some space and try again."]
