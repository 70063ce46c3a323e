"""How a base is opened for chat: as trained or as asked, where it fits, and what is said of it before."""

from dataclasses import replace

import pytest
from cases import check_each
from tiny_models import PLAIN_CPU

from persona.compare import chat_plan
from persona.compare.chat_plan import plan_chat
from persona.errors import BaseError, InputError
from persona.models import memory
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.models.hardware import Machine
from persona.train import validate

GPU = Machine("cuda", "NVIDIA L4", 24 * 10**9, 8, (("float32", 1e12), ("bfloat16", 1e13)))
MAC = replace(PLAIN_CPU, device="mps")
# Qwen2.5 14B, about
SHAPE = memory.ModelShape(
    parameters=14_800_000_000, linear=13_200_000_000, largest=70_000_000, lora=4_000_000, layers=48, hidden=5120,
    inner=13824, queries=5120, keys=1024, norms=2, qk_norm=False, mlp_kept=4, vocab=152064, plain_head=True,
)  # fmt: skip


@pytest.fixture
def base(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(chat_plan, "read_base_shape", lambda _: SHAPE)
    monkeypatch.setattr(validate, "_installed", lambda _: True)
    return Base("qwen/large", tmp_path)


def test_auto_is_as_trained_and_on_a_cpu_full_precision_where_that_fits(base):
    cases = [
        # machine, free GB, asked, trained → quantization, fits, words of the description
        (GPU, 24, "auto", "nf4", "nf4", True, "4 bits (nf4): about 1"),
        (GPU, 24, "auto", "int8", "int8", True, "As the adapter was trained."),
        (GPU, 24, "auto", "none", "none", False, "bfloat16: about 30"),
        (GPU, 40, "none", "nf4", "none", True, "40.0 GB are free."),
        (GPU, 24, "none", "nf4", "none", False, "It may run out of memory. Set quantization to nf4"),
        (PLAIN_CPU, 80, "auto", "nf4", "none", True, "full precision is faster"),
        (PLAIN_CPU, 40, "auto", "nf4", "nf4", True, "in full precision it would not fit. In 4 bits (nf4) it is slow"),
        (PLAIN_CPU, 40, "auto", "none", "none", False, "Set quantization to nf4"),
        (PLAIN_CPU, 4, "auto", "none", "none", False, "Close other programs"),
        (PLAIN_CPU, 80, "int8", "none", "int8", True, "8 bits (int8)"),
        (MAC, 40, "auto", "nf4", "none", False, "Close other programs"),
    ]

    def check(machine, free, asked, trained, want, fits, words):
        plan = plan_chat(base, machine, [free * 10**9], asked, trained)
        assert (plan.quantization, plan.fits) == (want, fits) and words in plan.describe()
        if fits or asked != "auto":
            plan.require_room()
        else:
            with pytest.raises(BaseError, match="does not fit: it needs about .* To try it all the same"):
                plan.require_room()

    check_each(cases, check)


def test_what_cannot_be_is_refused(base, monkeypatch):
    with pytest.raises(InputError, match="quantization=int4: is not auto, none, nf4 or int8"):
        plan_chat(base, GPU, [10**11], "int4")
    with pytest.raises(InputError, match="needs a CUDA GPU or a CPU"):
        plan_chat(base, MAC, [10**11], "nf4")
    monkeypatch.setattr(validate, "_installed", lambda _: False)
    with pytest.raises(InputError, match="needs bitsandbytes, which is not installed"):
        plan_chat(base, GPU, [10**11], "nf4")


def test_a_base_of_an_unknown_kind_is_tried(base, monkeypatch):
    monkeypatch.setattr(chat_plan, "read_base_shape", lambda _: None)
    plan = plan_chat(base, PLAIN_CPU, [0])
    plan.require_room()
    assert plan.describe() == "qwen/large in float32." and plan.need is None


def test_a_base_that_is_stored_in_4_bits_is_opened_as_it_is(base):
    (base.path / "config.json").write_text('{"quantization_config": {"load_in_4bit": true}}')
    for asked in ("auto", "none", "nf4"):
        plan = plan_chat(base, GPU, [10**11], asked)
        assert plan.quantization == "none" and "It is stored in 4 bits (nf4)." in plan.describe()
    with pytest.raises(BaseError, match="quantized already"):
        plan_chat(base, GPU, [10**11], "int8")


def test_what_an_adapter_says_of_its_training_is_not_trusted():
    def trained(facts) -> str:
        return Adapter(None, None, None, "", {}, facts).quantization  # type: ignore[arg-type]

    assert trained({"config": {"quantization": "nf4"}}) == "nf4"
    for odd in ({}, {"config": []}, {"config": {"quantization": "rm -rf"}}, {"config": {"quantization": ["nf4"]}}):
        assert trained(odd) == "none"
