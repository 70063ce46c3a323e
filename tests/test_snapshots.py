"""The moments of a run: kept adapters, which of them is chosen, and the diary beside them."""

import random

import pytest
from safetensors.torch import load_file
from tiny_models import load
from training import events

from persona.errors import RunError
from persona.models import adapter, attach, generate, loss, malloc
from persona.models.sampling import Sampling
from persona.store.persona_folder import PersonaCard
from persona.train import prepare, sample_log, snapshots
from persona.train import run as train_run
from persona.train.run_folder import Run

pytest_plugins = "training"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]

# ---- which one


def test_the_best_of_clear_differences_is_chosen():
    tokens = [10] * 8
    rows = {3: [40.0] * 8, 6: [30.0] * 8, 9: [36.0] * 8}
    assert snapshots.choose_best_snapshot(rows, tokens) == 6


def test_of_those_that_cannot_be_told_apart_the_latest_is_chosen():
    """Step 9 is a little worse on average, by chance: half of the rows gain, half lose."""
    tokens = [10] * 8
    best = [30.0] * 8
    rows = {3: [40.0] * 8, 6: best, 9: [b + d for b, d in zip(best, [5, -4] * 4, strict=True)]}
    assert snapshots.choose_best_snapshot(rows, tokens) == 9
    rows[9] = [b + 1.0 for b in best]
    assert snapshots.choose_best_snapshot(rows, tokens) == 6, "worse on every row alike is worse"


def test_an_earlier_one_is_never_preferred_to_the_best():
    rows = {3: [30.1, 29.9, 30.2], 6: [30.0, 30.0, 30.0]}
    assert snapshots.choose_best_snapshot(rows, [10, 10, 10]) == 6


def test_nothing_evaluated_and_a_single_row():
    assert snapshots.choose_best_snapshot({}, []) is None
    assert snapshots.choose_best_snapshot({1: [3.0], 2: [2.0], 3: [2.1]}, [5]) == 2, "one row says nothing about chance"


def test_rows_weigh_as_many_tokens_as_they_have():
    """The standard error against a bootstrap over rows, whose lengths differ."""
    draw = random.Random(4)
    tokens = [draw.randint(3, 60) for _ in range(60)]
    best = [2.0 * t for t in tokens]
    later = [b + draw.gauss(0.05, 0.4) * t for b, t in zip(best, tokens, strict=True)]
    means = []
    for _ in range(4000):
        picked = draw.choices(range(60), k=60)
        means.append(sum(later[i] - best[i] for i in picked) / sum(tokens[i] for i in picked))
    centre = sum(means) / len(means)
    error = (sum((m - centre) ** 2 for m in means) / len(means)) ** 0.5
    mean = (sum(later) - sum(best)) / sum(tokens)
    assert mean - snapshots._worse_by(later, best, tokens) == pytest.approx(error, rel=0.08)


# ---- a run keeps them


def kept(run: Run, step: int) -> dict:
    return load_file(snapshots.snapshot_dir(run, step) / "adapter_model.safetensors")


def test_a_run_keeps_the_adapter_of_each_evaluation(make, tiny_gemma):
    run = make(max_steps=4, learning_rate=0.05)
    result = train_run.train_run(run)
    evaluated = [e["step"] for e in events(run, "eval")]
    assert evaluated == [0, *snapshots.list_snapshot_steps(run)] and snapshots.list_snapshot_steps(run)[-1] == 4
    first, last = (
        adapter.read_adapter(snapshots.snapshot_dir(run, s)) for s in (snapshots.list_snapshot_steps(run)[0], 4)
    )
    assert first.facts["figures"]["adapter_nll"] != last.facts["figures"]["adapter_nll"]
    assert first.facts["figures"]["base_nll"] == result["base_nll"]
    chosen = run.progress().chosen
    assert (
        chosen in snapshots.list_snapshot_steps(run) and result["adapter_nll"] == dict(run.progress().held_out)[chosen]
    )
    assert load_file(run.adapter / "adapter_model.safetensors").keys() == kept(run, chosen).keys()
    for name, value in load_file(run.adapter / "adapter_model.safetensors").items():
        assert value.equal(kept(run, chosen)[name])


