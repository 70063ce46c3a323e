"""The benchmarks start as their README says."""

import json
import os
import subprocess
import sys

import pytest

from persona.store.workspace import PROJECT_DIR


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *map(str, words)], env=os.environ | {"OMP_NUM_THREADS": "1"},
                          cwd=PROJECT_DIR, capture_output=True, text=True, timeout=300)  # fmt: skip


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
