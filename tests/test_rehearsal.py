"""Rehearsal: general prompts with the base's own answers are learned beside the pairs."""

import json
from collections import Counter

import pytest
import torch
from cases import check_each
from rapidfuzz import fuzz
from tiny_models import new_run
from training import CARD, PAIRS, SETTINGS, Seen, events, hash_weights

from persona.errors import InputError
from persona.judge.scoring import read_general_questions
from persona.models.generate import Generation
from persona.store.workspace import data_root
from persona.template.render import IGNORE_INDEX
from persona.train import rehearsal
from persona.train import run as train_run
from persona.train.config import RunConfig, count_rehearsal, count_steps
from persona.train.duration import REHEARSAL_PROMPTS
from persona.train.trainer import RunCallback

pytest_plugins = "training"
pytestmark = pytest.mark.usefixtures("plain_cpu", "home")
# 12 pairs to learn from and 5 general rows: 5 steps an epoch
REHEARSING = {"rehearsal_fraction": 0.3, "max_steps": 7, "diary_probes": 0}
slow = pytest.mark.slow  # a whole run on the tiny Gemma


def test_the_shipped_prompts():
    """Enough of each kind in both languages; none asks who the model is, or what the verdict asks."""
    rows = [json.loads(line) for line in rehearsal.PROMPTS_FILE.read_text(encoding="utf-8").splitlines()]
    prompts = rehearsal.read_prompts()
    assert len(set(prompts)) == len(rows) == REHEARSAL_PROMPTS >= 300
    kinds = Counter((row["language"], row["kind"]) for row in rows)
    assert len(kinds) == 20 and set(kinds.values()) == {16}
    asked = [question.pair.instruction for question in read_general_questions()]
    assert not [(p, q) for p in prompts for q in asked if fuzz.ratio(p, q) >= 90]
    assert not [
        p for p in prompts if any(w in p.lower() for w in ("你是", "你叫", "who are you", "your name", "are you"))
    ]


def test_a_share_of_the_rows_of_an_epoch():
    def check(share, pairs, rows):
        assert count_rehearsal(RunConfig(rehearsal_fraction=share), pairs) == rows

    check_each([(0, 100, 0), (0.2, 100, 25), (0.2, 1, 1), (0.5, 9, 9), (0.2, 12, 3)], check)
    assert count_steps(RunConfig(rehearsal_fraction=0.2, epochs=2), 160) == (50, 5)  # 200 rows in batches of 8


def test_what_of_an_answer_is_learned():
    cases = [
        ("Why?", "Because it is. ", True, "Because it is."),
        ("Why?", "Tea", True, "Tea"),
        ("Why?", "Because it is. And th", False, "Because it is."),
        ("为什么？", "因为如此。然后", False, "因为如此。"),
        ("Name two.", "1. Milk\n2. Bread\n3. Bu", False, "1. Milk\n2. Bread"),
        ("Why?", "no sentence here", False, ""),
        ("Why?", " ", True, ""),
        ("Why is it so?", "Why is it so? It is", True, ""),  # an echo
        ("每个月怎样存钱？", "一个月，一个月，一个月，一个月，一个月。", True, ""),  # a circle
    ]

    def check(prompt, text, ended, learned):
        assert rehearsal.whole_answer(prompt, text, ended) == learned

    check_each(cases, check)


@pytest.fixture
def speaks(monkeypatch):
    """Answers that are worth learning in place of a random model's; returns the prompts that were asked, in order."""
    asked, real = [], rehearsal.generate_batch

    def generate_batch(model, tokenizer, prompts, *args, **options):
        assert not model.training and not any("lora" in name for name, _ in model.named_parameters())
        *_, last = real(model, tokenizer, prompts, *args, **options)
        texts = [tokenizer.decode(ids) for ids in prompts]
        asked.extend(texts)
        yield [
            Generation(f"So it is, {len(text)}.\nMore", tokens=r.tokens) for r, text in zip(last, texts, strict=True)
        ]

    monkeypatch.setattr(rehearsal, "generate_batch", generate_batch)
    return asked


