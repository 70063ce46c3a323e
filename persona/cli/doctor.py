"""`persona doctor`: what this machine has, and what is not verified."""

import sys
from importlib.metadata import PackageNotFoundError, version

from persona import __version__
from persona.cli.output import AsJson, print_result
from persona.models import hardware


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has, how Persona uses it, and which packages and base models are installed."""
    from persona.models import bundled
    from persona.store import workspace

    machine = hardware.this_machine()
    plan = hardware.plan_device(machine)
    names = ("torch", "transformers", "trl", "peft", "gradio", "bitsandbytes", "liger-kernel", "libgguf", "xllamacpp",
             "spaces")  # fmt: skip
    models = {e.name: bundled.is_installed(e) for e in bundled.BUNDLED_MODELS.values()}
    packages = {p: _version(p) for p in names}
    value = {
        "persona": __version__,
        "python": sys.version.split()[0],
        "machine": {"device": machine.device, "name": machine.name, "cores": machine.cores,
                    "memory_bytes": machine.memory, "matmul_flops": dict(machine.rates)},
        "plan": {"device": plan.device, "train_dtype": plan.train_dtype, "chat_dtype": plan.chat_dtype,
                 "reason": plan.reason},
        "packages": packages,
        "embedded": models,
        "home": str(workspace.data_root()),
        "not_verified": ["Apple GPUs", "several GPUs", "Liger and Unsloth's kernels",
                         "the Hugging Face Hub itself", "ModelScope", "ZeroGPU Spaces"],
    }  # fmt: skip
    listed = ", ".join(f"{p} {v or 'not installed'}" for p, v in packages.items())
    bases = ", ".join(f"{n} {'ready' if ready else 'not installed'}" for n, ready in models.items())
    text = (
        f"Persona {__version__}, Python {value['python']}\n{listed}\n{plan.reason}\n"
        f"{machine.cores} cores, {machine.memory / 1e9:.0f} GB memory\nEmbedded bases: {bases}\n"
        f"Personas, runs and bases: {value['home']}\nNot verified by us: {'; '.join(value['not_verified'])}"
    )
    print_result(value, text, as_json)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
