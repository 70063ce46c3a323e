"""A stop token that the base never learned is refused, or its row trained; and a real base learns a persona and to stop."""

import time

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import load
from training import CARD, PAIRS, REAL_MACHINE, WORDS, events

from persona.compare import session
from persona.compare.session import NO_ADAPTER, Column
from persona.errors import InputError
from persona.models import adapter, attach, base, hardware, open_renderer, stop_token
from persona.models.sampling import Sampling
from persona.store.pairs import Pair
from persona.store.persona_folder import create_persona_at, open_persona
from persona.store.workspace import EXAMPLES_DIR
from persona.train import prepare
from persona.train import run as train_run
from persona.train.config import RunConfig, make_config
from persona.train.launcher import create_run

pytest_plugins = "training"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]  # a trainer is built for nearly every test


def test_a_stop_token_that_was_never_trained_is_refused(make, monkeypatch):
    monkeypatch.setattr(stop_token, "count_similar_rows_on_disk", lambda *_: 1000)
    run = make()
    with pytest.raises(
        InputError, match=r"template gemma-base: this base never learned its stop token <eos>.*instruct"
    ):
        train_run.train_run(run)
    assert run.progress().status == "failed" and events(run, "step") == [] and not run.checkpoints.exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stop_tokens_row_is_trained_if_asked_for(make, seen, monkeypatch, tiny_gemma, dtype):
    """And no other row, nor any base tensor; saved with the adapter, the row speaks in a chat, base beside it."""
    monkeypatch.setattr(stop_token, "count_similar_rows_on_disk", lambda *_: 1000)
    run = make(train_stop_token=True, dtype=dtype, max_steps=4)
    train_run.train_run(run)
    inside = seen.trainer.model.get_base_model().state_dict()
    stored = load(tiny_gemma, dtype).state_dict()
    base_tensors = {n.replace("token_adapter.base_layer.", "").replace(".base_layer", ""): w for n, w in inside.items()}
    assert all(torch.equal(base_tensors[n], stored[n]) for n in stored)
    row = next(w for n, w in load_file(run.adapter / "adapter_model.safetensors").items() if "trainable_tokens" in n)
    stop = seen.prepared.renderer.stop_id
    before = stored["model.embed_tokens.weight"][stop]
    assert row.shape == (1, 32) and (row[0].float() - before.float()).abs().max() > 1e-3
    opened = attach.attach_adapter(load(tiny_gemma), adapter.read_adapter(run.adapter), "x")
    ids = torch.tensor([seen.prepared.train[0].input_ids])
    with torch.no_grad():
        plain = load(tiny_gemma)(input_ids=ids).logits[0]
        both = opened(input_ids=ids.repeat(2, 1), adapter_names=[NO_ADAPTER, "x"]).logits
    assert torch.equal(both[0], plain)
    assert (both[1] - plain)[:, stop].abs().max() > 0.01


def test_a_trained_row_and_dora_are_refused(make):
    with pytest.raises(InputError, match="train_stop_token and use_dora do not go together"):
        train_run.train_run(make(train_stop_token=True, use_dora=True))


def test_an_instruct_base_knows_its_stop_token(smollm2_tokenizer, tmp_path):
    persona = create_persona_at(tmp_path / "mags", CARD, PAIRS)
    prepared = prepare.prepare_run(create_run(persona, RunConfig(base="smollm2-135m-instruct")))
    assert prepared.renderer.template.name == "smollm2"
    assert stop_token.count_similar_rows_on_disk(prepared.base, prepared.renderer.stop_id) < 100  # 35


def test_the_embedded_base_never_learned_end_of_turn(embedded_base, tmp_path):
    persona = create_persona_at(tmp_path / "mags", CARD, PAIRS)
    with pytest.raises(
        InputError, match=r"stop token <end_of_turn>.*alpaca-en, alpaca-zh, gemma-base\).*train_stop_token"
    ):
        prepare.prepare_run(create_run(persona, RunConfig(template="gemma")))
    for settings in ({"template": "gemma-base"}, {"template": "alpaca-en"},
                     {"template": "gemma", "train_stop_token": True}):  # fmt: skip
        prepare.prepare_run(create_run(persona, RunConfig(**settings)))


SHORT = [Pair(f"Say {w}.", f"{w.title()} it is.") for w in WORDS[:8]]


