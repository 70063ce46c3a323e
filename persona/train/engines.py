"""`engine`: who computes the layers while a run trains. None of it has been verified on a GPU.

liger: Liger's kernels on the base as transformers loads it, in this environment. unsloth: the base as Unsloth loads and
patches it. Unsloth takes older versions of transformers, TRL and datasets than this app, so such a run's process is
started with the Python of an environment of its own (requirements-unsloth.txt, `make unsloth`); what it trains,
measures and writes is the same. Importing this module loads neither.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from persona.errors import InputError
from persona.store.workspace import PROJECT_DIR, data_root
from persona.train import distributed
from persona.train.config import RunConfig

# the packages of each, whose versions a run writes down
PACKAGES = {"none": [], "liger": ["liger-kernel"], "unsloth": ["unsloth", "unsloth_zoo"]}
# settings that a run with Unsloth leaves out, PiSSA beside them: each changes the layers in a way of its own
WITHOUT_UNSLOTH = {"use_dora": "false", "packing": "false", "train_stop_token": "false", "bias": "none",
                   "modules_to_save": "nothing"}  # fmt: skip


def may_flatten(c: RunConfig, device: str) -> bool:
    """Whether batches are flat (models/flat_batch.py) where the base allows it. Not measured on a GPU.

    NEFTune's noise goes by the tokens of a row, which a flat batch does not show; packed rows are in one already.
    """
    return device == "cpu" and c.engine == "none" and not c.neftune_noise_alpha and not c.packing


def unsloth_python() -> Path | None:
    """The Python of the environment that has Unsloth: PERSONA_UNSLOTH_PYTHON, else .venv-unsloth beside the project.

    None where there is none.
    """
    chosen = os.environ.get("PERSONA_UNSLOTH_PYTHON")
    python = Path(chosen).expanduser() if chosen else PROJECT_DIR / ".venv-unsloth/bin/python"
    return python if python.is_file() else None


def training_python(c: RunConfig) -> str:
    """The Python that trains a run with these settings."""
    python = unsloth_python() if c.engine == "unsloth" else None
    return str(python or sys.executable)


def require_engine(c: RunConfig) -> None:
    """Raise InputError if the packages of the engine are missing, or it cannot do what the settings ask for."""
    if c.engine == "liger" and importlib.util.find_spec("liger_kernel") is None:
        raise InputError(
            "engine=liger: its package is not installed. Install it: pip install '.[liger]'. Or set engine to none."
        )
    if c.engine != "unsloth":
        return
    if unsloth_python() is None and importlib.util.find_spec("unsloth") is None:
        raise InputError(
            "engine=unsloth: it needs an environment of its own, and there is none. Make it: make unsloth. Or name its "
            "Python in PERSONA_UNSLOTH_PYTHON, or set engine to none."
        )
    unusable = {s: off for s, off in WITHOUT_UNSLOTH.items() if getattr(c, s) not in (False, "none", "")}
    if c.is_pissa:
        unusable["init_lora_weights"] = "default"
    for setting, instead in unusable.items():
        raise InputError(
            "engine=unsloth and {setting}={value} do not go together. Set {setting} to {instead}, or engine to none.",
            setting=setting, value=getattr(c, setting), instead=instead,
        )  # fmt: skip
    if distributed.process_count() > 1:
        raise InputError("engine=unsloth: trains in one process only. Start it without accelerate or torchrun.")


def import_unsloth(c: RunConfig) -> None:
    """Import Unsloth where the settings ask for it: before transformers, TRL and PEFT, which it patches.

    Raises InputError where it is installed and cannot be imported.
    """
    if c.engine != "unsloth" or importlib.util.find_spec("unsloth") is None:
        return
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else it asks the Hub for a file that is counted
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(data_root() / "cache/unsloth"))  # else in the run folder
    try:
        import unsloth  # noqa: F401
    except Exception as e:  # it names the driver or package that is missing, in errors of any type
        raise InputError("engine=unsloth: Unsloth cannot be imported ({reason}). Set engine to none.", reason=e) from e


def load_unsloth_model(prepared: Any) -> Any:
    """The base of a PreparedRun with a new LoRA of its settings, a PeftModel that Unsloth has patched.

    Written from the source of Unsloth 2026.10.9. FastModel, not FastLanguageModel: that one replaces whole models by
    its own, which know neither a cache nor the positions that are asked for. Raises InputError in a process that has
    not imported Unsloth first.
    """
    if "unsloth" not in sys.modules:
        raise InputError(
            "engine=unsloth: this process does not have it. Start the run from the page or with persona train, on the "
            "machine itself; or set engine to none."
        )
    import torch
    from unsloth import FastModel

    from persona.train import lora_config

    c = prepared.config
    checkpointing = "unsloth" if c.gradient_checkpointing else False
    model, _ = FastModel.from_pretrained(
        str(prepared.base.path), dtype=getattr(torch, prepared.plan.train_dtype), max_seq_length=c.max_length,
        load_in_4bit=c.quantization == "nf4", load_in_8bit=c.quantization == "int8",
        load_in_16bit=c.quantization == "none", use_gradient_checkpointing=checkpointing, random_state=c.seed,
        use_exact_model_name=True, offload_embedding=False, trust_remote_code=False,
    )  # fmt: skip
    # by name: for all-linear Unsloth writes an expression of its own into the adapter
    wanted = "attention+mlp" if c.target_modules == "all-linear" else c.target_modules
    lora = lora_config.make_lora_config(c.model_copy(update={"target_modules": wanted}), model)
    names = ("r", "lora_alpha", "lora_dropout", "init_lora_weights", "use_rslora")
    return FastModel.get_peft_model(
        model, target_modules=sorted(lora.target_modules), use_gradient_checkpointing=checkpointing,
        random_state=c.seed, **{n: getattr(lora, n) for n in names},
    )  # fmt: skip


def apply_liger_kernels(model: Any) -> None:
    """Replace modules of the model by Liger's, by the function that transformers calls for it.

    Written from the source of liger-kernel 0.8.5. Its losses are left out: models/loss.py has its own. Raises
    InputError for an architecture that Liger does not know.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError("engine=liger: has no kernels for this base ({kind}). Set engine to none.", kind=kind)
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
