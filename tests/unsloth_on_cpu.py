"""Trains a run with the real Unsloth on a CPU: `python tests/unsloth_on_cpu.py RUN`, with its packages on the path.

Unsloth takes the path that it takes on a GPU (UNSLOTH_ALLOW_CPU, made for its own tests), with its changes to TRL, but
compiles nothing, and attention is the plain one: its own has no backward pass on a CPU.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_DISABLE": "1"}
gpu = SimpleNamespace(name="none", total_memory=80 << 30, major=9, minor=0, multi_processor_count=1)
torch.cuda.get_device_properties = lambda *_: gpu
torch.cuda.get_device_capability = lambda *_: (9, 0)

from persona.train import engines, run_folder  # noqa: E402

run = run_folder.open_run(Path(sys.argv[1]))
engines.import_unsloth(run.config())
import unsloth  # noqa: E402
from unsloth_zoo.stubs.triton_stub import inject_into_sys_modules  # noqa: E402

inject_into_sys_modules()
os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # which had left TRL alone
unsloth.models.rl.PatchFastRL(FastLanguageModel=unsloth.FastLanguageModel)
unsloth.trainer._patch_trl_trainer()
load = unsloth.FastModel.from_pretrained
unsloth.FastModel.from_pretrained = lambda *a, **k: load(*a, **k, attn_implementation="eager", device_map={"": "cpu"})

from persona.train import trainer, validate  # noqa: E402
from persona.train.run import train_run  # noqa: E402

validate.check_config = lambda *_: None  # which wants a GPU
train_run(run)
print("trainer:", *(c.__name__ for c in trainer.Trainer.__mro__[:4]))
