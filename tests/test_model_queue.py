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
        order.append(queue.active[0].kind)
        queue.leave(queue.active[0])
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
        order.append(queue.active[0].kind)
        queue.join(f"new{n}", f"new{n}")
        queue.leave(queue.active[0])
    assert order == ["busy0", "new0", "busy1", "new1", "new2", "busy2"]


def test_the_place_counts_page_api_and_evaluation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(model_queue.time, "monotonic", lambda: now[0])
    queue = ModelQueue()
    evaluation = queue.join("v", "evaluation")
    first = queue.join("api", "api", batch_key="base")
    second = queue.join("another key", "api", batch_key="base")
    mine = queue.join("window", "question")
    assert queue.estimate_wait(mine) == WaitEstimate(3, None), "the evaluation and two requests; no turn has ended yet"
    now[0] += 8
    queue.leave(evaluation)
    assert queue.active == [first, second] and queue.estimate_wait(mine) == WaitEstimate(2, None), "one batch"
    again = queue.join("v", "evaluation")
    now[0] += 6
    queue.leave(first)
    queue.leave(second)
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


def test_turns_of_one_batch_run_together_up_to_a_number_of_rows():
    queue = ModelQueue(max_rows=5)
    first = queue.join("a", "api", batch_key="x", rows=3)
    fits = queue.join("b", "question", batch_key="x", rows=2)
    late = [queue.join("c", "full", batch_key="x"), queue.join("d", "other base", batch_key="y")]
    after, alone = queue.join("e", "question", batch_key="x", rows=9), queue.join("f", "evaluation")
    assert queue.active == [first, fits] and fits.turn.is_set()
    queue.leave(fits)
    queue.leave(fits)
    assert queue.active == [first, late[0]], "the other base waits for both, and nobody overtakes it"
    queue.leave(first)
    assert not after.turn.is_set()
    queue.leave(late[0])
    assert queue.active == [late[1]]
    queue.leave(late[1])
    assert queue.active == [after], "alone it may have more rows"
    queue.leave(after)
    assert queue.active == [alone] and serve_all(queue) == ["evaluation"]


def test_one_who_gives_up_lets_those_behind_begin():
    queue = ModelQueue()
    first, alone = queue.join("a", "question", batch_key="x"), queue.join("b", "evaluation")
    last = queue.join("c", "question", batch_key="x")
    assert queue.active == [first]
    queue.cancel(alone)
    assert queue.active == [first, last] and last.turn.is_set()


def test_whose_turn_runs_comes_after_the_others_in_a_batch_too():
    queue = ModelQueue(max_rows=2)
    for visitor, kind in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1")):
        queue.join(visitor, kind, batch_key="x")
    assert [t.kind for t in queue.active] == ["a1", "a2"]
    assert serve_all(queue) == ["a1", "a2", "b1", "c1", "a3", "b2"]


def test_one_who_gives_up_is_passed_over_and_the_others_hear_of_it():
    queue, told = ModelQueue(), []
    running, gone = queue.join("a", "run"), queue.join("b", "gone")
    last = queue.join("c", "last", lambda: told.append(queue.estimate_wait(last).before))
    queue.cancel(gone)
    queue.cancel(gone)
    queue.leave(gone)
    queue.cancel(running)
    assert told == [1] and queue.active == [running], "a turn that runs is not ended by a cancel"
    queue.leave(running)
    assert queue.active == [last] and told == [1, 0] and not gone.turn.is_set()


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
    assert failed == [0, 4, 8] and most == [1] * 12 and not queue.active and not queue.waiting


def test_a_turn_within_a_turn_is_the_same_one():
    queue = ModelQueue()
    with queue.turn("a") as outer:
        with outer.held(), queue.turn("b") as inner:
            assert inner is outer
        assert queue.active == [outer]
    late = threading.Event()

    def use_old_ticket():
        with outer.held(), queue.turn("c") as ticket:
            assert ticket is not outer
            late.set()

    use_old_ticket()
    assert late.is_set() and not queue.active


def test_waiting_in_the_event_loop_shows_each_place():
    queue = ModelQueue()

    async def work():
        tickets = [queue.join(v, "question") for v in "abc"]
        places = queue.wait_for_turn(tickets[2], 60)
        assert (await anext(places)).before == 2
        threading.Thread(target=queue.leave, args=(tickets[1],)).start()
        assert (await anext(places)).before == 1
        threading.Thread(target=queue.leave, args=(tickets[0],)).start()
        assert [place async for place in places] == [] and queue.active == [tickets[2]]

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
    queue.leave(queue.active[0])
    assert queue.active == [last]


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
        assert queue.active == [ticket]
