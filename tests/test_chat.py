"""Voices from one batch: each column is what it would have said alone, and nothing that goes wrong stays behind."""

import gc
import itertools
import os
import shutil
import threading
import time
from dataclasses import replace

import pytest
import torch
from cases import check_each
from peft.tuners.lora import LoraLayer
from tiny import PLAIN_CPU, load, with_lora, write_adapter

from persona import adapter, chat, decode
from persona.base import Base
from persona.chat import BASE, Column, Voices, stream
from persona.decode import CONTEXT, Sampling
from persona.errors import AdapterError, InputError
from persona.render import Prompt

GREEDY = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=24)
WARM = Sampling(temperature=0.9, top_p=0.95, seed=7, max_new_tokens=24)
WAYS = {"greedy": GREEDY, "warm": WARM, "top-k": replace(WARM, top_k=12, top_p=1.0)}
NEVER = -1  # a stop id that is never drawn; the tokenizer's own eos still is one


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """No measuring: the plan of a plain CPU."""
    monkeypatch.setattr(chat.hardware, "this_machine", lambda: PLAIN_CPU)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_gemma):
    """Two adapters of the tiny Gemma, of different rank."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(tiny_gemma, folder / "one", seed=1, template="gemma-base")
    write_adapter(tiny_gemma, folder / "two", seed=2, template="gemma-base", r=2, target_modules=["q_proj", "up_proj"])
    return [adapter.check(folder / "one"), adapter.check(folder / "two")]


def quiet(model, *stops: int):
    """Its stop token is out of reach: the replies of a random model should go on to the limit."""
    real = model.get_output_embeddings().forward

    def forward(hidden):
        scores = real(hidden)
        scores[..., list(stops)] = -1e4
        return scores

    model.get_output_embeddings().forward = forward
    return model


@pytest.fixture
def voices(tiny_gemma):
    made = Voices(Base("someone/tiny", tiny_gemma))
    quiet(made.model, made.tokenizer.eos_token_id)
    return made


def prompt(*ids: int) -> Prompt:
    return Prompt("", [2, *ids])


SHORT, LONG = prompt(301, 302), prompt(*range(270, 300), 310, 300, 350)  # LONG is beyond the sliding window of 16
PROMPTS = {"equal": (SHORT, SHORT, SHORT), "different": (SHORT, LONG, prompt(*range(280, 291)))}


def say(voices, columns, sampling=GREEDY, stop_id=NEVER):
    """The last replies."""
    *_, last = stream(voices, columns, sampling, stop_id)
    return last


def at(strength, columns):
    return [replace(c, strength=strength) for c in columns]


def changed(model) -> int:
    """Layers whose forward is not their own."""
    return sum("forward" in m.__dict__ for m in model.modules() if isinstance(m, LoraLayer))


# ---- a column is its own run


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_each_column_is_what_it_would_be_alone(voices, adapters, prompts, sampling):
    names = [BASE, *(voices.attach(a) for a in adapters)]
    columns = [Column(n, p) for n, p in zip(names, prompts, strict=True)]
    together = say(voices, columns, sampling)
    alone = [say(voices, [c], sampling)[0] for c in columns]
    assert together == alone
    assert len({r.text for r in together}) == 3, "they must differ, or this test sees nothing"
    assert all(r.tokens == 24 and not r.ended for r in together)


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_the_base_column_is_the_plain_base(voices, adapters, prompts, sampling, tiny_gemma):
    """Another copy of the base that no adapter ever touched says the same."""
    names = [BASE, *(voices.attach(a) for a in adapters)]
    mixed = say(voices, [Column(n, p) for n, p in zip(names, prompts, strict=True)], sampling)[0]
    plain = Voices(Base("someone/tiny", tiny_gemma))
    quiet(plain.model, plain.tokenizer.eos_token_id)
    assert say(plain, [Column(BASE, prompts[0])], sampling)[0] == mixed
    assert not hasattr(plain.model, "peft_config")


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_greedy_tokens_are_those_of_generate(voices, tiny_gemma, prompts, monkeypatch):
    """Cache, positions and padding are ours; transformers' own loop, without a cache, is the witness."""
    drawn = []
    real = decode.Draw.__call__
    monkeypatch.setattr(decode.Draw, "__call__", lambda *a: drawn.append(real(*a)) or drawn[-1])
    say(voices, [Column(BASE, p) for p in prompts])
    plain = quiet(load(tiny_gemma), voices.tokenizer.eos_token_id)
    for n, p in enumerate(prompts):
        want = plain.generate(torch.tensor([p.ids]), max_new_tokens=24, do_sample=False, use_cache=False)
        assert [step[n].item() for step in drawn] == want[0, len(p.ids) :].tolist()


