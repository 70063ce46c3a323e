"""GGUF files with fewer bits: the types of llama.cpp's own tool, and what the check in llama.cpp finds."""

import importlib.util
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from tiny_models import make_adapter

from persona.errors import InputError, ShareError
from persona.models import bundled
from persona.models.base import load_base_model, load_tokenizer, resolve_base
from persona.models.hardware import plan_device, this_machine
from persona.share.exports import formats, gguf_check, gguf_files, gguf_types
from persona.share.exports.formats import ExportFormat, ExportOptions, Quantization
from persona.share.exports.gguf_check import EngineCheck, describe_check
from persona.share.exports.merged_model import strip_generation_tags
from persona.share.exports.probe_answers import answer_probes
from persona.template.chat_template import read_template
from persona.template.render import Renderer
from persona.ui.steps.share import export_tab


@pytest.mark.slow
@pytest.mark.release
def test_each_tensor_gets_the_type_that_llama_cpps_tool_gave_it(tmp_path):
    """The embedded base came as a Q4_K_M file of llama-quantize: with rows of 640, 1,024 and 2,048 weights."""
    bundled.assemble_gguf(tmp_path / "base.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "base.gguf").tensors}
    shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in tensors.items()}
    wrong = {
        name: (gguf_types.choose_type(name, shape[-1], 18, False, Quantization.q4_k_m), tensors[name].tensor_type)
        for name, shape in shapes.items()
        if len(shape) == 2
        and gguf_types.choose_type(name, shape[-1], 18, False, Quantization.q4_k_m) != tensors[name].tensor_type
    }
    assert not wrong
    assert gguf_types.estimate_bytes(shapes, 18, Quantization.q4_k_m) == sum(t.n_bytes for t in tensors.values())


@pytest.mark.parametrize(
    "name, columns, quantization, wanted",
    [
        ("blk.5.ffn_up.weight", 2048, "q6_k", "Q6_K"),
        ("blk.5.ffn_up.weight", 640, "q6_k", "Q8_0"),
        ("blk.5.ffn_up.weight", 640, "q5_k_m", "Q5_1"),
        ("blk.0.attn_v.weight", 2048, "q5_k_m", "Q6_K"),
        ("blk.9.attn_qkv.weight", 2048, "q4_k_m", "Q5_K"),
        ("blk.5.ffn_up.weight", 48, "q8_0", "F16"),
        ("token_embd.weight", 2048, "q8_0", "Q8_0"),
        ("token_embd.weight", 2048, "q4_0", "Q6_K"),
        ("output.weight", 2048, "q4_k_m", "Q6_K"),
    ],
)
def test_the_type_of_a_tensor(name, columns, quantization, wanted):
    assert gguf_types.choose_type(name, columns, 18, False, Quantization(quantization)).name == wanted


def test_an_embedding_beside_an_output_layer_gets_the_usual_bits():
    assert gguf_types.choose_type("token_embd.weight", 2048, 18, True, Quantization.q4_k_m).name == "Q4_K"


def test_rows_come_back_nearly_as_they_were():
    rows = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    most = {"F16": 0.0005, "Q8_0": 0.006, "Q6_K": 0.018, "Q5_K": 0.035, "Q4_K": 0.065, "Q4_0": 0.08}
    for name, limit in most.items():
        kind = gguf.GGMLQuantizationType[name]
        back = gguf.quants.dequantize(gguf_types.quantize_rows(rows, kind), kind)
        assert np.abs(back - rows).mean() < limit, name


