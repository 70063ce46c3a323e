"""Side by side from one batch against the same two replies made one after the other.

    python -m benchmarks.chat ADAPTER [--tokens 48] [--json]

Greedy, no early stop counted: both ways write the same texts (checked), so tokens/s compare like with like.
"""

import argparse
import json
import time
from pathlib import Path

from persona import adapter, chat


def timed(voices: chat.Voices, columns: list[chat.Column], sampling: chat.Sampling, stop: int) -> tuple[list, float]:
    start = time.perf_counter()
    *_, last = chat.stream(voices, columns, sampling, stop)
    return last, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    opened = adapter.check(adapter.locate(given.adapter))
    voices = chat.open_voices(chat.base_of(opened))
    name = voices.attach(opened)
    renderer = chat.renderer_of(opened, voices.tokenizer)
    sampling = chat.Sampling(temperature=0, max_new_tokens=given.tokens)
    together = apart = 0.0
    tokens, equal = 0, 0
    questions = opened.card.probes[:6] or ("Who are you?",)
    for number, question in enumerate((questions[0], *questions)):
        prompt = renderer.prompt([], question)
        columns = [chat.Column(chat.BASE, prompt), chat.Column(name, prompt)]
        both, seconds = timed(voices, columns, sampling, renderer.stop_id)
        singles, times = zip(*(timed(voices, [c], sampling, renderer.stop_id) for c in columns), strict=True)
        if number:  # the first question warms up
            together, apart = together + seconds, apart + sum(times)
            tokens += sum(r.tokens for r in both)
            equal += [r.text for r in both] == [s[0].text for s in singles]
    value = {
        "ratio": round(apart / together, 2),
        "tokens_per_s": round(tokens / together, 2),
        "apart_tokens_per_s": round(tokens / apart, 2),
        "same_texts": f"{equal}/{len(questions)}",
    }
    text = (
        f"side by side {value['tokens_per_s']} tokens/s, one after the other {value['apart_tokens_per_s']}: "
        f"{value['ratio']} times as fast; same texts {value['same_texts']}"
    )
    print(json.dumps(value) if given.json else text)


if __name__ == "__main__":
    main()
