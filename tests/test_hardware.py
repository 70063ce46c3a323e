"""This machine → how to run on it. The plan is a function of the machine, so every machine can be tested here."""

import os
import platform
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from cases import check_each
from hypothesis import given
from hypothesis import strategies as st

from persona.models.hardware import Machine, plan_device, this_machine
from persona.models.memory import StepShape, estimate_memory, infer_model_shape
from persona.store.workspace import PROJECT_DIR
from persona.train.plan import plan_training


def cuda(bf16: bool = True) -> Machine:
    return Machine("cuda", "RTX", 8 * 10**9, 8, bf16=bf16)


def cpu(gain: float) -> Machine:
    return Machine("cpu", "x86_64", 8 * 10**9, 2, (("float32", 1e11), ("bfloat16", gain * 1e11)))


MPS = Machine("mps", "arm64", 16 * 10**9, 8)


def test_the_plan_for_a_machine():
    """The user's own choice is kept, and the sentence for the page names the format that is really used."""
    cases = [
        (cuda(), "auto", "bfloat16", "bfloat16"),
        (cuda(), "float32", "float32", "bfloat16"),
        (cuda(), "float16", "float16", "bfloat16"),
        (cuda(bf16=False), "auto", "float16", "float16"),
        (cuda(bf16=False), "float32", "float32", "float16"),
        (MPS, "auto", "float32", "float32"),
        (MPS, "bfloat16", "bfloat16", "float32"),
        (cpu(3.0), "auto", "bfloat16", "float32"),
        (cpu(3.0), "float32", "float32", "float32"),
        (cpu(1.3), "auto", "float32", "float32"),
        (cpu(0.2), "auto", "float32", "float32"),
        (cpu(0.2), "bfloat16", "bfloat16", "float32"),
    ]

    def check(machine, asked, train, chat):
        plan = plan_device(machine, asked)
        assert (plan.device, plan.train_dtype, plan.chat_dtype) == (machine.device, train, chat)
        named = plan.reason.split(";")[0]  # after it, the CPU's sentence compares both formats
        assert train in named and not {"float32", "float16", "bfloat16"} - {train} & set(
            named.replace(",", " ").split()
        )

    check_each(cases, check)


def test_the_reason_names_the_machine():
    assert "RTX" in plan_device(cuda()).reason and "2 CPU cores" in plan_device(cpu(3.0)).reason
    assert "3.0×" in plan_device(cpu(3.0)).reason


# ---- fitting a run


