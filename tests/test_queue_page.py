"""What people see of the line of runs: turns of visitors, places in words, the page and the shell."""

import json
import os
import signal
import sys
import threading

import pytest
from cases import check_each
from standins import REAL, finish, kill, started, status, stray, wait_for

from persona import cli, files, launch, runs, waiting
from persona.config import RunConfig
from persona.errors import InputError
from persona.runs import Run
from persona.ui import train as page

pytest_plugins = "standins"
pytestmark = pytest.mark.usefixtures("stand_in")


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
