"""The rows of README's results table: the figures of a training run and samples of its answers.

    python -m benchmarks.results RUN_OR_PERSONA [--seeds 3] [--json]

Asks every probe with the page's sampling defaults, all probes of a seed in one batch, and counts the answers that end
by themselves within 128 tokens.
"""

import argparse
import json
from pathlib import Path

from persona.compare import session
from persona.errors import InputError
from persona.models import adapter
from persona.models.generate import Generation
from persona.models.sampling import Sampling


def ask(opened: adapter.Adapter, seed: int) -> list[Generation]:
    """The adapter's replies to all probes."""
    voices = session.open_model(session.base_of(opened))
    name = voices.attach(opened)
    renderer = session.renderer_of(opened, voices.tokenizer)
    columns = [session.Column(name, renderer.render_prompt([], p)) for p in opened.card.probes]
    *_, last = session.stream_replies(voices, columns, Sampling(seed=seed), renderer.stop_id)
    return last


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    opened = adapter.read_adapter(adapter.locate_adapter(given.adapter))
    if not opened.card.probes:
        raise InputError(f"{given.adapter}: its persona.json has no probes to ask.")
    replies = [ask(opened, seed) for seed in range(given.seeds)]
    ended = [r.ended for batch in replies for r in batch]
    figures = opened.facts["figures"]
    value = {
        "pairs": figures["train_rows"] + figures["held_out_rows"],
        "base_nll": round(figures["base_nll"], 3),
        "adapter_nll": round(figures["adapter_nll"], 3),
        "minutes": round(figures["seconds"] / 60, 1),
        "tokens_per_s": figures["tokens_per_s"],
        "ended": f"{sum(ended)}/{len(ended)}",
        "answers": dict(zip(opened.card.probes, (r.text for r in replies[0]), strict=True)),
    }
    lines = [f"{k}: {v}" for k, v in value.items() if k != "answers"]
    lines += [f"  {question}\n    {answer}" for question, answer in value["answers"].items()]
    print(json.dumps(value, ensure_ascii=False) if given.json else "\n".join(lines))


if __name__ == "__main__":
    main()
