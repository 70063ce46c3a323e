"""Persona + settings + machine → estimate: steps, memory and time before Start, without opening a model."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from persona.errors import BaseError, InputError
from persona.models import base, hardware, memory
from persona.models.hardware import Machine
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at, free_path, open_persona
from persona.store.workspace import EXAMPLES_DIR
from persona.train import launcher, queue, row_tokens
from persona.train import plan as train_plan
from persona.train.collator import Collator
from persona.train.config import count_steps, make_config
from persona.train.duration import STARTUP_SECONDS
from persona.ui.steps import train as page
from persona.ui.steps.train import plan_view, settings_form

MACHINE = Machine("cpu", "x86_64", 25 * 10**9, 2, (("float32", 1.3e11), ("bfloat16", 1.5e12)))
CARD = PersonaCard(name="Mags", system="You keep the light.")
PAIRS = [Pair(f"Who keeps light {n}?", "I do, and the kettle's on. " * (1 + n % 3)) for n in range(40)]
FORM = ("auto", 512, False, "none", *settings_form.preset_values("quick"))  # template … of the page


@pytest.fixture
def persona(home):
    return create_persona_at(home / "personas/mags", CARD, PAIRS)


def see(persona, folder, free=None, **settings):
    return train_plan.estimate_training(
        persona, make_config(base=str(folder), **settings), persona.pairs(), MACHINE, free
    )


def test_headers_tell_the_shape_that_the_model_has(tiny_gemma):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_gemma)
    found = base.find_local_base(str(tiny_gemma))
    shape = train_plan.read_base_shape(found)
    assert shape.parameters == model.num_parameters() and shape.layers == 2 and shape.qk_norm and shape.norms == 4
    assert found.tensors()["model.norm.weight"] == (32,)


def test_a_damaged_header_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for text in (b"", b"\xff" * 9, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{"):
        (tmp_path / "model.safetensors").write_bytes(text)
        with pytest.raises(BaseError, match=r"model\.safetensors: its header"):
            base.Base("x", tmp_path).tensors()


def test_only_what_is_on_this_disk_is_looked_at(home, tmp_path, tiny_gemma):
    """Nothing is converted, downloaded or made for a plan."""
    (home / "bases").unlink()
    assert (
        base.find_local_base("") is None
        and base.find_local_base("someone/unknown") is None
        and base.find_local_base("./nowhere") is None
    )
    made = home / "bases/gemma-3-270m-0123"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    assert base.find_local_base("gemma-3-270m") is None, "half made"
    (made / "base.json").write_text("{}")
    assert (
        base.find_local_base("google/gemma-3-270m").path == made
        and base.find_local_base("").id == "google/gemma-3-270m"
    )
    assert base.find_local_base(str(tiny_gemma)).path == tiny_gemma.resolve()


def test_the_heaviest_batch_is_that_of_the_longest_rows():
    work = row_tokens.find_heaviest_step(make_config(batch_size=2, max_length=64), [(20, 5), (50, 9), (33, 20)])
    assert (work.batch, work.length, work.learned) == (2, 56, 15)
    assert row_tokens.find_heaviest_step(make_config(max_length=40), [(50, 9)]).length == 40


@pytest.mark.parametrize("length", [17, 24, 50])
def test_rows_are_padded_as_in_a_batch(length):
    (made,) = Collator(0)([{"input_ids": [1] * length, "labels": [1] * length}])["input_ids"]
    assert row_tokens.find_heaviest_step(make_config(batch_size=1), [(length, 5)]).length == len(made)


def test_tokens_are_told_from_characters(tiny_gemma):
    pair = Pair("a" * 36, "b" * 72, (("c" * 18, "d" * 18),))
    assert row_tokens.estimate_row_tokens(PersonaCard(name="x"), pair) == (40 + 24, 21)
    assert row_tokens.estimate_row_tokens(PersonaCard(name="x"), pair, learn_history=True) == (40 + 24, 27)
    assert row_tokens.estimate_row_tokens(PersonaCard(name="x", system="e" * 36), pair)[0] == 74


def test_the_estimate_counts_as_the_run_does(persona, tiny_gemma):
    seen = see(persona, tiny_gemma, batch_size=4)
    run = launcher.create_run(persona, make_config(base=str(tiny_gemma), batch_size=4))
    held = sum(r.held_out for r in run.rows())
    assert (seen.train_rows, seen.held_out) == (40 - held, held)
    assert seen.steps == count_steps(run.config(), 40 - held)[0] == 27
    assert seen.plan.fits and seen.seconds > STARTUP_SECONDS and not seen.from_run
    longer = see(persona, tiny_gemma, batch_size=4, epochs=300)
    # 301 evaluations for 10, which are most of the time with so small a base
    assert longer.seconds - STARTUP_SECONDS > 25 * (seen.seconds - STARTUP_SECONDS)
    capped = see(persona, tiny_gemma, batch_size=4, max_steps=3)
    assert capped.steps == 3 and capped.seconds < seen.seconds
    as_many = see(persona, tiny_gemma, batch_size=32, max_steps=6)  # two steps a pass, the second of 4 rows
    assert as_many.work.tokens == pytest.approx(see(persona, tiny_gemma, batch_size=32, epochs=3).work.tokens)


def test_a_system_prompt_that_all_rows_share_costs_its_batch_once(home, tiny_gemma):
    """The longer it is the more, but for what trains without flat batches and for rows that do not begin with it."""
    long = CARD.model_copy(update={"system": "You keep the light. " * 30})
    own = [replace(pair, system="You keep the bees.") for pair in PAIRS]

    def repeated(card=CARD, pairs=PAIRS, **settings):
        found = create_persona_at(free_path("mags"), card, pairs)
        work = see(found, tiny_gemma, batch_size=8, **settings).work
        return work.repeated / work.tokens

    assert 0.05 < repeated() < 0.3 and 0.6 < repeated(long) < 0.9
    whole = base.find_local_base(str(tiny_gemma))
    shapes = [memory.infer_model_shape(c, whole.tensors()) for c in (whole.config(), {"text_config": whole.config()})]
    assert [shape.flat for shape in shapes] == [True, False], "one with towers keeps padded batches"
    assert repeated(pairs=own) == repeated(neftune_noise_alpha=5) == repeated(packing=True) == 0


def test_evaluation_that_takes_most_of_the_time_is_said(persona, tiny_gemma):
    """A few steps on many rows, as when something is tried out; and evaluation is bounded."""
    many = [Pair(f"question {n}?", "An answer of some length. " * 8) for n in range(5000)]
    slow = Machine("cuda", "test", 10**11, 2, (("float32", 1e8), ("bfloat16", 1e8)))

    def plan(**settings):
        config = make_config(base=str(tiny_gemma), max_steps=60, **settings)
        return train_plan.estimate_training(persona, config, many, slow)

    seen = plan()
    assert (seen.held_out, seen.train_rows) == (300, 4700) and plan(max_eval_rows=0).held_out == 500
    (note,) = seen.warn_of_evaluation()
    assert "11 times 300 held-out pairs and 1 samples" in note and "raise eval_steps" in note
    assert plan(eval_steps=60, max_eval_rows=10).warn_of_evaluation() == []
    assert see(persona, tiny_gemma).warn_of_evaluation() == [], "seconds are not worth a sentence"


def finish(persona, config, rate=50.0, steps=27, device="cpu", dtype="bfloat16", state="done"):
    run = launcher.create_run(persona, config)
    run.log("plan", steps=steps, device=device, dtype=dtype)
    run.log("result", steps=steps, tokens_per_s=rate)
    run.log("state", state=state)
    return run


def test_the_last_run_tells_the_speed(persona, tiny_gemma):
    config = make_config(base=str(tiny_gemma))
    run = finish(persona, config)
    seen = see(persona, tiny_gemma)
    assert seen.from_run == run.name and seen.seconds > 60
    assert not see(persona, tiny_gemma, batch_size=4).from_run
    assert not see(persona, tiny_gemma, gradient_checkpointing=True).from_run
    assert not see(persona, tiny_gemma, dtype="float32").from_run


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"dtype": "float32"}, {"state": "stopped"}, {"steps": 9}, {"rate": 0}])  # fmt: skip
def test_another_kind_of_run_tells_nothing(persona, tiny_gemma, other):
    finish(persona, make_config(base=str(tiny_gemma)), **other)
    assert not see(persona, tiny_gemma).from_run


def test_what_fits_only_otherwise_is_run_otherwise(persona, tiny_gemma):
    config = make_config(base=str(tiny_gemma), gradient_accumulation_steps=2)
    work = row_tokens.find_heaviest_step(config, [row_tokens.estimate_row_tokens(CARD, p) for p in PAIRS])
    shape = train_plan.read_base_shape(base.find_local_base(str(tiny_gemma)))
    need = memory.estimate_memory(shape, replace(work, batch=2, dtype="bfloat16")).total
    plan = see(persona, tiny_gemma, free=need, gradient_accumulation_steps=2).plan
    got = train_plan.apply_plan(config, plan)
    assert (got.batch_size, got.gradient_accumulation_steps, got.dtype) == (2, 8, "auto") and plan.fits
    assert train_plan.apply_plan(config, see(persona, tiny_gemma).plan).batch_size == 8
    assert train_plan.apply_plan(config, see(persona, tiny_gemma, free=1000).plan) == config
    assert train_plan.apply_plan(config, replace(plan, quantization="nf4")) == config
    assert train_plan.apply_plan(config, replace(plan, lower_dtype=True)).dtype == "bfloat16"


BATCH, STEPS = "batch_size", "gradient_accumulation_steps"
GIVEN = {
    "nothing": (set(), (2, 8), [r"Changed so that it fits into memory: batch_size: 8 → 2; gradient_acc.*: 2 → 8\. No GPU"]),
    "another": ({"lora_r"}, (2, 8), ["Changed so that it fits"]),
    "batch": ({BATCH}, (8, 2), [r"Kept as given, .* would fit: batch_size=2, gradient_accumulation_steps=8\."]),
    "steps": ({STEPS}, (8, 2), ["Kept as given, .* would fit: batch_size=2"]),
}  # fmt: skip


@pytest.mark.parametrize("given, want, notes", GIVEN.values(), ids=GIVEN)
def test_what_was_given_by_hand_stays(persona, tiny_gemma, given, want, notes):
    config = make_config(base=str(tiny_gemma), gradient_accumulation_steps=2)
    work = row_tokens.find_heaviest_step(config, [row_tokens.estimate_row_tokens(CARD, p) for p in PAIRS])
    shape = train_plan.read_base_shape(base.find_local_base(str(tiny_gemma)))
    need = memory.estimate_memory(shape, replace(work, batch=2, dtype="bfloat16")).total
    plan = see(persona, tiny_gemma, free=need, gradient_accumulation_steps=2).plan
    got, said = train_plan.fit_config(config, plan, given)
    assert (got.batch_size, got.gradient_accumulation_steps) == want
    assert len(said) == len(notes) and all(re.match(n, x) for n, x in zip(notes, said, strict=True)), said


def test_what_fits_is_left_alone_and_what_never_does_is_said(persona, tiny_gemma):
    config = make_config(base=str(tiny_gemma))
    plan = see(persona, tiny_gemma).plan
    assert train_plan.fit_config(config, plan) == (config, [])
    got, (said,) = train_plan.fit_config(config, see(persona, tiny_gemma, free=1000).plan)
    assert got == config and re.match(
        r"This may run out of memory: its smallest way needs about 1\.\d GB, and 0\.0 GB", said
    )
    got, (said,) = train_plan.fit_config(config, replace(plan, quantization="nf4"))
    assert got == config and "does not fit into" in said and said.endswith("With quantization=nf4 it would.")
    slower = replace(plan, checkpointing=True, lower_dtype=True, train_dtype="bfloat16")
    got, (changed, kept) = train_plan.fit_config(config, slower, {"dtype"})
    assert (got.gradient_checkpointing, got.dtype) == (True, "auto")
    assert "gradient_checkpointing: false → true" in changed and "would fit: dtype=bfloat16." in kept


def test_pissa_has_twice_the_rank(persona, tiny_gemma):
    plain, pissa = (
        row_tokens.find_heaviest_step(make_config(init_lora_weights=i), [(50, 9)]) for i in ("default", "pissa")
    )
    assert (plain.rank, pissa.rank) == (32, 64)


# ---- the page


@pytest.fixture
def plain_machine(monkeypatch):
    monkeypatch.setattr(hardware, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(hardware, "_fastest", {})


def test_the_page_tells_memory_and_time(persona, tiny_gemma, plain_machine, monkeypatch):
    monkeypatch.setattr(base, "load_base_model", None)
    monkeypatch.setattr(base, "load_tokenizer", None)
    text = page.plan_html("mags", "quick", str(tiny_gemma), *FORM)
    assert "36 pairs to learn from, 4 held out" in text and "about 1 minute</b> by a quick" in text
    assert "GB</b> of" in text and "problem" not in text
    finish(persona, make_config(base=str(tiny_gemma)), rate=5.0)
    assert "at the speed of your last such run" in page.plan_html("mags", "quick", str(tiny_gemma), *FORM)


def test_the_page_says_when_other_programs_make_it_slower(persona, tiny_gemma, plain_machine, monkeypatch):
    def plan_beside(share: float) -> str:
        monkeypatch.setattr(hardware, "rates_now", lambda: tuple((d, share * rate) for d, rate in MACHINE.rates))
        return page.plan_html("mags", "quick", str(tiny_gemma), *FORM)

    assert "using this machine now" not in plan_beside(0.8), "so much a measurement alone varies"
    busy = plan_beside(1e-4)
    assert (
        "Other programs are using this machine now; at the best speed measured since this page was started it would take about 1 minute."
        in busy
    )
    assert "about 1 minute</b>" not in busy, "the time beside them"
    monkeypatch.setattr(queue, "find_training_run", lambda: object())
    monkeypatch.setattr(queue, "estimate_wait", lambda: None)
    waits = plan_beside(1e-4)
    assert "about 1 minute</b>" in waits and "waits for its turn" in waits, "that run will have ended"
    assert "using this machine now" not in waits


def test_a_stalled_measurement_counts_as_a_fair_share(plain_machine, monkeypatch):
    monkeypatch.setattr(hardware, "_rates_at", lambda minute: tuple((d, rate / 1000) for d, rate in MACHINE.rates))
    monkeypatch.setattr(hardware.psutil, "getloadavg", lambda: (8.0 * MACHINE.cores, 0.0, 0.0))
    assert dict(hardware.rates_now())["float32"] == pytest.approx(dict(MACHINE.rates)["float32"] / 9)


def test_a_machine_that_was_busy_when_the_page_started_is_known_by_its_best(
    persona, tiny_gemma, plain_machine, monkeypatch
):
    def measured(share: float) -> None:
        monkeypatch.setattr(hardware, "rates_now", lambda: tuple((d, share * rate) for d, rate in MACHINE.rates))

    fastest = {(d, MACHINE.device): 10 * rate for d, rate in MACHINE.rates}
    measured(1.0)
    assert "using this machine now" not in page.plan_html("mags", "quick", str(tiny_gemma), *FORM)
    monkeypatch.setattr(hardware, "_fastest", fastest)  # since other programs have ended
    assert hardware.best_machine().rates == tuple((d, 10 * rate) for d, rate in MACHINE.rates)
    text = page.plan_html("mags", "quick", str(tiny_gemma), *FORM)
    assert "about 1 minute</b>" in text and "using this machine now" not in text, "it takes no longer, in such words"
    measured(1e-4)
    assert "Other programs are using this machine now" in page.plan_html("mags", "quick", str(tiny_gemma), *FORM)
    measured(10.0)
    assert "using this machine now" not in page.plan_html("mags", "quick", str(tiny_gemma), *FORM)


def test_the_page_says_what_to_choose_when_it_will_not_fit(persona, tiny_gemma, plain_machine, monkeypatch):
    monkeypatch.setattr(hardware, "free_memory", lambda _: 10**8)
    text = page.plan_html("mags", "quick", str(tiny_gemma), *FORM)
    assert "will not fit" in text and "smaller base" in text and "longest rows (about" in text and "nf4" in text
    size = train_plan.read_base_shape(base.find_local_base(str(tiny_gemma)))
    large = replace(size, parameters=14 * 10**9, linear=13 * 10**9)
    monkeypatch.setattr(train_plan, "read_base_shape", lambda _: large)
    monkeypatch.setattr(hardware, "free_memory", lambda _: 18 * 10**9)
    text = page.plan_html("mags", "quick", str(tiny_gemma), *FORM)
    assert "does not fit into 18.0 GB" in text and "quantization=int8" in text


def test_a_base_that_is_not_here_yet_has_no_estimate(persona, plain_machine):
    text = page.plan_html("mags", "quick", "someone/unknown", *FORM)
    assert "step 2 downloads it" in text and "GB</b>" not in text


def test_start_runs_what_the_page_said(persona, tiny_gemma, plain_machine, monkeypatch):
    started = []
    monkeypatch.setattr(launcher, "start_run", started.append)
    config = make_config(base=str(tiny_gemma))
    work = row_tokens.find_heaviest_step(config, [row_tokens.estimate_row_tokens(CARD, p) for p in PAIRS])
    shape = train_plan.read_base_shape(base.find_local_base(str(tiny_gemma)))
    need = memory.estimate_memory(shape, replace(work, batch=4, dtype="bfloat16")).total
    monkeypatch.setattr(hardware, "free_memory", lambda _: need)
    assert "split into 2 of 4 rows" in page.plan_html("mags", "quick", str(tiny_gemma), *FORM)
    page.on_start("mags", "quick", str(tiny_gemma), *FORM)
    got = started[0].config()
    assert (got.batch_size, got.gradient_accumulation_steps) == (4, 2)


def test_settings_that_cannot_work_make_no_run(persona, tiny_gemma, plain_machine):
    """Page, command line and Python make a run by one function, which refuses before anything is queued."""
    config = make_config(base=str(tiny_gemma), packing=True, neftune_noise_alpha=5)
    with pytest.raises(InputError, match="packing and neftune_noise_alpha do not go together"):
        launcher.create_fitted_run(persona, config)
    assert not persona.runs_dir.exists()
    run, notes = launcher.create_fitted_run(persona, make_config(base=str(tiny_gemma)))
    assert run.expected()["seconds"] > 0 and notes == [], "who waits behind it is told how long"


# ---- the real thing


@pytest.mark.release
@pytest.mark.slow
def test_the_estimate_is_near_the_peak_of_a_real_run(embedded_base, home, tmp_path):
    """Three steps of the embedded base in a process of its own: estimate and peak differ by less than a fifth.

    Rows, language and batch are others than those to which the estimate was fitted.
    """
    shipped = open_persona(EXAMPLES_DIR / "lighthouse-keeper")
    persona = create_persona_at(tmp_path / "mags", shipped.card(), shipped.pairs())
    config = make_config(max_steps=3, batch_size=12)
    run = launcher.create_run(persona, config)
    subprocess.run([sys.executable, "-m", "persona.train", str(run.path)], check=True, timeout=500)
    result = run.progress().result
    # the number format that the run took: measured in its own process, it may come out otherwise here
    config = config.model_copy(update={"dtype": run.progress().plan["dtype"]})
    seen = train_plan.estimate_training(persona, config, persona.pairs(), hardware.this_machine())
    print(seen.plan.memory.total, result["peak_memory_bytes"])
    assert seen.plan.memory.total == pytest.approx(result["peak_memory_bytes"], rel=0.2)


def test_rehearsal_is_in_the_plan(persona, tiny_gemma):
    """Its rows, its steps, and the time in which the base answers first."""
    without, rehearsing = see(persona, tiny_gemma), see(persona, tiny_gemma, rehearsal_fraction=0.5)
    assert (without.rehearsal, rehearsing.rehearsal, rehearsing.train_rows) == (0, 36, without.train_rows)
    assert rehearsing.steps == 27 > without.steps == 15
    assert rehearsing.work.rehearsal == 36 and rehearsing.work.held_out
    same_steps = see(persona, tiny_gemma, rehearsal_fraction=0.5, max_steps=without.steps)
    assert same_steps.seconds > without.seconds + 1
    html = plan_view._rehearsal_text(36)
    assert "rehearses 36 general rows" in html and plan_view._rehearsal_text(0) == ""
