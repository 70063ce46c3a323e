"""What the page does in order: questions wait in the queue before the model and show their place; a window's edits."""

import asyncio
import random
import threading
import time
from contextvars import ContextVar
from types import SimpleNamespace

import anyio
import gradio as gr
import httpx
import pytest
from gradio.context import LocalContext
from waiting import wait_for

from persona.compare.model_queue import ModelQueue, WaitEstimate
from persona.ui import model_queue, page
from persona.ui.model_queue import ModelTurn, wait_in_queue
from persona.ui.steps.share import export_tab


@pytest.fixture
def free(monkeypatch):
    """A queue with nobody in it."""
    monkeypatch.setattr(model_queue, "MODEL_QUEUE", ModelQueue())
    return model_queue.MODEL_QUEUE


class Model:
    """Answers a question when it is let, and notes who was answered when."""

    def __init__(self):
        self.heard, self.ended, self.let = [], [], threading.Event()

    def say(self, question):
        self.heard.append(question)
        try:
            yield "chat", f"{question} …"
            assert self.let.wait(10)
            if question == "bad":
                raise gr.Error("no")
            yield "chat", f"{question}!"
        finally:
            self.ended.append(question)


def asked(model):
    status = object()

    def handler(question):
        yield ModelTurn(model.say, (question,))

    return wait_in_queue(handler, ["chat", status], status)


async def until(true):
    with anyio.fail_after(10):
        while not true():
            await asyncio.sleep(0.005)


async def all_of(stream, into):
    async for chat, words in stream:
        into.append((isinstance(chat, str), words))


async def start_in_order(queue, streams):
    """A task for each (stream, list), the next one started when the one before is in the line."""
    tasks = []
    for stream, into in streams:
        tasks.append(asyncio.ensure_future(all_of(stream, into)))
        await until(lambda: len(queue.waiting_in_order()) + len(queue.active) >= len(tasks))
    return tasks


def test_each_is_answered_in_the_order_of_asking_and_told_its_place(free, monkeypatch):
    monkeypatch.setattr(model_queue, "REPEAT_POSITION_SECONDS", 0.01)

    async def work():
        model, shown = Model(), {name: [] for name in "abc"}
        handler = asked(model)
        tasks = await start_in_order(free, [(handler(name), shown[name]) for name in "abc"])
        await until(lambda: len(shown["c"]) > 2)
        assert model.heard == ["a"] and shown["a"] == [(True, "a …")]
        assert set(shown["b"]) == {(False, "1 question is before yours.")}, "the conversation stays as it is"
        assert set(shown["c"]) == {(False, "2 questions are before yours.")}
        model.let.set()
        await asyncio.gather(*tasks)
        assert model.heard == model.ended == ["a", "b", "c"]
        assert all(shown[name][-2:] == [(True, f"{name} …"), (True, f"{name}!")] for name in "abc")
        assert not free.waiting

    asyncio.run(work())


def test_the_page_counts_what_waits_from_elsewhere_and_takes_turns_with_it(free):
    """An evaluation runs, and two requests of the API wait."""

    async def work():
        model, shown = Model(), []
        evaluation = free.join("someone", "evaluation")
        first, second = (free.join("api", "api") for _ in range(2))
        task = asyncio.ensure_future(all_of(asked(model)("mine"), shown))
        await until(lambda: shown)
        assert shown == [(False, "2 questions are before yours.")], "one of the API, then the page, then the API"
        free.leave(evaluation)
        await until(lambda: shown[-1] == (False, "1 question is before yours."))
        assert first.turn.is_set() and not model.heard
        free.leave(first)
        await until(lambda: model.heard)
        assert not second.turn.is_set()
        model.let.set()
        await task
        assert second.turn.is_set()
        free.leave(second)

    asyncio.run(work())


def test_a_handler_works_within_its_turn(free, monkeypatch):
    """What it calls takes no turn of its own, in whichever thread a step is computed."""
    status, held = object(), []

    def steps():
        for _ in range(3):
            with free.turn("another", "attach") as ticket:
                held.append(ticket)
                yield "chat", "step"

    def handler():
        yield ModelTurn(steps, ())

    async def work():
        async for _ in wait_in_queue(handler, ["chat", status], status)():
            pass

    asyncio.run(asyncio.wait_for(work(), 10))
    assert len(held) == 3 and {t.kind for t in held} == {"question"} and not free.active