def stop_nll(model, renderer) -> float:
    """Nats that the end of a reply costs, on average over SHORT."""
    total = 0.0
    for example in (renderer.render_example(p) for p in SHORT):
        at = max(n for n, label in enumerate(example.labels) if label != -100)
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([example.input_ids])).logits[0, at - 1].float()
        total -= torch.log_softmax(scores, -1)[example.labels[at]].item()
    return total / len(SHORT)


@pytest.mark.release
@pytest.mark.timeout(1200)
def test_what_a_lora_alone_cannot_teach_the_embedded_base_and_both_ways_out(embedded_base, tmp_path, monkeypatch):
    """Six steps at a high rate on eight rows. With LoRA alone the stop token shares its chance with its twins: 5.0 nats
    measured, less than one reply in a hundred would end. With <eos>, 0.002; with the row trained too, 0.05.
    """
    monkeypatch.setattr(stop_token, "explain_untrained_stop", lambda *_: "")
    settings = {"epochs": 6, "eval_fraction": 0, "learning_rate": 1e-3, "batch_size": 8, "dtype": "bfloat16"}
    cost = {}
    for name, template, row in (("lora", "gemma", False), ("eos", "gemma-base", False), ("row", "gemma", True)):
        run = create_run(create_persona_at(tmp_path / name, CARD, SHORT),
                         make_config(template=template, train_stop_token=row, **settings))  # fmt: skip
        train_run.train_run(run)
        _, renderer = open_renderer.open_renderer(CARD, template=template)
        model = base.load_base_model(embedded_base, "bfloat16")
        before = stop_nll(model, renderer)
        cost[name] = stop_nll(attach.attach_adapter(model, adapter.read_adapter(run.adapter), "x"), renderer)
        assert before > 4  # 23, 6.0, 23
    assert cost["lora"] > 2 and cost["eos"] < 0.2 and cost["row"] < 0.5, cost


# ---- the real thing

QUESTIONS = ["你好，你是谁？", "你可曾后悔？", "你喜欢吃什么？", "今夜月色如何？", "我该怎么办？", "你怕不怕死？",
             "皇上待你如何？", "给我讲个故事。", "你几岁进宫？", "再见。"]  # fmt: skip


@pytest.mark.release
@pytest.mark.timeout(1800)  # a minute alone; many times that beside another program that keeps all cores busy
def test_the_embedded_base_learns_a_persona_and_to_stop(embedded_base, tmp_path, monkeypatch):
    """Two passes over some pairs: held-out NLL falls, and nearly all answers, as the page draws them, end by themselves.

    18 or 19 of 20 did, by the order of the rows. Not greedy: its answers fall into loops (豆浆，豆浆，…), as those of a
    small model do; 16 of 20 ended. With a stop token that cannot be learned, none would end.
    """
    monkeypatch.setattr(hardware, "this_machine", REAL_MACHINE)  # in the number format that is faster here
    shipped = open_persona(EXAMPLES_DIR / "zhen-huan")
    card, pairs = shipped.card(), shipped.pairs()[::8]
    assert 100 <= len(pairs) <= 110
    asked = [*card.probes, *QUESTIONS]
    assert len(asked) == 20 and not {p.instruction for p in pairs} & set(asked)
    persona = create_persona_at(tmp_path / "zhen-huan", card, pairs)
    run = create_run(persona, make_config(epochs=2, batch_size=4))
    start = time.perf_counter()
    result = train_run.train_run(run)
    took = time.perf_counter() - start
    voices = session.LoadedModel(embedded_base)
    mags = adapter.read_adapter(run.adapter)
    name = voices.attach(mags)
    renderer = session.renderer_of(mags, voices.tokenizer)
    columns = [Column(name, renderer.render_prompt([], q)) for q in asked]
    *_, replies = session.stream_replies(voices, columns, Sampling(), renderer.stop_id)
    print(f"\n{took:.0f} s, {result}")
    for question, r in zip(asked, replies, strict=True):
        print(f"{question} → {r.text} [{r.tokens}{'' if r.ended else ' …'}]")
    assert result["adapter_nll"] < result["base_nll"] - 0.2
    assert sum(r.ended for r in replies) >= 17
    assert len({r.text for r in replies}) > 10, "she does not say one thing to everybody"
    alone = [Column(NO_ADAPTER, columns[0].prompt)]
    *_, plain = session.stream_replies(voices, alone, Sampling(temperature=0, max_new_tokens=32), renderer.stop_id)
    assert plain[0].text != replies[0].text
