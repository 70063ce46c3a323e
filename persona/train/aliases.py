"""Settings by the names that PEFT, TRL, transformers and Unsloth give them → the fields of RunConfig.

ALIASES is the table of names that are a setting here; FIXED that of names whose value never changes here. A name that
is in neither table, nor a field of RunConfig, is refused by make_config() (config.py).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from persona.errors import InputError, Message, describe_validation_error, join

# transformers' other names of an optimizer that is the same
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_hf": "adamw_torch", "adamw_bnb_8bit": "adamw_8bit", "lion": "lion_32bit",
              "paged_adamw": "paged_adamw_32bit"}  # fmt: skip
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False,
            "none": False}  # fmt: skip


def _text(value: Any) -> str:
    return str(value).strip()


def _boolean(value: Any) -> bool:
    if (known := BOOLEANS.get(_text(value).lower())) is None:
        raise InputError("write true or false")
    return known


def _choose(name: str) -> Callable[[Any], str | None]:
    """For a switch: `name` where it is on, nothing where it is off."""
    return lambda value: name if _boolean(value) else None


def _dtype(value: Any) -> str | None:
    if value is None:
        return None
    name = _text(value).removeprefix("torch.")
    return DTYPES.get(name, name)


def _share(value: Any) -> Any:
    try:
        is_share = 0 <= float(value) < 1
    except (TypeError, ValueError):
        is_share = False
    if not is_share:
        raise InputError("it is a share of the steps, from 0 to below 1; warmup_steps takes a number")
    return value


def _optimizer(value: Any) -> Any:
    name = getattr(value, "value", value)  # of the enum OptimizerNames
    return OPTIMIZERS.get(name, name) if isinstance(name, str) else name


def _join_names(value: Any) -> Any:
    """A list of layer names as the text that target_modules is here."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple | set) else value


