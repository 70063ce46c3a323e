"""Callers who share the running batch of a model: each gets what it would get alone, whenever it comes and goes."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from speaking import GREEDY, LONG, NEVER, PROMPTS, SHORT, WARM, WAYS, changed, say
from tiny_models import write_adapter
from waiting import wait_for

from persona.compare import session, shared_batch
from persona.compare.model_queue import ModelQueue
from persona.compare.session import NO_ADAPTER, Column, stream_replies
from persona.models import adapter
from persona.models.adapter import WEIGHTS_FILE
from persona.models.generate import Batch, Row
from persona.ui import model_queue
from persona.ui.model_queue import ModelTurn, wait_in_queue

pytest_plugins = "speaking"
pytestmark = pytest.mark.usefixtures("plain_cpu")
MIDDLE = PROMPTS["different"][2]


@pytest.fixture
def queue(monkeypatch):
    made = ModelQueue()
    monkeypatch.setattr(session, "MODEL_QUEUE", made)
    return made


def share(queue, model, columns, sampling=GREEDY, halted=frozenset(), visitor="v"):
    """Stream as the page does: each step within a turn that shares the batch."""
    ticket = queue.join(visitor, "question", batch_key="base", rows=len(columns))
    assert ticket.turn.wait(30)
    try:
        with closing(stream_replies(model, columns, sampling, NEVER, halted)) as stream:
            while True:
                with ticket.held():
                    step = next(stream, None)
                if step is None:
                    return
                yield step
    finally:
        queue.leave(ticket)


def last(stream):
    *_, replies = stream
    return replies


@pytest.fixture
def work(model, adapters):
    """(columns, sampling) of five callers: base, adapters, a blend, a strength; each with other settings."""
    one, two = map(model.attach, adapters)
    blend = model.blend({one: 0.5, two: 0.7})
    return [
        ([Column(NO_ADAPTER, SHORT), Column(one, LONG)], GREEDY),
        ([Column(two, SHORT, 0.5), Column(blend, MIDDLE)], WARM),
        ([Column(one, LONG, 1.5)], replace(WARM, seed=3, max_new_tokens=40)),
        ([Column(NO_ADAPTER, MIDDLE)], replace(WAYS["top-k"], max_new_tokens=3)),
        ([Column(blend, SHORT), Column(two, LONG)], replace(GREEDY, repetition_penalty=1.4)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 3, 0, 1), (3, 0, 2, 1, 4)])
def test_rows_that_join_and_leave_change_nobodys_text(model, work, order):
    """Beyond the sliding window of 16, longer and shorter than those that are there, some steps apart."""
    want = [say(model, columns, sampling) for columns, sampling in work]
    assert len({r.text for replies in want for r in replies}) == 8, "they must differ, or this test sees nothing"
    rows = [
        [Row(c.prompt.ids, sampling, NEVER, model.adapter_weights(c.adapter, c.strength)) for c in columns]
        for columns, sampling in work
    ]
    batch, joins = Batch(model.model, model.tokenizer), dict(zip((0, 1, 2, 4, 19), order, strict=True))
    for step in range(70):
        if step in joins:
            batch.join(rows[joins[step]])
            batch.advance()
        if batch.rows:
            batch.step()
            batch.advance()
    assert [[row.reply for row in one] for one in rows] == want
    assert not batch.rows and batch.loop is None and changed(model.model) == 0


def test_the_cache_is_as_long_as_the_longest_row_that_is_left(model):
    long, short = (Row(p.ids, replace(GREEDY, max_new_tokens=n), NEVER) for p, n in ((LONG, 3), (SHORT, 20)))
    batch = Batch(model.model, model.tokenizer)
    for rows in ([short], [long]):
        batch.join(rows)
        batch.advance()
    assert batch.loop.cache.get_seq_length() == len(LONG.ids)
    while long in batch.rows:
        batch.step()
        batch.advance()
    assert batch.loop.cache.get_seq_length() == len(SHORT.ids) + 3 - 1 and batch.loop.mask is None
    batch.close()


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_batch_that_is_closed_leaves_nothing_behind(model, work, tokens):
    """After the first token too, before which its rows have not joined."""
    columns, sampling = work[1]
    with closing(stream_replies(model, columns, sampling, NEVER)) as replies:
        for _ in range(tokens):
            next(replies)
        assert changed(model.model) > 0
    assert changed(model.model) == 0


@pytest.mark.slow
def test_callers_at_once_get_what_they_get_alone(model, work, queue):
    want = [say(model, columns, sampling) for columns, sampling in work]
    with ThreadPoolExecutor(10) as pool:
        got = list(pool.map(lambda n: last(share(queue, model, *work[n % 5], visitor=str(n))), range(10)))
    assert got == [want[n % 5] for n in range(10)]
    wait_for(lambda: model.batch.thread is None)
    assert not queue.active and not queue.waiting and changed(model.model) == 0


def test_one_who_stops_or_halts_ends_only_its_own_rows(model, work, queue):
    (columns, _), (others, warm) = work[:2]
    want, alone = say(model, others, warm), say(model, columns)
    stopped, other, halted = share(queue, model, columns), share(queue, model, others, warm), set()
    next(stopped)
    next(other)
    stopped.close()
    assert len(queue.active) == 1
    assert last(other) == want
    said = []
    for stream in (share(queue, model, columns, GREEDY, halted), stream_replies(model, columns, GREEDY, NEVER, halted)):
        halted.clear()
        for shown in stream:
            if shown[0].tokens == 5:
                halted.add(0)
        said.append(shown)
    assert said[0] == said[1] and said[0][0].tokens == 5 and said[0][1] == alone[1]


def test_an_adapter_is_attached_between_two_steps_and_none_in_use_is_given_up(model, adapters, queue, monkeypatch):
    monkeypatch.setattr(session, "MAX_ATTACHED", 1)
    want = say(model, [Column(NO_ADAPTER, LONG)], replace(GREEDY, max_new_tokens=100))
    running = share(queue, model, [Column(NO_ADAPTER, LONG)], replace(GREEDY, max_new_tokens=100))
    next(running)
    tickets = [queue.join(v, "question", batch_key="base") for v in "ab"]
    for ticket, one in zip(tickets, adapters, strict=True):
        with ticket.held():
            model.attach(one)
    assert len(model.attached) == 2, "both are in use"
    for ticket in tickets:
        queue.leave(ticket)
    os.utime(adapters[0].path / WEIGHTS_FILE)  # changed on disk
    another = queue.join("c", "question", batch_key="base")
    with another.held():
        model.attach(adapters[0])
    queue.leave(another)
    assert [a for a, _ in model.attached.values()] == [adapters[0]]
    assert last(running) == want


def test_an_adapter_that_changed_on_disk_is_another_one_while_it_is_in_use(
    model, adapters, queue, tiny_gemma, tmp_path
):
    def attached(seed, ticket):
        write_adapter(tiny_gemma, tmp_path / "a", seed=seed, template="gemma-base")
        os.utime(tmp_path / "a" / WEIGHTS_FILE, (seed, seed))
        with ticket.held():
            return model.attach(adapter.read_adapter(tmp_path / "a"))

    first, second, third = (queue.join(v, "question", batch_key="base") for v in "abc")
    name = attached(3, first)
    before = say_in(first, model, name)
    newer = attached(4, second)
    assert newer != name and say_in(first, model, name) == before != say_in(second, model, newer)
    queue.leave(first)
    assert attached(4, third) == name and say_in(third, model, name) == say_in(second, model, newer)
    queue.leave(second)
    queue.leave(third)


def say_in(ticket, model, name):
    with ticket.held():
        return say(model, [Column(name, SHORT)])


def test_who_cannot_be_answered_hears_of_it_and_the_others_go_on(model, work, queue, monkeypatch):
    """Rows whose prompt fails alone; a step that fails for all; then all is as before."""
    others, warm = work[1]
    want, real = say(model, others, warm), Batch.join

    def join(batch, rows):
        if any(row.prompt == MIDDLE.ids and not row.mix for row in rows):
            raise RuntimeError("broken on purpose")
        real(batch, rows)

    monkeypatch.setattr(Batch, "join", join)
    bad = [Column(NO_ADAPTER, MIDDLE)]
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(lambda: last(share(queue, model, others, warm)))
        with pytest.raises(RuntimeError, match="on purpose"):
            last(share(queue, model, bad))
        assert good.result() == want
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", lambda _: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            last(share(queue, model, others, warm))
    assert changed(model.model) == 0 and not queue.active and last(share(queue, model, others, warm)) == want


def test_the_cache_is_bounded_and_rows_join_in_order(monkeypatch):
    monkeypatch.setattr(shared_batch, "MAX_CACHE_TOKENS", 100)
    monkeypatch.setattr(shared_batch, "MAX_JOINING_TOKENS", 30)
    batch = shared_batch.SharedBatch(lambda: None, None)

    def caller(prompt, limit, rows=1):
        made = [Row([1] * prompt, replace(GREEDY, max_new_tokens=limit), NEVER) for _ in range(rows)]
        return shared_batch._Caller(made)

    def take():
        taken = batch._take_joining()
        batch.running += taken
        batch.batch.rows += [row for one in taken for row in one.rows]
        return [waits.index(one) for one in taken]

    waits = [caller(60, 60), caller(10, 10), caller(10, 15), caller(20, 10), caller(5, 5, rows=3), caller(1, 1)]
    batch.waiting += waits
    assert take() == [0], "alone it may have more"
    assert take() == [], "and nobody else has room beside it"
    batch.running, batch.batch.rows = [], []
    assert take() == [1, 2], "two prompts of ten; a third of twenty would be sixty positions"
    assert take() == [3] and take() == []
    batch.batch.loop = SimpleNamespace(can_grow=False)
    batch.running, batch.batch.rows = [], []
    assert take() == [], "nobody joins a graph"
    batch.batch.loop = None
    assert take() == [4, 5]


def test_what_needs_the_model_alone_waits_for_the_batch_and_is_not_overtaken(model, queue, work):
    order, columns = [], work[0][0]
    running = share(queue, model, columns)
    next(running)

    def alone():
        with queue.turn("evaluation", "scoring"):
            order.append(("alone", changed(model.model)))

    def late():
        order.append(("late", len(last(share(queue, model, columns, visitor="w")))))

    threads = [threading.Thread(target=alone), threading.Thread(target=late)]
    for n, thread in enumerate(threads, 1):
        thread.start()
        wait_for(lambda n=n: len(queue.waiting_in_order()) == n)
    last(running)
    for thread in threads:
        thread.join(30)
    assert order == [("alone", 0), ("late", 2)]


@pytest.mark.parametrize("zerogpu", [False, True])
def test_questions_of_the_page_run_at_once(queue, monkeypatch, zerogpu):
    """But on ZeroGPU, where each has a process of its own."""
    monkeypatch.setattr(model_queue, "MODEL_QUEUE", queue)
    monkeypatch.setattr(model_queue, "has_zerogpu", lambda: zerogpu)
    status, both, turns = object(), threading.Barrier(1 if zerogpu else 2), []

    def work():
        both.wait(10)
        turns.append(len(queue.active))
        yield "chat", "said"
        both.wait(10)

    def handler():
        yield ModelTurn(work, (), batch_key="base", rows=2)

    async def ask():
        return [values async for values in wait_in_queue(handler, ["chat", status], status)()]

    async def ask_twice():
        return await asyncio.gather(ask(), ask())

    assert [said[-1] for said in asyncio.run(ask_twice())] == [("chat", "said")] * 2
    assert turns == ([1, 1] if zerogpu else [2, 2]) and not queue.active