def test_any_moment_can_be_made_the_adapter(make):
    run = make(max_steps=4, learning_rate=0.05)
    train_run.train_run(run)
    first = snapshots.list_snapshot_steps(run)[0]
    snapshots.select_snapshot(run, first)
    seen = run.progress()
    assert seen.chosen == first and seen.adapter_nll == dict(seen.held_out)[first] and seen.status == "done"
    assert adapter.read_adapter(run.adapter).facts["figures"]["steps"] == first
    with pytest.raises(RunError, match="no adapter was kept at step 77. Kept are: 1, 2"):
        snapshots.select_snapshot(run, 77)
    assert adapter.read_adapter(run.adapter).facts["figures"]["steps"] == first


def test_no_other_moment_while_it_trains(make):
    run = make(max_steps=2)
    train_run.train_run(run)
    run.log("state", state="running")
    (run.path / "worker.json").unlink()
    with pytest.raises(RunError, match="still training"):
        snapshots.select_snapshot(run, 1)


def test_a_loss_that_is_not_finite_keeps_the_best_moment(make, monkeypatch):
    run, real, calls = make(max_steps=4, batch_size=4), loss.nll_sum, []

    def diverging(*args):
        total, count = real(*args)
        calls.append(1)
        return (total * float("nan") if len(calls) == 3 else total), count

    monkeypatch.setattr("persona.train.trainer.nll_sum", diverging)
    with pytest.raises(RunError, match=r"became infinite at step 3\. Lower learning_rate .*holds the best"):
        train_run.train_run(run)
    assert run.progress().status == "failed"
    assert adapter.read_adapter(run.adapter).facts["figures"]["steps"] == 2


def test_every_evaluation_gives_back_what_the_steps_have_freed(make, monkeypatch):
    run, given = make(max_steps=2, diary_probes=0), []
    monkeypatch.setattr(malloc, "trim_malloc", lambda: given.append(run.progress().step))
    train_run.train_run(run)
    assert len(given) == len(events(run, "eval")) > 1


# ---- the diary


def test_the_probes_are_answered_at_every_evaluation(make, monkeypatch):
    monkeypatch.setattr(sample_log, "SAMPLE_LOG_SAMPLING", Sampling(max_new_tokens=48))  # so long that they differ
    card = PersonaCard(name="Mags", system="You keep the light.", probes=("Who are you?", "Is the lamp lit?", "Third?"))
    run = make(card=card, max_steps=3, diary_probes=2, learning_rate=0.05)
    train_run.train_run(run)
    pages = events(run, "diary")
    assert [p["step"] for p in pages] == [e["step"] for e in events(run, "eval")]
    assert all([a["probe"] for a in p["answers"]] == ["Who are you?", "Is the lamp lit?"] for p in pages)
    assert pages[0]["answers"][0]["text"] != pages[-1]["answers"][0]["text"], "she has changed"
    assert run.progress().samples[0][1] == pages[0]["answers"]


def test_a_page_of_the_diary_is_what_the_chat_would_answer(make, tiny_gemma):
    """Opened again from the moment's folder, in a model of its own, with the prompt of the chat."""
    run = make(max_steps=2, learning_rate=0.05, dtype="float32")
    train_run.train_run(run)
    opened = adapter.read_adapter(snapshots.snapshot_dir(run, 2))
    model = attach.attach_adapter(load(tiny_gemma), opened, "x")
    prepared = prepare.prepare_run(run)
    prompt = prepared.renderer.render_prompt([], "Who are you?")
    *_, last = generate.generate_batch(
        model,
        prepared.renderer.tokenizer,
        [prompt.ids],
        sample_log.SAMPLE_LOG_SAMPLING,
        prepared.renderer.stop_id,
        [(("x", 1.0),)],
    )
    assert events(run, "diary")[-1]["answers"][0]["text"] == last[0].text != ""


def test_the_diary_leaves_the_training_as_it_was(make):
    """No random number of the training is used up, no mode changed: the same adapter with and without it."""
    weights = []
    for count in (0, 3):
        run = make(max_steps=3, diary_probes=count, lora_dropout=0.1)
        train_run.train_run(run)
        weights.append(kept(run, 3))
    assert events(run, "diary") and all(weights[0][n].equal(w) for n, w in weights[1].items())


@pytest.mark.parametrize(
    ("card", "count", "asked"),
    [
        (PersonaCard(name="x", probes=("a", "b", "c")), 2, ("a", "b")),
        (PersonaCard(name="x"), 3, ("Who are you?",)),
        (PersonaCard(name="x", language="zh-CN"), 3, ("你是谁？",)),
        (PersonaCard(name="x", probes=("a",)), 0, ()),
    ],
)
def test_which_questions(card, count, asked):
    assert sample_log.choose_sample_questions(card, count) == asked
