"""Going on from an adapter: a new run begins with its weights, on its base, and learns new pairs more often."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_adapter
from training import PAIRS, Seen, build, events, hash_weights

from persona.errors import InputError, PersonaError
from persona.models.adapter import WEIGHTS_FILE
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.train import launcher, parent, plan, snapshots
from persona.train import run as train_run
from persona.train.config import RunConfig, make_config
from persona.train.parent import (
    MIN_OLD_ROWS,
    Parent,
    adopt_settings,
    describe_pairs,
    read_parent,
    repeat_new,
    split_since,
)
from persona.train.run_folder import RunRow

pytest_plugins = "training"
pytestmark = pytest.mark.usefixtures("plain_cpu")
NEW = [Pair("kettle 4?", "The kettle sings."), Pair("Who lit it?", "I did."), Pair("And now?", "Now we wait.")]


def known(rows, adapter=None) -> Parent:
    return Parent(adapter, "before", rows, "", "")


def test_what_the_parent_held_out_stays_held_out_and_all_that_is_new_is_learned():
    before = split_since(PAIRS, None, RunConfig(eval_fraction=0.25))
    held_out = {r.pair for r in before if r.held_out}
    pairs = [*NEW, *PAIRS[1:]]
    rows = split_since(pairs, known(tuple(before)), RunConfig(eval_fraction=0.1, seed=5))
    assert [r.pair for r in rows] == pairs
    assert {r.pair for r in rows if r.held_out} == held_out - {PAIRS[0]}
    assert [r.pair for r in rows if r.is_new] == NEW
    assert not any(r.held_out for r in split_since(pairs, known(tuple(before)), RunConfig(eval_fraction=0)))
    prompted = [replace(p, system="Be brief.") for p in PAIRS]
    rows = split_since(prompted, known(tuple(before)), RunConfig(eval_fraction=0.1))
    assert all(r.is_new for r in rows), "under another system prompt they are other pairs"
    assert {replace(r.pair, system="") for r in rows if r.held_out} == held_out, "their words stay unseen"
    renamed = [replace(p, source="elsewhere") for p in PAIRS]
    assert not any(r.is_new for r in split_since(renamed, known(tuple(before)), RunConfig())), "the same pairs"


def test_without_held_out_rows_of_the_parent_new_pairs_are_held_out():
    before = tuple(RunRow(p, False) for p in PAIRS)
    rows = split_since([*PAIRS, *NEW], known(before), RunConfig(eval_fraction=0.3))
    held_out = [r for r in rows if r.held_out]
    assert len(held_out) == 1 and held_out[0].is_new
    assert not any(r.held_out for r in split_since([*PAIRS, NEW[0]], known(before), RunConfig())), (
        "one is to be learned"
    )
    assert split_since(PAIRS, known(None), RunConfig()) == split_since(PAIRS, None, RunConfig()), "nobody knows"


def test_an_epoch_repeats_the_new_pairs():
    rows = [RunRow(PAIRS[0], False), RunRow(PAIRS[1], True), RunRow(NEW[0], False, True), RunRow(NEW[1], True, True)]
    assert repeat_new(rows, 3) == [0, 2, 2, 2]
    assert [RunRow(r.pair, r.held_out, r.is_new) for r in rows] == rows


def test_few_new_pairs_are_learned_beside_some_of_the_old_ones():
    old = [RunRow(Pair(f"lamp {n}?", "Lit."), False) for n in range(600)]
    epoch = repeat_new([*old, RunRow(NEW[0], False, True)], 8)
    assert epoch.count(600) == 8 and len(epoch) == 8 + MIN_OLD_ROWS == len({*epoch}) + 7
    assert max(b - a for a, b in pairwise(epoch)) <= 10, "spread over all"
    many = [RunRow(Pair(f"kettle {n}?", "On."), False, True) for n in range(40)]
    assert len(repeat_new([*old, *many], 8)) == 2 * 320
    assert len(repeat_new([*old, *many], 1)) == 640 and repeat_new(old, 8) == [*range(600)]
    assert "beside 320 of the 600 old ones" in describe_pairs([*old, *many], known(()), 8)


@pytest.fixture
def adapter(tiny_gemma, tmp_path):
    """An adapter of the tiny Gemma that another program might have made."""
    write_adapter(tiny_gemma, tmp_path / "other", template="gemma-base", use_rslora=True)
    facts = json.loads((tmp_path / "other/run.json").read_text())
    facts["base"] = {"id": "tiny-gemma"}
    (tmp_path / "other/run.json").write_text(json.dumps(facts))
    return tmp_path / "other"


def test_settings_are_the_adapters_and_others_are_refused(adapter, tiny_gemma):
    found = read_parent(adapter, "someone/light")
    assert (found.name, found.rows, found.template) == ("someone/light", None, "gemma-base")
    config = adopt_settings(make_config("quick", epochs=2, init_lora_weights="gaussian"), found)
    assert (config.lora_r, config.lora_alpha, config.use_rslora, config.epochs) == (4, 8, True, 2)
    assert (config.init_lora_weights, config.template, config.base) == ("default", "gemma-base", "tiny-gemma")
    with pytest.raises(
        InputError, match=r"someone/light was trained with other settings \(lora_r=32 ≠ 4, use_dora=true ≠ false\)"
    ):
        adopt_settings(make_config(use_dora=True, lora_dropout=0.1), found, {"lora_r", "use_dora", "lora_dropout"})
    assert adopt_settings(make_config(base=str(tiny_gemma)), found, {"base"}).base == str(tiny_gemma)


def test_layers_with_ranks_of_their_own_are_refused(adapter):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": {"q_proj": 3}}))
    with pytest.raises(InputError, match="its layers have ranks or scales of their own"):
        adopt_settings(RunConfig(), read_parent(adapter))


def go_on(make, folder, given=(), **changes):
    """A new run from the adapter in `folder`, not started."""
    found = read_parent(folder)
    run = make(**changes)
    config = adopt_settings(run.config(), found, {"base", *given})
    return launcher.create_run(persona_of(run), config, parent=found)


def persona_of(run) -> Persona:
    return Persona(run.path.parent.parent)


@pytest.mark.slow
def test_another_base_template_or_lora_is_refused_before_training(make, adapter, tiny_gemma):
    def refusal(**changes):
        with pytest.raises(InputError) as e:
            build(go_on(make, adapter, changes, **changes))
        return str(e.value)

    assert "was trained with the template gemma-base, and this run has another" in refusal(template="alpaca-en")
    facts = json.loads((adapter / "run.json").read_text())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "run.json").write_text(json.dumps(facts | {"base": {"id": "someone/else"}}))
    assert "other was trained on someone/else, and this run is on tiny-gemma. Set base" in refusal()
    (adapter / "run.json").write_text(json.dumps(facts | {"config": {"target_modules": "attention"}}))
    assert "other does not fit this run's LoRA in 12 tensors (base_model.model.model.layers.0.mlp" in refusal()
    (adapter / "run.json").write_text(json.dumps(facts))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    assert "(4, 32) ≠ (5, 32)" in refusal()


SHAPES = {
    "plain": {},
    "dora": {"use_dora": True},
    "stop-token": {"train_stop_token": True},
    "pissa": {"init_lora_weights": "pissa", "lora_r": 4},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_begins_with_the_parents_weights(make, shape):
    first = make(max_steps=2, **SHAPES[shape])
    train_run.train_run(first)
    changes = {k: v for k, v in SHAPES[shape].items() if k == "dtype"}
    _, trainer = build(go_on(make, first.adapter, **changes))
    trainer.model.save_pretrained(first.path / "again", save_embedding_layers=False)
    before, after = (load_file(first.path / name / WEIGHTS_FILE) for name in ("adapter", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_run_that_goes_on_says_from_what_and_measures_before_and_after(make, seen: Seen):
    first = make(max_steps=4)
    train_run.train_run(first)
    step = snapshots.list_snapshot_steps(first)[-1]
    run = go_on(make, snapshots.snapshot_dir(first, step), pairs=[*PAIRS, *NEW], new_pair_repeats=4, epochs=1)
    result = train_run.train_run(run)
    recorded = run.manifest()["parent"]
    assert recorded["adapter"] == f"{first.name}@{step}" and recorded["new_pairs"] == 3 and recorded["rows_known"]
    assert json.loads((run.adapter / "run.json").read_text())["parent"] == recorded
    assert f"Trained further from {first.name}@{step}" in (run.adapter / "README.md").read_text()
    assert len(seen.prepared.train) == 12 + 3 * 4 and seen.prepared.train_pairs == 15
    progress = run.progress()
    assert progress.start_nll == pytest.approx(dict(first.progress().held_out)[step])
    assert progress.start_rows == first.progress().held_out_rows[step], "the same rows"
    assert progress.base_nll == pytest.approx(first.progress().base_nll)
    assert result["start_nll"] == progress.start_nll
    assert [e["step"] for e in events(run, "diary")].count(0) == 1
    assert progress.plan["held_out_learned"] == [e.learned for e in seen.prepared.held_out]
    estimate = plan.estimate_on_this_machine(persona_of(run), run.config(), [*PAIRS, *NEW], read_parent(first.adapter))
    assert (estimate.train_rows, estimate.new_pairs, estimate.held_out) == (15, 3, 4)
    assert estimate.steps == progress.steps == 6


@pytest.mark.slow
@pytest.mark.release
def test_a_run_that_goes_on_resumes_bit_for_bit_and_can_be_repeated_without_its_parent(make, monkeypatch):
    first = make(max_steps=2)
    train_run.train_run(first)
    runs = [go_on(make, first.adapter, pairs=[*PAIRS, *NEW], new_pair_repeats=2, lora_dropout=0.3) for _ in range(2)]
    (first.adapter / WEIGHTS_FILE).unlink()
    train_run.train_run(runs[0])
    real = train_run.RunCallback.on_step_end

    def stop(self, args, state, control, **options):
        self.stop_requested = self.stop_requested or state.global_step == 3
        return real(self, args, state, control, **options)

    monkeypatch.setattr(train_run.RunCallback, "on_step_end", stop)
    assert train_run.train_run(runs[1])["status"] == "stopped"
    monkeypatch.undo()
    train_run.train_run(runs[1])
    assert hash_weights(runs[0]) == hash_weights(runs[1])
    assert len(events(runs[1], "start")) == 1
    again = launcher.create_run(persona_of(runs[0]), runs[0].config(), parent=parent.reopen_parent(runs[0]))
    train_run.train_run(again)
    assert hash_weights(again) == hash_weights(runs[0])
    assert [r.is_new for r in again.rows()] == [r.is_new for r in runs[0].rows()]


def test_no_pair_to_learn_from_is_refused(make):
    found = known(tuple(RunRow(p, True) for p in PAIRS))
    run = make()
    with pytest.raises(PersonaError, match="each pair that is left was held out by before"):
        launcher.create_run(persona_of(run), run.config(), parent=found)
