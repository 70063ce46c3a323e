"""What people see of the line of runs: turns of visitors, places in words, the page and the shell."""

import json
import os
import signal
import sys
import threading

import pytest
from cases import check_each
from standins import REAL, finish, kill, started, status, stray, wait_for

from persona import cli
from persona.errors import InputError
from persona.store import persona_folder, workspace
from persona.train import launcher, queue, run_folder
from persona.train.config import RunConfig
from persona.train.run_folder import Run
from persona.ui.steps import train as page
from persona.ui.steps.train import settings_form

pytest_plugins = "standins"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("stand_in")]  # real processes


@pytest.fixture
def of(monkeypatch, new):
    """A run of that visitor's persona, on a shared server."""
    monkeypatch.setenv("PERSONA_SHARED", "1")

    def of(visitor: str, name: str) -> Run:
        with workspace.as_visitor(visitor * 40):
            return new(name)

    return of


def test_many_runs_of_one_visitor_do_not_keep_the_others_waiting(of):
    """a trains; then each visitor's first waiting run, by its number, then each one's second: a's count one more."""
    a1, a2, a3, b1, b2, c1 = (of(who, f"{who}{n}") for who, n in ("a1", "a2", "a3", "b1", "b2", "c1"))
    started(a1, a2, a3, b1, b2, c1)
    assert queue.list_waiting_runs() == [b1, c1, a2, b2, a3]
    finish(a1)
    wait_for(lambda: status(b1) == "running")
    assert queue.list_waiting_runs() == [a2, c1, a3, b2], "b trains now, and has had a turn"
    assert [queue.find_position(r).number for r in (a2, c1, a3, b2)] == [1, 2, 3, 4]


def test_who_had_the_last_turn_is_not_the_next_one_when_it_has_ended(of):
    a1, a2, b1 = of("a", "a1"), of("a", "a2"), of("b", "b1")
    queue.queue_dir().mkdir(parents=True)
    (queue.queue_dir() / "now.json").write_text(json.dumps({"run": str(a1.path)}))
    for run in (a2, b1):
        queue.enqueue_run(run)
    assert not a1.alive() and [ticket.run for ticket in queue.list_tickets()] == [b1, a2]


def test_a_visitor_learns_a_place_and_a_time_and_nothing_of_others(of):
    a1, b1, b2, c1 = of("a", "Ada"), of("b", "Bea"), of("b", "Bo"), of("c", "Cy")
    b1.update_manifest(expected_seconds=600.0)
    started(a1, b1, b2, c1)
    assert queue.list_waiting_runs() == [b1, c1, b2]
    said = {r: queue.read_run_progress(r).message for r in (b1, c1, b2)}
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
    assert queue.read_run_progress(b).message == f"1st in line, after {a.name} of Ada; {left}"
    assert queue.read_run_progress(c).message == f"2nd in line, after {b.name} of Bo; {left}"
    assert queue.read_run_progress(a) == a.progress() and queue.find_position(a) is None
    assert queue.describe_position(queue.QueuePosition(1, None, 9000.0)).endswith("needs about 2.5 hours more")


def test_a_resumed_run_does_not_wait_for_itself(new, monkeypatch):
    a = new("Ada")
    queue.queue_dir().mkdir(parents=True)
    (queue.queue_dir() / "now.json").write_text(json.dumps({"run": str(a.path)}))  # its turn was the last one
    monkeypatch.setattr(run_folder.Run, "alive", lambda self: True)
    assert queue.find_training_run() == a
    queue.enqueue_run(a)
    assert queue.find_training_run() is None and queue.find_position(a) == queue.QueuePosition(1, None, None)


def test_train_in_a_shell_waits_and_ctrl_c_cancels(new, monkeypatch, capsys):
    a = new("Ada")
    persona = persona_folder.Persona(a.path.parent.parent)
    started(a)

    def press():
        b = wait_for(lambda: next(iter(queue.list_waiting_runs()), None))
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
    assert (
        status(run_folder.Run(run_folder.Path(value["run"]))) == "stopped"
        and queue.find_training_run() == a
        and stray() == []
    )


def test_numbers_in_words():
    cases = [(3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"), (113, "113th")]

    def check(number, text):
        assert queue.describe_position(queue.QueuePosition(number, None, None)) == f"{text} in line"

    check_each(cases, check)


def test_the_page_puts_in_line_shows_cancel_and_switches(new, monkeypatch):
    """The second click on Start is no error: its run waits, can be cancelled, and the first is still within reach."""
    monkeypatch.setattr(launcher.plan, "fit_to_machine", lambda persona, config, given, parent: (config, None, []))
    monkeypatch.setattr(settings_form, "form_to_config", lambda *_: RunConfig())
    slug = new("Mags").path.parent.parent.name
    a = page.on_start(slug, "quick")
    wait_for(lambda: status(page.find_run(slug, a)) == "running")
    b = page.on_start(slug, "quick")
    status_, *_, begin, halt, again, _, which, timer, _, mark, training = page.update_run_view(slug, b, "")
    assert f"Waiting: 1st in line, after {a} of Mags" in status_
    assert (halt.value, halt.interactive, begin.value, begin.interactive) == ("Cancel", True, "Add to the queue", True)
    assert which.visible and which.choices == [(f"{a}: training", a), (f"{b}: waiting", b)] and which.value == b
    assert timer.active and not again.visible and training.endswith(a)
    assert all(x == {"__type__": "update"} for x in page.update_run_view(slug, b, mark)), "nothing new"
    assert page.update_run_view(slug, "", "").name == a, "a reloaded page shows what trains, and stays with it"

    monkeypatch.setattr(page.gr, "Info", lambda text, **_: None)
    assert page.on_stop(slug, b) == b
    status_, *_, halt, again, _, which, _, _, _, _ = page.update_run_view(slug, b, mark)
    assert "Stopped" in status_ and again.visible and not halt.interactive and which.visible, "back to the other one"
    page.on_stop(slug, a)
    wait_for(lambda: not queue.find_training_run())
    *_, begin, halt, again, _, which, timer, _, _, training = page.update_run_view(slug, a, mark)
    assert (begin.value, halt.value, which.visible, timer.active) == ("Start training", "Stop", False, False)
    assert training == "", "what Start would do is worked out anew"


def test_a_process_that_cannot_be_noted_is_not_left_behind(new, monkeypatch):
    """A full disk: nobody could find it again, and the next Resume would start another one beside it."""
    begun, run = [], new()

    def noted(*_):
        raise InputError("the disk is full")

    def remember(*given, **options):
        begun.append(REAL([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[-1]

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "record_worker", noted)
        patch.setattr(launcher.subprocess, "Popen", remember)
        with pytest.raises(InputError, match="full"):
            launcher.start_run(run)
    assert begun[0].poll() is not None
    started(run)
    finish(run)
    wait_for(lambda: status(run) == "done")


def test_a_page_opens_where_the_line_cannot_be_written(new, monkeypatch):
    """A full disk: who comes is told, and sees what is there."""
    from types import SimpleNamespace

    from persona.errors import InputError
    from persona.ui import app

    a, b = new(), new()
    started(a, b)
    kill(b)

    def full():
        raise InputError("queue: the disk is full. Free some space and try again.")

    said: list[str] = []
    monkeypatch.setattr(queue, "lock_queue", full)
    monkeypatch.setattr(app.gr, "Warning", lambda text, **_: said.append(text))
    assert app.restore_tab("mags", SimpleNamespace(query_params={})).slug == "mags"
    assert said == ["queue: the disk is full. Free some space and try again."]
