"""This machine → how to run on it. The plan is a function of the machine, so every machine can be tested here."""

import psutil
import pytest

from persona.hardware import Machine, estimate_memory, make_plan, this_machine


def cuda(bf16: bool = True) -> Machine:
    return Machine("cuda", "RTX", 8 * 10**9, 8, bf16=bf16)


def cpu(gain: float) -> Machine:
    return Machine("cpu", "x86_64", 8 * 10**9, 2, (("float32", 1e11), ("bfloat16", gain * 1e11)))


MPS = Machine("mps", "arm64", 16 * 10**9, 8)


@pytest.mark.parametrize(
    "machine, asked, train, chat",
    [
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
    ],
)
def test_the_plan_for_a_machine(machine, asked, train, chat):
    """The user's own choice is kept, and the sentence for the page names the format that is really used."""
    plan = make_plan(machine, asked)
    assert (plan.device, plan.train_dtype, plan.chat_dtype) == (machine.device, train, chat)
    named = plan.reason.split(";")[0]  # after it, the CPU's sentence compares both formats
    assert train in named and not {"float32", "float16", "bfloat16"} - {train} & set(named.replace(",", " ").split())


def test_the_reason_names_the_machine():
    assert "RTX" in make_plan(cuda()).reason and "2 CPU cores" in make_plan(cpu(3.0)).reason
    assert "3.0×" in make_plan(cpu(3.0)).reason


GEMMA = {"hidden_size": 640, "num_hidden_layers": 18, "vocab_size": 262_144, "intermediate_size": 2_048}
USUAL = {"config": GEMMA, "weights": 268_098_176, "dtype": "float32", "batch": 8, "length": 128, "lora_r": 16}


@pytest.mark.parametrize(
    "more", [{"batch": 16}, {"length": 512}, {"lora_r": 256}, {"weights": 10**9}, {"config": {**GEMMA, "num_hidden_layers": 36}},
             {"config": {**GEMMA, "vocab_size": 10**6}}],
)  # fmt: skip
def test_more_of_anything_needs_more_memory(more):
    assert estimate_memory(**{**USUAL, **more}) > estimate_memory(**USUAL)


def test_half_the_bytes_need_less_memory():
    assert estimate_memory(**{**USUAL, "dtype": "bfloat16"}) < estimate_memory(**USUAL)


def test_the_estimate_is_no_smaller_than_the_weights_and_no_fantasy():
    """The embedded base with the usual settings: between its weights and what a small machine has."""
    assert 4 * USUAL["weights"] < estimate_memory(**USUAL) < 8 * 10**9
    assert estimate_memory(**{**USUAL, "config": {"text_config": GEMMA}}) == estimate_memory(**USUAL)


@pytest.mark.slow
def test_this_machine_has_a_plan():
    machine = this_machine()
    assert machine.device in ("cuda", "mps", "cpu") and machine.cores >= 1
    assert machine.device == "cuda" or machine.memory == psutil.virtual_memory().total
    assert make_plan(machine).device == machine.device
    assert this_machine() is machine, "measured once"
