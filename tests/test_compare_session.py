"""Voices from one batch: each column is what it would have said alone, and nothing that goes wrong stays behind."""

from dataclasses import replace

import pytest
import torch
from speaking import GREEDY, LONG, NEVER, PROMPTS, SHORT, WARM, WAYS, at, is_busy, letters, prompt, quiet, say, script
from tiny_models import load, write_adapter

from persona.compare.session import NO_ADAPTER, Column, LoadedModel, stream_replies
from persona.errors import AdapterError, InputError
from persona.models import adapter, generate
from persona.models.base import Base
from persona.models.sampling import MAX_CONTEXT_TOKENS

pytest_plugins = "speaking"
pytestmark = pytest.mark.usefixtures("plain_cpu")


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_each_column_is_what_it_would_be_alone(model, adapters, prompts, sampling):
    names = [NO_ADAPTER, *(model.attach(a) for a in adapters)]
    columns = [Column(n, p) for n, p in zip(names, prompts, strict=True)]
    together = say(model, columns, sampling)
    alone = [say(model, [c], sampling)[0] for c in columns]
    assert together == alone
    assert len({r.text for r in together}) == 3, "they must differ, or this test sees nothing"
    assert all(r.tokens == 24 and not r.ended for r in together)


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_the_base_column_is_the_plain_base(model, adapters, prompts, sampling, tiny_gemma):
    """Another copy of the base that no adapter ever touched says the same."""
    names = [NO_ADAPTER, *(model.attach(a) for a in adapters)]
    mixed = say(model, [Column(n, p) for n, p in zip(names, prompts, strict=True)], sampling)[0]
    plain = LoadedModel(Base("someone/tiny", tiny_gemma))
    quiet(plain.model, plain.tokenizer.eos_token_id)
    assert say(plain, [Column(NO_ADAPTER, prompts[0])], sampling)[0] == mixed
    assert not hasattr(plain.model, "peft_config")


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_greedy_tokens_are_those_of_generate(model, tiny_gemma, prompts, monkeypatch):
    """Cache, positions and padding are ours; transformers' own loop, without a cache, is the witness."""
    drawn = []
    real = generate.Sampler.__call__
    monkeypatch.setattr(generate.Sampler, "__call__", lambda *a: drawn.append(real(*a)) or drawn[-1])
    say(model, [Column(NO_ADAPTER, p) for p in prompts])
    plain = quiet(load(tiny_gemma), model.tokenizer.eos_token_id)
    for n, p in enumerate(prompts):
        want = plain.generate(torch.tensor([p.ids]), max_new_tokens=24, do_sample=False, use_cache=False)
        assert [step[n].item() for step in drawn] == want[0, len(p.ids) :].tolist()


def test_the_adapter_column_is_the_trained_model(model, tiny_gemma, tmp_path, monkeypatch):
    lora = write_adapter(tiny_gemma, tmp_path / "a", template="gemma-base")
    name = model.attach(adapter.read_adapter(tmp_path / "a"))
    drawn = []
    real = generate.Sampler.__call__
    monkeypatch.setattr(generate.Sampler, "__call__", lambda *a: drawn.append(real(*a)) or drawn[-1])
    say(model, [Column(NO_ADAPTER, SHORT), Column(name, LONG)])
    quiet(lora.get_base_model(), model.tokenizer.eos_token_id)
    want = lora.generate(input_ids=torch.tensor([LONG.ids]), max_new_tokens=24, do_sample=False, use_cache=False)
    assert [step[1].item() for step in drawn] == want[0, len(LONG.ids) :].tolist()


def test_the_same_seed_is_the_same_text_and_another_is_another(model, adapters):
    columns = [Column(NO_ADAPTER, SHORT), Column(model.attach(adapters[0]), SHORT)]
    first, again, other = (say(model, columns, replace(WARM, seed=s)) for s in (7, 7, 8))
    torch.manual_seed(99)  # nothing global decides
    assert first == again == say(model, columns, WARM)
    assert other[0].text != first[0].text and other[1].text != first[1].text


def test_two_columns_with_the_same_voice_say_the_same(model):
    """One source of randomness for all: columns differ because the adapter differs, never because the dice did."""
    a, b = say(model, [Column(NO_ADAPTER, SHORT)] * 2, WARM)
    assert a == b