def _tracker(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return "none" if value is None or value == [] else value


def _initialization(value: Any) -> Any:
    return "default" if value is True or value in ("true", "True") else value


def _sampling(value: Any) -> bool:
    if (name := _text(value).rpartition(".")[2].lower()) not in ("random", "group_by_length"):  # of an enum too
        raise InputError("rows are taken in random order or group_by_length")
    return name == "group_by_length"


def _checkpointing(value: Any) -> Any:
    return True if value == "unsloth" else value  # how Unsloth does it is its own affair


@dataclass(frozen=True)
class Alias:
    """A name of another library. convert: its value → the field's; None where it asks for nothing.

    convert raises InputError with what is wrong, without name and value.
    """

    field: str
    convert: Callable[[Any], Any] = lambda value: value


ALIASES: dict[str, Alias] = {
    # PEFT: LoraConfig
    "r": Alias("lora_r"),
    "target_modules": Alias("target_modules", _join_names),
    "modules_to_save": Alias("modules_to_save", lambda value: "" if value is None else _join_names(value)),
    "init_lora_weights": Alias("init_lora_weights", _initialization),
    # transformers: TrainingArguments, BitsAndBytesConfig, from_pretrained, its example scripts
    "num_train_epochs": Alias("epochs"),
    "per_device_train_batch_size": Alias("batch_size"),
    "warmup_steps": Alias("warmup"),  # below 1 a share of the steps there too
    "warmup_ratio": Alias("warmup", _share),
    "optim": Alias("optim", _optimizer),
    "fp16": Alias("dtype", _choose("float16")),
    "bf16": Alias("dtype", _choose("bfloat16")),
    "dtype": Alias("dtype", _dtype),
    "torch_dtype": Alias("dtype", _dtype),
    "gradient_checkpointing": Alias("gradient_checkpointing", _checkpointing),
    "activation_checkpointing": Alias("gradient_checkpointing"),
    "neftune_noise_alpha": Alias("neftune_noise_alpha", lambda value: 0 if value is None else value),
    "report_to": Alias("report_to", _tracker),
    "use_liger_kernel": Alias("engine", _choose("liger")),
    "load_in_4bit": Alias("quantization", _choose("nf4")),
    "load_in_8bit": Alias("quantization", _choose("int8")),
    "bnb_4bit_compute_dtype": Alias("dtype", _dtype),
    "train_sampling_strategy": Alias("group_by_length", _sampling),
    "tf32": Alias("tf32", lambda value: False if value is None else value),
    "max_eval_samples": Alias("max_eval_rows"),
    # TRL: SFTConfig, ModelConfig
    "model_name_or_path": Alias("base"),
    "max_seq_length": Alias("max_length"),  # until TRL 0.20
    "lora_target_modules": Alias("target_modules", _join_names),
    # Unsloth
    "model_name": Alias("base"),
    "use_gradient_checkpointing": Alias("gradient_checkpointing", _checkpointing),
    "random_state": Alias("seed"),
}

# a name that is here always the same as a field, which must be given with it
SAME_AS = {"per_device_eval_batch_size": "batch_size", "data_seed": "seed"}

_NONE: frozenset[str] = frozenset()
_ON, _OFF = frozenset({"true", "1"}), frozenset({"false", "0", "none"})
_STEPS = frozenset({"steps", "intervalstrategy.steps", "savestrategy.steps"})
_ONLY_REPLIES = Message("only replies are learned here, and learn_history adds those of earlier turns")
_STEPWISE = Message("a run is evaluated every eval_steps steps; eval_fraction=0 turns it off")
_OWN_FOLDER = Message("a run lies in its persona's folder, under a name of its own; leave it out")
_BEST = Message("the best snapshot is always the one with the lowest held-out loss")
_PAIRS = Message("rows are made from the persona's pairs by the template; leave it out")

# name → the values that are meant here anyway, in lower case, and why there are no others
FIXED: dict[str, tuple[frozenset[str], Message]] = {
    "lora_bias": (_OFF, Message("B has no bias here; bias=lora_only trains those of the layers themselves")),
    "task_type": (frozenset({"causal_lm", "tasktype.causal_lm"}), Message("a persona is a causal language model")),
    "bnb_4bit_quant_type": (frozenset({"nf4"}), Message("4 bits are always nf4 here")),
    "bnb_4bit_use_double_quant": (_ON, Message("4 bits always have double quantization here")),
    "bnb_4bit_quant_storage": (frozenset({"uint8", "torch.uint8"}), Message("4 bits are always stored as uint8 here")),
    "adam_epsilon": (frozenset({"1e-8", "1e-08"}), Message("it is always 1e-8 here")),
    "label_smoothing_factor": (frozenset({"0", "0.0"}), Message("labels are not smoothed here")),
    "logging_strategy": (_STEPS, Message("losses are recorded every logging_steps steps")),
    "eval_strategy": (_STEPS, _STEPWISE),
    "evaluation_strategy": (_STEPS, _STEPWISE),
    "save_strategy": (_STEPS, Message("checkpoints are saved every save_steps steps")),
    "metric_for_best_model": (frozenset({"eval_loss", "loss"}), _BEST),
    "greater_is_better": (_OFF, _BEST),
    "completion_only_loss": (_ON, _ONLY_REPLIES),
    "assistant_only_loss": (_ON, _ONLY_REPLIES),
    "dataset_text_field": (_NONE, _PAIRS),
    "output_dir": (_NONE, _OWN_FOLDER),
    "logging_dir": (_NONE, _OWN_FOLDER),
    "run_name": (_NONE, _OWN_FOLDER),
    "inference_mode": (_OFF, Message("a run trains its LoRA")),
    "device_map": (frozenset({"auto"}), Message("spread_layers=true spreads the layers over several GPUs")),
    "use_fast": (_ON, Message("the mask is made from the positions that the fast tokenizer gives")),
    "truncation": (_OFF, Message("rows are never cut: longer ones than max_length are refused by name")),
    "padding": (frozenset({"true", "1", "longest"}), Message("rows are padded to the longest one of their batch")),
    "save_on_each_node": (_ON | _OFF, _OWN_FOLDER),
    "push_to_hub": (_OFF, Message("persona push uploads an adapter")),
    "trust_remote_code": (_OFF, Message("no code that comes with a base is run")),
}


def resolve_aliases(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by any name → by the names of RunConfig. Names that are not known stay as they are.

    Raises InputError naming every value that cannot be had here, and every two names that contradict each other.
    """
    values: dict[str, Any] = {}
    written: dict[str, str] = {}  # field → the name that it was given by
    problems = []
    for name, value in settings.items():
        if name in SAME_AS:
            continue
        if name in FIXED:
            accepted, why = FIXED[name]
            if _text(value).lower() not in accepted:
                problems.append(describe_problem(name, value, why))
            continue
        alias = ALIASES.get(name, Alias(name))
        try:
            converted = alias.convert(value)
        except InputError as e:
            problems.append(describe_problem(name, value, e.message))
            continue
        if converted is None and name in ALIASES:  # null too: those libraries mean by it what they do by default
            continue
        field = alias.field
        if field in values and _text(values[field]) != _text(converted):
            problems.append(
                Message("{first}={first_value} and {second}={second_value} contradict each other: both are {field}",
                        first=written[field], first_value=settings[written[field]], second=name, second_value=value,
                        field=field)
            )  # fmt: skip
        values[field], written[field] = converted, name
    for name, field in SAME_AS.items():
        if name in settings and _text(settings[name]) != _text(values.get(field)):
            why = Message("it is always the same as {field} here; give {field} that value too, or leave it out",
                          field=field)  # fmt: skip
            problems.append(describe_problem(name, settings[name], why))
    if problems:
        raise InputError("{problems}.", problems=join("; ", problems))
    return values


def describe_problem(name: str, value: Any, problem: str) -> Message:
    return Message("{setting}={value}: {problem}", setting=name, value=repr(value), problem=problem)


def list_aliases(field: str) -> list[str]:
    """The other names of a field."""
    return [name for name, alias in ALIASES.items() if alias.field == field != name]


def written_name(settings: Mapping[str, Any], field: str) -> str:
    """The name by which `settings` give a field; its own where they do not."""
    return next((name for name in settings if name in list_aliases(field)), field)


MIN_SIMILARITY = 65.0  # of an unknown setting's name to a known one that is proposed, in percent


def describe_setting_error(error: Any, changes: dict[str, Any], fields: Collection[str]) -> Message:
    """A pydantic error about one of `changes`, under the name that it was given by. fields: of RunConfig."""
    name = written_name(changes, ".".join(map(str, error["loc"])))
    problem = describe_validation_error(error)
    if error["type"] == "extra_forbidden":
        from rapidfuzz import fuzz, process

        nearest = process.extractOne(name, [*fields, *ALIASES], scorer=fuzz.ratio, score_cutoff=MIN_SIMILARITY)
        problem = Message("no such setting")
        if nearest:
            problem = Message("no such setting (did you mean {nearest}?)", nearest=nearest[0])
    return describe_problem(name, changes.get(name, error.get("input")), problem)