def test_the_adapter_column_is_the_trained_model(voices, tiny_gemma, tmp_path, monkeypatch):
    model = write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    name = voices.attach(adapter.check(tmp_path / "a"))
    drawn = []
    real = decode.Draw.__call__
    monkeypatch.setattr(decode.Draw, "__call__", lambda *a: drawn.append(real(*a)) or drawn[-1])
    say(voices, [Column(BASE, SHORT), Column(name, LONG)])
    quiet(model.get_base_model(), voices.tokenizer.eos_token_id)
    want = model.generate(input_ids=torch.tensor([LONG.ids]), max_new_tokens=24, do_sample=False, use_cache=False)
    assert [step[1].item() for step in drawn] == want[0, len(LONG.ids) :].tolist()


def test_the_same_seed_is_the_same_text_and_another_is_another(voices, adapters):
    columns = [Column(BASE, SHORT), Column(voices.attach(adapters[0]), SHORT)]
    first, again, other = (say(voices, columns, replace(WARM, seed=s)) for s in (7, 7, 8))
    torch.manual_seed(99)  # nothing global decides
    assert first == again == say(voices, columns, WARM)
    assert other[0].text != first[0].text and other[1].text != first[1].text


def test_two_columns_with_the_same_voice_say_the_same(voices):
    """One source of randomness for all: columns differ because the adapter differs, never because the dice did."""
    a, b = say(voices, [Column(BASE, SHORT)] * 2, WARM)
    assert a == b


@pytest.mark.parametrize("sampling", [replace(WARM, top_p=1.0), replace(WARM, temperature=1.7, top_k=3, top_p=1.0),
                                      replace(WARM, temperature=0.5, top_p=0.6),
                                      replace(WARM, top_p=1.0, min_p=0.2)])  # fmt: skip
def test_tokens_are_drawn_with_the_probabilities_of_softmax(sampling):
    """Noise and maximum are a draw from softmax: 4,000 draws against the exact shares."""
    scores = torch.tensor([[1.0, 0.2, -0.5, 2.0, 0.9], [0.0, 0.0, 0.0, -3.0, 1.0]])
    draw = decode.Draw(sampling)
    counts = torch.zeros(2, 5)
    for _ in range(4000):
        for row, token in enumerate(draw(scores).tolist()):
            counts[row, token] += 1
    want = (scores / sampling.temperature).softmax(-1)
    if sampling.top_k:
        want = torch.where(want >= want.topk(sampling.top_k, -1).values[:, -1:], want, 0)
    if sampling.min_p:
        want = torch.where(want >= sampling.min_p * want.amax(-1, keepdim=True), want, 0)
        assert (want == 0).any(), "it drops some, or this test sees nothing"
    if sampling.top_p < 1:
        ordered, order = want.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        want = torch.zeros_like(want).scatter(-1, order, ordered)
    want = want / want.sum(-1, keepdim=True)
    if sampling.top_k == 0:  # with top_k, equal scores at the edge may all be kept
        assert (counts / 4000 - want).abs().max() < 0.035
    assert ((counts == 0) | (want > 0)).all()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p, monkeypatch):
    """Peaked rows from the shortlist, flat ones sorted as a whole, both in one batch."""
    torch.manual_seed(3)
    scores = torch.randn(4, 5000) * torch.tensor([[9.0], [2.0], [0.5], [0.0]])
    scores[0, :4000] = -torch.inf  # as top_k leaves it
    sorted_rows = []
    nucleus = decode.Nucleus(top_p)
    real = nucleus.whole
    monkeypatch.setattr(nucleus, "whole", lambda ids, some: sorted_rows.append(len(some)) or real(ids, some))
    got = nucleus(None, scores)
    assert torch.equal(got[:3], real(None, scores[:3])), "the last row is all ties: any share of it will do"
    assert abs((got[3] > -torch.inf).sum() - top_p * 5000) <= 1
    assert 0 < len(sorted_rows) < 4, "or one of the two ways was never taken"