# ---- who else is in the batch


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_more_columns_or_another_order_change_nobodys_text(model, adapters, sampling):
    names = [NO_ADAPTER, *(model.attach(a) for a in adapters), model.attach(adapters[0])]
    prompts = [SHORT, prompt(*range(280, 291)), LONG, SHORT]
    columns = [Column(n, p, s) for n, p, s in zip(names, prompts, (1, 1, 1, 0.5), strict=True)]
    want = [say(model, [c], sampling)[0] for c in columns]
    assert len({r.text for r in want}) == 4, "they must differ, or this test sees nothing"
    for order in ((0, 1), (0, 1, 2), (0, 1, 2, 3), (3, 1, 0, 2), (2, 0)):
        assert say(model, [columns[n] for n in order], sampling) == [want[n] for n in order]


def test_each_column_may_have_settings_of_its_own(model, adapters):
    names = [NO_ADAPTER, *(model.attach(a) for a in adapters)]
    columns = [Column(names[n % 3], (SHORT, LONG)[n % 2]) for n in range(6)]
    settings = [GREEDY, WARM, replace(WARM, seed=8, max_new_tokens=9, repetition_penalty=1.5), replace(WARM, top_k=12),
                replace(GREEDY, max_new_tokens=30), WARM]  # fmt: skip
    alone = [say(model, [c], s)[0] for c, s in zip(columns, settings, strict=True)]
    assert say(model, columns, settings) == alone and [r.tokens for r in alone] == [24, 24, 9, 24, 30, 24]
    assert len({r.text for r in alone}) == 6, "they must differ, or this test sees nothing"


def test_each_column_ends_with_its_own_stop_token(model, monkeypatch):
    a, b = (letters(model.tokenizer, x)[0] for x in "你有")
    script(monkeypatch, [a, a], [b, b], [a], [b])
    columns = [Column(NO_ADAPTER, SHORT, stop_id=b), Column(NO_ADAPTER, SHORT, stop_id=a)]
    shown = list(
        stream_replies(model, [columns[0], replace(columns[1], stop_id=NEVER)], replace(GREEDY, max_new_tokens=4))
    )
    assert [(r.text, r.ended) for r in shown[-1]] == [("你", True), ("你有你有", False)]
    script(monkeypatch, [a, a], [b])
    shown = list(stream_replies(model, columns, GREEDY))
    assert [(r.text, r.ended) for r in shown[-1]] == [("你", True), ("", True)]


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_stopping_one_column_leaves_the_others_as_they_are(model, adapters, sampling):
    one, two = (model.attach(a) for a in adapters)
    columns = [Column(NO_ADAPTER, SHORT), Column(one, LONG), Column(two, SHORT)]
    want, halted = say(model, columns, sampling), set()
    for shown in stream_replies(model, columns, sampling, NEVER, halted):
        if shown[1].tokens == 5:
            halted.add(1)
    assert shown[0] == want[0] and shown[2] == want[2]
    assert shown[1] == say(model, columns[1:2], replace(sampling, max_new_tokens=5))[0] and shown[1].tokens == 5
    halted |= {0, 2}
    last = list(stream_replies(model, columns, sampling, NEVER, halted))
    assert [r.tokens for r in last[-1]] == [0, 0, 0], "all stopped before they began: the stream ends"
    assert not is_busy()


@pytest.mark.parametrize("sampling", WAYS.values(), ids=WAYS)
def test_a_column_that_cannot_speak_leaves_the_others_as_they_are(model, adapters, sampling):
    good = [Column(NO_ADAPTER, SHORT), Column(model.attach(adapters[0]), LONG)]
    wrong = [
        Column("gone", SHORT), Column(NO_ADAPTER, prompt(*[5] * MAX_CONTEXT_TOKENS)), Column(NO_ADAPTER, SHORT, error="no such role"),
        Column(good[1].adapter, SHORT, 9),
    ]  # fmt: skip
    mixed = say(model, [wrong[0], good[0], wrong[1], wrong[2], good[1], wrong[3]], sampling)
    assert [mixed[1], mixed[4]] == say(model, good, sampling)
    why = ["no longer open", "more than the", "no such role", "strength=9"]
    for reply, words in zip([mixed[n] for n in (0, 2, 3, 5)], why, strict=True):
        assert words in reply.error and (reply.text, reply.tokens) == ("", 0)
    assert not mixed[1].error and not mixed[4].error
    assert [r.error for r in say(model, wrong[2:3])] == ["no such role"], "nobody left to speak: said, not raised"