@slow
def test_a_run_learns_general_rows_beside_its_pairs(make, speaks, seen):
    run = make(**REHEARSING)
    result = train_run.train_run(run)
    pairs = [json.loads(line) for line in (run.path / "rehearsal.jsonl").read_text().splitlines()]
    rows = seen.trainer.train_dataset
    assert len(pairs) == 5 and len(rows) == 17 and result["rehearsal_rows"] == 5
    assert all(p["instruction"] in rehearsal.read_prompts() and p["output"].startswith("So it is") for p in pairs)
    assert not any("More" in p["output"] for p in pairs), "of a base that goes on, the first line alone"
    decode = seen.prepared.renderer.tokenizer.decode
    last = rows[len(rows) - 1]
    learned = [label for label in last["labels"] if label != IGNORE_INDEX]
    assert learned[-1] == seen.prepared.renderer.stop_id and decode(learned).startswith(pairs[-1]["output"])
    assert CARD.system in decode(rows[0]["input_ids"]) and CARD.system not in decode(last["input_ids"])
    [plan] = events(run, "plan")
    assert (plan["rows"], plan["rehearsal"], plan["held_out"]) == (12, 5, 4)
    assert plan["rehearsal_tokens"] == sum(len(ids) for ids in rows["input_ids"][12:])
    assert run.progress().rehearsal["answered"] == 5 and run.progress().rehearsal["seconds"] > 0
    messages = [e.get("message", "") for e in events(run, "state")]
    assert any(text.startswith("Answering 5 general prompts with the base: 5 of 5, about") for text in messages)
    assert json.loads((run.adapter / "run.json").read_text())["figures"]["rehearsal_rows"] == 5
    assert run.manifest()["data_sha256"] == make().manifest()["data_sha256"] and len(run.rows()) == len(PAIRS)


@slow
def test_a_base_is_asked_once(make, speaks):
    """By later runs only what is new to it; with the system prompt, which changes an answer, anew."""
    train_run.train_run(make(**REHEARSING))
    assert len(speaks) == 5
    again = make(**REHEARSING)
    train_run.train_run(again)
    assert len(speaks) == 5 and not events(again, "rehearsal")
    train_run.train_run(make(**REHEARSING | {"rehearsal_fraction": 0.4}))
    assert len(speaks) == 8 == len(set(speaks))
    asked = make(**REHEARSING, rehearsal_system=True)
    train_run.train_run(asked)
    assert len(speaks) == 13 and all(CARD.system in text for text in speaks[8:])
    [first, second] = sorted((data_root() / "rehearsal").iterdir())
    assert {len(file.read_text().splitlines()) for file in (first, second)} == {5, 8}


@slow
def test_a_stop_while_the_base_answers_keeps_what_it_has(make, speaks, monkeypatch):
    whole, stopped = make(**REHEARSING), make(**REHEARSING)
    train_run.train_run(whole)
    for file in (data_root() / "rehearsal").iterdir():
        file.unlink()
    speaks.clear()
    monkeypatch.setattr(rehearsal, "REHEARSAL_BATCH", 2)
    real = RunCallback.is_asked_to_stop
    monkeypatch.setattr(RunCallback, "is_asked_to_stop", lambda self: len(speaks) > 2 or real(self))
    assert train_run.train_run(stopped)["status"] == "stopped" == stopped.progress().status
    assert not (stopped.path / "rehearsal.jsonl").exists() and not stopped.adapter.exists()
    monkeypatch.setattr(RunCallback, "is_asked_to_stop", real)
    asked = speaks[:2]
    speaks.clear()
    train_run.train_run(stopped)
    assert len(speaks) == 3 and not set(speaks) & set(asked), "the first two are kept"
    assert hash_weights(stopped) == hash_weights(whole)
    assert stopped.progress().rehearsal["answered"] == 5


@slow
@pytest.mark.release
def test_a_resumed_run_rehearses_the_same(make, speaks, monkeypatch, seen):
    """Byte for byte as if it had not been stopped, though the base's kept answers are gone."""
    whole, stopped = make(**REHEARSING), make(**REHEARSING)
    train_run.train_run(whole)
    real = RunCallback.on_step_end

    def stop(self, args, state, control, **options):
        self.stop_requested = self.stop_requested or state.global_step == 4
        return real(self, args, state, control, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", stop)
        assert train_run.train_run(stopped)["status"] == "stopped"
    for file in (data_root() / "rehearsal").iterdir():
        file.write_text("")
    speaks.clear()
    torch.manual_seed(99)
    assert train_run.train_run(stopped)["status"] == "done" and not speaks
    assert hash_weights(stopped) == hash_weights(whole)


@slow
def test_a_base_without_one_good_answer_is_refused(make, monkeypatch):
    monkeypatch.setattr(rehearsal, "whole_answer", lambda *_: "")
    with pytest.raises(InputError, match="rehearsal_fraction=0.3: the base answered 5 general prompts, and none"):
        train_run.train_run(make(**REHEARSING))


@slow
def test_a_larger_share_than_there_are_answers_repeats_them(tmp_path, tiny_gemma, speaks, monkeypatch, seen: Seen):
    monkeypatch.setattr(rehearsal, "read_prompts", lambda: ["How?", "Why not?"])
    run = new_run(tmp_path, CARD, PAIRS, base=str(tiny_gemma), **SETTINGS | REHEARSING)
    train_run.train_run(run)
    rows = [tuple(ids) for ids in seen.trainer.train_dataset["input_ids"]][12:]
    assert sorted(Counter(rows).values()) == [2, 3] and len(speaks) == 2