# ---- who else is in the batch


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_more_columns_or_another_order_change_nobodys_text(voices, adapters, sampling):
    names = [BASE, *(voices.attach(a) for a in adapters), voices.attach(adapters[0])]
    prompts = [SHORT, prompt(*range(280, 291)), LONG, SHORT]
    columns = [Column(n, p, s) for n, p, s in zip(names, prompts, (1, 1, 1, 0.5), strict=True)]
    want = [say(voices, [c], sampling)[0] for c in columns]
    assert len({r.text for r in want}) == 4, "they must differ, or this test sees nothing"
    for order in ((0, 1), (0, 1, 2), (0, 1, 2, 3), (3, 1, 0, 2), (2, 0)):
        assert say(voices, [columns[n] for n in order], sampling) == [want[n] for n in order]


def test_each_column_may_have_settings_of_its_own(voices, adapters):
    names = [BASE, *(voices.attach(a) for a in adapters)]
    columns = [Column(names[n % 3], (SHORT, LONG)[n % 2]) for n in range(6)]
    settings = [GREEDY, WARM, replace(WARM, seed=8, max_new_tokens=9, repetition_penalty=1.5), replace(WARM, top_k=12),
                replace(GREEDY, max_new_tokens=30), WARM]  # fmt: skip
    alone = [say(voices, [c], s)[0] for c, s in zip(columns, settings, strict=True)]
    assert say(voices, columns, settings) == alone and [r.tokens for r in alone] == [24, 24, 9, 24, 30, 24]
    assert len({r.text for r in alone}) == 6, "they must differ, or this test sees nothing"


def test_each_column_ends_with_its_own_stop_token(voices, monkeypatch):
    a, b = (letters(voices.tokenizer, x)[0] for x in "你有")
    script(monkeypatch, [a, a], [b, b], [a], [b])
    columns = [Column(BASE, SHORT, stop_id=b), Column(BASE, SHORT, stop_id=a)]
    shown = list(stream(voices, [columns[0], replace(columns[1], stop_id=NEVER)], replace(GREEDY, max_new_tokens=4)))
    assert [(r.text, r.ended) for r in shown[-1]] == [("你", True), ("你有你有", False)]
    script(monkeypatch, [a, a], [b])
    shown = list(stream(voices, columns, GREEDY))
    assert [(r.text, r.ended) for r in shown[-1]] == [("你", True), ("", True)]


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_stopping_one_column_leaves_the_others_as_they_are(voices, adapters, sampling):
    one, two = (voices.attach(a) for a in adapters)
    columns = [Column(BASE, SHORT), Column(one, LONG), Column(two, SHORT)]
    want, halted = say(voices, columns, sampling), set()
    for shown in stream(voices, columns, sampling, NEVER, halted):
        if shown[1].tokens == 5:
            halted.add(1)
    assert shown[0] == want[0] and shown[2] == want[2]
    assert shown[1] == say(voices, columns[1:2], replace(sampling, max_new_tokens=5))[0] and shown[1].tokens == 5
    halted |= {0, 2}
    last = list(stream(voices, columns, sampling, NEVER, halted))
    assert [r.tokens for r in last[-1]] == [1, 1, 1], "all stopped: the stream ends"
    assert not voices.lock.locked()


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_a_column_that_cannot_speak_leaves_the_others_as_they_are(voices, adapters, sampling):
    good = [Column(BASE, SHORT), Column(voices.attach(adapters[0]), LONG)]
    wrong = [
        Column("gone", SHORT), Column(BASE, prompt(*[5] * CONTEXT)), Column(BASE, SHORT, error="no such role"),
        Column(good[1].adapter, SHORT, 9),
    ]  # fmt: skip
    mixed = say(voices, [wrong[0], good[0], wrong[1], wrong[2], good[1], wrong[3]], sampling)
    assert [mixed[1], mixed[4]] == say(voices, good, sampling)
    why = ["no longer open", "no room for a reply", "no such role", "strength=9"]
    for reply, words in zip([mixed[n] for n in (0, 2, 3, 5)], why, strict=True):
        assert words in reply.error and (reply.text, reply.tokens) == ("", 0)
    assert not mixed[1].error and not mixed[4].error
    assert [r.error for r in say(voices, wrong[2:3])] == ["no such role"], "nobody left to speak: said, not raised"


