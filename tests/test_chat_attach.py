"""Adapters come and go, answers are broken off, several ask at once: nothing stays behind, nobody hears another."""

import gc
import os
import shutil
import threading
from dataclasses import replace

import pytest
from speaking import GREEDY, LONG, NEVER, SHORT, WARM, changed, is_busy, quiet, say
from tiny_models import write_adapter

from persona.compare import session
from persona.compare.session import NO_ADAPTER, Column, LoadedModel, stream_replies
from persona.errors import AdapterError
from persona.models import adapter, attach
from persona.models.base import Base
from persona.models.sampling import Sampling
from persona.template.render import ChatPrompt

pytest_plugins = "speaking"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]


def test_attached_once(model, adapters, monkeypatch):
    name = model.attach(adapters[0])
    monkeypatch.setattr(attach, "attach_adapter", lambda *_: pytest.fail("it is there already"))
    assert model.attach(adapters[0]) == name


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside-another"])
def test_a_folder_that_changed_is_read_again(model, adapters, tiny_gemma, tmp_path, others):
    columns = [Column(NO_ADAPTER, SHORT)] + [Column(model.attach(a), SHORT) for a in adapters[:others]]
    before = say(model, columns)
    replies = []
    for seed in (3, 4):
        write_adapter(tiny_gemma, tmp_path / "a", seed=seed, template="gemma-base", r=seed)
        stamp = 1_000_000 + seed
        os.utime(tmp_path / "a" / "adapter_model.safetensors", (stamp, stamp))
        name = model.attach(adapter.read_adapter(tmp_path / "a"))
        replies.append(say(model, [*columns, Column(name, SHORT)]))
    assert replies[0][-1].text != replies[1][-1].text
    assert replies[0][:-1] == replies[1][:-1] == before, "the others did not change"
    fresh = LoadedModel(Base("someone/tiny", tiny_gemma))
    quiet(fresh.model, fresh.tokenizer.eos_token_id)
    assert say(fresh, [Column(fresh.attach(adapter.read_adapter(tmp_path / "a")), SHORT)])[0] == replies[1][-1]


def test_the_adapter_used_longest_ago_is_given_up(model, tiny_gemma, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "MAX_ATTACHED", 2)
    one, two = (model.attach(a) for a in adapters)
    want = say(model, [Column(one, SHORT)])  # used last, so that the second is the oldest
    write_adapter(tiny_gemma, tmp_path / "three", seed=3, template="gemma-base")
    three = model.attach(adapter.read_adapter(tmp_path / "three"))
    first, gone, third = say(model, [Column(n, SHORT) for n in (one, two, three)])
    assert first == want[0] and "no longer open" in gone.error and third.tokens == 24
    assert set(model.model.peft_config) == {one, three}
    assert model.attach(adapters[1]) == two and set(model.attached) == {three, two}
    assert say(model, [Column(two, SHORT)])[0].tokens == 24


def test_a_folder_that_is_gone_is_said(model, tiny_gemma, tmp_path):
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    mags = adapter.read_adapter(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"is no longer there\. Choose another"):
        model.attach(mags)
    assert not is_busy()


def test_an_adapter_of_another_base_is_refused_and_the_chat_goes_on(model, adapters, tiny_llama, tmp_path):
    name = model.attach(adapters[0])
    before = say(model, [Column(NO_ADAPTER, SHORT), Column(name, SHORT)])
    write_adapter(tiny_llama, tmp_path / "foreign")
    with pytest.raises(AdapterError, match="does not fit"):
        model.attach(adapter.read_adapter(tmp_path / "foreign"))
    assert not is_busy()
    assert say(model, [Column(NO_ADAPTER, SHORT), Column(name, SHORT)]) == before


def test_a_changed_folder_that_no_longer_fits_is_said_and_can_be_mended(model, tiny_gemma, tiny_llama, tmp_path):
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    name = model.attach(adapter.read_adapter(tmp_path / "a"))
    good = say(model, [Column(NO_ADAPTER, SHORT), Column(name, SHORT)])
    write_adapter(tiny_llama, tmp_path / "a")
    os.utime(tmp_path / "a" / "adapter_model.safetensors", (1, 1))
    with pytest.raises(AdapterError, match="does not fit"):
        model.attach(adapter.read_adapter(tmp_path / "a"))
    assert say(model, [Column(NO_ADAPTER, SHORT)])[0] == good[0]
    (gone,) = say(model, [Column(name, SHORT)])
    assert "no longer open" in gone.error
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    assert model.attach(adapter.read_adapter(tmp_path / "a")) == name
    assert say(model, [Column(NO_ADAPTER, SHORT), Column(name, SHORT)]) == good


def test_the_last_base_is_kept_in_memory(tiny_gemma, tiny_llama, monkeypatch):
    monkeypatch.setattr(session, "_open", {})
    gemma, llama = (Base(f.name, f) for f in (tiny_gemma, tiny_llama))
    first = session.open_model(gemma)
    assert session.open_model(gemma) is first
    session.open_model(llama)
    assert list(session._open) == [(str(tiny_llama), "none")] and session.open_model(gemma) is not first


