"""The benchmarks start as their README says."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from benchmarks.gpu import bases, report, sections
from benchmarks.gpu.cells import Cell, Scale
from benchmarks.gpu.training import block_rate
from persona.store.workspace import PROJECT_DIR
from persona.template.chat_template import read_template
from persona.template.render import Renderer


def bench(*words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *map(str, words)], env=os.environ | {"OMP_NUM_THREADS": "1"},
                          cwd=PROJECT_DIR, capture_output=True, text=True, timeout=timeout)  # fmt: skip


@pytest.mark.slow
@pytest.mark.release
def test_chat_trains_an_adapter_where_none_is_named(tiny_gemma):
    done = bench("benchmarks.chat", "--base", tiny_gemma, "--tokens", 4, "--json")
    assert done.returncode == 0, done.stderr
    assert "No adapter is named: training one" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["tokens_per_s"] > 0


@pytest.mark.slow
def test_chat_says_what_is_no_adapter(tmp_path):
    done = bench("benchmarks.chat", tmp_path)
    assert done.returncode == 1 and "no adapter here" in done.stderr and "Traceback" not in done.stderr


# ---- on a GPU: whether it runs is seen on a CPU, with tiny bases


@pytest.mark.slow
@pytest.mark.release
def test_gpu_measures_every_side(tmp_path):
    done = bench("benchmarks.gpu", "--cpu", "--tiny", "--minutes", 9, "--out", tmp_path, timeout=580)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout.splitlines()[-1])
    assert value == json.loads((tmp_path / "summary.json").read_text())
    assert not [r for r in value["records"] if "skipped" in r], value["records"]
    trained = {(r["side"], r["quantization"]) for r in value["records"] if r["section"].startswith("training")}
    assert trained == {(s, k) for s in ("ours", "recipe") for k in ("none", "nf4")} | {("trl", "none")}
    chats = [r for r in value["records"] if r["section"] == "chat"]
    assert [(r["columns"], r["same_texts"]) for r in chats] == [(2, 2), (4, 4)]
    assert value["gemma-3-4b bf16"]["recipe_ratio"] > 0 and "memory_error_worst" in value
    assert "## Estimates" in done.stdout and (tmp_path / "table.md").read_text() in done.stdout


CARD = {"section": "card", "card": "RTX", "torch": "2", "rates": {"bfloat16": 1e14}, "matmul_rate": 2e14, "bandwidth": 3e12}  # fmt: skip


def cell(side: str, rate: float, **other: object) -> dict:
    return {"section": "training x", **asdict(Cell(side, "x")), "tokens_per_s": rate, "peak_bytes": 10**9, **other}


def test_a_killed_benchmark_leaves_what_it_had(tmp_path):
    file = tmp_path / "results.jsonl"
    records = [CARD, cell("ours", 600.0), cell("recipe", 100.0, batch=4), cell("trl", 300.0), {"section": "chat", "skipped": "why"}]  # fmt: skip
    file.write_text("".join(json.dumps(r) + "\n" for r in records) + '{"section": "estim')
    seen = report.read_records(file)
    assert seen == records
    assert report.summarize(seen)["x bf16"] == {"recipe_ratio": 6.0, "trl_ratio": 2.0}
    assert "- chat: why" in report.render_table(seen) and "| ours | 600.0 | 1.00 |" in report.render_table(seen)
    assert report.summarize([])["card"] == "not measured"


def test_what_no_time_is_left_for_is_named(tmp_path):
    (record,) = sections.measure_cells([Cell("ours", "x")], sections.Job(tmp_path, Scale(), 0.0))
    assert record["skipped"] == "out of time"


def test_a_rate_is_the_median_over_blocks():
    assert block_rate([(0, 0), (1, 10), (2, 20), (12, 30)]) == 10.0


@pytest.mark.parametrize("name, billions", [("gemma-3-270m", 0.268), ("gemma-3-1b", 1.0), ("gemma-3-4b", 3.88), ("qwen3-0.6b", 0.596), ("qwen3-4b", 4.02)])  # fmt: skip
def test_the_shapes_are_the_published_ones(name, billions):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(bases.SHAPES[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_rows_are_as_long_as_real_ones(home):
    tokenizer = bases.train_tokenizer()
    render = Renderer(tokenizer, read_template(bases.TEMPLATE), bases.SYSTEM, 512).render_example
    rows = [render(p) for p in bases.short_persona(home).pairs()]
    lengths = [len(r.input_ids) for r in rows]
    assert sum(lengths) / len(rows) == pytest.approx(62, abs=2)
    assert sum(r.learned for r in rows) / sum(lengths) == pytest.approx(0.33, abs=0.03)
    long = [len(render(p).input_ids) for p in bases.long_persona(home).pairs()]
    assert min(long) > 420 and max(long) <= 512