def test_a_long_list_lets_others_have_their_turn_and_a_download_keeps_nobody_waiting(free):
    """A list of three parts, each a turn; between them, the question of another window is answered."""
    downloaded, order = threading.Event(), []

    def part(n):
        order.append(n)
        yield "chat", str(n)

    def list_of_three():
        for n in range(3):
            yield ModelTurn(part, (n,), lambda values: ("chat", values[1]))

    def new_base():
        yield "chat", "downloading"
        assert downloaded.wait(10)
        yield ModelTurn(part, ("new base",))

    def question():
        yield ModelTurn(part, ("question",))

    def start(window, handler):
        LocalContext.request.set(SimpleNamespace(session_hash=window))
        status, shown = object(), []
        return asyncio.ensure_future(all_of(wait_in_queue(handler, ["chat", status], status)(), shown)), shown

    async def work():
        downloading, seen = start("c", new_base)
        await until(lambda: seen)
        assert not free.active, "who downloads a base is not in the line"
        running = free.join("someone", "question")
        tasks = [start("a", list_of_three)[0]]
        await until(lambda: len(free.waiting_in_order()) == 1)
        tasks.append(start("b", question)[0])
        await until(lambda: len(free.waiting_in_order()) == 2)
        free.leave(running)
        await asyncio.gather(*tasks)
        assert order == [0, "question", 1, 2]
        downloaded.set()
        await downloading
        assert order[-1] == "new base" and not free.active and not free.waiting

    asyncio.run(asyncio.wait_for(work(), 20))


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (WaitEstimate(1, None), "1 question is before yours."),
        (WaitEstimate(1, 20.0), "1 question is before yours. About 20 s left."),
        (WaitEstimate(3, 0.0), "3 questions are before yours. About 1 s left."),
    ],
)
def test_the_place_in_words(place, text):
    assert model_queue.position_text(place) == text


def test_who_stops_or_goes_leaves_the_line(free):
    async def work():
        model, shown = Model(), {name: [] for name in "abc"}
        handler = asked(model)
        tasks = await start_in_order(free, [(handler(name), shown[name]) for name in "abc"])
        await until(lambda: shown["c"])
        tasks[1].cancel()  # as Stop does
        await until(lambda: shown["c"][-1] == (False, "1 question is before yours."))
        gone = handler("d")
        await anext(gone)
        await gone.aclose()  # as Gradio does when a window is closed
        model.let.set()
        tasks[0].cancel()  # while it is answered
        await tasks[2]
        assert model.heard == model.ended == ["a", "c"] and not free.waiting

    asyncio.run(work())


def test_what_is_stopped_is_ended_before_the_next_begins(free):
    """Between two steps, where the stream waits to be read; and in the middle of one, which nothing can break off."""

    async def work():
        model = Model()
        handler = asked(model)
        read = handler("read")
        await anext(read)
        await read.aclose()
        assert model.ended == ["read"] and not free.waiting
        shown = []
        tasks = await start_in_order(free, [(handler(name), shown) for name in ("busy", "next")])
        await until(lambda: model.heard == ["read", "busy"] and (True, "busy …") in shown)
        await asyncio.sleep(0.05)  # it computes its second step now
        tasks[0].cancel()
        await asyncio.sleep(0.05)
        assert model.heard == ["read", "busy"] and model.ended == ["read"]
        model.let.set()
        await tasks[1]
        assert model.heard == model.ended == ["read", "busy", "next"] and not free.waiting

    asyncio.run(work())


def test_an_error_is_passed_on_and_the_next_is_answered(free):
    async def work():
        model, shown = Model(), {name: [] for name in ("bad", "good")}
        handler = asked(model)
        tasks = await start_in_order(free, [(handler(name), shown[name]) for name in ("bad", "good")])
        model.let.set()
        with pytest.raises(gr.Error, match="no"):
            await tasks[0]
        await tasks[1]
        assert shown["good"][-1] == (True, "good!") and not free.waiting

    asyncio.run(work())


def test_a_hundred_who_wait_keep_no_thread_busy(free):
    async def work():
        model, shown = Model(), []
        handler = asked(model)
        tasks = [asyncio.ensure_future(all_of(handler(str(n)), shown)) for n in range(100)]
        await until(lambda: len(free.waiting_in_order()) == 99)
        with anyio.fail_after(5):
            assert await anyio.to_thread.run_sync(lambda: "served") == "served"
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens <= 1, "of the one who is answered"
        assert len(model.heard) <= 1
        model.let.set()
        await asyncio.gather(*tasks)
        assert sorted(model.heard, key=int) == [str(n) for n in range(100)]

    asyncio.run(work())


# ---- what one window asks