def test_rows_that_have_ended_leave_the_batch(voices, monkeypatch):
    a, stop = letters(voices.tokenizer, "你")[0], voices.tokenizer.eos_token_id
    script(monkeypatch, [a, a, a], [a, stop, a], [a, a], [stop, a], [a], [stop])
    real, sizes = voices.model.forward, []

    def forward(*args, **options):
        sizes.append(len(options["input_ids"]))
        return real(*args, **options)

    monkeypatch.setattr(voices.model, "forward", forward)
    last = say(voices, [Column(BASE, p) for p in (SHORT, LONG, SHORT)])
    assert sizes == [3, 3, 2, 2, 1, 1] and [r.tokens for r in last] == [3, 1, 5]


def test_a_reply_says_how_long_it_took(voices, monkeypatch):
    a, stop = letters(voices.tokenizer, "你")[0], voices.tokenizer.eos_token_id
    script(monkeypatch, [a, a], [a, stop], [a], [stop])
    long, short = say(voices, [Column(BASE, SHORT)] * 2)
    assert 0 < long.first < long.seconds and long.tokens_per_s == 3 / long.seconds
    assert short.first == short.seconds == long.first, "one token: the first is the newest"
    assert decode.Reply().tokens_per_s == 0


# ---- blends, DoRA


def test_a_blend_speaks_beside_its_parts(voices, adapters):
    """All of one and nothing of the other is the one; half of each is neither."""
    a, b = (voices.attach(x) for x in adapters)
    parts = say(voices, [Column(a, SHORT), Column(b, SHORT)])
    names = [voices.blend({a: x, b: y}) for x, y in ((1, 0), (0, 1), (0.5, 0.5))]
    *whole, half = say(voices, [Column(n, SHORT) for n in names])
    assert whole == parts and half.text not in [r.text for r in parts]
    assert say(voices, [Column(names[2], SHORT, 0)])[0] == say(voices, [Column(BASE, SHORT)])[0]
    assert voices.mix(names[2], 0.5) == ((a, 0.25), (b, 0.25))
    with pytest.raises(InputError, match="strength=2: from 0"):
        voices.blend({a: 2, b: 1})
    with pytest.raises(AdapterError, match="not open"):
        voices.blend({a: 1, "gone": 1})


def test_dora_speaks_in_the_batch_as_trained(voices, adapters, tiny_gemma, tmp_path, monkeypatch):
    model = write_adapter(tiny_gemma, tmp_path / "dora", template="gemma-base", use_dora=True)
    name = voices.attach(adapter.check(tmp_path / "dora"))
    drawn = []
    real = decode.Draw.__call__
    monkeypatch.setattr(decode.Draw, "__call__", lambda *a: drawn.append(real(*a)) or drawn[-1])
    say(voices, [Column(BASE, SHORT), Column(name, LONG), Column(voices.attach(adapters[0]), SHORT)])
    quiet(model.get_base_model(), voices.tokenizer.eos_token_id)
    want = model.generate(input_ids=torch.tensor([LONG.ids]), max_new_tokens=24, do_sample=False, use_cache=False)
    assert [step[1].item() for step in drawn] == want[0, len(LONG.ids) :].tolist()


# ---- strength


def test_strength_moves_the_adapter_column_alone(voices, adapters):
    name = voices.attach(adapters[0])
    columns = [Column(BASE, SHORT), Column(name, SHORT)]
    replies = {s: say(voices, at(s, columns)) for s in (1.0, 0.0, 0.4, 0.2)}
    assert len({r[0].text for r in replies.values()}) == 1, "the base never moves"
    assert replies[0.0][1] == replies[0.0][0], "without strength she is the base"
    assert len({r[1].text for r in replies.values()}) == 4
    assert say(voices, columns) == replies[1.0], "the next answer is as trained again"


