"""`persona prefer`: its JSON, and votes without a rule."""

import json
import random

import pytest
from tiny_models import write_adapter

pytest_plugins = "tests.cli_fixtures"
KEYS = {"run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll", "adapter_nll",
        "start_nll", "parent", "peak_memory_bytes", "trainable_parameters", "total_parameters", "accuracy_before",
        "accuracy_after", "margin_before", "margin_after"}  # fmt: skip
SHORT, LONG = "Lit.", "It is lit. It is lit. It is lit."


@pytest.mark.slow
def test_prefer_learns_a_rule_from_a_file_and_nothing_from_chance(value, persona, tiny_gemma, tmp_path):
    write_adapter(tiny_gemma, tmp_path / "first", template="gemma-base", size=0.02)
    facts = json.loads((tmp_path / "first/run.json").read_text())
    facts["base"] = {"id": tiny_gemma.name}
    (tmp_path / "first/run.json").write_text(json.dumps(facts))
    chance, margins = random.Random(1), {}
    for rule in (True, False):
        answers = [(SHORT, LONG) if rule or chance.random() < 0.5 else (LONG, SHORT) for _ in range(16)]
        rows = [{"prompt": f"question {n}", "chosen": c, "rejected": r} for n, (c, r) in enumerate(answers)]
        file = tmp_path / "votes.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        options = ["--set", f"base={tiny_gemma}", "--set", "dtype=float32", "--set", "learning_rate=0.005",
                   "--set", "diary_probes=0", "--set", "sft_weight=0"]  # fmt: skip
        found = value("prefer", persona.path, "--from", tmp_path / "first", "--data", file, *options)
        assert set(found) == KEYS and found["status"] == "done" and found["parent"] == "opened/first"
        margins[rule] = found["margin_after"] - found["margin_before"]
        if rule:
            assert found["accuracy_after"] >= 0.8
    assert margins[True] > 3 * abs(margins[False])
