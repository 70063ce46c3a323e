"""RunConfig: every setting of a run, its presets, and how many steps they make."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona.errors import InputError, Message, invalid, join
from persona.models import bundled
from persona.template.render import MAX_LENGTH, MAX_LENGTH_RANGE

MAX_ACCUMULATION = 1024  # batches an optimizer step


class RunConfig(BaseModel):
    """Every setting of a run, named as in PEFT and TRL. train.py hands TRL its part, lora.py hands PEFT its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    base: str = Field(bundled.DEFAULT_BASE, description="embedded name, Hub id, folder or .gguf file")
    template: str = Field("auto", description="auto, a name from templates/chat, or a .jinja file")
    max_length: int = Field(
        MAX_LENGTH, ge=MAX_LENGTH_RANGE[0], le=MAX_LENGTH_RANGE[1],
        description="tokens of one row; longer rows are refused, never cut",
    )  # fmt: skip
    epochs: float = Field(3.0, gt=0, le=1000, description="passes over the pairs")
    max_steps: int = Field(-1, ge=-1, description="optimizer steps; -1: as many as the epochs need")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="its peak, after the warm-up")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate falls; cosine stays high longest, then lands softly"
    )
    warmup: float = Field(0.05, ge=0, description="below 1: share of the steps; else a number of steps")
    weight_decay: float = Field(0.0, ge=0, le=1, description="of the LoRA weights; a small adapter needs none")
    neftune_noise_alpha: float = Field(
        0.0, ge=0, le=100, description="noise on embeddings (NEFTune); 0: none, usual: 5"
    )
    lora_r: int = Field(16, ge=1, le=1024, description="how much the adapter can hold; 16 is plenty for a voice")
    lora_alpha: int = Field(32, ge=1, le=4096, description="the update is scaled by alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="0: random masks cost a third of the speed on a CPU")
    target_modules: str = Field(
        "all-linear",
        description="all-linear, attention, mlp, attention+mlp, layer names joined by commas, or re: and a regular "
        r"expression for whole names, e.g. re:.*\.(q|v)_proj",
    )
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16"] = Field(
        "default",
        description="default, gaussian: random A, B zero; orthogonal: both random; pissa: the base's main directions, "
        "by an SVD of each layer (niter: a quicker, approximate one); its adapter has twice the rank",
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r)")
    use_dora: bool = Field(False, description="weight-decomposed LoRA; cannot share a batch with the base in a chat")
    quantization: Literal["none", "nf4", "int8"] = Field(
        "none", description="of the frozen base: 4 or 8 bits take less memory, on a GPU above all; needs bitsandbytes"
    )
    optim: Literal[
        "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "lion_8bit", "lion_32bit",
        "ademamix_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    ] = Field("adamw_torch", description="8 bits and lion need bitsandbytes, paged ones a GPU")  # fmt: skip
    batch_size: int = Field(8, ge=1, le=1024, description="rows per forward pass")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=MAX_ACCUMULATION, description="batches an optimizer step; saves memory"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for a third more work")
    packing: bool = Field(
        False,
        description="put a batch's rows end to end, up to max_length, blind to each other; it learns the same. "
        "For rows of very different lengths on a GPU",
    )
    engine: Literal["none", "liger", "unsloth"] = Field(
        "none",
        description="faster kernels of an NVIDIA GPU, by the package liger-kernel; not verified by us. Unsloth cannot "
        "share an environment with this app yet and is refused",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: what is faster here")
    eval_fraction: float = Field(0.1, ge=0, le=0.5, description="share of the pairs held out to measure on")
    diary_probes: int = Field(3, ge=0, le=20, description="probes answered at each evaluation, to hear her learn")
    early_stopping_patience: int = Field(0, ge=0, description="stop after so many evaluations without gain; 0: never")
    save_steps: int = Field(0, ge=0, description="steps between checkpoints to resume from; 0: at each evaluation")
    learn_history: bool = Field(False, description="learn the replies of earlier turns too")
    train_stop_token: bool = Field(
        False, description="train the stop token's own row: for a base that never learned it"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the first weights, the order of rows, and who is held out")
    report_to: Literal["none", "tensorboard", "trackio", "wandb", "swanlab"] = Field(
        "none", description="a tracker to tell each loss; its package must be installed, its key in the environment"
    )


PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "quick": ({"epochs": 3.0}, "Three passes. A first answer in minutes; enough to hear whether she is there."),
    "balanced": (
        {"epochs": 6.0, "learning_rate": 2e-4, "early_stopping_patience": 4},
        "Up to six calmer passes, ended early when the held-out pairs stop getting better.",
    ),
    "thorough": (
        {"epochs": 12.0, "learning_rate": 1e-4, "lora_r": 32, "lora_alpha": 64, "early_stopping_patience": 6},
        "A larger adapter and up to twelve slow passes, ended early likewise. For several hundred pairs and more.",
    ),
}


def make_config(preset: str = "quick", /, **changes: Any) -> RunConfig:
    """The preset with `changes` on top. Raises InputError naming every setting that is wrong."""
    if preset not in PRESETS:
        raise InputError(
            "{preset!r}: no such preset. Choose one of {presets}.", preset=preset, presets=", ".join(PRESETS)
        )
    try:
        return RunConfig(**{**PRESETS[preset][0], **changes})
    except ValidationError as e:
        wrong = join("; ", [
            Message("{setting}={value}: {problem}", setting=".".join(map(str, x["loc"])), value=repr(x.get("input")),
                    problem=invalid(x)) for x in e.errors()
        ])  # fmt: skip
        if not any(x["type"] == "extra_forbidden" for x in e.errors()):
            raise InputError("{problems}.", problems=wrong) from e
        known = ", ".join(RunConfig.model_fields)
        raise InputError("{problems}. Settings are: {known}.", problems=wrong, known=known) from e


def count_steps(config: RunConfig, rows: int) -> tuple[int, int]:
    """(optimizer steps in all, steps between evaluations): about ten evaluations a run, at least one an epoch."""
    per_epoch = math.ceil(rows / (config.batch_size * config.gradient_accumulation_steps))
    total = config.max_steps if config.max_steps > 0 else math.ceil(per_epoch * config.epochs)
    return total, max(1, min(per_epoch, math.ceil(total / 10)))