@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan")])
def test_a_strength_out_of_range_is_that_columns_error(voices, adapters, strength):
    columns = [Column(voices.attach(adapters[0]), SHORT, s) for s in (strength, 1.0)]
    wrong, right = say(voices, columns)
    assert wrong.error.startswith(f"strength={strength}: from 0") and wrong.tokens == 0
    assert right == say(voices, columns[1:])[0] and right.tokens == 24


# ---- attaching


def test_attached_once(voices, adapters, monkeypatch):
    name = voices.attach(adapters[0])
    monkeypatch.setattr(chat.adapters, "attach", lambda *_: pytest.fail("it is there already"))
    assert voices.attach(adapters[0]) == name


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside-another"])
def test_a_folder_that_changed_is_read_again(voices, adapters, tiny_gemma, tmp_path, others):
    columns = [Column(BASE, SHORT)] + [Column(voices.attach(a), SHORT) for a in adapters[:others]]
    before = say(voices, columns)
    replies = []
    for seed in (3, 4):
        write_adapter(tiny_gemma, tmp_path / "a", seed=seed, template="gemma-base", r=seed)
        stamp = 1_000_000 + seed
        os.utime(tmp_path / "a" / "adapter_model.safetensors", (stamp, stamp))
        name = voices.attach(adapter.check(tmp_path / "a"))
        replies.append(say(voices, [*columns, Column(name, SHORT)]))
    assert replies[0][-1].text != replies[1][-1].text
    assert replies[0][:-1] == replies[1][:-1] == before, "the others did not change"
    fresh = Voices(Base("someone/tiny", tiny_gemma))
    quiet(fresh.model, fresh.tokenizer.eos_token_id)
    assert say(fresh, [Column(fresh.attach(adapter.check(tmp_path / "a")), SHORT)])[0] == replies[1][-1]


def test_the_adapter_used_longest_ago_is_given_up(voices, tiny_gemma, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "KEPT", 2)
    one, two = (voices.attach(a) for a in adapters)
    want = say(voices, [Column(one, SHORT)])  # used last, so that the second is the oldest
    write_adapter(tiny_gemma, tmp_path / "three", seed=3, template="gemma-base")
    three = voices.attach(adapter.check(tmp_path / "three"))
    first, gone, third = say(voices, [Column(n, SHORT) for n in (one, two, three)])
    assert first == want[0] and "no longer open" in gone.error and third.tokens == 24
    assert set(voices.model.peft_config) == {one, three}
    assert voices.attach(adapters[1]) == two and set(voices.attached) == {three, two}
    assert say(voices, [Column(two, SHORT)])[0].tokens == 24


def test_a_folder_that_is_gone_is_said(voices, tiny_gemma, tmp_path):
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    mags = adapter.check(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"is no longer there\. Choose another"):
        voices.attach(mags)
    assert not voices.lock.locked()


def test_an_adapter_of_another_base_is_refused_and_the_chat_goes_on(voices, adapters, tiny_llama, tmp_path):
    name = voices.attach(adapters[0])
    before = say(voices, [Column(BASE, SHORT), Column(name, SHORT)])
    write_adapter(tiny_llama, tmp_path / "foreign")
    with pytest.raises(AdapterError, match="does not fit"):
        voices.attach(adapter.check(tmp_path / "foreign"))
    assert not voices.lock.locked()
    assert say(voices, [Column(BASE, SHORT), Column(name, SHORT)]) == before


def test_a_changed_folder_that_no_longer_fits_is_said_and_can_be_mended(voices, tiny_gemma, tiny_llama, tmp_path):
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    name = voices.attach(adapter.check(tmp_path / "a"))
    good = say(voices, [Column(BASE, SHORT), Column(name, SHORT)])
    write_adapter(tiny_llama, tmp_path / "a")
    os.utime(tmp_path / "a" / "adapter_model.safetensors", (1, 1))
    with pytest.raises(AdapterError, match="does not fit"):
        voices.attach(adapter.check(tmp_path / "a"))
    assert say(voices, [Column(BASE, SHORT)])[0] == good[0]
    (gone,) = say(voices, [Column(name, SHORT)])
    assert "no longer open" in gone.error
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    assert voices.attach(adapter.check(tmp_path / "a")) == name
    assert say(voices, [Column(BASE, SHORT), Column(name, SHORT)]) == good