def test_rows_that_have_ended_leave_the_batch(model, monkeypatch):
    a, stop = letters(model.tokenizer, "你")[0], model.tokenizer.eos_token_id
    script(monkeypatch, [a, a, a], [a, stop, a], [a, a], [stop, a], [a], [stop])
    real, sizes = model.model.forward, []

    def forward(*args, **options):
        sizes.append(len(options["input_ids"]))
        return real(*args, **options)

    monkeypatch.setattr(model.model, "forward", forward)
    last = say(model, [Column(NO_ADAPTER, p) for p in (SHORT, LONG, SHORT)])
    assert sizes == [3, 3, 2, 2, 1, 1] and [r.tokens for r in last] == [3, 1, 5]


def test_a_reply_says_how_long_it_took(model, monkeypatch):
    a, stop = letters(model.tokenizer, "你")[0], model.tokenizer.eos_token_id
    script(monkeypatch, [a, a], [a, stop], [a], [stop])
    long, short = say(model, [Column(NO_ADAPTER, SHORT)] * 2)
    assert 0 < long.first < long.seconds and long.tokens_per_s == 3 / long.seconds
    assert short.first == short.seconds == long.first, "one token: the first is the newest"
    assert generate.Generation().tokens_per_s == 0


# ---- blends, DoRA


def test_a_blend_speaks_beside_its_parts(model, adapters):
    """All of one and nothing of the other is the one; half of each is neither."""
    a, b = (model.attach(x) for x in adapters)
    parts = say(model, [Column(a, SHORT), Column(b, SHORT)])
    names = [model.blend({a: x, b: y}) for x, y in ((1, 0), (0, 1), (0.5, 0.5))]
    *whole, half = say(model, [Column(n, SHORT) for n in names])
    assert whole == parts and half.text not in [r.text for r in parts]
    assert say(model, [Column(names[2], SHORT, 0)])[0] == say(model, [Column(NO_ADAPTER, SHORT)])[0]
    assert model.adapter_weights(names[2], 0.5) == ((a, 0.25), (b, 0.25))
    with pytest.raises(InputError, match="strength=2.5: from 0"):
        model.blend({a: 2.5, b: 1})
    with pytest.raises(AdapterError, match="not open"):
        model.blend({a: 1, "gone": 1})


def test_dora_speaks_in_the_batch_as_trained(model, adapters, tiny_gemma, tmp_path, monkeypatch):
    lora = write_adapter(tiny_gemma, tmp_path / "dora", template="gemma-base", use_dora=True)
    name = model.attach(adapter.read_adapter(tmp_path / "dora"))
    drawn = []
    real = generate.Sampler.__call__
    monkeypatch.setattr(generate.Sampler, "__call__", lambda *a: drawn.append(real(*a)) or drawn[-1])
    say(model, [Column(NO_ADAPTER, SHORT), Column(name, LONG), Column(model.attach(adapters[0]), SHORT)])
    quiet(lora.get_base_model(), model.tokenizer.eos_token_id)
    want = lora.generate(input_ids=torch.tensor([LONG.ids]), max_new_tokens=24, do_sample=False, use_cache=False)
    assert [step[1].item() for step in drawn] == want[0, len(LONG.ids) :].tolist()


# ---- strength


def test_strength_moves_the_adapter_column_alone(model, adapters):
    name = model.attach(adapters[0])
    columns = [Column(NO_ADAPTER, SHORT), Column(name, SHORT)]
    replies = {s: say(model, at(s, columns)) for s in (1.0, 0.0, 0.4, 0.2)}
    assert len({r[0].text for r in replies.values()}) == 1, "the base never moves"
    assert replies[0.0][1] == replies[0.0][0], "without strength she is the base"
    assert len({r[1].text for r in replies.values()}) == 4
    assert say(model, columns) == replies[1.0], "the next answer is as trained again"


@pytest.mark.parametrize("strength", [-0.1, 2.1, float("nan")])
def test_a_strength_out_of_range_is_that_columns_error(model, adapters, strength):
    columns = [Column(model.attach(adapters[0]), SHORT, s) for s in (strength, 1.0)]
    wrong, right = say(model, columns)
    assert wrong.error.startswith(f"strength={strength}: from 0") and wrong.tokens == 0
    assert right == say(model, columns[1:])[0] and right.tokens == 24