def decoder(layers, hidden, inner, heads, kv, head, vocab, tied=False, gemma=False, **config):
    """config.json and the weights' names and shapes of a base, as transformers writes them."""
    sizes = {"self_attn.q_proj": (heads * head, hidden), "self_attn.k_proj": (kv * head, hidden),
             "self_attn.v_proj": (kv * head, hidden), "self_attn.o_proj": (hidden, heads * head),
             "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
             "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}  # fmt: skip
    if gemma:
        sizes |= {"pre_feedforward_layernorm": (hidden,), "post_feedforward_layernorm": (hidden,),
                  "self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}  # fmt: skip
    tensors = {f"model.layers.{n}.{name}.weight": size for n in range(layers) for name, size in sizes.items()}
    tensors |= {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        tensors["lm_head.weight"] = (vocab, hidden)
    config |= {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocab,
               "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": head}  # fmt: skip
    return config, tensors


GEMMA = decoder(18, 640, 2048, 4, 1, 256, 262_144, tied=True, gemma=True)
BASES = {
    "270M": infer_model_shape(*GEMMA),
    "1B": infer_model_shape(*decoder(26, 1152, 6912, 4, 1, 256, 262_144, tied=True, gemma=True)),  # Gemma 3 1B
    "4B": infer_model_shape(
        *decoder(34, 2560, 10_240, 8, 4, 256, 262_208, tied=True, gemma=True)
    ),  # Gemma 3 4B, its text
    "7B": infer_model_shape(*decoder(28, 3584, 18_944, 28, 4, 128, 152_064)),  # Qwen2.5 7B
    "14B": infer_model_shape(*decoder(48, 5120, 13_824, 40, 8, 128, 152_064)),  # Qwen2.5 14B
    "70B": infer_model_shape(*decoder(80, 8192, 28_672, 64, 8, 128, 128_256)),  # Llama 3 70B
}


@pytest.mark.parametrize("name, billions", [("270M", 0.268), ("1B", 1.0), ("4B", 3.88), ("7B", 7.6), ("14B", 14.8), ("70B", 70.6)])  # fmt: skip
def test_the_size_of_a_base_is_that_of_its_weights(name, billions):
    assert BASES[name].parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_shape_of_the_embedded_base():
    """Its figures as config and paper have them; a LoRA of rank 16 on it has 3.8 million parameters."""
    s = BASES["270M"]
    assert (s.parameters, s.layers, s.hidden, s.queries, s.keys, s.norms, s.qk_norm) == (
        268_098_176, 18, 640, 1024, 256, 4, True)  # fmt: skip
    assert s.lora * 16 == 3_796_992 and s.largest == 640 * 2048 and s.plain_head
    assert s.parameters - s.linear == 262_144 * 640 + 640 + 18 * (4 * 640 + 2 * 256)


def test_a_vision_tower_is_not_counted_and_a_text_config_is_found():
    config, tensors = GEMMA
    more = {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": (4304, 1152)}
    inside = {f"language_model.{name}": size for name, size in tensors.items()}
    assert infer_model_shape({"text_config": config}, inside | more) == BASES["270M"]
    assert not infer_model_shape({**config, "final_logit_softcapping": 30.0}, tensors).plain_head
    with pytest.raises(KeyError):
        infer_model_shape({"d_model": 512}, {})


GPU = {"float32": 1e13, "bfloat16": 1e14}
MACHINES = {
    "T4": Machine("cuda", "Tesla T4", 16 * 10**9, 4, (("float32", 4e12), ("float16", 2.5e13)), bf16=False),
    "L4": Machine("cuda", "NVIDIA L4", 24 * 10**9, 8, tuple(GPU.items())),
    "A10G": Machine("cuda", "NVIDIA A10G", 24 * 10**9, 8, tuple(GPU.items())),
    "A100": Machine("cuda", "NVIDIA A100", 80 * 10**9, 12, tuple(GPU.items())),
    "H100": Machine("cuda", "NVIDIA H100", 80 * 10**9, 24, tuple(GPU.items())),
    "ZeroGPU": Machine("cuda", "NVIDIA H200 slice", 70 * 10**9, 24, tuple(GPU.items())),
    "MPS": Machine("mps", "arm64", 16 * 10**9, 8, (("float32", 3e12), ("bfloat16", 3e12))),
    "AMX": Machine("cpu", "x86_64", 25 * 10**9, 2, (("float32", 1.3e11), ("bfloat16", 1.5e12))),
    "CPU": Machine("cpu", "x86_64", 25 * 10**9, 2, (("float32", 1e11), ("bfloat16", 4e10))),
}
ROWS = StepShape(batch=8, length=512, learned=256)  # full rows: the default max_length

# dtype, quantization, batch × accumulation, checkpointing, fits
EXPECTED = """
T4       270M  float16   none  8x1 kept   fits
T4       1B    float16   none  8x1 kept   fits
T4       4B    float16   none  1x8 kept   fits
T4       7B    float16   int8  1x8 kept   fits
T4       14B   float16   nf4   4x2 again  fits
T4       70B   float16   nf4   1x8 again  no
L4       270M  bfloat16  none  8x1 kept   fits
L4       1B    bfloat16  none  8x1 kept   fits
L4       4B    bfloat16  none  4x2 kept   fits
L4       7B    bfloat16  none  1x8 kept   fits
L4       14B   bfloat16  int8  8x1 again  fits
L4       70B   bfloat16  nf4   1x8 again  no
A10G     270M  bfloat16  none  8x1 kept   fits
A10G     1B    bfloat16  none  8x1 kept   fits
A10G     4B    bfloat16  none  4x2 kept   fits
A10G     7B    bfloat16  none  1x8 kept   fits
A10G     14B   bfloat16  int8  8x1 again  fits
A10G     70B   bfloat16  nf4   1x8 again  no
A100     270M  bfloat16  none  8x1 kept   fits
A100     1B    bfloat16  none  8x1 kept   fits
A100     4B    bfloat16  none  8x1 kept   fits
A100     7B    bfloat16  none  8x1 kept   fits
A100     14B   bfloat16  none  8x1 kept   fits
A100     70B   bfloat16  nf4   1x8 kept   fits
H100     270M  bfloat16  none  8x1 kept   fits
H100     1B    bfloat16  none  8x1 kept   fits
H100     4B    bfloat16  none  8x1 kept   fits
H100     7B    bfloat16  none  8x1 kept   fits
H100     14B   bfloat16  none  8x1 kept   fits
H100     70B   bfloat16  nf4   1x8 kept   fits
ZeroGPU  270M  bfloat16  none  8x1 kept   fits
ZeroGPU  1B    bfloat16  none  8x1 kept   fits
ZeroGPU  4B    bfloat16  none  8x1 kept   fits
ZeroGPU  7B    bfloat16  none  8x1 kept   fits
ZeroGPU  14B   bfloat16  none  4x2 kept   fits
ZeroGPU  70B   bfloat16  nf4   1x8 kept   fits
MPS      270M  float32   none  8x1 kept   fits
MPS      1B    float32   none  2x4 kept   fits
MPS      4B    bfloat16  none  8x1 again  fits
MPS      7B    bfloat16  none  1x8 again  no
MPS      14B   bfloat16  none  1x8 again  no
MPS      70B   bfloat16  none  1x8 again  no
AMX      270M  bfloat16  none  8x1 kept   fits
AMX      1B    bfloat16  none  8x1 kept   fits
AMX      4B    bfloat16  none  4x2 kept   fits
AMX      7B    bfloat16  none  1x8 kept   fits
AMX      14B   bfloat16  int8  4x2 again  fits
AMX      70B   bfloat16  nf4   1x8 again  no
CPU      270M  float32   none  8x1 kept   fits
CPU      1B    float32   none  4x2 kept   fits
CPU      4B    float32   none  8x1 again  fits
CPU      7B    bfloat16  none  1x8 kept   fits
CPU      14B   bfloat16  int8  4x2 again  fits
CPU      70B   bfloat16  nf4   1x8 again  no
"""
TABLE = [tuple(line.split()) for line in EXPECTED.strip().splitlines()]


def test_how_a_base_fits_a_machine():
    def check(machine, base, dtype, quantization, split, checkpointing, fits):
        m = MACHINES[machine]
        plan = plan_training(m, BASES[base], ROWS)
        got = (plan.device, plan.train_dtype, plan.quantization, f"{plan.batch_size}x{plan.accumulation}",
               "again" if plan.checkpointing else "kept", "fits" if plan.fits else "no")  # fmt: skip
        assert got == (m.device, dtype, quantization, split, checkpointing, fits)
        assert dtype in plan.reason
        assert ("bits" in plan.reason) == (quantization != "none")

    check_each(TABLE, check)


def test_every_machine_and_base_is_in_the_table():
    assert {(m, b) for m, b, *_ in TABLE} == {(m, b) for m in MACHINES for b in BASES}


def test_what_the_user_turned_on_stays_on():
    plan = plan_training(MACHINES["A100"], BASES["270M"], replace(ROWS, quantization="nf4", checkpointing=True), 3)
    assert (plan.quantization, plan.checkpointing, plan.batch_size, plan.accumulation) == ("nf4", True, 8, 3)
    assert plan_training(MACHINES["CPU"], BASES["7B"], ROWS, dtype="float32").train_dtype == "float32"


def test_free_memory_counts_not_what_there_is():
    assert plan_training(MACHINES["A100"], BASES["7B"], ROWS).quantization == "none"
    tight = plan_training(MACHINES["A100"], BASES["7B"], ROWS, free=12 * 10**9)
    assert tight.fits and tight.quantization != "none" and tight.limit == 12 * 10**9
    assert not plan_training(MACHINES["A100"], BASES["7B"], ROWS, free=10**9).fits


@pytest.mark.parametrize("quantization, gigabytes", [("none", 20), ("nf4", 10)])
def test_a_7b_base_needs_what_the_tutorials_say(quantization, gigabytes):
    """About 20 GB for LoRA on bfloat16, 10 for QLoRA. Taken to mean: Llama 2 7B (6.7 billion), one GPU, batch 8 of 1024
    tokens, a third of them learned, gradient checkpointing, r=16; nf4 with double quantization."""
    step = StepShape(8, 1024, 341, dtype="bfloat16", quantization=quantization, checkpointing=True, device="cuda")
    llama = infer_model_shape(*decoder(32, 4096, 11_008, 32, 32, 128, 32_000))
    assert estimate_memory(llama, step).total / 1e9 == pytest.approx(gigabytes, rel=0.2)


# what runs of the embedded base held at most, and the padded length and learned tokens of their longest rows:
# datasets/zhen-huan after 27 steps, and one step in float32 and with checkpointing; datasets/lighthouse-keeper, two
# steps. The estimate is of a longer run, which has the kernels of more shapes.
@pytest.mark.parametrize(
    "work, measured",
    [
        (StepShape(8, 160, 40, dtype="bfloat16"), 3_111_571_456),
        (StepShape(24, 160, 38, dtype="float32"), 7_592_730_624),
        (StepShape(24, 160, 39, dtype="bfloat16", checkpointing=True), 2_048_421_888),
        (StepShape(8, 208, 45, dtype="bfloat16"), 2_971_754_496),
    ],
)
def test_the_estimate_agrees_with_what_was_measured(work, measured):
    assert estimate_memory(BASES["270M"], work).total == pytest.approx(measured, rel=0.15)


WORKS = st.builds(
    StepShape, batch=st.integers(1, 64), length=st.integers(8, 4096), learned=st.integers(1, 8), rank=st.integers(1, 256),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]), quantization=st.sampled_from(["none", "int8", "nf4"]),
    checkpointing=st.booleans(), device=st.sampled_from(["cpu", "cuda", "mps"]),
)  # fmt: skip


@given(WORKS, st.sampled_from(["batch", "length", "learned", "rank"]), st.sampled_from(list(BASES)))
def test_more_of_anything_needs_more(work, name, base):
    more = replace(work, **{name: 2 * getattr(work, name)})
    assert estimate_memory(BASES[base], more).total > estimate_memory(BASES[base], work).total


@given(WORKS)
def test_larger_bases_need_more(work):
    totals = [estimate_memory(shape, work).total for shape in BASES.values()]
    assert totals == sorted(totals)


@given(WORKS, st.sampled_from(list(BASES)))
def test_checkpointing_and_smaller_numbers_need_less(work, base):
    shape = BASES[base]
    kept, again = (estimate_memory(shape, replace(work, checkpointing=c)).total for c in (False, True))
    assert again < kept
    sizes = [
        estimate_memory(shape, replace(work, quantization=q, dtype="bfloat16")).weights for q in ("nf4", "int8", "none")
    ]
    assert sizes == sorted(sizes)


@given(WORKS, st.sampled_from(list(MACHINES)), st.sampled_from(list(BASES)), st.integers(1, 8), st.integers(0, 10**11))
def test_a_plan_keeps_its_word(work, machine, base, accumulation, free):
    """What fits is within the limit, the rows of a step stay as many, and what the user turned on stays on."""
    plan = plan_training(MACHINES[machine], BASES[base], work, accumulation, free=free)
    assert plan.fits == (plan.memory.total <= plan.limit) and plan.limit <= min(free, MACHINES[machine].memory)
    assert plan.batch_size * plan.accumulation == work.batch * accumulation
    assert plan.checkpointing >= work.checkpointing
    assert work.quantization in ("none", plan.quantization)


@pytest.mark.slow
def test_this_machine_has_a_plan():
    machine = this_machine()
    assert machine.device in ("cuda", "mps", "cpu") and machine.cores >= 1
    assert machine.device == "cuda" or machine.memory == psutil.virtual_memory().total
    assert plan_device(machine).device == machine.device
    assert this_machine() is machine, "measured once"


HOLES = """
import psutil
from persona.models import malloc
malloc.disable_malloc_trim()
held = lambda: psutil.Process().memory_info().rss
large, small = [], []
for _ in range(200):  # what stays lies between what goes
    large.append(b"x" * 2**20)
    small.append(b"x" * 2**12)
full = held()
large.clear()
kept = held()
malloc.trim_malloc()
print(full - kept, kept - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
def test_freed_memory_is_kept_until_it_is_given_back():
    done = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True, timeout=60)
    at_once, later = map(int, done.stdout.split())
    assert at_once < 20 * 2**20 and later > 180 * 2**20


def test_the_peak_is_the_programs_own():
    """Whoever starts it may hold much more: a page with a model in it."""
    grown = "import subprocess, sys; b = bytearray(400_000_000); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    asked = "from persona.models.hardware import peak_resident_memory as peak; print(peak())"
    said = subprocess.run(
        [sys.executable, "-c", grown, asked], check=True, capture_output=True, text=True, cwd=PROJECT_DIR
    )
    assert 5_000_000 < int(said.stdout) < 300_000_000


ARENAS = """
import ctypes, sys, threading
from persona.models import malloc
if sys.argv[1] == "few":
    malloc.limit_malloc_arenas()
together = threading.Barrier(8)
def work():
    kept = b"x" * 100_000
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
libc = ctypes.CDLL("libc.so.6")
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heaps")
@pytest.mark.parametrize(("how", "most"), [("few", 2), ("as it is", 99)])
def test_the_threads_of_the_page_share_two_heaps(how, most):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    words = [sys.executable, "-c", ARENAS, how]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60, env=env)
    heaps = done.stdout.count("<heap nr=")
    assert (heaps > 2) == (how == "as it is") and 1 <= heaps <= most, done.stdout[:2000]