def test_the_last_base_is_kept_in_memory(tiny_gemma, tiny_llama, monkeypatch):
    monkeypatch.setattr(chat, "_open", {})
    gemma, llama = (Base(f.name, f) for f in (tiny_gemma, tiny_llama))
    first = chat.open_voices(gemma)
    assert chat.open_voices(gemma) is first
    chat.open_voices(llama)
    assert list(chat._open) == [str(tiny_llama)] and chat.open_voices(gemma) is not first


# ---- what goes wrong


def test_closing_half_way_frees_the_model(voices, adapters):
    columns = [Column(BASE, SHORT), Column(voices.attach(adapters[0]), LONG)]
    whole = say(voices, columns)
    replies = stream(voices, columns, GREEDY, NEVER)
    for _ in range(3):
        seen = next(replies)
    assert voices.lock.locked() and seen[0].tokens == 3
    replies.close()
    assert not voices.lock.locked() and changed(voices.model) == 0
    assert say(voices, columns) == whole


def test_a_forgotten_iterator_frees_the_model(voices):
    replies = stream(voices, [Column(BASE, SHORT)], GREEDY, NEVER)
    next(replies)
    del replies
    gc.collect()
    assert not voices.lock.locked()


@pytest.mark.parametrize("when", [0, 3], ids=["first-pass", "fourth-pass"])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt, AdapterError])
def test_an_error_inside_the_model_leaves_nothing_behind(voices, adapters, monkeypatch, when, error):
    """The layers are their own again, or every later answer would be wrong."""
    columns = [Column(BASE, SHORT), Column(voices.attach(adapters[0]), SHORT)]
    good = say(voices, columns)
    layer = voices.model.get_base_model().model.layers[1].mlp.down_proj.base_layer
    real, calls = layer.forward, []

    def forward(*args, **kwargs):
        calls.append(changed(voices.model))
        if len(calls) > when:
            raise error("broken on purpose")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", forward)
        with pytest.raises(error, match="broken on purpose"):
            say(voices, columns)
    assert calls[-1] > 0, "it failed while the rows were mixed, or this test sees nothing"
    assert changed(voices.model) == 0 and not voices.lock.locked()
    assert say(voices, columns) == good


def test_two_at_once_each_get_their_own_answer(voices, adapters):
    """Streams take turns; each sets its own strength when its turn comes."""
    names = [voices.attach(a) for a in adapters]
    jobs = [
        ([Column(BASE, SHORT), Column(names[0], LONG)], GREEDY),
        ([Column(names[1], SHORT, 0.5), Column(names[0], SHORT, 0.5)], WARM),
        ([Column(names[0], LONG, 1.5), Column(BASE, SHORT)], replace(WARM, seed=3)),
    ]
    want = [say(voices, columns, sampling) for columns, sampling in jobs]
    got: dict[int, list] = {}
    begin = threading.Barrier(6)

    def run(n):
        begin.wait()
        got[n] = say(voices, *jobs[n % 3])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {n: want[n % 3] for n in range(6)}
    assert len({r[0].text for r in want}) == 3


def test_turns_are_given_in_the_order_of_asking(voices):
    """One that asks again and again does not keep the others waiting."""
    order, columns = [], [Column(BASE, SHORT)]
    first = stream(voices, columns, GREEDY, NEVER)
    next(first)

    def run(name):
        order.append((name, [r.tokens for r in say(voices, columns)]))

    threads = []
    for n in range(4):
        threads.append(threading.Thread(target=run, args=(n,)))
        threads[-1].start()
        while len(voices.lock.waiting) < n + 2:
            time.sleep(0.001)
    first.close()
    run("late")
    for thread in threads:
        thread.join(60)
    assert order == [(n, [24]) for n in (0, 1, 2, 3, "late")] and not voices.lock.locked()


