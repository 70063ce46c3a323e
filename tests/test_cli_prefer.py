"""`persona prefer`: its JSON, and votes without a rule."""

import json
import random

import pytest
from tiny_models import write_adapter_to_go_on_from

from persona.compare import blind_votes
from persona.compare.blind_votes import VoteSide
from persona.compare.conversation import ConversationAnswer, VoiceRecord, new_browser_key
from persona.store.pairs import Pair
from persona.store.preferences import Preference
from persona.train import launcher
from persona.train import run as train_run
from persona.train.parent import read_parent

pytest_plugins = "tests.cli_fixtures"
KEYS = {"run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll", "adapter_nll",
        "start_nll", "parent", "peak_memory_bytes", "trainable_parameters", "total_parameters", "accuracy_before",
        "accuracy_after", "margin_before", "margin_after"}  # fmt: skip
SHORT, LONG = "Lit.", "It is lit. It is lit. It is lit."


@pytest.fixture
def first(tiny_gemma, tmp_path):
    """An adapter on the tiny Gemma to go on from."""
    return write_adapter_to_go_on_from(tiny_gemma, tmp_path / "first")


@pytest.mark.slow
@pytest.mark.release
def test_prefer_learns_a_rule_from_a_file_and_nothing_from_chance(value, persona, tiny_gemma, first, tmp_path):
    chance, margins = random.Random(1), {}
    for rule in (True, False):
        answers = [(SHORT, LONG) if rule or chance.random() < 0.5 else (LONG, SHORT) for _ in range(16)]
        rows = [{"prompt": f"question {n}", "chosen": c, "rejected": r} for n, (c, r) in enumerate(answers)]
        file = tmp_path / "votes.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        options = ["--set", f"base={tiny_gemma}", "--set", "dtype=float32", "--set", "learning_rate=0.005",
                   "--set", "diary_probes=0", "--set", "sft_weight=0"]  # fmt: skip
        found = value("prefer", persona.path, "--from", first, "--data", file, *options)
        assert set(found) == KEYS and found["status"] == "done" and found["parent"] == "opened/first"
        margins[rule] = found["margin_after"] - found["margin_before"]
        if rule:
            assert found["accuracy_after"] >= 0.8
    assert margins[True] > 3 * abs(margins[False])


@pytest.mark.slow
def test_prefer_resumes_and_goes_on_from_the_newest_adapter_with_the_votes(call, value, persona, tiny_gemma, first):
    preferences = [Preference(Pair(f"question {n}", SHORT), LONG) for n in range(6)]
    settings = {"base": str(tiny_gemma), "dtype": "float32", "diary_probes": 0, "epochs": 1}
    stopped = launcher.create_preference_run(persona, preferences, read_parent(first), settings)
    train_run.train_run(stopped, deadline=0)
    assert stopped.progress().status == "stopped"
    resumed = value("prefer", persona.path, "--resume", stopped.name)
    assert (resumed["run"], resumed["status"]) == (str(stopped.path), "done") and set(resumed) == KEYS

    options = [f"--set={name}={x}" for name, x in settings.items() if name != "base"]
    own = f"run/{persona.path.name}/{stopped.name}"
    voices = [VoiceRecord("adapter", "mags", own), VoiceRecord("base", "base")]
    log = blind_votes.open_vote_log(persona.path, new_browser_key())
    for n, choice in enumerate(["left"] * 6 + ["tie"]):
        drawn = blind_votes.draw_question(log, f"Why {n}?", [VoteSide(v) for v in voices], "", {})
        texts = zip((drawn.left.voice, drawn.right.voice), (SHORT, LONG), strict=True)
        blind_votes.record_answers(log, drawn.id, [ConversationAnswer(v, text) for v, text in texts])
        if n == 3:
            assert "3 preferences are too few" in call("prefer", persona.path, *options)[2]
        blind_votes.record_vote(log, drawn.id, choice)
    status, out, err = call("prefer", persona.path, *options, "--json")
    assert status == 0 and "“Why 6?”: tie." in err, err
    found = json.loads(out.splitlines()[-1])
    assert found["parent"] == own and found["status"] == "done"
