"""Votes become rows that TRL can train on, corrections become pairs that can be taken back, and neither is ever shared."""

import subprocess
import sys
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from persona.compare import blind_votes, conversation, conversation_store, corrections, dpo_export
from persona.compare.blind_votes import BlindQuestion, VoteSide
from persona.compare.conversation import ConversationAnswer, VoiceRecord
from persona.errors import InputError
from persona.models import adapter as models_adapter
from persona.share import archive as share_archive
from persona.store import edit_history, jsonl, persona_folder
from persona.store.pairs import MAX_CHARACTERS, Pair
from persona.store.persona_folder import Persona, PersonaCard
from persona.store.workspace import PROJECT_DIR

BASE = VoiceRecord("base", "Base")
HER = VoiceRecord("adapter", "甄嬛", "run/zhen-huan/20261122-031500-a1b2")
KEY = conversation.new_browser_key()
EARLIER = (("hi", "hello\u2028there"),)


def question(choice: str, left: str = "本宫乏了。", right: str = "I am a model.", *, said: str = "你是谁？",
             ended: bool = True, histories: Any = ((), ()), system: str = "你是甄嬛。") -> BlindQuestion:  # fmt: skip
    """One whose left side is the persona."""
    sides = [VoteSide(v, h) for v, h in zip((HER, BASE), histories, strict=True)]
    answers = (ConversationAnswer(HER, left, 5, ended), ConversationAnswer(BASE, right, 5, ended))
    return BlindQuestion(f"{choice}{left}", said, system, *sides, 1, 1.0, {}, answers, choice)


@pytest.fixture
def persona(tmp_path: Path) -> Persona:
    pairs = [Pair("你是谁？", "本宫甄嬛。"), Pair("hi", "hello")]
    return persona_folder.create_persona_at(tmp_path / "p", PersonaCard(name="甄嬛"), pairs)


def test_a_row_is_what_trl_reads():
    found = dpo_export.collect_preferences(
        [question("left", histories=(EARLIER, EARLIER)), question("right", system="")]
    )
    assert found.rows == (
        {
            "prompt": [
                {"role": "system", "content": "你是甄嬛。"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello\u2028there"},
                {"role": "user", "content": "你是谁？"},
            ],
            "chosen": [{"role": "assistant", "content": "本宫乏了。"}],
            "rejected": [{"role": "assistant", "content": "I am a model."}],
        },
        {
            "prompt": [{"role": "user", "content": "你是谁？"}],
            "chosen": [{"role": "assistant", "content": "I am a model."}],
            "rejected": [{"role": "assistant", "content": "本宫乏了。"}],
        },
    )
    assert found.left_out == {}


def test_what_gives_no_row_is_counted_by_its_reason():
    unvoted = question("")
    found = dpo_export.collect_preferences(
        [
            question("left"), question("left"), question("tie"), question("tie"), question("bad"), unvoted,
            question("left", said="a", ended=False), question("left", left=" ", said="b"),
            question("left", "same", "same", said="c"), question("left", said="d", histories=(EARLIER, ())),
            question("left", said="e"), question("right", said="e"),
        ]
    )  # fmt: skip
    assert len(found.rows) == 1 and found.rows[0]["prompt"][-1]["content"] == "你是谁？"
    assert found.left_out == {
        "tie": 2, "both bad": 1, "the same vote again": 1, "the preferred answer was cut off": 1,
        "the preferred answer is empty": 1, "the two answers are equal": 1,
        "the two had different conversations before": 1, "the same two answers preferred both ways": 2,
    }  # fmt: skip
    assert sum(found.left_out.values()) + len(found.rows) == 11, "every vote is a row or counted"


def test_both_bad_waits_for_a_better_answer(persona):
    bad = question("bad", histories=(EARLIER, ()))
    assert corrections.pair_from_vote(bad, "本宫甄嬛，在碎玉轩。") == Pair(
        "你是谁？", "本宫甄嬛，在碎玉轩。", EARLIER, "correction"
    )
    with pytest.raises(InputError, match="Neither answer was preferred"):
        corrections.pair_from_vote(bad)


def test_a_preferred_answer_becomes_a_pair_with_its_own_history():
    found = [corrections.pair_from_vote(question(c, histories=(EARLIER, ()))) for c in ("left", "right")]
    assert found == [Pair("你是谁？", "本宫乏了。", EARLIER, "vote"), Pair("你是谁？", "I am a model.", (), "vote")]
    with pytest.raises(InputError, match="cut off"):
        corrections.pair_from_vote(question("left", ended=False))


def test_a_correction_has_what_the_persona_had_said_before(persona):
    mine = conversation_store.open_store(persona.path, KEY)
    talk = conversation_store.start_conversation(mine, "坐。")
    for said in ("茶凉了", "再来一杯"):
        last = talk.turns[-1].id
        talk = conversation_store.add_answers(
            mine, talk, last, [ConversationAnswer(BASE, f"base {last}"), ConversationAnswer(HER, f"她 {last}")], {}
        )
        talk = conversation_store.add_turn(mine, talk, said)
    pair = corrections.pair_from_turn(talk, talk.turns[-1].id, HER.column, "换了便是。")
    assert pair == Pair("再来一杯", "换了便是。", (("坐。", "她 1"), ("茶凉了", "她 3")), "correction")
    assert corrections.pair_from_turn(talk, talk.turns[0].id, HER.column, "谢座。").history == ()
    with pytest.raises(InputError, match="not a turn"):
        corrections.pair_from_turn(talk, 99, HER.column, "x")


def test_a_correction_goes_to_the_pairs_and_can_be_taken_back(persona):
    before = persona.pairs_file.read_bytes()
    added = corrections.append_correction(persona, Pair("外头冷吗？", "风大，仔细着凉。", EARLIER, "correction"))
    assert (added.row, added.rivals, added.message) == (3, (), "Added as pair 3 of 甄嬛.")
    assert persona.pairs()[2] == Pair("外头冷吗？", "风大，仔细着凉。", EARLIER, "correction")
    assert edit_history.undo(persona) == "add a correction" and persona.pairs_file.read_bytes() == before


def test_another_answer_to_a_known_question_is_added_and_named(persona):
    added = corrections.append_correction(persona, Pair(" 你是谁？", "钮祜禄氏。", source="correction"))
    assert added.rivals == (1,) and "Pair 1 answers the same question differently" in added.message
    added = corrections.append_correction(persona, Pair("你是谁？", "熹贵妃。"))
    assert added.rivals == (1, 3) and "Pairs 1, 3 answer the same" in added.message
    assert [p.output for p in persona.pairs()] == ["本宫甄嬛。", "hello", "钮祜禄氏。", "熹贵妃。"]


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (Pair("你是谁？", "本宫甄嬛。 \n", EARLIER, "correction"), "Pair 1 has this answer"),
        (Pair("x", " "), "Write what the persona should have said"),
        (Pair(" ", "x"), "Write what the persona should have said"),
        (Pair("x", "y" * (MAX_CHARACTERS + 1)), "more than 100,000. Split it. It is not added"),
        (Pair("x", "\ud83d"), "half a character"),
    ],
)
def test_what_is_no_correction_is_refused_with_nothing_written(persona, pair, says):
    before = persona.pairs_file.read_bytes()
    with pytest.raises(InputError, match=says):
        corrections.append_correction(persona, pair)
    assert persona.pairs_file.read_bytes() == before and edit_history.undo_redo_labels(persona) == ("", "")


