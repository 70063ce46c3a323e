"""Learning from preferences: the rows of files, the loss, and whole runs on the tiny Gemma."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_models import write_adapter_to_go_on_from
from training import CARD, PAIRS, SETTINGS, events, hash_weights

from persona.errors import InputError
from persona.store.persona_folder import create_persona_at, open_persona
from persona.store.preferences import Preference, parse_preference, read_preferences
from persona.template.render import IGNORE_INDEX
from persona.train import launcher
from persona.train import run as train_run
from persona.train.parent import read_parent
from persona.train.prepare import prepare_run

pytest_plugins = "training"
pytestmark = pytest.mark.usefixtures("plain_cpu")

SHAPES = {
    "texts": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "messages": {
        "prompt": [{"role": "system", "content": "Be dry."}, {"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    "implicit prompt": {
        "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
    },
    "LLaMA-Factory, alpaca": {"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."},
    "LLaMA-Factory, ShareGPT": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "So."},
        "rejected": {"from": "gpt", "value": "No."},
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_each_shape_is_the_same_preference(shape):
    found = parse_preference(SHAPES[shape])
    assert (found.pair.instruction, found.pair.output, found.rejected) == ("Why?", "So.", "No.")
    assert found.pair.system == ("Be dry." if shape == "messages" else "")


def test_earlier_turns_are_the_history():
    turns = [("user", "Hi"), ("assistant", "Hm."), ("user", "Why?")]
    row = {"prompt": [{"role": r, "content": c} for r, c in turns], "chosen": "So.", "rejected": "No."}
    assert parse_preference(row).pair.history == (("Hi", "Hm."),)


def test_what_cannot_be_learned_from_is_left_out_and_listed(tmp_path):
    rows = [{"prompt": "Why?", "chosen": "So.", "rejected": "So. "}, {"prompt": "Why?", "chosen": "So."}, "not an object",
            {"prompt": [{"role": "assistant", "content": "x"}], "chosen": "So.", "rejected": "No."}]  # fmt: skip
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, SHAPES["texts"]])))
    found = read_preferences(file)
    assert len(found.preferences) == 1 and [text[:5] for text in found.left_out] == [f"row {n}" for n in (1, 2, 3, 4)]
    assert "equal" in found.left_out[0]
    file.write_text(json.dumps([SHAPES["texts"]] * 2))
    assert len(read_preferences(file).preferences) == 2, "a JSON list"
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(InputError, match="no row"):
        read_preferences(file)


LONG = " It is lit. It is lit. It is lit."
PREFERENCES = [Preference(replace(p, output="Lit."), p.output.strip() + LONG) for p in PAIRS]


@pytest.fixture
def prefer(tmp_path, tiny_gemma):
    """A new run on these preferences, not started; it goes on from a LoRA on the tiny Gemma."""
    first = write_adapter_to_go_on_from(tiny_gemma, tmp_path / "first")

    def prefer(preferences=PREFERENCES, **changes):
        persona = create_persona_at(tmp_path / f"p{len(list(tmp_path.glob('p*')))}", CARD, PAIRS)
        settings = {"base": str(tiny_gemma), **SETTINGS, "diary_probes": 0, **changes}
        return launcher.create_preference_run(persona, preferences, read_parent(first), settings)

    return prefer


def test_both_answers_are_rendered_with_their_own_mask(prefer):
    prepared = prepare_run(prefer())
    tokenizer = prepared.renderer.tokenizer
    for better, worse in zip(prepared.train, prepared.rejected, strict=True):
        learned = [tokenizer.decode([x for x in e.labels if x != IGNORE_INDEX]) for e in (better, worse)]
        assert learned[0].startswith("Lit.") and LONG in learned[1]
        prompts = [
            e.input_ids[: e.labels.index(next(x for x in e.labels if x != IGNORE_INDEX))] for e in (better, worse)
        ]
        assert prompts[0] == prompts[1]
    wrong = [*PREFERENCES, Preference(PAIRS[0], "<end_of_turn>")]
    with pytest.raises(InputError, match="control"):
        prepare_run(prefer(wrong))


def test_too_few_preferences_or_no_adapter_are_refused(prefer, tmp_path):
    with pytest.raises(InputError, match="too few"):
        prefer(PREFERENCES[:3])
    with pytest.raises(InputError, match="adapter"):
        launcher.create_preference_run(create_persona_at(tmp_path / "x", CARD, PAIRS), PREFERENCES, None, {})
    with pytest.raises(InputError, match="rehearsal_fraction: does not go with preferences"):
        prefer(rehearsal_fraction=0.2)


def test_a_run_on_preferences_is_repeated_on_them(prefer, monkeypatch):
    from persona.ui.steps.train import ledger

    run, started = prefer(), []
    monkeypatch.setattr(ledger, "open_current_persona", lambda _: open_persona(run.path.parent.parent))
    monkeypatch.setattr(launcher, "start_run", started.append)
    again = ledger.repeat_run("mags", run)
    assert started == [again] and again.name != run.name
    assert [(r.pair, r.rejected) for r in again.rows()] == [(r.pair, r.rejected) for r in run.rows()]
    assert again.config() == run.config() and all(r.rejected for r in again.rows())


@pytest.mark.slow
def test_a_rule_is_learned_the_run_resumes_exactly_and_says_what_changed(prefer):
    whole = prefer(epochs=4)
    result = train_run.train_run(whole)
    assert result["accuracy_after"] >= 0.8 and result["margin_after"] > result["margin_before"]
    assert result["start_nll"] > result["adapter_nll"], "with its SFT term the better answers become likelier"
    assert {"reward_margin", "reward_chosen"} <= events(whole, "step")[-1].keys()
    assert abs(events(whole, "step")[0]["reward_margin"]) < 1e-3, "the model is the reference yet"
    assert events(whole, "eval")[-1]["accuracy"] >= 0.8
    assert whole.manifest()["kind"] == "preferences" and whole.manifest()["parent"]["adapter"] == "first"

    stopped = prefer(epochs=4)
    train_run.train_run(stopped, deadline=0)
    assert stopped.progress().status == "stopped"
    again = train_run.train_run(stopped)
    assert hash_weights(stopped) == hash_weights(whole)
    assert again["accuracy_after"] == result["accuracy_after"]


def test_the_loss_is_dpo_with_the_better_answers_nll_beside_it(prefer, monkeypatch):
    """Against the formula on the model's own full logits, after the reference was moved away from the model."""
    seen = {}

    def stop(trainer, *_):
        seen["trainer"] = trainer
        raise InputError("enough")

    monkeypatch.setattr(train_run, "start_or_resume", stop)
    with pytest.raises(InputError, match="enough"):
        train_run.train_run(prefer(beta=0.5, sft_weight=0.3, batch_size=3))
    trainer = seen["trainer"]
    reference = trainer.evaluator.reference
    reference.chosen.nats[:] = [n + 2 for n in reference.chosen.nats]
    rows = [trainer.train_dataset[n] for n in range(3)]
    ours = trainer.compute_loss(trainer.model, trainer.data_collator(rows))

    def nll(ids, labels):
        scores = trainer.model(input_ids=torch.tensor([ids])).logits.float().log_softmax(-1)[0, :-1]
        target = torch.tensor(labels[1:])
        return -scores[target != IGNORE_INDEX].gather(1, target[target != IGNORE_INDEX, None]).sum()

    expected = []
    for n, row in enumerate(rows):
        better, worse = nll(row["input_ids"], row["labels"]), nll(row["rejected_input_ids"], row["rejected_labels"])
        change = (reference.chosen.nats[n] - better) - (reference.rejected.nats[n] - worse)
        assert float(change.detach()) == pytest.approx(2, abs=1e-2)
        learned = sum(x != IGNORE_INDEX for x in row["labels"])
        expected.append(-torch.nn.functional.logsigmoid(0.5 * change) + 0.3 * better / learned)
    assert float(ours.detach()) == pytest.approx(float(torch.stack(expected).mean().detach()), abs=1e-3)
