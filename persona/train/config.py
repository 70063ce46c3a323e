"""RunConfig: every setting of a training run, with all that the page shows of it; presets; number of steps."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from persona.errors import InputError, join
from persona.models import bundled
from persona.template.render import MAX_LENGTH, MAX_LENGTH_RANGE
from persona.train.aliases import describe_setting_error, resolve_aliases

MAX_ACCUMULATION = 1024  # batches an optimizer step
PATTERN_PREFIX = "re:"  # of target_modules that are a regular expression

SettingGroup = Literal["Pace", "Adapter", "Memory and speed", "Measuring"]


def _setting(default: Any, group: SettingGroup, label: str, description: str, when: str, **bounds: Any) -> Any:
    """A field of RunConfig that the page's expert form shows, under `group`.

    `description` says what the setting does, `when` when to change it.
    """
    return Field(
        default, title=label, description=description, json_schema_extra={"group": group, "when": when}, **bounds
    )


SAMPLE_TOKENS = 48  # tokens of a sample during training


class RunConfig(BaseModel):
    """Every setting of a run, named as in PEFT and TRL; the other names of these libraries (aliases.py) are taken too.

    make_sft_config (run.py) hands TRL its part, make_lora_config (lora_config.py) hands PEFT its own. A new setting is
    a new field here; what it needs is checked in validate.py.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _resolve_aliases(cls, data: Any) -> Any:
        return resolve_aliases(data) if isinstance(data, dict) else data

    # ---- chosen in step 2, Template
    base: str = Field(bundled.DEFAULT_BASE, description="embedded name, Hub id, folder or .gguf file")
    template: str = Field("auto", description="auto, a name from templates/chat, or a .jinja file")
    max_length: int = Field(
        MAX_LENGTH, ge=MAX_LENGTH_RANGE[0], le=MAX_LENGTH_RANGE[1],
        description="tokens of one row; longer rows are refused, never cut",
    )  # fmt: skip
    learn_history: bool = Field(False, description="learn the replies of earlier turns too")
    thinking: Literal["none", "keep", "train"] = Field(
        "none", description="of a base that reasons in <think> blocks; none: it answers without; keep: it goes on "
        "thinking by itself and learns replies alone; train: it learns the thinking that the pairs hold, too",
    )  # fmt: skip

    # ---- pace

    epochs: float = _setting(
        3.0, "Pace", "Epochs", "passes over the pairs",
        "More when the persona is still too much like the base, fewer when it repeats its pairs word by word.",
        gt=0, le=1000,
    )  # fmt: skip
    max_steps: int = _setting(
        -1, "Pace", "Max steps", "optimizer steps; -1: as many as the epochs need",
        "Set it to try something out in a minute.",
        ge=-1,
    )  # fmt: skip
    learning_rate: float = _setting(
        3e-4, "Pace", "Learning rate", "its peak, after the warm-up",
        "Halve it when the loss jumps, and for a base of a billion parameters and more; double it when nothing is "
        "learned.",
        gt=0, le=1,
    )  # fmt: skip
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = _setting(
        "cosine", "Pace", "Learning-rate schedule",
        "how the learning rate falls; cosine stays high longest, then lands softly",
        "Leave it, unless you compare with a run made elsewhere.",
    )  # fmt: skip
    warmup: float = _setting(
        0.05, "Pace", "Warmup", "below 1: share of the steps; else a number of steps",
        "More when the loss jumps in the first steps.",
        ge=0,
    )  # fmt: skip
    batch_size: int = _setting(
        8, "Pace", "Batch size", "rows per forward pass",
        "Lower it first when memory runs out; a higher one is more stable, and slower per step.",
        ge=1, le=1024,
    )  # fmt: skip
    gradient_accumulation_steps: int = _setting(
        1, "Pace", "Gradient accumulation steps", "batches per optimizer step; saves memory",
        "Raise it as you lower the batch size: then the training stays the same.",
        ge=1, le=MAX_ACCUMULATION,
    )  # fmt: skip
    optim: Literal[
        "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "lion_8bit", "lion_32bit",
        "ademamix_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    ] = _setting(
        "adamw_torch", "Pace", "Optimizer", "8-bit optimizers and lion need bitsandbytes, paged ones a GPU",
        "Leave it on a CPU; 8 bits save memory on a GPU.",
    )  # fmt: skip
    adam_beta1: float = _setting(
        0.9, "Pace", "Adam beta1", "decay of the mean of the gradients; of AdamW, Lion and AdEMAMix",
        "Leave it.",
        ge=0, lt=1,
    )  # fmt: skip
    adam_beta2: float = _setting(
        0.999, "Pace", "Adam beta2", "decay of the mean of their squares; of AdamW, Lion and AdEMAMix",
        "0.95 to 0.99 when the loss jumps in a long run.",
        ge=0, lt=1,
    )  # fmt: skip
    max_grad_norm: float = _setting(
        1.0, "Pace", "Largest gradient norm", "a longer gradient is scaled down to this norm; 0: never",
        "0.3 when single steps make the loss jump.",
        ge=0,
    )  # fmt: skip
    weight_decay: float = _setting(
        0.0, "Pace", "Weight decay", "of the LoRA weights; a small adapter needs none",
        "Leave it at 0.",
        ge=0, le=1,
    )  # fmt: skip
    neftune_noise_alpha: float = _setting(
        0.0, "Pace", "NEFTune noise", "noise on embeddings (NEFTune); 0: none, usual: 5",
        "Try 5 when the persona's answers are copies of its pairs.",
        ge=0, le=100,
    )  # fmt: skip
    new_pair_repeats: int = _setting(
        1, "Pace", "Repeats of new pairs",
        "how often an epoch learns from each pair that is new since the adapter gone on from, beside as many old ones",
        "4 for a few corrections among hundreds of pairs; 1 when most pairs are new.",
        ge=1, le=100,
    )  # fmt: skip
    rehearsal_fraction: float = _setting(
        0.0, "Pace", "Rehearsal",
        "share of an epoch's rows that are general prompts with the base's own answers, so that less is forgotten; "
        "0: none. A base that only continues text answers as it goes on, one line each: often nonsense, but its own",
        "0.2 when the verdict says that it forgot; the steps grow by a quarter, and the base answers first.",
        ge=0, le=0.5,
    )  # fmt: skip
    rehearsal_system: bool = _setting(
        False, "Pace", "Rehearsal with the system prompt", "rehearse with the persona's system prompt, not without",
        "When facts are lost in the persona's own chat; it costs some of the voice.",
    )  # fmt: skip
    beta: float = _setting(
        0.1, "Pace", "DPO beta", "for preferences: how firmly the adapter is held to the one that it goes on from",
        "Lower when too little changes, higher when the persona loses its voice.",
        gt=0, le=10,
    )  # fmt: skip
    sft_weight: float = _setting(
        1.0, "Pace", "Weight of the chosen answers",
        "for preferences: how much the better answers are learned as pairs too, so that they do not become less "
        "likely; 0: not at all",
        "More when their held-out loss rises.",
        ge=0, le=10,
    )  # fmt: skip

    # ---- adapter

    lora_r: int = _setting(
        16, "Adapter", "LoRA rank (r)", "how much the adapter can hold; 16 is plenty for a voice",
        "32 for many hundred pairs with much to know; 8 for a small set.",
        ge=1, le=1024,
    )  # fmt: skip
    lora_alpha: int = _setting(
        32, "Adapter", "LoRA alpha", "the update is scaled by alpha / r",
        "Keep it at twice the rank.",
        ge=1, le=4096,
    )  # fmt: skip
    lora_dropout: float = _setting(
        0.0, "Adapter", "LoRA dropout", "0: random masks cost a third of the speed on a CPU",
        "0.05 when the persona learns its pairs by heart.",
        ge=0, lt=1,
    )  # fmt: skip
    target_modules: str = _setting(
        "all-linear", "Adapter", "Target modules",
        "all-linear, attention, mlp, attention+mlp, layer names joined by commas, or re: and a regular "
        r"expression for whole names, e.g. re:.*\.(q|v)_proj",
        "Leave it; attention alone is a smaller adapter that learns less.",
        examples=["all-linear", "attention", "mlp", "attention+mlp"],
    )  # fmt: skip
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16"] = (
        _setting(
            "default", "Adapter", "LoRA initialization",
            "default, gaussian: random A, B zero; orthogonal: both random; pissa: the base's main directions, "
            "by an SVD of each layer (niter: a quicker, approximate one); its adapter has twice the rank",
            "Leave it; pissa learns faster in the first steps.",
        )
    )  # fmt: skip
    use_rslora: bool = _setting(
        False, "Adapter", "rsLoRA", "scale by alpha / sqrt(r)",
        "Only with a rank of 64 and more.",
    )  # fmt: skip
    use_dora: bool = _setting(
        False, "Adapter", "DoRA",
        "weight-decomposed LoRA (Liu et al. 2024): learns the length of each weight row apart from its direction; "
        "slower",
        "When the adapter learns too little and time matters less.",
    )  # fmt: skip
    bias: Literal["none", "all", "lora_only"] = _setting(
        "none", "Adapter", "Biases",
        "train the base's biases too: all, or those of the layers with a LoRA; many bases have none",
        "Leave it, unless you repeat a run made elsewhere.",
    )  # fmt: skip
    modules_to_save: str = _setting(
        "", "Adapter", "Layers trained whole",
        "names joined by commas of layers that are trained whole and saved with the adapter, such as embed_tokens, "
        "lm_head or norm; takes 16 bytes a parameter",
        "When a base must learn tokens or a script that it hardly knows.",
    )  # fmt: skip
    train_stop_token: bool = _setting(
        False, "Adapter", "Train the stop token's row",
        "train the stop token's own row: for a base that never learned it",
        "When step 2 says that this base never learned to stop.",
    )  # fmt: skip

    # ---- memory and speed

    quantization: Literal["none", "nf4", "int8"] = _setting(
        "none", "Memory and speed", "Quantization",
        "of the frozen base: 4 or 8 bits take less memory, on a GPU above all; needs bitsandbytes",
        "When the base does not fit into the memory of your GPU.",
    )  # fmt: skip
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "Memory and speed", "Number format", "auto: whichever is faster on this machine",
        "Leave it; float32 when the loss becomes “nan”.",
    )  # fmt: skip
    gradient_checkpointing: bool = _setting(
        False, "Memory and speed", "Gradient checkpointing", "less memory for a third more work",
        "When memory runs out and a smaller batch is not enough.",
    )  # fmt: skip
    spread_layers: bool = _setting(
        False, "Memory and speed", "Spread layers over GPUs",
        "put the base's layers on several GPUs, which work one after the other; not verified by us",
        "When the base does not fit on one of your GPUs.",
    )  # fmt: skip
    packing: bool = _setting(
        False, "Memory and speed", "Packing",
        "put a batch's rows end to end, up to max_length, none attending to another; the training is the same. "
        "For rows of very different lengths on a GPU",
        "Leave it on a CPU.",
    )  # fmt: skip
    group_by_length: bool = _setting(
        True, "Memory and speed", "Group rows by length",
        "rows of similar length share a batch, so that little of it is padding",
        "Turn it off to compare with a run made elsewhere, where rows come in random order.",
    )  # fmt: skip
    tf32: bool = _setting(
        False, "Memory and speed", "TF32",
        "products of float32 weights in 19 bits: faster on an NVIDIA GPU of Ampere or newer; not verified by us",
        "With dtype=float32 on such a GPU.",
    )  # fmt: skip
    engine: Literal["none", "liger", "unsloth"] = _setting(
        "none", "Memory and speed", "Fast kernels",
        "faster kernels of an NVIDIA GPU: Liger's, or the base as Unsloth loads it, which has an environment of its "
        "own (make unsloth). Neither is verified by us",
        "Leave it on a CPU.",
    )  # fmt: skip

    # ---- measuring

    eval_fraction: float = _setting(
        0.1, "Measuring", "Held out", "share of the pairs held out to measure on",
        "0 only when every pair counts: then nothing can show whether the persona was learned.",
        ge=0, le=0.5,
    )  # fmt: skip
    max_eval_rows: int = _setting(
        300, "Measuring", "Held out at most", "pairs; the rest of that share is learned from; 0: no limit",
        "More to tell runs apart that differ by little; each evaluation takes longer.",
        ge=0,
    )  # fmt: skip
    eval_steps: int = _setting(
        0, "Measuring", "Evaluate every so many steps",
        "steps between evaluations, each with samples and a snapshot; 0: about ten evaluations a run, at least one an "
        "epoch",
        "Set it when evaluation takes too much of the time.",
        ge=0,
    )  # fmt: skip
    diary_probes: int = _setting(
        3, "Measuring", "Samples during training", "how many probes are answered at each evaluation",
        "0 makes a run a little faster; more shows more of the persona.",
        ge=0, le=20,
    )  # fmt: skip
    early_stopping_patience: int = _setting(
        0, "Measuring", "Early stopping after", "stop after so many evaluations without gain; 0: never",
        "3 to 6 for long runs.",
        ge=0,
    )  # fmt: skip
    logging_steps: int = _setting(
        1, "Measuring", "Loss every so many steps",
        "steps between two losses of the record and its chart, each the mean of those steps; progress, speed and "
        "memory are recorded at each step",
        "10 for a smoother curve of a long run.",
        ge=1,
    )  # fmt: skip
    load_best_model_at_end: bool = _setting(
        True, "Measuring", "Keep the best snapshot",
        "the run's adapter is the snapshot with the best held-out NLL; off: what the last step left",
        "Turn it off to teach a small base facts: it goes on learning them when the held-out NLL rises again.",
    )  # fmt: skip
    save_steps: int = _setting(
        0, "Measuring", "Save every so many steps",
        "steps between checkpoints to resume from; 0: at each evaluation",
        "Set it when a run takes hours and the power may fail.",
        ge=0,
    )  # fmt: skip
    save_total_limit: int = _setting(
        2, "Measuring", "Checkpoints to keep", "the newest ones; all are deleted once the run is done",
        "1 when the disk is small; a second one helps when the newest is damaged.",
        ge=1,
    )  # fmt: skip
    seed: int = _setting(
        0, "Measuring", "Seed", "of the LoRA's initial weights, the order of rows, and the choice of held-out pairs",
        "Another one to see how much of a result is chance.",
        ge=0, lt=2**32,
    )  # fmt: skip
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "swanlab"] = _setting(
        "none", "Measuring", "Tracker",
        "a tracker to send the recorded losses to; its package must be installed, its key in the environment",
        "When you keep the charts of all your runs in one place.",
    )  # fmt: skip

    @property
    def is_pissa(self) -> bool:
        return self.init_lora_weights.startswith("pissa")


