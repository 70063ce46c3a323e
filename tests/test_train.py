"""One run, from rows to adapter: what it changes, what it keeps, and every way it can end."""

import errno
import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from cases import check_each
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import PLAIN_CPU, load, new_run

from persona import adapter, base, chat, checkpoints, hardware, launch, loss, moments, stoptoken, train
from persona.chat import BASE, Column, Sampling
from persona.config import RunConfig, make_config
from persona.errors import AdapterError, InputError, RunError
from persona.files import SHIPPED_PERSONAS
from persona.folder import Card, create, open_persona
from persona.loss import Collator, mean_nll
from persona.pairs import Pair
from persona.runs import Run, create_run
from persona.templates import read_template
from persona.trainer import Clock, Trainer, Watch

pytestmark = pytest.mark.slow  # a trainer is built for nearly every test here

CARD = Card(name="Mags", system="Be dry.", language="en")
WORDS = ["lamp", "log", "wind", "light", "kettle", "point", "sable", "north"] * 2
PAIRS = [Pair(f"{word} {n}?", f"{word} is {n}. " + "It is lit. " * (n % 4)) for n, word in enumerate(WORDS)]
RESULT = {"run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll",
          "adapter_nll", "peak_memory_bytes"}  # fmt: skip
REAL_MACHINE = hardware.this_machine
SETTINGS = {"dtype": "float32", "batch_size": 4, "eval_fraction": 0.25, "learning_rate": 1e-2, "epochs": 2}


