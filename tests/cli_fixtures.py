"""Fixtures for tests of the command line, in this process or in a subprocess. Load with pytest_plugins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from persona import cli
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.store.workspace import PROJECT_DIR

CARD = PersonaCard(name="Mags", system="Be dry.", language="en")
PAIRS = [Pair("Who are you?", "I keep the light. 𠮷"), Pair("你好", "  好。\n\n茶？ "), Pair("c", "d", (("a", "b"),))]
PAIRS += [Pair(f"question {n}", f"answer {n}") for n in range(9)]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: (exit status, stdout, stderr)."""

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["persona", *map(str, words)])
        status = cli.main()
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def value(call):
    """The JSON object of a command that must succeed, which is the last line of stdout."""

    def value(*words) -> dict:
        status, out, err = call(*words, "--json")
        assert status == 0, err
        assert out.endswith("}\n")
        return json.loads(out.splitlines()[-1])

    return value


@pytest.fixture
def refused(call):
    """The message of a command that must fail: on stderr, with exit status 1 and nothing on stdout."""

    def refused(*words) -> str:
        status, out, err = call(*words)
        assert (status, out) == (1, ""), err
        assert "Traceback" not in err and err.strip()
        return err

    return refused


def shell(*words, home: Path, **options) -> subprocess.CompletedProcess:
    env = {**os.environ, "PERSONA_HOME": str(home), "PYTHONPATH": str(PROJECT_DIR)}
    command = [sys.executable, "-m", "persona", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300, **options)


@pytest.fixture
def persona(tmp_path):
    return create_persona_at(tmp_path / "mags", CARD, PAIRS)