def test_an_open_base_is_not_planned_again(tiny_gemma, monkeypatch):
    monkeypatch.setattr(session, "_open", {})
    base, planned = Base(tiny_gemma.name, tiny_gemma), []
    plan = session.plan_opening
    monkeypatch.setattr(session, "plan_opening", lambda *how: planned.append(how) or plan(*how))
    model = session.open_model(base)
    assert session.open_model(base) is model and session.is_open(base) and len(planned) == 1


# ---- what goes wrong


def test_closing_half_way_frees_the_model(model, adapters):
    columns = [Column(NO_ADAPTER, SHORT), Column(model.attach(adapters[0]), LONG)]
    whole = say(model, columns)
    replies = stream_replies(model, columns, GREEDY, NEVER)
    for _ in range(3):
        seen = next(replies)
    assert is_busy() and seen[0].tokens == 3
    replies.close()
    assert not is_busy() and changed(model.model) == 0
    assert say(model, columns) == whole


def test_a_forgotten_iterator_frees_the_model(model):
    replies = stream_replies(model, [Column(NO_ADAPTER, SHORT)], GREEDY, NEVER)
    next(replies)
    del replies
    gc.collect()
    assert not is_busy()


@pytest.mark.parametrize("when", [0, 3], ids=["first-pass", "fourth-pass"])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt, AdapterError])
def test_an_error_inside_the_model_leaves_nothing_behind(model, adapters, monkeypatch, when, error):
    """The layers are their own again, or every later answer would be wrong."""
    columns = [Column(NO_ADAPTER, SHORT), Column(model.attach(adapters[0]), SHORT)]
    good = say(model, columns)
    layer = model.model.get_base_model().model.layers[1].mlp.down_proj.base_layer
    real, calls = layer.forward, []

    def forward(*args, **kwargs):
        calls.append(changed(model.model))
        if len(calls) > when:
            raise error("broken on purpose")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", forward)
        with pytest.raises(error, match="broken on purpose"):
            say(model, columns)
    assert calls[-1] > 0, "it failed while the rows were mixed, or this test sees nothing"
    assert changed(model.model) == 0 and not is_busy()
    assert say(model, columns) == good


def test_two_at_once_each_get_their_own_answer(model, adapters):
    """Streams take turns; each sets its own strength when its turn comes."""
    names = [model.attach(a) for a in adapters]
    jobs = [
        ([Column(NO_ADAPTER, SHORT), Column(names[0], LONG)], GREEDY),
        ([Column(names[1], SHORT, 0.5), Column(names[0], SHORT, 0.5)], WARM),
        ([Column(names[0], LONG, 1.5), Column(NO_ADAPTER, SHORT)], replace(WARM, seed=3)),
    ]
    want = [say(model, columns, sampling) for columns, sampling in jobs]
    got: dict[int, list] = {}
    begin = threading.Barrier(6)

    def run(n):
        begin.wait()
        got[n] = say(model, *jobs[n % 3])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {n: want[n % 3] for n in range(6)}
    assert len({r[0].text for r in want}) == 3


@pytest.mark.release
def test_the_embedded_base_speaks_in_a_batch_as_alone(embedded_base, tmp_path):
    """At its real size: a prompt with and one without padding, greedy and drawn, in float32."""
    write_adapter(embedded_base.path, tmp_path / "a", template="gemma-base", size=0.02)
    model = LoadedModel(embedded_base)
    name = model.attach(adapter.read_adapter(tmp_path / "a"))
    texts = [model.tokenizer(t)["input_ids"] for t in ("The lighthouse keeper said", "茶已沏上了，")]
    columns = [
        Column(NO_ADAPTER, ChatPrompt("", texts[0])),
        Column(name, ChatPrompt("", texts[1])),
        Column(name, ChatPrompt("", texts[0])),
    ]
    for sampling in (Sampling(temperature=0, max_new_tokens=5), Sampling(temperature=0.8, seed=5, max_new_tokens=5)):
        together = say(model, columns, sampling)
        assert together == [say(model, [c], sampling)[0] for c in columns]
        assert len({r.text for r in together}) == 3


def test_attaching_waits_for_the_answer_that_is_running(model, adapters):
    replies = stream_replies(model, [Column(NO_ADAPTER, SHORT)], GREEDY, NEVER)
    next(replies)
    thread = threading.Thread(target=model.attach, args=(adapters[0],))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and model.attached == {}
    *_, last = replies
    thread.join(30)
    assert len(model.attached) == 1 and say(model, [Column(NO_ADAPTER, SHORT)]) == last


# ---- which base


@pytest.fixture
def ready(tiny_gemma, tmp_path, monkeypatch):
    """An adapter whose base is opened from its folder."""
    monkeypatch.setattr(session, "_open", {})
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    return adapter.read_adapter(tmp_path / "a"), str(tiny_gemma)


def test_an_adapter_without_a_base_asks_for_one(ready):
    nameless = replace(ready[0], base_id="")
    with pytest.raises(AdapterError, match="does not say which base it was trained on. Name it with --base"):
        session.base_of(nameless)
    assert session.base_of(nameless, ready[1]).path.name == "tiny-gemma"