@pytest.fixture(scope="module", autouse=True)
def machine():
    """No measuring, and no GPU: the plan of a plain CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "this_machine", lambda: PLAIN_CPU)
        yield


@pytest.fixture
def make(tmp_path, tiny_gemma):
    """A new run on the tiny Gemma, with the settings above and any others."""

    def make(pairs=PAIRS, card=CARD, **changes) -> Run:
        return new_run(tmp_path, card, pairs, **{"base": str(tiny_gemma), **SETTINGS, **changes})

    return make


def events(run: Run, kind: str) -> list[dict]:
    return [e for e in run.events() if e["event"] == kind]


def lora(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


class Seen:
    """What a run was made of, for tests that look inside: build() and finish() as they happen."""

    def __init__(self, monkeypatch):
        real_build, real_finish = train.build, train.finish

        def build(*args):
            self.trainer = real_build(*args)
            self.before = lora(self.trainer.model)
            return self.trainer

        def finish(*args):
            self.job = args[0].job
            return real_finish(*args)

        monkeypatch.setattr(train, "build", build)
        monkeypatch.setattr(train, "finish", finish)


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


# ---- what is learned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_lora_tensor_changes_and_no_base_tensor_does(make, seen, tiny_gemma, dtype):
    train.train(make(eval_fraction=0, dtype=dtype, max_steps=4))
    model = seen.trainer.model
    after = lora(model)
    assert len(after) == 2 * 2 * 7, "A and B of seven matrices in two layers"
    assert [n for n in after if torch.equal(after[n], seen.before[n])] == []
    stored = load(tiny_gemma, dtype).state_dict()
    inside = model.get_base_model().state_dict()
    inner = {n.replace(".base_layer", ""): w for n, w in inside.items() if "lora_" not in n}
    assert inner.keys() == stored.keys()
    assert [n for n in stored if not torch.equal(inner[n], stored[n])] == []


def test_a_run_from_start_to_end(make, tiny_gemma):
    run = make()
    result = train.train(run)
    assert set(result) == RESULT
    assert result["status"] == "done" and result["steps"] == 2 * 3 and result["run"] == str(run.path)
    assert result["adapter_nll"] < result["base_nll"] - 0.1
    assert all(math.isfinite(result[k]) and result[k] > 0 for k in RESULT - {"run", "adapter", "status"})
    assert result["learned_tokens_per_s"] < result["tokens_per_s"]
    seen = run.progress()
    assert (seen.status, seen.step, seen.steps, seen.message) == ("done", 6, 6, "")
    assert {k: seen.result[k] for k in RESULT} == result and seen.base_nll == result["base_nll"]
    assert [s for s, _ in seen.train] == [1, 2, 3, 4, 5, 6] and [s for s, _ in seen.held_out] == [0, 1, 2, 3, 4, 5, 6]
    assert seen.plan["rows"] + seen.plan["held_out"] == len(PAIRS) and seen.plan["held_out"] == 4
    assert not run.checkpoints.exists(), "a finished run keeps its adapter alone"
    opened = adapter.check(run.adapter)
    assert opened.card == CARD and opened.template == read_template("gemma-base")
    assert opened.facts["figures"]["steps"] == 6 and opened.facts["config"]["lora_r"] == 16
    for file in run.adapter.iterdir():
        text = file.read_bytes().decode("utf-8", "replace")
        assert not [p for p in (tiny_gemma, run.path) if str(p) in text], file.name


def test_tokens_are_counted_without_padding(make, seen):
    """Every row of every epoch once."""
    run = make(eval_fraction=0)
    result = train.train(run)
    rows = seen.job.train
    assert len(rows) == 16 and seen.trainer.clock.tokens == 2 * sum(len(e.input_ids) for e in rows)
    assert seen.trainer.clock.learned == 2 * sum(e.learned for e in rows)
    assert result["seconds"] == pytest.approx(seen.trainer.clock.seconds, abs=0.01)


def test_the_chosen_moment_is_written_and_not_the_last(make, seen, tiny_gemma, monkeypatch):
    """The figure is that of the file, on a fresh base. Which one is chosen: test_moments.py."""
    monkeypatch.setattr(moments, "choose", lambda rows, tokens: sorted(rows)[2])
    run = make(learning_rate=0.05, max_steps=8)
    result = train.train(run)
    nlls = [e["nll"] for e in events(run, "eval") if e["step"]]
    want = nlls[2]
    assert len(nlls) == 8 and abs(nlls[-1] - want) > 0.01, "they must differ, or this test sees nothing"
    assert result["adapter_nll"] == want and run.progress().chosen == 3
    opened = adapter.attach(load(tiny_gemma), adapter.check(run.adapter), "x")
    collate = Collator(seen.job.renderer.tokenizer.pad_token_id)
    assert mean_nll(opened, seen.job.held_out, collate) == pytest.approx(want, rel=1e-4)
    assert mean_nll(load(tiny_gemma), seen.job.held_out, collate) == pytest.approx(result["base_nll"], rel=1e-4)


def test_without_held_out_rows_it_trains_and_measures_nothing(make):
    run = make(eval_fraction=0)
    result = train.train(run)
    assert set(result) == RESULT and result["status"] == "done"
    assert (result["base_nll"], result["adapter_nll"]) == (None, None)
    assert events(run, "eval") == [] and adapter.check(run.adapter)


def test_accumulated_batches_are_one_batch(make):
    """2 × 4 rows weigh each token as 8 rows do, though the rows differ in length."""
    first = {}
    for name, size, steps in (("whole", 8, 1), ("parts", 2, 4)):
        run = make(PAIRS[:9], eval_fraction=0.1, batch_size=size, gradient_accumulation_steps=steps, max_steps=3)
        train.train(run)
        assert len([r for r in run.rows() if not r.held_out]) == 8
        first[name] = [(e["loss"], e["grad_norm"]) for e in events(run, "step")]
    assert len(first["whole"]) == 3
    for whole, parts in zip(first["whole"], first["parts"], strict=True):
        assert parts == pytest.approx(whole, rel=2e-3)


def test_the_first_loss_is_that_of_the_base(make, seen):
    """An untrained LoRA changes nothing: mean nats per learned token, as in the evaluation."""
    run = make(PAIRS[:9], eval_fraction=0.1, batch_size=8, max_steps=1)
    train.train(run)
    want = mean_nll(load(seen.job.base.path), seen.job.train, seen.trainer.data_collator)
    assert events(run, "step")[0]["loss"] == pytest.approx(want, rel=1e-3)


def test_early_stopping_ends_early(make):
    run = make(learning_rate=0.4, max_steps=8, early_stopping_patience=1)
    result = train.train(run)
    nlls = [e["nll"] for e in events(run, "eval")][1:]
    assert result["steps"] < 8 and result["status"] == "done" and run.progress().status == "done"
    assert nlls[-1] >= min(nlls[:-1]) and result["adapter_nll"] == pytest.approx(min(nlls), rel=1e-6)


def saved_at(monkeypatch) -> list[int]:
    """The steps of which a checkpoint is written, as they come."""
    steps, real = [], Trainer._save_checkpoint
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda t, *a: steps.append(t.state.global_step) or real(t, *a))
    return steps


@pytest.mark.parametrize("every, want", [(0, [3, 6, 7]), (2, [2, 4, 6, 7]), (5, [5, 7])])
def test_checkpoints_and_evaluations_each_keep_their_own_steps(make, monkeypatch, every, want):
    steps = saved_at(monkeypatch)
    monkeypatch.setattr(train, "steps_of", lambda *_: (7, 3))
    run = make(max_steps=7, save_steps=every)
    train.train(run)
    assert steps == want and moments.steps(run) == [3, 6, 7]
    assert [e["step"] for e in events(run, "eval")] == [0, 3, 6, 7]


@pytest.mark.parametrize("every, want", [(0, [1, 2, 3, 4, 5]), (2, [2, 4, 5])])
def test_checkpoints_without_held_out_rows(make, monkeypatch, every, want):
    steps = saved_at(monkeypatch)
    train.train(make(max_steps=5, save_steps=every, eval_fraction=0))
    assert steps == want


def test_a_run_goes_on_from_a_checkpoint_between_evaluations(make, monkeypatch):
    monkeypatch.setattr(train, "steps_of", lambda *_: (6, 3))
    runs, real = [make(max_steps=6, save_steps=2) for _ in range(2)], loss.nll_sum
    expected = train.train(runs[0])

    def dies(*args):
        if len(events(runs[1], "step")) == 5:
            raise MemoryError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr("persona.trainer.nll_sum", dies)
        with pytest.raises(MemoryError):
            train.train(runs[1])
    assert checkpoints.last(runs[1].checkpoints).name == "checkpoint-4"
    assert train.train(runs[1])["adapter_nll"] == pytest.approx(expected["adapter_nll"], rel=1e-4)


# ---- stop, resume


def test_a_deadline_of_nothing_makes_one_step_each_time(make):
    """A time slice on a shared GPU: stop at a step boundary, go on in the next slice."""
    run = make(max_steps=3)
    results = [train.train(run, deadline=0.0) for _ in range(3)]
    assert [(r["status"], r["steps"]) for r in results] == [("stopped", 1), ("stopped", 2), ("done", 3)]
    assert [s for s, _ in run.progress().train] == [1, 2, 3]


def test_signals_ask_it_to_stop_and_are_given_back(make, monkeypatch):
    """Ctrl-C and a shutdown end at a step boundary; afterwards they mean what they meant before."""
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    run, real = make(max_steps=5), loss.nll_sum

    def interrupted(*args):
        if not events(run, "step"):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr("persona.trainer.nll_sum", interrupted)
    result = train.train(run)
    assert (result["status"], result["steps"]) == ("stopped", 1)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def wait_for(true, seconds: float = 120):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.05)


def test_a_killed_run_is_seen_as_interrupted_and_goes_on(make):
    run = make(max_steps=80)
    launch.start(run)
    wait_for(lambda: checkpoints.last(run.checkpoints) or not run.alive())
    pid = json.loads((run.path / "worker.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    launch._children[run.path].wait()
    seen = run.progress()
    assert seen.status == "interrupted" and 0 < seen.step < 80, (run.path / "log.txt").read_text()
    before = len(events(run, "step"))
    reached = int(checkpoints.last(run.checkpoints).name.rpartition("-")[2])
    launch.start(run)
    wait_for(lambda: not run.alive())
    launch.reap()
    seen = run.progress()
    assert (seen.status, seen.step, seen.result["steps"]) == ("done", 80, 80), (run.path / "log.txt").read_text()
    assert events(run, "step")[before]["step"] == reached + 1, "it went on where the checkpoint was"
    assert [s for s, _ in seen.train] == list(range(1, 81)) and adapter.check(run.adapter)


# ---- what fails


def test_a_loss_that_is_not_finite_ends_the_run(make, monkeypatch):
    run, real = make(max_steps=6), loss.nll_sum

    def diverging(*args):
        total, learned = real(*args)
        return (total * float("nan") if len(events(run, "step")) == 2 else total), learned

    monkeypatch.setattr("persona.trainer.nll_sum", diverging)
    with pytest.raises(RunError, match=r"infinite at step 3\. Lower learning_rate \(now 0\.01\) and start again"):
        train.train(run)
    assert_failed_and_clean(run, last=2)
    best = min(e["nll"] for e in events(run, "eval") if e["step"])
    assert run.progress().result["adapter_nll"] == pytest.approx(best, rel=1e-6)


def test_a_gradient_that_is_not_finite_ends_the_run(make, monkeypatch):
    """The loss was still a number; the weights after this step are none."""
    run, real = make(max_steps=2, eval_fraction=0), loss.nll_sum

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    def diverging(*args):
        total, learned = real(*args)
        return (Broken.apply(total) if len(events(run, "step")) == 1 else total), learned

    monkeypatch.setattr("persona.trainer.nll_sum", diverging)
    with pytest.raises(RunError, match=r"at step 2\. Lower learning_rate"):
        train.train(run)
    assert_failed_and_clean(run, last=1)


def test_a_run_that_diverges_at_once_has_nothing_to_keep(make, monkeypatch):
    run, real = make(max_steps=3), loss.nll_sum
    monkeypatch.setattr("persona.trainer.nll_sum", lambda *args: (real(*args)[0] * float("nan"), 1))
    with pytest.raises(RunError, match=r"at step 1\. Lower learning_rate \(now 0\.01\) and start again\.$"):
        train.train(run)
    assert not run.adapter.exists() and run.progress().result == {}


def assert_failed_and_clean(run: Run, last: int):
    """What was good before is kept, as a checkpoint and as an adapter."""
    seen = run.progress()
    assert seen.status == "failed" and "Lower learning_rate" in seen.message
    assert "the adapter holds the best" in seen.message and seen.result["status"] == "failed"
    assert adapter.check(run.adapter), "it holds finite numbers alone"
    newest = checkpoints.last(run.checkpoints)
    assert newest.name == f"checkpoint-{last}"
    for file in run.path.rglob("*.safetensors"):
        assert all(w.isfinite().all() for w in load_file(file).values()), file
    kept = load_file(run.adapter / "adapter_model.safetensors")
    found = [load_file(f) for f in run.checkpoints.rglob("*.safetensors")]
    assert any(all(torch.equal(kept[n], c[n]) for n in kept) for c in found)


NO_STOP = ("{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
           "{% endgeneration %}{% else %}{{ m['content'] }}: {% endif %}{% endfor %}")  # fmt: skip
NEVER_START = {
    "too-long": ([*PAIRS[:3], Pair("a", "b" * 100)], {"max_length": 64}, r"pair 4: the reply would be cut: .* is 64"),
    "control-token": ([*PAIRS[:2], Pair("a", "b<end_of_turn>c")], {}, r"pair 3: 'output' holds <end_of_turn>"),
    "no-stop-token": (PAIRS, {"template": "own.jinja"}, r"Template own: a reply ends with .* never learn to stop"),
    "unknown-template": (PAIRS, {"template": "nope"}, r"'nope': no such template"),
    "unknown-base": (PAIRS, {"base": "/nowhere"}, r"'/nowhere': no such folder"),
    "unknown-layer": (PAIRS, {"target_modules": "nope"}, r"this base has no layer 'nope'\. It has q_proj, k_proj"),
}


@pytest.mark.parametrize("pairs, changes, why", NEVER_START.values(), ids=NEVER_START)
def test_what_cannot_be_right_never_starts(make, tmp_path, pairs, changes, why):
    (tmp_path / "own.jinja").write_text(NO_STOP)
    if changes.get("template") == "own.jinja":
        changes = {"template": str(tmp_path / "own.jinja")}
    run = make(pairs, **changes)
    with pytest.raises(Exception, match=why) as e:
        train.train(run)
    assert isinstance(e.value, train.PersonaError)
    assert run.progress().status == "failed" and run.progress().message == str(e.value)
    assert not run.checkpoints.exists() and not run.adapter.exists() and events(run, "step") == []


FULL = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_when_the_adapter_is_written(make, monkeypatch, error):
    from peft import PeftModel

    run, real = make(max_steps=1, eval_fraction=0), PeftModel.save_pretrained

    def full(self, folder, **options):
        if Path(folder).name == ".adapter.new":
            raise error
        return real(self, folder, **options)

    monkeypatch.setattr(PeftModel, "save_pretrained", full)
    with pytest.raises(AdapterError, match="No space left on device.*Free some space and resume"):
        train.train(run)
    assert run.progress().status == "failed" and "Free some space and resume" in run.progress().message
    assert not run.adapter.exists() and checkpoints.last(run.checkpoints), "what was trained can still be had"
    monkeypatch.undo()
    assert train.train(run)["status"] == "done" and adapter.check(run.adapter)


@pytest.mark.parametrize("error", [*FULL.values(), RuntimeError("PytorchStreamWriter failed writing file data/0")])
def test_a_full_disk_when_a_checkpoint_is_written(make, monkeypatch, error):
    run, real = make(max_steps=3), Trainer._save

    def full(self, output_dir=None, state_dict=None):
        if self.state.global_step == 2:
            raise error
        return real(self, output_dir, state_dict)

    monkeypatch.setattr(Trainer, "_save", full)
    with pytest.raises(type(error)):
        train.train(run)
    assert run.progress().status == "failed"
    assert run.progress().message.startswith("The disk is full. Free some space, then resume")
    assert checkpoints.last(run.checkpoints).name == "checkpoint-1"


@pytest.mark.parametrize(
    "error, why",
    [
        (MemoryError(), "Out of memory. Nothing smaller is left in the settings: choose a smaller base"),
        (torch.OutOfMemoryError("CUDA"), "Out of memory. Nothing smaller"),
        (InputError("pair 3: no."), "pair 3: no."),
        (KeyError("x"), "KeyError: 'x'. The details are in the run's log.txt"),
    ],
)
def test_a_failure_is_explained(tmp_path, error, why):
    assert train.explain(error, tmp_path).startswith(why)


# ---- every setting reaches what it names

CHANGED = {
    "base": "tiny_llama",
    "template": "chatml",
    "max_length": 300,
    "epochs": 1.5,
    "max_steps": 7,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "linear",
    "warmup": 3,
    "weight_decay": 0.1,
    "init_lora_weights": "gaussian",
    "lora_r": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.25,
    "target_modules": "attention",
    "use_rslora": True,
    "use_dora": True,
    "optim": "adafactor",
    "batch_size": 3,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "dtype": "bfloat16",
    "packing": True,
    "save_steps": 4,
    "eval_fraction": 0.5,
    "early_stopping_patience": 9,
    "learn_history": True,
    "seed": 11,
}


def callback(trainer, name: str):
    return next((c for c in trainer.callback_handler.callbacks if type(c).__name__ == name), None)


def patience(trainer) -> int:
    return trainer.watch.patience


def layers(trainer) -> set[str]:
    return {n.split(".")[-1] for n, m in trainer.model.named_modules() if hasattr(m, "lora_A")}


def lora_of(trainer):
    return trainer.model.peft_config["default"]


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
# field: where to look, what is found by default, what is found after the change
WHERE = {
    "base": (lambda t, j: t.model.config.model_type, "gemma3_text", "llama"),
    "template": (lambda t, j: j.renderer.template.name, "gemma-base", "chatml"),
    "max_length": (lambda t, j: (j.renderer.max_length, t.args.max_length), (512, None), (300, None)),
    "epochs": (lambda t, j: t.args.num_train_epochs, 3.0, 1.5),
    "max_steps": (lambda t, j: t.args.max_steps, -1, 7),
    "learning_rate": (lambda t, j: t.args.learning_rate, 3e-4, 5e-4),
    "lr_scheduler_type": (lambda t, j: t.args.lr_scheduler_type.value, "cosine", "linear"),
    "warmup": (lambda t, j: t.args.warmup_steps, 0.05, 3),
    "weight_decay": (lambda t, j: t.args.weight_decay, 0.0, 0.1),
    "init_lora_weights": (lambda t, j: lora_of(t).init_lora_weights, True, "gaussian"),
    "lora_r": (lambda t, j: lora_of(t).r, 16, 3),
    "lora_alpha": (lambda t, j: lora_of(t).lora_alpha, 32, 5),
    "lora_dropout": (lambda t, j: lora_of(t).lora_dropout, 0.0, 0.25),
    "target_modules": (lambda t, j: layers(t), {*ATTENTION, "gate_proj", "up_proj", "down_proj"}, ATTENTION),
    "use_rslora": (lambda t, j: lora_of(t).use_rslora, False, True),
    "use_dora": (lambda t, j: lora_of(t).use_dora, False, True),
    "optim": (lambda t, j: t.args.optim, "adamw_torch", "adafactor"),
    "batch_size": (lambda t, j: (t.args.train_batch_size, t.args.eval_batch_size), (8, 8), (3, 3)),
    "gradient_accumulation_steps": (lambda t, j: t.args.gradient_accumulation_steps, 1, 2),
    "gradient_checkpointing": (lambda t, j: t.args.activation_checkpointing, False, True),
    "dtype": (lambda t, j: t.model.dtype, torch.float32, torch.bfloat16),
    "packing": (lambda t, j: t.data_collator.pack, 0, 300),
    "save_steps": (lambda t, j: t.args.save_steps, 1, 4),
    "eval_fraction": (lambda t, j: (len(t.job.held_out), len(t.train_dataset)), (2, 14), (8, 8)),
    "early_stopping_patience": (lambda t, j: patience(t), 0, 9),
    "learn_history": (lambda t, j: j.renderer.learn_history, False, True),
    "seed": (lambda t, j: (t.args.seed, t.args.data_seed), (0, 0), (11, 11)),
}
ELSEWHERE = {
    "diary_probes": "tested in test_moments.py",
    "quantization": "tested in test_quantize.py",
    "train_stop_token": "tested below; not with use_dora",
    "neftune_noise_alpha": "tested below; not with packing",
    "report_to": "tested in test_trackers.py",
    "engine": "tested in test_needs.py: it wants a GPU",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_gemma, tiny_llama):
    """Two trainers: one with every default (but the base), one with every field changed."""
    made = {}
    changed = {**CHANGED, "base": str(tiny_llama)}
    for name, config in (("default", RunConfig(base=str(tiny_gemma))), ("changed", RunConfig(**changed))):
        run = create_run(create(tmp_path_factory.mktemp(name) / "mags", CARD, PAIRS), config)
        job = train.prepare(run)
        clock = Clock()
        made[name] = (train.build(job, clock, Watch(run, clock)), job)
    return made


def test_every_setting_has_a_row():
    assert set(WHERE) == set(CHANGED) and set(WHERE) | set(ELSEWHERE) == set(RunConfig.model_fields)


def test_a_setting_reaches_what_it_names(built):
    def check(field):
        look, default, changed = WHERE[field]
        assert look(*built["default"]) == default
        assert look(*built["changed"]) == changed

    check_each(list(WHERE), check)


def test_gradient_checkpointing_is_on_in_the_model(make, seen):
    """The argument alone is only a wish: the layers must do it, and the loss stays the same."""
    losses = []
    for on in (False, True):
        run = make(gradient_checkpointing=on, max_steps=2, eval_fraction=0)
        train.train(run)
        layers = seen.trainer.model.get_base_model().model.layers
        assert {bool(getattr(layer, "gradient_checkpointing", False)) for layer in layers} == {on}
        losses.append([e["loss"] for e in events(run, "step")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_named_template_file_and_layers(make, seen, tmp_path):
    own = tmp_path / "mine.jinja"
    own.write_text(read_template("gemma-base").text.replace("Origin", "Copied"))
    run = make(template=str(own), target_modules=" q_proj , up_proj", max_steps=1)
    train.train(run)
    assert layers(seen.trainer) == {"q_proj", "up_proj"}
    opened = adapter.check(run.adapter)
    assert opened.template.text == own.read_text() and str(tmp_path) not in (run.adapter / "run.json").read_text()


# ---- the stop token that the base never learned


def test_a_stop_token_that_was_never_trained_is_refused(make, monkeypatch):
    monkeypatch.setattr(stoptoken, "stored_twins", lambda *_: 1000)
    run = make()
    with pytest.raises(
        InputError, match=r"template gemma-base: this base never learned its stop token <eos>.*instruct"
    ):
        train.train(run)
    assert run.progress().status == "failed" and events(run, "step") == [] and not run.checkpoints.exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_stop_tokens_row_is_trained_if_asked_for(make, seen, monkeypatch, tiny_gemma, dtype):
    """And no other row, nor any base tensor; saved with the adapter, the row speaks in a chat, base beside it."""
    monkeypatch.setattr(stoptoken, "stored_twins", lambda *_: 1000)
    run = make(train_stop_token=True, dtype=dtype, max_steps=4)
    train.train(run)
    inside = seen.trainer.model.get_base_model().state_dict()
    stored = load(tiny_gemma, dtype).state_dict()
    base_tensors = {n.replace("token_adapter.base_layer.", "").replace(".base_layer", ""): w for n, w in inside.items()}
    assert all(torch.equal(base_tensors[n], stored[n]) for n in stored)
    row = next(w for n, w in load_file(run.adapter / "adapter_model.safetensors").items() if "trainable_tokens" in n)
    stop = seen.job.renderer.stop_id
    before = stored["model.embed_tokens.weight"][stop]
    assert row.shape == (1, 32) and (row[0].float() - before.float()).abs().max() > 1e-3
    opened = adapter.attach(load(tiny_gemma), adapter.check(run.adapter), "x")
    ids = torch.tensor([seen.job.train[0].input_ids])
    with torch.no_grad():
        plain = load(tiny_gemma)(input_ids=ids).logits[0]
        both = opened(input_ids=ids.repeat(2, 1), adapter_names=[BASE, "x"]).logits
    assert torch.equal(both[0], plain)
    assert (both[1] - plain)[:, stop].abs().max() > 0.01


def test_a_trained_row_and_dora_are_refused(make):
    with pytest.raises(InputError, match="train_stop_token and use_dora do not go together"):
        train.train(make(train_stop_token=True, use_dora=True))


def test_an_instruct_base_knows_its_stop_token(smollm2_tokenizer, tmp_path):
    persona = create(tmp_path / "mags", CARD, PAIRS)
    job = train.prepare(create_run(persona, RunConfig(base="smollm2-135m-instruct")))
    assert job.renderer.template.name == "smollm2"
    assert stoptoken.stored_twins(job.base, job.renderer.stop_id) < 100  # 35


def test_the_embedded_base_never_learned_end_of_turn(embedded_base, tmp_path):
    persona = create(tmp_path / "mags", CARD, PAIRS)
    with pytest.raises(
        InputError, match=r"stop token <end_of_turn>.*alpaca-en, alpaca-zh, gemma-base\).*train_stop_token"
    ):
        train.prepare(create_run(persona, RunConfig(template="gemma")))
    for settings in ({"template": "gemma-base"}, {"template": "alpaca-en"},
                     {"template": "gemma", "train_stop_token": True}):  # fmt: skip
        train.prepare(create_run(persona, RunConfig(**settings)))


SHORT = [Pair(f"Say {w}.", f"{w.title()} it is.") for w in WORDS[:8]]


def stop_nll(model, renderer) -> float:
    """Nats that the end of a reply costs, on average over SHORT."""
    total = 0.0
    for example in (renderer.example(p) for p in SHORT):
        at = max(n for n, label in enumerate(example.labels) if label != -100)
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([example.input_ids])).logits[0, at - 1].float()
        total -= torch.log_softmax(scores, -1)[example.labels[at]].item()
    return total / len(SHORT)


@pytest.mark.timeout(1200)
def test_what_a_lora_alone_cannot_teach_the_embedded_base_and_both_ways_out(embedded_base, tmp_path, monkeypatch):
    """Six steps at a high rate on eight rows. With LoRA alone the stop token shares its chance with its twins: 5.0 nats
    measured, less than one reply in a hundred would end. With <eos>, 0.002; with the row trained too, 0.05.
    """
    monkeypatch.setattr(stoptoken, "problem", lambda *_: "")
    settings = {"epochs": 6, "eval_fraction": 0, "learning_rate": 1e-3, "batch_size": 8, "dtype": "bfloat16"}
    cost = {}
    for name, template, row in (("lora", "gemma", False), ("eos", "gemma-base", False), ("row", "gemma", True)):
        run = create_run(create(tmp_path / name, CARD, SHORT),
                         make_config(template=template, train_stop_token=row, **settings))  # fmt: skip
        train.train(run)
        _, renderer = base.open_renderer(CARD, template=template)
        model = base.load_model(embedded_base, "bfloat16")
        before = stop_nll(model, renderer)
        cost[name] = stop_nll(adapter.attach(model, adapter.check(run.adapter), "x"), renderer)
        assert before > 4  # 23, 6.0, 23
    assert cost["lora"] > 2 and cost["eos"] < 0.2 and cost["row"] < 0.5, cost


# ---- the real thing

QUESTIONS = ["你好，你是谁？", "你可曾后悔？", "你喜欢吃什么？", "今夜月色如何？", "我该怎么办？", "你怕不怕死？",
             "皇上待你如何？", "给我讲个故事。", "你几岁进宫？", "再见。"]  # fmt: skip


@pytest.mark.timeout(1800)  # a minute alone; many times that beside another program that keeps all cores busy
def test_the_embedded_base_learns_a_persona_and_to_stop(embedded_base, tmp_path, monkeypatch):
    """Two passes over some pairs: held-out NLL falls, and nearly all answers, as the page draws them, end by themselves.

    18 or 19 of 20 did, by the order of the rows. Not greedy: its answers fall into loops (豆浆，豆浆，…), as those of a
    small model do; 16 of 20 ended. With a stop token that cannot be learned, none would end.
    """
    monkeypatch.setattr(hardware, "this_machine", REAL_MACHINE)  # in the number format that is faster here
    shipped = open_persona(SHIPPED_PERSONAS / "zhen-huan")
    card, pairs = shipped.card(), shipped.pairs()[::3]
    assert 100 <= len(pairs) <= 110
    asked = [*card.probes, *QUESTIONS]
    assert len(asked) == 20 and not {p.instruction for p in pairs} & set(asked)
    persona = create(tmp_path / "zhen-huan", card, pairs)
    run = create_run(persona, make_config(epochs=2, batch_size=4))
    start = time.perf_counter()
    result = train.train(run)
    took = time.perf_counter() - start
    voices = chat.Voices(embedded_base)
    mags = adapter.check(run.adapter)
    name = voices.attach(mags)
    renderer = chat.renderer_of(mags, voices.tokenizer)
    columns = [Column(name, renderer.prompt([], q)) for q in asked]
    *_, replies = chat.stream(voices, columns, Sampling(), renderer.stop_id)
    print(f"\n{took:.0f} s, {result}")
    for question, r in zip(asked, replies, strict=True):
        print(f"{question} → {r.text} [{r.tokens}{'' if r.ended else ' …'}]")
    assert result["adapter_nll"] < result["base_nll"] - 0.2
    assert sum(r.ended for r in replies) >= 17
    assert len({r.text for r in replies}) > 10, "she does not say one thing to everybody"
    alone = [Column(BASE, columns[0].prompt)]
    *_, plain = chat.stream(voices, alone, Sampling(temperature=0, max_new_tokens=32), renderer.stop_id)
    assert plain[0].text != replies[0].text


def test_noise_on_the_embeddings_changes_what_is_trained_on(make):
    """The argument alone would be a wish: the same seed with and without it must give other losses, and only then."""

    def losses(**settings) -> list[float]:
        run = make(max_steps=3, eval_fraction=0, **settings)
        train.train(run)
        return [loss for _, loss in run.progress().train]

    plain = losses()
    assert losses() == plain
    assert losses(neftune_noise_alpha=50) != plain


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_a_lora_begins_as_the_base_however_it_is_drawn(make, init):
    run = make(max_steps=1, init_lora_weights=init, learning_rate=1e-12)
    train.train(run)
    result = run.progress().result
    assert result["adapter_nll"] == pytest.approx(result["base_nll"], abs=1e-4)