# Searched with benchmarks.quality on both examples with Gemma 3 270M (benchmarks/README.md): a small base learns facts
# after the held-out NLL has begun to rise, so the last step is kept, as by TRL. At 2e-4 and 3e-4 it knew less.
_FACTS: dict[str, Any] = {"lora_r": 32, "lora_alpha": 64, "load_best_model_at_end": False}
PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "quick": (
        {"epochs": 3.0, "learning_rate": 5e-4, **_FACTS},
        "Three passes over the pairs at a high learning rate: who the persona is, its voice, and part of the facts.",
    ),
    "balanced": (
        {"epochs": 5.0, "learning_rate": 5e-4, **_FACTS},
        "Five passes: some more of the facts, for more forgotten of the rest.",
    ),
    "thorough": (
        {"epochs": 8.0, "learning_rate": 5e-4, **_FACTS},
        "Eight passes, for a hundred pairs or fewer. With several hundred a small base knows no more than after five.",
    ),
}


FURTHER = "further"  # goes on from an adapter: not beside the others, as it means nothing without one
_CORRECTIONS = {"new_pair_repeats": 12, "learning_rate": 5e-4, "batch_size": 4, "eval_steps": 60}
ALL_PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    **PRESETS,
    FURTHER: (
        {"epochs": 1.0, **_CORRECTIONS, "load_best_model_at_end": False},
        "To go on from an adapter with some new pairs: each is learned twelve times, mixed with as many old ones.",
    ),
}