def test_one_that_gives_up_waiting_is_passed_over(voices, monkeypatch):
    """Ctrl-C while waiting for a turn: the next in the queue gets it."""

    class Interrupted(threading.Event):
        def wait(self, *_):
            if len(voices.lock.waiting) > 1:
                raise KeyboardInterrupt
            super().wait()

    first = stream(voices, [Column(BASE, SHORT)], GREEDY, NEVER)
    next(first)
    with monkeypatch.context() as patch:
        patch.setattr(chat.threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            say(voices, [Column(BASE, SHORT)])
    assert len(voices.lock.waiting) == 1
    first.close()
    assert not voices.lock.locked() and say(voices, [Column(BASE, SHORT)])[0].tokens == 24


@pytest.mark.slow
def test_the_embedded_base_speaks_in_a_batch_as_alone(embedded_base, tmp_path):
    """At its real size: a prompt with and one without padding, greedy and drawn, in float32."""
    write_adapter(embedded_base.path, tmp_path / "a", template="gemma-base", size=0.02)
    voices = Voices(embedded_base)
    name = voices.attach(adapter.check(tmp_path / "a"))
    texts = [voices.tokenizer(t)["input_ids"] for t in ("The lighthouse keeper said", "茶已沏上了，")]
    columns = [
        Column(BASE, Prompt("", texts[0])),
        Column(name, Prompt("", texts[1])),
        Column(name, Prompt("", texts[0])),
    ]
    for sampling in (Sampling(temperature=0, max_new_tokens=5), Sampling(temperature=0.8, seed=5, max_new_tokens=5)):
        together = say(voices, columns, sampling)
        assert together == [say(voices, [c], sampling)[0] for c in columns]
        assert len({r.text for r in together}) == 3


def test_attaching_waits_for_the_answer_that_is_running(voices, adapters):
    replies = stream(voices, [Column(BASE, SHORT)], GREEDY, NEVER)
    next(replies)
    thread = threading.Thread(target=voices.attach, args=(adapters[0],))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and voices.attached == {}
    *_, last = replies
    thread.join(30)
    assert len(voices.attached) == 1 and say(voices, [Column(BASE, SHORT)]) == last


# ---- the end of a reply


def script(monkeypatch, *steps: list[int]):
    """The drawn tokens of each column, step by step."""
    todo = iter(steps)
    monkeypatch.setattr(decode.Draw, "__call__", lambda *_: torch.tensor(next(todo)))


def letters(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("stop", ["<end_of_turn>", "<eos>"])
def test_a_stop_token_ends_its_own_row_alone(voices, monkeypatch, stop):
    """The reply's own stop token, or the tokenizer's: an ended row says nothing more while the others go on."""
    end, turn = (voices.tokenizer.convert_tokens_to_ids(t) for t in (stop, "<end_of_turn>"))
    a, b = letters(voices.tokenizer, "你")[0], letters(voices.tokenizer, "有")[0]
    script(monkeypatch, [a, b], [end, b], [b], [end])
    shown = [[(r.text, r.tokens, r.ended) for r in step] for step in
             stream(voices, [Column(BASE, SHORT)] * 2, GREEDY, turn)]  # fmt: skip
    assert shown == [
        [("你", 1, False), ("有", 1, False)],
        [("你", 1, True), ("有有", 2, False)],
        [("你", 1, True), ("有有有", 3, False)],
        [("你", 1, True), ("有有有", 3, True)],
    ]


def test_the_limit_is_not_an_end(voices, monkeypatch):
    a = letters(voices.tokenizer, "你")[0]
    script(monkeypatch, *[[a]] * 3)
    *_, last = stream(voices, [Column(BASE, SHORT)], replace(GREEDY, max_new_tokens=3), NEVER)
    assert (last[0].text, last[0].tokens, last[0].ended) == ("你你你", 3, False)


def test_half_a_character_waits_for_its_other_half(voices, monkeypatch):
    """A rare character comes in four bytes, one token each; none of them is a character."""
    bytes_ = letters(voices.tokenizer, "𠮷")
    assert len(bytes_) == 4
    a = letters(voices.tokenizer, "你")[0]
    script(monkeypatch, *[[t] for t in (a, *bytes_, a, *bytes_[:2])])
    shown = [step[0].text for step in stream(voices, [Column(BASE, SHORT)], replace(GREEDY, max_new_tokens=8), NEVER)]
    assert shown[:8] == ["你", "你", "你", "你", "你𠮷", "你𠮷你", "你𠮷你", "你𠮷你"]
    assert not any("\ufffd" in text for text in shown[:8])
    assert shown[8].startswith("你𠮷你"), "the limit came in the middle of a character: what there is, is shown"


@pytest.mark.parametrize("text", ["家父是大理寺少卿", "👩‍🚀 ok 🙂", "a  b\n\n c", "e\u0301𠮷\u3000。", "x" * 30])
@pytest.mark.parametrize("tokenizer", ["sentencepiece_tokenizer", "byte_tokenizer", "llama3_tokenizer"])
def test_text_grows_and_ends_as_what_was_said(request, tokenizer, text):
    tokenizer = request.getfixturevalue(tokenizer)
    shown = decode._Text(tokenizer)
    steps = [shown.add(t) for t in letters(tokenizer, text)]
    assert steps[-1] == shown.whole() == text
    assert all(b.startswith(a) for a, b in itertools.pairwise(steps))
    assert not any("\ufffd" in s for s in steps)


def test_no_room_for_a_reply_is_that_columns_error(voices):
    room = replace(GREEDY, max_new_tokens=96)
    short, long = say(voices, [Column(BASE, SHORT), Column(BASE, Prompt("", [5] * (CONTEXT - 95)))], room)
    assert long.error == "The conversation has 4,001 tokens and no room for a reply. Clear it and start anew."
    assert short == say(voices, [Column(BASE, SHORT)], room)[0] and short.tokens == 96


def test_a_bad_setting_is_refused_by_name():
    cases = [
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("max_new_tokens", 0),
        ("max_new_tokens", CONTEXT + 1),
        ("seed", -1),
        ("seed", 2**64),
    ]

    def check(name, value):
        with pytest.raises(InputError, match=f"{name}={value}"):
            Sampling(**{name: value})

    check_each(cases, check)


# ---- which base


@pytest.fixture
def ready(tiny_gemma, tmp_path, monkeypatch):
    """An adapter whose base is opened from its folder."""
    monkeypatch.setattr(chat, "_open", {})
    write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    return adapter.check(tmp_path / "a"), str(tiny_gemma)


def test_an_adapter_without_a_base_asks_for_one(ready):
    nameless = replace(ready[0], base_id="")
    with pytest.raises(AdapterError, match="does not say which base it was trained on. Name it with --base"):
        chat.base_of(nameless)
    assert chat.base_of(nameless, ready[1]).path.name == "tiny-gemma"


def test_a_base_in_half_precision_is_sampled_in_full(tiny_gemma):
    """Scores in bfloat16 have ties; they are made float32 before they are drawn from."""
    model = with_lora(load(tiny_gemma, "bfloat16"), size=0.1)
    with decode.Steps(model, [SHORT.ids], [()], 0) as steps:
        assert steps.logits().dtype == torch.float32


def test_the_output_layer_gets_the_last_positions_side_by_side(tiny_gemma):
    """As a slice of all positions, a bfloat16 product on a CPU copies its weights for each row."""
    model, seen = load(tiny_gemma, "bfloat16"), []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with decode.Steps(model, [SHORT.ids, [*SHORT.ids, 5]], None, 0) as steps:
        steps.logits()
    assert seen[0].shape[:2] == (2, 1) and seen[0].is_contiguous()


def test_the_repetition_penalty_counts_what_this_row_has_said_and_nothing_else():
    """Not the prompt: a persona must be free to say the name that is in it. Not the other columns either."""
    draw = decode.Draw(Sampling(temperature=0, repetition_penalty=2))
    scores = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
    assert draw(scores.clone(), []).tolist() == [0, 0]
    assert draw(scores.clone(), [[0], [2]]).tolist() == [1, 0]