def test_what_another_window_adds_meanwhile_is_not_added_twice(persona, monkeypatch):
    pair = Pair("new", "answer")
    stale = persona.scan()
    edit_history.append(persona, [pair], "the other window")
    monkeypatch.setattr(Persona, "scan", lambda _: stale)
    with pytest.raises(InputError, match="Another window"):
        corrections.append_correction(persona, pair)


def rows_file(tmp_path: Path) -> Path:
    asked = [
        question("left", histories=(EARLIER, EARLIER)), question("right", said="second"),
        question("left", "y" * 40, "", said="empty loser"),
    ]  # fmt: skip
    file = tmp_path / "dpo.jsonl"
    file.write_text("".join(jsonl.dump_rows(dpo_export.collect_preferences(asked).rows)), encoding="utf-8")
    return file


@pytest.mark.slow
def test_trl_trains_on_the_export(tmp_path, tiny_llama, byte_tokenizer, monkeypatch):
    """load_dataset reads it, and DPOTrainer's own preparation finds the prompt to be the beginning of both answers."""
    import torch
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer
    from trl.data_utils import is_conversational

    from persona.template.chat_template import read_template
    from tests.tiny_models import load

    monkeypatch.setattr(byte_tokenizer, "chat_template", read_template("chatml").text)
    data = load_dataset("json", data_files=str(rows_file(tmp_path)), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["prompt", "chosen", "rejected"] and is_conversational(data[0])
    model = load(tiny_llama)
    args = DPOConfig(str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=3, report_to="none", use_cpu=True,
                     bf16=False, learning_rate=1e-2, max_length=512)  # fmt: skip
    trainer = DPOTrainer(model, deepcopy(model), args=args, train_dataset=data, processing_class=byte_tokenizer)
    prepared = trainer.train_dataset
    assert len(prepared) == 3, "no row is dropped"
    for row, made in zip(data, prepared, strict=True):
        prompt, better, worse = (byte_tokenizer.decode(made[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids"))
        assert prompt.endswith("<|im_start|>assistant\n") and row["prompt"][-1]["content"] in prompt
        assert better.startswith(row["chosen"][0]["content"] + "<|im_end|>")
        assert worse.startswith(row["rejected"][0]["content"] + "<|im_end|>")
    before = model.get_output_embeddings().weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, model.get_output_embeddings().weight)


def test_nobody_who_gets_the_adapter_gets_the_conversations(tmp_path, persona, tiny_llama):
    """They lie beside the adapter, even in its very folder when it came from elsewhere: the allow-list holds."""
    from tests.tiny_models import write_adapter

    adapter = persona.runs_dir / "20261122-031500-a1b2" / "adapter"
    write_adapter(tiny_llama, adapter)
    for place in (persona.path, adapter):
        conversation_store.start_conversation(conversation_store.open_store(place, KEY), "a secret question")
        blind_votes.draw_question(
            blind_votes.open_vote_log(place, KEY), "a secret question", [VoteSide(BASE), VoteSide(HER)], "", {}
        )
    with zipfile.ZipFile(share_archive.pack_adapter(adapter, tmp_path / "out.zip")) as archive:
        names = archive.namelist()
        assert {Path(n).name for n in names} <= set(models_adapter.ADAPTER_FILES) and names
        assert not any(b"a secret question" in archive.read(n) for n in names)
    copy = share_archive.copy_adapter(adapter, tmp_path / "kept")
    assert {f.name for f in copy.iterdir()} <= set(models_adapter.ADAPTER_FILES)


def test_importing_is_cheap():
    heavy = {"torch", "gradio", "transformers", "trl", "peft", "datasets", "pandas", "scipy"}
    code = f"import sys, persona.compare.conversation_store, persona.compare.dpo_export, persona.compare.corrections; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_DIR)
    assert done.stdout.strip() == ""