def test_a_window_waits_for_itself_and_for_no_other(monkeypatch):
    done, let = [], threading.Event()

    def act(name):
        assert name != "first" or let.wait(10)
        done.append(name)
        return name

    handler = page.run_in_order(act)

    def asks(window, name):
        LocalContext.request.set(SimpleNamespace(session_hash=window))
        return asyncio.ensure_future(handler(name))

    async def work():
        tasks = [asks("a", "first"), asks("a", "second"), asks("b", "other")]
        assert await tasks[2] == "other" and done == ["other"]
        let.set()
        assert await asyncio.gather(*tasks) == ["first", "second", "other"]
        assert done == ["other", "first", "second"] and not page._locks

    asyncio.run(work())


def test_a_visitor_s_heavy_work_is_done_one_at_a_time_and_keeps_no_other_waiting(monkeypatch):
    """Whichever windows and handlers ask; another visitor's is done meanwhile."""
    done, let = [], threading.Event()

    def survey(name):
        assert not name.startswith("slow") or let.wait(10)
        done.append(name)

    def preview(name):
        done.append(name)

    survey, preview = page.run_one_at_a_time(survey), page.run_one_at_a_time(preview)
    visitor = ContextVar("visitor")
    monkeypatch.setattr(page.workspace, "current_visitor", visitor.get)

    def asks(who, handler, name):
        visitor.set(who)
        LocalContext.request.set(SimpleNamespace(session_hash=name))
        return asyncio.ensure_future(handler(name))

    async def work():
        tasks = [asks("ann", survey, "slow 1"), asks("ann", preview, "2"), asks("ben", survey, "other")]
        await tasks[2]
        await asyncio.sleep(0.05)
        assert done == ["other"]
        let.set()
        await asyncio.gather(*tasks)
        assert done == ["other", "slow 1", "2"]

    asyncio.run(work())


def test_what_is_asked_faster_than_it_is_done_is_done_in_order():
    """Through Gradio itself: its queue begins events as they come, and nothing in it lets a later one pass."""
    done = {"a": [], "b": []}

    def note(number, request: gr.Request):
        time.sleep(random.random() / 100)
        done[request.session_hash].append(number)

    with gr.Blocks() as demo:
        asked = gr.Number()
        asked.input(page.run_in_order(note), asked, None, **page.ORDERED_EVENT)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        with httpx.Client(base_url=url) as http:
            for n in range(60):
                for window in "ab":
                    body = {"data": [n], "fn_index": 0, "session_hash": window, "trigger_id": asked._id}
                    http.post("/gradio_api/queue/join", json=body).raise_for_status()
            wait_for(lambda: all(len(numbers) == 60 for numbers in done.values()))
    finally:
        demo.close()
    assert done == {"a": list(range(60)), "b": list(range(60))}


def test_exports_have_a_queue_of_their_own_in_which_visitors_take_turns(free, monkeypatch, tmp_path):
    """Ten merges of one visitor keep another waiting for one of them, and nobody's question waits for a merge."""
    visitor: ContextVar[str] = ContextVar("visitor")
    written, let = [], threading.Event()

    def write_export(source, out, *_):
        written.append(source)
        assert let.wait(10)
        out.write_text("made")
        return {}

    queue = ModelQueue()
    monkeypatch.setattr(model_queue, "EXPORT_QUEUE", queue)
    monkeypatch.setattr(model_queue, "visitor_key", visitor.get)
    monkeypatch.setattr(model_queue, "REPEAT_POSITION_SECONDS", 0.01)
    monkeypatch.setattr(export_tab.formats, "write_export", write_export)
    monkeypatch.setattr(export_tab, "download_path", lambda name: tmp_path / name)
    card = SimpleNamespace(name="Otto")
    monkeypatch.setattr(export_tab.voice_picker, "find_adapter", lambda x: SimpleNamespace(path=x, card=card))
    choice = next(c for c, (*_, suffix) in export_tab.EXPORT_CHOICES.items() if suffix == ".json")

    async def work():
        status, shown = object(), {name: [] for name in ("a1", "a2", "b1")}
        handler = wait_in_queue(export_tab.make_export, ["file", status], status)
        streams = []
        for name in shown:
            visitor.set(name[0])
            streams.append(asyncio.ensure_future(all_of(handler(name, choice, None, None), shown[name])))
            await until(lambda: len(queue.waiting_in_order()) + len(queue.active) == len(streams))
        await until(lambda: shown["a2"] and shown["a2"][-1] == (False, "2 exports are before yours."))
        assert shown["b1"][-1] == (False, "1 export is before yours.") and not free.active
        let.set()
        await asyncio.gather(*streams)
        assert written == ["a1", "b1", "a2"]
        assert [steps[-1] for steps in shown.values()] == [(True, "")] * 3

    asyncio.run(work())
