"""Decoding with fixed shapes, as a CUDA graph needs it: the same texts as with a cache that grows.

Without a GPU a graph is stood in for by Recorded, which repeats the operations of one step on the same memory: what
Python did besides is not repeated, as in a graph.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from speaking import GREEDY, LONG, NEVER, PROMPTS, SHORT, WAYS, changed, say
from tiny_models import load
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from persona.compare.session import NO_ADAPTER, Column, LoadedModel
from persona.models import decode_loop, generate
from persona.models.base import Base
from persona.models.generate import Batch, Row
from persona.models.sampling import Sampling

aten = torch.ops.aten
pytest_plugins = "speaking"
pytestmark = pytest.mark.usefixtures("plain_cpu")


class Recorded(TorchDispatchMode):
    """Stands in for a torch.cuda.CUDAGraph. Unlike a capture, the recording computes: the first replay is no other."""

    def __init__(self):
        super().__init__()
        self.operations, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten.item.default, aten.is_nonzero.default, aten._local_scalar_dense.default):
            raise RuntimeError("a capture cannot read a value")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    @torch.inference_mode()
    def replay(self):
        if self.replays:
            for func, args, kwargs, out in self.operations:
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
        self.replays += 1


@pytest.fixture
def graphs(monkeypatch) -> list[Recorded]:
    """CUDA graphs are wanted, and stood in for. Returns those that were captured."""
    made = []

    def capture(forward):
        made.append(Recorded())
        with made[-1]:
            result = forward()
        return made[-1].replay, result

    monkeypatch.setattr(decode_loop, "wants_cuda_graph", lambda _: True)
    monkeypatch.setattr(decode_loop, "capture_graph", capture)
    return made


def say_both(monkeypatch, graphs, ask):
    """What `ask` returns with a growing cache, and with graphs."""
    with monkeypatch.context() as patch:
        patch.setattr(decode_loop, "wants_cuda_graph", lambda _: False)
        grown = ask()
    assert not graphs
    return grown, ask()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prompts", PROMPTS)
def test_texts_are_those_of_a_growing_cache(model, adapters, graphs, monkeypatch, way, prompts):
    """Base, adapter and a blend; LONG and the replies go beyond the sliding window of 16."""
    one, two = map(model.attach, adapters)
    names = [NO_ADAPTER, one, model.blend({one: 0.5, two: 0.7})]
    columns = [Column(n, p) for n, p in zip(names, PROMPTS[prompts], strict=True)]
    grown, static = say_both(monkeypatch, graphs, lambda: say(model, columns, WAYS[way]))
    assert static == grown and all(r.tokens == 24 for r in grown) and len({r.text for r in grown}) == 3
    assert [g.replays for g in graphs] == [24 - decode_loop.EAGER_STEPS]
    assert changed(model.model) == 0


@pytest.mark.parametrize("pause", [2, 9], ids=["before-the-capture", "after-it"])
def test_it_goes_on_after_a_pause_in_which_an_adapter_came(model, adapters, graphs, pause):
    name = model.attach(adapters[0])
    want = say(model, [Column(name, SHORT)])[0]
    row, batch = Row(SHORT.ids, GREEDY, NEVER, model.adapter_weights(name)), Batch(model.model, model.tokenizer)
    batch.join([row])
    batch.advance()
    for step in range(1, 24):
        assert not batch.can_grow, "no row joins a graph"
        if step == pause:
            batch.suspend()
            assert changed(model.model) == 0
            model.attach(adapters[1])
            batch.resume(model.model)
        batch.step()
        batch.advance()
    assert row.reply == want and not batch.rows and batch.can_grow and changed(model.model) == 0


def test_rows_end_one_after_the_other(model, graphs, monkeypatch):
    """By their limits, by a stop token, by being halted: those that go on say what they would have said."""
    limits = [replace(GREEDY, max_new_tokens=n) for n in (2, 9, 24, 24, 24)]
    prompts = [p.ids for p in (SHORT, LONG, SHORT, *PROMPTS["different"][1:])]

    def ask(stops=NEVER):
        halted = lambda row: row == 3 and next(calls) >= 6  # noqa: E731
        calls = iter(range(99))
        *_, last = generate.generate_batch(model.model, model.tokenizer, prompts, limits, stops, [()] * 5, halted)
        return last

    with decode_loop.DecodeLoop(model.model, prompts[4:], None, 0) as step:
        first = int(step.logits().argmax())
    grown, static = say_both(monkeypatch, graphs, ask)
    assert static == grown and [r.tokens for r in grown][:2] == [2, 9] and grown[3].tokens < 24
    assert [r.ended for r in ask([NEVER] * 4 + [first])] == [False] * 4 + [True]


@pytest.mark.parametrize("base", ["tiny_llama", "tiny_gemma"])
def test_a_step_copies_nothing_from_the_cpu(request, base, graphs, monkeypatch):
    """A capture forbids it. Two architectures as they are; the texts are the same too."""
    model = LoadedModel(Base("someone/other", request.getfixturevalue(base)))
    prompts = [[1, 20, 30, 40], [1, 50]]

    def ask():
        *_, last = generate.generate_batch(model.model, model.tokenizer, prompts, GREEDY, NEVER)
        return last

    grown, static = say_both(monkeypatch, graphs, ask)
    assert static == grown and len(graphs) == 1
    assert not {aten.lift_fresh.default, aten.lift_fresh_copy.default} & {func for func, *_ in graphs[0].operations}


def test_a_step_that_no_graph_can_hold_is_computed_without(model, graphs, monkeypatch, caplog):
    real = decode_loop.DecodeLoop._forward

    def forward(self):
        scores = real(self)
        assert scores.isfinite().all().item()
        return scores

    monkeypatch.setattr(decode_loop, "capture_graph", lambda _: (_ for _ in ()).throw(RuntimeError("not permitted")))
    grown, static = say_both(monkeypatch, graphs, lambda: say(model, [Column(NO_ADAPTER, SHORT)]))
    assert static == grown and "No CUDA graph for" in caplog.text and "not permitted" in caplog.text
    monkeypatch.setattr(decode_loop.DecodeLoop, "_forward", forward)
    with pytest.raises(RuntimeError, match="cannot read"), Recorded(), torch.inference_mode():
        decode_loop.DecodeLoop(model.model, [SHORT.ids], None, 0)._forward()


def test_graphs_are_used_where_they_were_asked_for_and_fit(tiny_gemma, monkeypatch):
    model = load(tiny_gemma)

    def kind(device="cuda", asked="", room=decode_loop.MAX_STATIC_TOKENS, **other):
        with monkeypatch.context() as patch:
            patch.setenv("PERSONA_CUDA_GRAPHS", asked)
            weights = [SimpleNamespace(device=torch.device(device), is_meta=False)]
            for name, value in {"parameters": lambda _: iter(weights), **other}.items():
                patch.setattr(type(model), name, value)
            wanted = decode_loop.wants_cuda_graph(model)
        monkeypatch.setattr(decode_loop, "MAX_STATIC_TOKENS", room)
        monkeypatch.setattr(decode_loop, "wants_cuda_graph", lambda _: wanted)
        with decode_loop.open_decode_loop(model, [SHORT.ids, LONG.ids], None, 0, 24) as made:
            monkeypatch.setattr(decode_loop, "wants_cuda_graph", real)
            return type(made)

    real = decode_loop.wants_cuda_graph
    assert kind() is decode_loop.StaticDecodeLoop
    monkeypatch.setattr(decode_loop, "is_quantized", lambda _: True)
    assert kind() is decode_loop.DecodeLoop and kind(asked="1") is decode_loop.StaticDecodeLoop
    monkeypatch.setattr(decode_loop, "is_quantized", lambda _: False)
    growing = [kind("cpu"), kind(asked="0"), kind(room=127), kind(_can_compile_fullgraph=False)]
    assert growing == [decode_loop.DecodeLoop] * 4
    assert kind(room=128) is decode_loop.StaticDecodeLoop, "33 + 24 tokens rounded up, twice"
    monkeypatch.setattr(model.config, "layer_types", ["linear_attention", "full_attention"])
    assert kind() is decode_loop.DecodeLoop


@pytest.mark.slow
@pytest.mark.release
def test_the_embedded_base_says_the_same(embedded_base, graphs, monkeypatch):
    model = LoadedModel(embedded_base)
    prompts = [
        model.tokenizer(text)["input_ids"] for text in ("The lighthouse keeper said", "从前有座山，山里有座庙，庙里")
    ]
    for sampling in (Sampling(temperature=0, max_new_tokens=12), Sampling(seed=3, max_new_tokens=12)):
        graphs.clear()

        def ask(sampling=sampling):
            *_, last = generate.generate_batch(model.model, model.tokenizer, prompts, sampling, NEVER)
            return last

        grown, static = say_both(monkeypatch, graphs, ask)
        assert static == grown and grown[0].tokens > 9 and grown[0].text != grown[1].text


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_real_graph_says_what_the_growing_cache_says(tiny_gemma, adapters, monkeypatch, way):
    from persona.models import hardware
    from persona.models.hardware import Machine

    machine = Machine("cuda", "test", 10**10, 2, (("float32", 2e9), ("bfloat16", 1e9)))
    monkeypatch.setattr(hardware, "this_machine", lambda: machine)
    captured, real = [], decode_loop.capture_graph
    monkeypatch.setattr(decode_loop, "capture_graph", lambda forward: captured.append(real(forward)) or captured[-1])
    model = LoadedModel(Base("someone/tiny", tiny_gemma))
    one, two = map(model.attach, adapters)
    columns = [
        Column(n, p)
        for n, p in zip((NO_ADAPTER, one, model.blend({one: 0.5, two: 0.7})), PROMPTS["different"], strict=True)
    ]
    monkeypatch.setenv("PERSONA_CUDA_GRAPHS", "0")
    grown = say(model, columns, WAYS[way])
    monkeypatch.delenv("PERSONA_CUDA_GRAPHS")
    for _ in range(2):
        assert say(model, columns, WAYS[way]) == grown
    assert len(captured) == 2
