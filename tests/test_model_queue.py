"""The queue before the model: who is next, how many are before one, and that whatever ends a turn hands it on."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import wait_for

from persona.compare import model_queue
from persona.compare.model_queue import ModelQueue, WaitEstimate


def serve_all(queue):
    """The kinds of work, in the order of their turns."""
    order = []
    while queue.active:
        order.append(queue.active.kind)
        queue.leave(queue.active)
    return order


def test_visitors_take_turns_and_each_is_served_in_order():
    queue = ModelQueue()
    for visitor, kind in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1")):
        queue.join(visitor, kind)
    assert [t.kind for t in queue.waiting_in_order()] == ["b1", "c1", "a2", "b2", "a3"]
    assert serve_all(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"] and not queue.waiting


def test_one_who_always_has_more_keeps_nobody_waiting_and_is_not_kept_waiting():
    queue = ModelQueue()
    for n in range(3):
        queue.join("busy", f"busy{n}")
    order = []
    for n in range(6):  # somebody new comes during every turn
        order.append(queue.active.kind)
        queue.join(f"new{n}", f"new{n}")
        queue.leave(queue.active)
    assert order == ["busy0", "new0", "busy1", "new1", "new2", "busy2"]


def test_the_place_counts_page_api_and_evaluation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(model_queue.time, "monotonic", lambda: now[0])
    queue = ModelQueue()
    evaluation = queue.join("v", "evaluation")
    first = queue.join("api", "api", batch_key="base")
    second = queue.join("api", "api", batch_key="base")
    mine = queue.join("window", "question")
    assert queue.estimate_wait(mine) == WaitEstimate(2, None), "the evaluation and one request; no turn has ended yet"
    now[0] += 8
    queue.leave(evaluation)
    assert queue.estimate_wait(mine) == WaitEstimate(1, None), "how long the API takes is not known"
    assert queue.share_turn(first, 8) == [second]
    assert queue.estimate_wait(mine).before == 2, "the batch answers both"
    again = queue.join("v", "evaluation")
    now[0] += 6
    queue.leave(first)
    assert mine.turn.is_set() and queue.estimate_wait(mine) == WaitEstimate(0, 0.0)
    assert queue.estimate_wait(again) == WaitEstimate(1, None)
    queue.join("api", "api")
    late = queue.join("other", "question")
    now[0] += 30
    queue.leave(mine)
    now[0] += 3
    assert queue.estimate_wait(late) == WaitEstimate(2, 8 - 3 + 6 / 2), "each of the batch of two took half of its time"
    now[0] += 50
    assert queue.estimate_wait(late).seconds == 3, "a turn that takes longer than usual may end at any time"


def test_a_shared_turn_takes_what_fits_in_order_and_ends_for_all():
    queue = ModelQueue()
    first = queue.join("a", "api", batch_key="x", rows=3)
    queue.join("b", "big", batch_key="x", rows=4)
    other = queue.join("c", "other base", batch_key="y")
    fits = queue.join("d", "api", batch_key="x", rows=2)
    queue.join("d", "full", batch_key="x", rows=1)
    assert queue.share_turn(first, 5) == [fits] and fits.turn.is_set()
    queue.leave(fits)
    assert queue.active is first, "only the one that shares it ends it"
    queue.leave(first)
    queue.leave(first)
    assert serve_all(queue) == ["big", "other base", "full"] and other.turn.is_set()


def test_the_others_of_a_turn_count_as_served():
    queue = ModelQueue()
    first = queue.join("a", "api", batch_key="x")
    for visitor, kind in (("b", "api"), ("b", "b2"), ("c", "c1")):
        queue.join(visitor, kind, batch_key="x" if kind == "api" else None)
    queue.share_turn(first, 8)
    queue.leave(first)
    assert serve_all(queue) == ["c1", "b2"]


def test_one_who_gives_up_is_passed_over_and_the_others_hear_of_it():
    queue, told = ModelQueue(), []
    running, gone = queue.join("a", "run"), queue.join("b", "gone")
    last = queue.join("c", "last", lambda: told.append(queue.estimate_wait(last).before))
    queue.cancel(gone)
    queue.cancel(gone)
    queue.leave(gone)
    queue.cancel(running)
    assert told == [1] and queue.active is running, "a turn that runs is not ended by a cancel"
    queue.leave(running)
    assert queue.active is last and told == [1, 0] and not gone.turn.is_set()


def test_threads_wait_for_their_turn_and_an_error_hands_it_on():
    queue, inside, most = ModelQueue(), [], []

    def work(n):
        with queue.turn(f"visitor {n % 3}"):
            inside.append(n)
            most.append(len(inside))
            inside.remove(n)
            if n % 4 == 0:
                raise RuntimeError("broken on purpose")

    with ThreadPoolExecutor(12) as pool:
        with queue.turn("first"):
            done = [pool.submit(work, n) for n in range(12)]
            wait_for(lambda: len(queue.waiting_in_order()) == 12)
            assert not most
        failed = [n for n, f in enumerate(done) if f.exception(10)]
    assert failed == [0, 4, 8] and most == [1] * 12 and queue.active is None and not queue.waiting


def test_a_turn_within_a_turn_is_the_same_one():
    queue = ModelQueue()
    with queue.turn("a") as outer:
        with outer.held(), queue.turn("b") as inner:
            assert inner is outer
        assert queue.active is outer
    late = threading.Event()

    def use_old_ticket():
        with outer.held(), queue.turn("c") as ticket:
            assert ticket is not outer
            late.set()

    use_old_ticket()
    assert late.is_set() and queue.active is None


def test_waiting_in_the_event_loop_shows_each_place():
    queue = ModelQueue()

    async def work():
        tickets = [queue.join(v, "question") for v in "abc"]
        places = queue.wait_for_turn(tickets[2], 60)
        assert (await anext(places)).before == 2
        threading.Thread(target=queue.leave, args=(tickets[1],)).start()
        assert (await anext(places)).before == 1
        threading.Thread(target=queue.leave, args=(tickets[0],)).start()
        assert [place async for place in places] == [] and queue.active is tickets[2]

    asyncio.run(asyncio.wait_for(work(), 10))


def test_a_loop_that_was_closed_disturbs_nobody():
    queue = ModelQueue()
    running = queue.join("a", "run")

    async def give_up():
        gone = queue.join("b", "question")
        await anext(queue.wait_for_turn(gone, 60))

    asyncio.run(give_up())
    last = queue.join("c", "question")
    queue.leave(running)
    queue.leave(queue.active)
    assert queue.active is last


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_does_not_wait_for_its_parents_turns():
    """As a ZeroGPU Space answers: in a fork of the process whose handler has the turn."""
    queue = ModelQueue()
    with queue.turn("page") as ticket:
        queue.join("other", "question")
        with ticket.held(), queue.mutex:
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # it would wait for ever
                with queue.turn("page") as mine:
                    os._exit(0 if mine is not ticket and not queue.waiting else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert queue.active is ticket
