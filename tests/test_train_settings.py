"""Every setting of a run reaches what it names."""

import pytest
import torch
from cases import check_each
from training import CARD, PAIRS, build, events, layers
from transformers import TrainerCallback

from persona.models import adapter
from persona.store.persona_folder import create_persona_at
from persona.template.chat_template import read_template
from persona.train import run as train_run
from persona.train.config import RunConfig
from persona.train.launcher import create_run

pytest_plugins = "training"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_cpu")]  # a trainer is built for nearly every test


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
    "max_grad_norm": 0.3,
    "group_by_length": False,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "eval_steps": 5,
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
    "logging_steps": 2,
    "eval_fraction": 0.5,
    "early_stopping_patience": 9,
    "learn_history": True,
    "seed": 11,
}


def patience(trainer) -> int:
    return trainer.callback.patience


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
    "max_grad_norm": (lambda t, j: t.args.max_grad_norm, 1.0, 0.3),
    "group_by_length": (lambda t, j: t.get_train_dataloader().batch_sampler.group, True, False),
    "adam_beta1": (lambda t, j: t.args.adam_beta1, 0.9, 0.8),
    "adam_beta2": (lambda t, j: t.args.adam_beta2, 0.999, 0.95),
    "eval_steps": (lambda t, j: t.args.eval_steps, 1, 5),
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
    "gradient_checkpointing": (lambda t, j: t.args.gradient_checkpointing, False, True),
    "dtype": (lambda t, j: t.model.dtype, torch.float32, torch.bfloat16),
    "packing": (lambda t, j: t.data_collator.pack, 0, 300),
    "logging_steps": (lambda t, j: t.callback.logging_steps, 1, 2),
    "save_steps": (lambda t, j: t.args.save_steps, 1, 4),
    "eval_fraction": (lambda t, j: (len(j.held_out), len(t.train_dataset)), (2, 14), (8, 8)),
    "early_stopping_patience": (lambda t, j: patience(t), 0, 9),
    "learn_history": (lambda t, j: j.renderer.learn_history, False, True),
    "seed": (lambda t, j: (t.args.seed, t.args.data_seed), (0, 0), (11, 11)),
}
ELSEWHERE = {
    "diary_probes": "tested in test_snapshots.py",
    "quantization": "tested in test_quantization.py",
    "train_stop_token": "tested below; not with use_dora",
    "neftune_noise_alpha": "tested below; not with packing",
    "report_to": "tested in test_trackers.py",
    "engine": "tested in test_validate.py: it wants a GPU",
    "spread_layers": "tested in test_placement.py: it wants several GPUs",
    "bias": "tested in test_trained_modules.py",
    "modules_to_save": "tested in test_trained_modules.py",
    "tf32": "refused without an NVIDIA GPU; tested in test_validate.py",
    "load_best_model_at_end": "tested in test_train.py",
    "max_eval_rows": "tested in test_run_folder.py and test_plan.py",
    "save_total_limit": "tested in test_crash_recovery.py",
    "new_pair_repeats": "tested in test_parent.py: it wants an adapter to go on from",
    "rehearsal_fraction": "tested in test_rehearsal.py: the base answers first",
    "rehearsal_system": "tested in test_rehearsal.py",
    "thinking": "tested in test_thinking.py: it wants a base that reasons",
    "beta": "tested in test_preference.py: it is for preferences",
    "sft_weight": "tested in test_preference.py: it is for preferences",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_gemma, tiny_llama):
    """Two trainers: one with every default (but the base), one with every field changed."""
    made = {}
    changed = {**CHANGED, "base": str(tiny_llama)}
    for name, config in (("default", RunConfig(base=str(tiny_gemma))), ("changed", RunConfig(**changed))):
        run = create_run(create_persona_at(tmp_path_factory.mktemp(name) / "mags", CARD, PAIRS), config)
        prepared, trainer = build(run)
        made[name] = (trainer, prepared)
    return made


def test_every_setting_has_a_row():
    assert set(WHERE) == set(CHANGED) and set(WHERE) | set(ELSEWHERE) == set(RunConfig.model_fields)


def test_a_setting_reaches_what_it_names(built):
    def check(field):
        look, default, changed = WHERE[field]
        assert look(*built["default"]) == default
        assert look(*built["changed"]) == changed

    check_each(list(WHERE), check)


def test_losses_are_recorded_every_so_many_steps(make):
    """Each the mean of its steps, and progress at every one."""
    losses = []
    for every in (1, 2):
        run = make(logging_steps=every, max_steps=5, eval_fraction=0)
        train_run.train_run(run)
        logged = events(run, "step")
        assert [e["step"] for e in logged] == [1, 2, 3, 4, 5]
        losses.append([e["loss"] for e in logged])
    a, b, c, d, e = losses[0]
    assert losses[1] == [None, pytest.approx((a + b) / 2), None, pytest.approx((c + d) / 2), pytest.approx(e)]
    assert [step for step, _ in run.progress().train] == [2, 4, 5] and run.progress().step == 5


def test_a_tracker_is_sent_the_losses_of_the_record(make, monkeypatch):
    sent = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            sent.append((state.global_step, logs.get("loss")) if "learning_rate" in logs else None)

    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda _: [Tracker])
    run = make(logging_steps=2, max_steps=5, eval_fraction=0)
    train_run.train_run(run)
    assert [x for x in sent if x] == [(e["step"], e["loss"]) for e in events(run, "step")]
    assert [bool(x[1]) for x in sent if x] == [False, True, False, True, True]


def test_gradient_checkpointing_is_on_in_the_model(make, seen):
    """The argument alone is only a wish: the layers must do it, and the loss stays the same."""
    losses = []
    for on in (False, True):
        run = make(gradient_checkpointing=on, max_steps=2, eval_fraction=0)
        train_run.train_run(run)
        layers = seen.trainer.model.get_base_model().model.layers
        assert {bool(getattr(layer, "gradient_checkpointing", False)) for layer in layers} == {on}
        losses.append([e["loss"] for e in events(run, "step")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_named_template_file_and_layers(make, seen, tmp_path):
    own = tmp_path / "mine.jinja"
    own.write_text(read_template("gemma-base").text.replace("Origin", "Copied"))
    run = make(template=str(own), target_modules=" q_proj , up_proj", max_steps=1)
    train_run.train_run(run)
    assert layers(seen.trainer) == {"q_proj", "up_proj"}
    opened = adapter.read_adapter(run.adapter)
    assert opened.template.text == own.read_text() and str(tmp_path) not in (run.adapter / "run.json").read_text()


def test_noise_on_the_embeddings_changes_what_is_trained_on(make):
    """The argument alone would be a wish: the same seed with and without it must give other losses, and only then."""

    def losses(**settings) -> list[float]:
        run = make(max_steps=3, eval_fraction=0, **settings)
        train_run.train_run(run)
        return [loss for _, loss in run.progress().train]

    plain = losses()
    assert losses() == plain
    assert losses(neftune_noise_alpha=50) != plain


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_a_lora_begins_as_the_base_however_it_is_drawn(make, init):
    run = make(max_steps=1, init_lora_weights=init, learning_rate=1e-12)
    train_run.train_run(run)
    result = run.progress().result
    assert result["adapter_nll"] == pytest.approx(result["base_nll"], abs=1e-4)
