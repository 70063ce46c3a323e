"""The API over HTTP, asked by the official client and by a plain one: its replies equal those generated without it."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import httpx
import openai
import pytest
from api_client import AS_SAMPLING, HI, WARM, ask, expected_reply, pieces
from api_server import KEY
from speaking import is_busy, letters, script
from waiting import wait_for

from persona.compare import session
from persona.compare.model_queue import MODEL_QUEUE
from persona.compare.session import renderer_of
from persona.models.generate import Batch, Generation
from persona.serve import api_errors, requests
from persona.serve import http as serve_http
from persona.serve.batcher import Batcher, PartialReply
from persona.store.pairs import Pair

pytest_plugins = "api_client"


@pytest.fixture
def seen(monkeypatch):
    """The columns of each batch, and how many steps it took."""
    found, real = [], session.stream_replies

    def stream(model, columns, *rest, **more):
        mine = {"columns": list(columns), "steps": 0}
        found.append(mine)
        for replies in real(model, columns, *rest, **more):
            mine["steps"] += 1
            mine["replies"] = replies
            yield replies

    monkeypatch.setattr(session, "stream_replies", stream)
    return found


def wait_for_waiting(count):
    wait_for(lambda: len(MODEL_QUEUE.waiting_in_order()) == count)


def together(calls):
    """Run the calls so that all of them wait while something else has the model."""
    with ThreadPoolExecutor(len(calls)) as pool:
        with MODEL_QUEUE.turn("someone else"):
            answers = []
            for n, call in enumerate(calls, 1):
                answers.append(pool.submit(call))
                wait_for_waiting(n)
        return [f.result() for f in answers]


# ---- models


def test_models(server, client):
    assert [(m.id, m.object, m.owned_by) for m in client.models.list()] == [
        (name, "model", "persona") for name in ("tiny", "one", "two")]  # fmt: skip
    assert client.models.retrieve("two").id == "two" and client.models.retrieve("two").created > 1.7e9
    with pytest.raises(openai.NotFoundError) as e:
        client.models.retrieve("four/five")
    assert e.value.code == "model_not_found"


def test_health_needs_no_key(server):
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


# ---- replies equal those generated without the API


@pytest.mark.parametrize("model", ["tiny", "one", "two"])
def test_a_reply_is_what_the_house_streams(server, client, model):
    prompt, want = expected_reply(server, model)
    got = ask(client, model)
    choice = got.choices[0]
    assert (choice.message.content, choice.finish_reason, choice.message.role) == (want.text, "length", "assistant")
    assert len(want.text) > 10, "or this test sees nothing"
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (
        len(prompt.ids),
        want.tokens,
    ) and want.tokens == 24
    assert (
        got.usage.total_tokens == got.usage.prompt_tokens + 24
        and got.model == model
        and got.object == "chat.completion"
    )


def test_a_stream_is_the_same_text_in_pieces(server, client):
    want = expected_reply(server)[1]
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    texts, reasons, usages = pieces(chunks)
    assert texts == {0: want.text} and reasons == {0: "length"}
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 5, "it streams"
    assert chunks[0].choices[0].delta.role == "assistant" and len({c.id for c in chunks}) == 1
    assert usages[:-1] == [None] * (len(chunks) - 1) and not chunks[-1].choices
    assert usages[-1].completion_tokens == 24
    assert set(pieces(ask(client, stream=True))[2]) == {None}, "only if asked for"


def test_any_client_reads_it_line_by_line(server):
    body = json.dumps({"model": "one", "messages": HI, "stream": True} | WARM)
    line = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    line.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
    got = line.getresponse()
    assert got.status == 200 and got.headers["content-type"].startswith("text/event-stream")
    assert not [name for name in got.headers if name.lower().startswith("access-control")]
    events = [text.removeprefix("data: ") for text in got.read().decode().strip().split("\n\n")]
    line.close()
    assert events[-1] == "[DONE]"
    said = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1])
    assert said == expected_reply(server)[1].text


def test_each_choice_has_a_seed_of_its_own(server, client):
    want = [expected_reply(server, sampling=replace(AS_SAMPLING, seed=s))[1].text for s in (7, 8)]
    got = ask(client, n=2)
    assert [c.message.content for c in got.choices] == want and [c.index for c in got.choices] == [0, 1]
    assert want[0] != want[1] and got.usage.completion_tokens == 48
    texts, reasons, _ = pieces(ask(client, n=2, stream=True))
    assert [texts[0], texts[1]] == want and reasons == {0: "length", 1: "length"}


def test_the_seed_decides_and_without_one_replies_differ(client):
    assert ask(client).choices[0].message.content == ask(client).choices[0].message.content
    free = {ask(client, seed=openai.omit, temperature=2).choices[0].message.content for _ in range(3)}
    assert len(free) > 1


def test_the_reply_ends_before_a_stop_string(server, client, seen):
    whole = expected_reply(server)[1].text
    stop = whole[4:9]  # several tokens
    for stops in (stop, ["never said", stop]):
        got = ask(client, stop=stops)
        assert (got.choices[0].message.content, got.choices[0].finish_reason) == (whole[: whole.find(stop)], "stop")
        assert got.usage.completion_tokens < 24
        texts, reasons, _ = pieces(ask(client, stop=stops, stream=True))
        assert texts == {0: whole[: whole.find(stop)]} and reasons == {0: "stop"}
    assert all(batch["steps"] < 24 for batch in seen[1:]), "its row does not go on"


def test_a_reply_that_ends_by_itself_says_stop(server, client, monkeypatch):
    a, eos = letters(server.model.tokenizer, "你")[0], server.model.tokenizer.eos_token_id
    script(monkeypatch, [a], [a], [eos])
    got = ask(client)
    assert (got.choices[0].message.content, got.choices[0].finish_reason) == ("你你", "stop")
    assert got.usage.completion_tokens == 2, "the token that ends it is not counted"


# ---- the prompt is the renderer's


def test_the_prompt_is_the_beginning_of_a_training_row(server):
    served = server.models[1]
    pair = Pair("And the wind?", "North-west.", (("Who are you?", "I keep the light."),))
    said = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I keep the light."},
            {"role": "user", "content": [{"type": "text", "text": "And the wind?"}]}]  # fmt: skip
    for system in (None, "You are the keeper's cat.", ""):
        first = [] if system is None else [{"role": "system", "content": system}]
        job = serve_http.prepare_request(
            served, requests.parse_chat_request({"model": "one", "messages": [*first, *said]}, 0)
        )
        row = renderer_of(served.adapter, server.model.tokenizer, system).render_example(pair)
        assert row.input_ids[: len(job.prompt.ids)] == job.prompt.ids and row.learned
        assert (served.adapter.card.system in job.prompt.text) == (system is None), "the request's own replaces hers"
        assert (system or "") in job.prompt.text


def test_the_base_has_no_prompt_of_its_own_and_the_adapters_template(server):
    base, one = (
        serve_http.prepare_request(m, requests.parse_chat_request({"model": "m", "messages": HI}, 0))
        for m in server.models[:2]
    )
    assert server.models[1].adapter.card.system not in base.prompt.text
    same = requests.parse_chat_request({"model": "m", "messages": [{"role": "system", "content": "S"}, *HI]}, 0)
    base, one = (serve_http.prepare_request(m, same).prompt for m in server.models[:2])
    assert base == one, "with a system message both are asked the very same"


# ---- batcher


def test_requests_that_wait_share_a_batch_and_say_what_they_say_alone(server, client, monkeypatch):
    joined, real = [], Batch.join
    settings = [
        {"model": "tiny"}, {"model": "one", "seed": 8}, {"model": "two", "temperature": 0, "max_tokens": 9},
        {"model": "one", "messages": [{"role": "user", "content": "A longer question than the others, is it not?"}]},
        {"model": "two", "n": 2, "stop": ["q"], "extra_body": {"repetition_penalty": 1.5, "top_k": 20}},
    ]  # fmt: skip
    calls = [lambda s=s: [(c.message.content, c.finish_reason) for c in ask(client, **s).choices] for s in settings]
    alone = [call() for call in calls]
    assert len({x for got in alone for x in got}) == 6, "they must differ, or this test sees nothing"
    monkeypatch.setattr(Batch, "join", lambda batch, rows: joined.append(len(rows)) or real(batch, rows))
    assert together(calls) == alone
    assert sum(joined) == 6 and len(joined) < 5, "those that came while others had the model begin together"


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_leaves_the_batch_and_the_others_stay(server, client, seen, stream):
    alone = ask(client, "two", max_tokens=40).choices[0].message.content
    del seen[:]
    body = {"model": "one", "messages": HI, "max_tokens": 3000, "stream": stream}
    kept = []

    def leave():
        with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}) as mine:
            try:
                patience = httpx.Timeout(60, read=60 if stream else 1)
                with mine.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=patience) as got:
                    next(got.iter_lines())
            except httpx.ReadTimeout:
                assert not stream

    other = threading.Thread(target=lambda: kept.append(ask(client, "two", max_tokens=40)))
    with MODEL_QUEUE.turn("someone else"):
        gone = threading.Thread(target=leave)
        gone.start()
        wait_for_waiting(1)
        other.start()
        wait_for_waiting(2)
    gone.join()
    other.join()
    assert kept[0].choices[0].message.content == alone
    wait_for(lambda: not is_busy())
    assert max(batch["steps"] for batch in seen) < 3000


def test_too_many_that_wait_are_told_to_come_back(server, client, post, monkeypatch):
    monkeypatch.setattr(server.batcher, "max_waiting_rows", 2)
    told = []

    def third():
        told.append(post({"model": "one", "messages": HI} | WARM))
        return told[0]

    with ThreadPoolExecutor(3) as pool, MODEL_QUEUE.turn("someone else"):
        waiting = pool.submit(ask, client, n=2, max_tokens=2)
        wait_for_waiting(1)
        third()
    assert told[0].status_code == 429 and int(told[0].headers["retry-after"]) > 0
    assert told[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert len(waiting.result().choices) == 2, "who waited is answered"


@pytest.mark.parametrize("waits", [False, True], ids=["running", "waiting"])
def test_a_stopping_server_says_so(server, waits):
    b = Batcher()
    job = serve_http.prepare_request(
        server.models[0], requests.parse_chat_request({"model": "m", "messages": HI, "max_tokens": 3000}, 0)
    )
    updates = []
    job.on_update = updates.append
    with MODEL_QUEUE.turn("someone else") if waits else nullcontext():
        b.submit(job)
        wait_for(lambda: waits or updates)
        b.close()
    assert "stopping" in str(updates[-1]) and len(updates) < 3000 and not any(b.threads.values())
    assert not is_busy() and not MODEL_QUEUE.waiting_in_order()
    with pytest.raises(api_errors.ApiError, match="stopping"):
        b.submit(job)


def test_one_who_hangs_up_before_the_turn_leaves_the_queue(server):
    job = serve_http.prepare_request(
        server.models[0], requests.parse_chat_request({"model": "m", "messages": HI, "max_tokens": 3000}, 0)
    )
    updates = []
    job.on_update = updates.append
    with MODEL_QUEUE.turn("someone else"):
        server.batcher.submit(job)
        job.cancel()
        assert not MODEL_QUEUE.waiting_in_order()
    wait_for(lambda: not is_busy())
    assert not updates


def test_each_api_key_is_a_visitor_of_its_own(server, post):
    with ThreadPoolExecutor(3) as pool:
        with MODEL_QUEUE.turn("someone else"):
            calls = []
            for n, key in enumerate((KEY, KEY, "another"), 1):
                body = {"model": "one", "messages": HI, "max_tokens": 2}
                calls.append(pool.submit(post, body, Authorization=f"Bearer {key}"))
                wait_for_waiting(n)
            visitors = [ticket.visitor for ticket in MODEL_QUEUE.waiting_in_order()]
        assert visitors[0] == visitors[2] != visitors[1] and KEY not in visitors[0]
        assert [call.result().status_code for call in calls] == [200] * 3


def test_what_a_row_has_ended_with_stays(server):
    """Bytes that are no text can change how the text before them reads; the stop string in it was there all the same."""
    asked = requests.parse_chat_request({"model": "m", "messages": HI, "stop": "c", "n": 2}, 0)
    job, updates, b = serve_http.prepare_request(server.models[0], asked), [], Batcher()
    job.on_update = updates.append
    assert b._report(job, [Generation("abcd", 4), Generation("a", 1)]) == {0}
    assert b._report(job, [Generation("ab\ufffd", 5), Generation("ab", 2, ended=True)]) == {0, 1} and job.finished
    assert updates[-1] == [PartialReply("ab", 4, "stop"), PartialReply("ab", 2, "stop")] and len(updates) == 2


def test_what_a_client_may_have_seen_stays(server):
    """Else a stream's text would depend on how fast it is read: each piece is what follows the text that was sent."""
    job = serve_http.prepare_request(server.models[0], requests.parse_chat_request({"model": "m", "messages": HI}, 0))
    updates, b = [], Batcher()
    job.on_update = updates.append
    for text in ("on ke", "on keL", "on keL", "on ke\ufffd\ufffd\ufffdthe", "on ke\ufffd\ufffd\ufffdthese"):
        b._report(job, [Generation(text, 1)])
    shown = [row.text for [row] in updates]
    assert shown == ["on ke", "on keL", "on keL", "on keL\ufffd\ufffdthe", "on keL\ufffd\ufffdthese"]