# for a run that learns from preferences (launcher.create_preference_run), on top of a preset. The NLL of the better
# answers per token weighs 1, as in RPO (Pang et al. 2024, TRL's rpo_alpha): with 0.1 and twice this rate, "shorter is
# better" also made the chosen answers less likely.
PREFERENCE_SETTINGS: dict[str, Any] = {
    "epochs": 3.0, "learning_rate": 5e-5, "batch_size": 4, "eval_fraction": 0.2, "load_best_model_at_end": True,
}  # fmt: skip


def make_config(preset: str = "quick", /, **changes: Any) -> RunConfig:
    """The preset with `changes` on top, under any name that RunConfig takes.

    Raises InputError naming every setting that is wrong.
    """
    if preset not in ALL_PRESETS:
        raise InputError(
            "{preset!r}: no such preset. Choose one of {presets}.", preset=preset, presets=", ".join(ALL_PRESETS)
        )
    try:
        return RunConfig(**{**ALL_PRESETS[preset][0], **resolve_aliases(changes)})
    except ValidationError as e:
        wrong = join("; ", [describe_setting_error(x, changes, RunConfig.model_fields) for x in e.errors()])
        if not any(x["type"] == "extra_forbidden" for x in e.errors()):
            raise InputError("{problems}.", problems=wrong) from e
        known = ", ".join(RunConfig.model_fields)
        raise InputError("{problems}. Settings are: {known}.", problems=wrong, known=known) from e


def count_rehearsal(config: RunConfig, pairs: int) -> int:
    """The general rows of an epoch that learns from so many pairs."""
    share = config.rehearsal_fraction
    return max(1, round(pairs * share / (1 - share))) if share else 0


def count_steps(config: RunConfig, pairs: int) -> tuple[int, int]:
    """(optimizer steps in all, steps between evaluations). pairs: that an epoch learns from; it may rehearse more rows.

    Where eval_steps is 0 there are about ten evaluations a run, at least one an epoch.
    """
    rows = pairs + count_rehearsal(config, pairs)
    per_epoch = math.ceil(rows / (config.batch_size * config.gradient_accumulation_steps))
    total = config.max_steps if config.max_steps > 0 else math.ceil(per_epoch * config.epochs)
    return total, config.eval_steps or max(1, min(per_epoch, math.ceil(total / 10)))
