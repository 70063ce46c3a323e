"""Finished runs whose events are written by hand, for tests of the ledger. Load with pytest_plugins."""

import json

import pytest

from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, ProbeRule, create_persona_at, free_path
from persona.train import launcher
from persona.train.config import make_config
from persona.train.run_folder import Run

PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(40)]
CARD = PersonaCard(
    name="Mags", language="en", probes=("Who?", "Where?"),
    probe_rules=(ProbeRule(ask="Who?", must_mention=("Mags",)), ProbeRule(ask="Where?", must_mention=("lamp",))),
)  # fmt: skip


@pytest.fixture
def mags():
    return create_persona_at(free_path("mags"), CARD, PAIRS)


def finish(run: Run, rows: list[float], chosen: int = 4, learned: int = 10) -> Run:
    """Write the events of a finished run that measured its held-out pairs: nats of each."""
    held_out = len(rows)
    events = [
        {"event": "plan", "steps": 4, "held_out": held_out, "held_out_learned": [learned] * held_out},
        {"event": "eval", "step": 0, "nll": 5.0, "rows": [50.0] * held_out},
        {"event": "state", "state": "running"},
        {"event": "step", "step": 4, "seconds": 60.0, "loss": 2.0, "tokens": 9},
        {"event": "eval", "step": 4, "nll": sum(rows) / learned / held_out, "rows": rows},
        {"event": "diary", "step": 4, "answers": [
            {"probe": "Who?", "text": "I am Mags.", "ended": True}, {"probe": "Where?", "text": "At sea", "ended": False}]},
        {"event": "chosen", "step": chosen}, {"event": "state", "state": "done"},
    ]  # fmt: skip
    start = 1_700_000_000
    text = "".join(json.dumps({"time": start + 60 * n, **e}) + "\n" for n, e in enumerate(events))
    (run.path / "events.jsonl").write_text(text)
    return run


def new_run(persona, rows: list[float] | None = None, **settings) -> Run:
    return finish(launcher.create_run(persona, make_config(**settings)), rows or [30.0, 31, 29, 30])