def test_generate(server, post):
    body = {"instruction": "Who are you?", "max_new_tokens": 24, "temperature": 0.9, "top_p": 0.95, "seed": 7}

    def texts(body):
        got = post(body, "/generate").json()
        assert got["generated_text"] == got["response"] and set(got) > {"model", "finish_reason", "usage"}
        return got["generated_text"]

    assert texts(body) == expected_reply(server)[1].text, "the first adapter, unless named"
    assert texts(body | {"model": "tiny"}) == expected_reply(server, "tiny")[1].text
    assert post({}, "/generate").status_code == 400


def test_generate_counts_as_transformers_does(server, post):
    """What the server of a tutorial takes: a prompt in the template's form, and a length that the prompt is part of."""
    plain = {"prompt": "Who are you?", "system": "", "do_sample": False}
    bare = post(plain | {"max_new_tokens": 9}, "/generate").json()
    length = bare["usage"]["prompt_tokens"] + 9
    assert post(plain | {"max_length": length}, "/generate").json() == bare
    wrapped = server.models[1].renderer("").render_prompt([], "Who are you?").text
    assert post({"prompt": wrapped, "max_length": length, "top_k": 1}, "/generate").json() == bare
    short = post(plain | {"max_length": 3}, "/generate")
    assert short.status_code == 400 and "max_length is 3, the prompt included" in short.json()["error"]["message"]
