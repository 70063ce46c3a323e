"""The times of a run and of an evaluation: how long it took, and how long it will still take."""

import time
from types import SimpleNamespace

import pytest

from persona.judge import scoring
from persona.train import queue
from persona.train.progress import EventReplay, RunProgress
from persona.ui.steps.compare import judge_tab
from persona.ui.widgets import countdown_html

STARTED = [("state", 100, {"state": "starting"}), ("plan", 200, {"steps": 6}), ("state", 210, {"state": "running"})]


def replay(events, seconds=60.0) -> RunProgress:
    """events: (kind, time, the rest). seconds: what the plan expected."""
    replayed = EventReplay({"seconds": seconds})
    for kind, at, facts in events:
        replayed.add({"event": kind, "time": float(at), **facts})
    return replayed.progress()


def steps(count: int) -> list:
    return [("step", 210 + 20 * n, {"step": n, "seconds": 20.0 * n}) for n in range(1, count + 1)]


def test_no_time_is_left_only_when_nothing_is_left_to_do():
    """The longer of plan and own pace counts, and none where the plan has run out before a pace is known."""
    assert replay(STARTED).left is None
    for count in range(1, 7):
        assert replay([*STARTED, *steps(count)]).left == pytest.approx((6 - count) * 20.0)
    measured = [*STARTED[:2], ("eval", 205, {"step": 0, "nll": 4.0}), STARTED[2]]
    assert replay(measured, 130.0).left == 6 * 10.0, "six evaluations as long as the base's, for 20 s by the plan"
    assert replay([*STARTED, *steps(2)], 600.0).left == pytest.approx(600 * 4 / 6 - 150)
    assert replay([*STARTED, *steps(5)], 600.0).left == pytest.approx(20.0), "after some steps its own pace alone"


def test_the_time_left_does_not_go_up_and_down():
    """Steps of 2 and 4 s by turns, and an evaluation of 6 s at every fifth."""
    events, now = [*STARTED[:2], ("eval", 205, {"step": 0, "nll": 4.0}), STARTED[2]], 210.0
    events[1] = ("plan", 200, {"steps": 40})
    shown = []
    for step in range(1, 41):
        now += 2 + 2 * (step % 2)
        events.append(("step", now, {"step": step, "seconds": now - 210 - 6 * ((step - 1) // 5)}))
        shown.append(replay(events, 280.0))
        if step % 5 == 0:
            now += 6
            events.append(("eval", now, {"step": step, "nll": 3.0}))
    ends = [p.ends for p in shown if p.left]
    assert len(ends) == 40 and len(set(ends)) <= 3 and ends[-1] == pytest.approx(now, abs=20), ends


def test_the_time_of_a_run_is_that_of_its_starts():
    waited = ("state", 50, {"state": "queued"})
    loading = ("state", 110, {"state": "starting", "message": "Loading …"})
    begun = [waited, STARTED[0], loading, *STARTED[1:], *steps(1)]
    assert replay(begun).elapsed == 130.0
    resumed = [STARTED[0], ("state", 910, {"state": "running"}), ("state", 925, {"state": "done"})]
    assert replay([*begun, ("state", 900, {"state": "starting"}), *resumed[1:]]).elapsed == 155.0


def test_a_time_that_has_passed_is_not_known(monkeypatch):
    now = time.time()
    assert countdown_html("run", now - 5).endswith(">…</span>") and ">under a minute<" in countdown_html(
        "run", now + 9.4
    )
    for left, text in ((61, "1 min"), (3590, "1 h 0 min")):
        assert f">{text}<" in countdown_html("run", now + left)
    assert countdown_html("run", None) == "…"
    run = SimpleNamespace(progress=lambda: RunProgress(status="running", time=now - 60, left=30.0))
    monkeypatch.setattr(queue, "find_training_run", lambda: run)
    monkeypatch.setattr(queue, "list_waiting_runs", lambda: [])
    assert queue.estimate_wait() is None, "a run trains, so a wait of 0 would be wrong"


def test_an_evaluation_counts_down_to_its_own_end(monkeypatch):
    """Scoring is quick here and answering slow: no time is said before both paces are known, and none ever grows."""
    clock, seen = [0.0], []
    monkeypatch.setattr(scoring.time, "monotonic", lambda: clock[0])
    work = scoring.EvalWork(seen.append, parts=2, part=1, doing="How likely …?")
    work.planned.update(scoring=20, answering=40)

    def passes(kind: str, seconds: list[float]) -> None:
        for duration in seconds:
            clock[0] += duration
            work.tick(kind)

    passes("scoring", [5.0, *[0.1] * 9])
    assert {p.seconds_left for p in seen} == {None}
    passes("answering", [3.0, 1.0, 1.0])
    assert seen[-1].seconds_left == pytest.approx(37 * 5 / 3 + 10 * 0.59)
    passes("answering", [9.0] * 5)  # other programs take the machine
    work.tick("answering", 12)  # an early end saves passes
    passes("answering", [1.0] * 20)
    passes("scoring", [0.1] * 10)
    left = [p.seconds_left for p in seen if p.seconds_left is not None]
    assert left == sorted(left, reverse=True) and left[-1] == 0 and seen[-1].share == 1.0


def test_the_page_says_of_what_the_time_is():
    html = judge_tab._progress_html(scoring.EvalProgress(0.3, "Probes", 90.0, 3, 5))
    assert "Part 3 of 5: Probes · About 1 min 30 s left for the whole measurement." in html
    assert 'class="bar" role="progressbar"' in html and "width:30.0%" in html
    assert "left" not in judge_tab._progress_html(scoring.EvalProgress(0.9, "Probes", 0.4, 3, 5))