def test_refused_before_anything_is_written(tiny_llama, tmp_path, monkeypatch):
    adapter, _ = make_adapter(tiny_llama, tmp_path / "a")
    for form, options in (
        (ExportFormat.gguf, ExportOptions(quantize=Quantization.q8_0)),
        (ExportFormat.merged, ExportOptions(merge=True, quantize=Quantization.q8_0)),
    ):
        with pytest.raises(InputError, match="quantize=q8_0: only a merged GGUF file is quantized"):
            formats.write_export(adapter.path, tmp_path / "x", form, options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gguf_types.require_quantizer(Quantization.q8_0)
    with pytest.raises(InputError, match="q4_k_m: needs libgguf.*take q8_0 or none"):
        gguf_types.require_quantizer(Quantization.q4_k_m)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "check, quantization, same, wanted",
    [
        (None, "none", 1, ["Not checked in llama.cpp"]),
        (EngineCheck(True, True, 160, 1, 0.001), "q8_0", 1, ["Checked in llama.cpp: at 100.0% of 160 places"]),
        (
            EngineCheck(False, False, 160, 1, 0),
            "q8_0",
            1,
            ["Checked", "Its prompt is not", "It does not end an answer"],
        ),
        (EngineCheck(True, True, 160, 0.6, 0.09), "q4_k_m", 1, ["Checked", "The loss is the quantization's (q4_k_m)"]),
        (EngineCheck(True, True, 160, 0.6, 0.09), "q4_k_m", 0.6, ["Checked", "That is more than rounding explains"]),
        (EngineCheck(True, True, 160, 1, 0.09), "none", 1, ["Checked", "That is more than rounding explains"]),
    ],
)
def test_the_check_in_words(check, quantization, same, wanted):
    notes = describe_check(check, Quantization(quantization), same)
    assert len(notes) == len(wanted) and all(n.startswith(w) for n, w in zip(notes, wanted, strict=True)), notes


@pytest.mark.slow
def test_the_check_finds_another_template_stop_token_and_weights(base_home, smollm2_tokenizer, tmp_path):
    base = resolve_base("smollm2-135m-instruct")
    model = load_base_model(base, plan_device(this_machine()).chat_dtype)
    made = Renderer(load_tokenizer(base), read_template("smollm2"), "You keep the light.")
    answers = answer_probes(model, made, ["Who are you?", "What do you see?", "Sing."])
    source = gguf_files.find_source_gguf(base, base.id, tmp_path)
    state = model.half().state_dict()

    def check(template: str, stop: int, quantization: Quantization, weights=state) -> EngineCheck:
        file = tmp_path / "model.gguf"
        gguf_files.write_model_gguf(source, weights, base, file, "x", template, stop, quantization)
        return gguf_check.check_in_llama_cpp(file, made, answers)

    own = strip_generation_tags(made.template).text
    good = check(own, made.stop_id, Quantization.q8_0)
    assert good.prompt_ids_equal and good.stops and good.tokens_equal > 0.9 and abs(good.nll_difference) < 0.03
    assert (tmp_path / "model.gguf").stat().st_size < 0.6 * sum(2 * v.numel() for v in set(state.values()))
    made.__dict__["stop_id"] = made.tokenizer("a", add_special_tokens=False)["input_ids"][0]  # as if it ended there
    bad = check(strip_generation_tags(read_template("gemma")).text, made.tokenizer.eos_token_id, Quantization.q4_0)
    assert not bad.prompt_ids_equal and not bad.stops and bad.nll_difference > good.nll_difference
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ShareError, match=r"model.gguf: llama.cpp does not open what was written"):
        gguf_check.check_in_llama_cpp(tmp_path / "model.gguf", made, answers)


def test_the_page_offers_the_bits_of_a_whole_model_with_sizes(tiny_llama, monkeypatch):
    whole = next(c for c, (_, options, _) in export_tab.EXPORT_CHOICES.items() if options.merge)
    assert export_tab.offer_quantizations("", next(iter(export_tab.EXPORT_CHOICES))).visible is False
    adapter = SimpleNamespace(base_id=str(tiny_llama), base_revision="")
    monkeypatch.setattr(export_tab.voice_picker, "find_adapter", lambda _: adapter)
    monkeypatch.setattr(gguf_files, "estimate_model_gguf", lambda base, q: {"none": 16, "q8_0": 8}.get(q, 4) * 10**6)
    offered = export_tab.offer_quantizations("run/x/y", whole)
    assert offered.visible and [label.rpartition(": ")[2] for label, _ in offered.choices[:3]] == [
        "16 MB",
        "8 MB",
        "4 MB",
    ]
    assert {value for _, value in offered.choices} <= set(Quantization)
    adapter.base_id = "somebody/not-here"
    assert export_tab.offer_quantizations("run/x/y", whole).choices[0][0] == "16 bits, as this page answers"
