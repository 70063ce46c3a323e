"""Side by side in one batch, against plain `generate` one reply after the other, and against the bandwidth limit.

In one batch it is measured without CUDA graphs, and on a GPU with them too, as is the default (PERSONA_CUDA_GRAPHS).

Each side writes a fixed number of tokens greedily, after a round that warms up; the median of three rounds counts. The
limit: the weights are read once a step, so no column can have more tokens/s than bandwidth / bytes of the weights.
"""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from persona.compare import session
from persona.models import adapter, decode_loop
from persona.models.sampling import Sampling

QUESTIONS = ("你是谁？", "外头冷吗？", "令尊在朝中担任何职？", "今天被领导骂哭了，心里委屈。")
ROUNDS = 2


def measure_chat(adapter_folder: Path, base_folder: Path, columns: int, tokens: int, bandwidth: float) -> dict:
    """Tokens/s of a column and seconds to its first token, of both ways; bandwidth in bytes/s.

    The columns alternate between the base and the adapter.
    """
    opened = adapter.read_adapter(adapter.locate_adapter(adapter_folder))
    voices = session.open_model(session.base_of(opened, str(base_folder)))
    name, renderer = voices.attach(opened), session.renderer_of(opened, voices.tokenizer)
    prompts = [renderer.render_prompt([], QUESTIONS[n % len(QUESTIONS)]) for n in range(columns)]
    names = [session.NO_ADAPTER if n % 2 == 0 else name for n in range(columns)]
    chosen = [session.Column(n, p) for n, p in zip(names, prompts, strict=True)]
    sampling = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=tokens)
    together: list[dict] = []
    graphs: list[dict] = []
    apart: list[list[dict]] = []
    for _ in range(ROUNDS + 1):
        together.append(ask_together(voices, chosen, sampling))
        if torch.cuda.is_available():
            graphs.append(ask_with_graphs(voices, chosen, sampling))
        apart.append([generate_plain(voices, n, p.ids, tokens) for n, p in zip(names, prompts, strict=True)])
    del together[:1], graphs[:1], apart[:1]  # they warmed up
    weights = sum(p.numel() * p.element_size() for n, p in voices.model.named_parameters() if "lora_" not in n)
    rate = statistics.median(r["rate"] for r in together)
    plain_rate = statistics.median(sum(x["tokens"] for x in r) / sum(x["seconds"] for x in r) for r in apart)
    limit = bandwidth / weights
    return {
        "columns": columns,
        "tokens": tokens,
        "column_tokens_per_s": round(rate, 2),
        "first_token_s": round(statistics.median(r["first"] for r in together), 4),
        "plain_tokens_per_s": round(plain_rate, 2),  # of the one that is being written
        "plain_first_token_s": round(statistics.median(x["first"] for r in apart for x in r), 4),
        "ratio": round(rate * columns / plain_rate, 2),
        "limit_tokens_per_s": round(limit, 1),
        "limit_share": round(rate / limit, 3),
        "same_texts": sum(a == x["text"] for a, x in zip(together[-1]["texts"], apart[-1], strict=True)),
        **(describe_graphs(graphs, together, plain_rate) if graphs else {}),
    }


def ask_with_graphs(voices: session.LoadedModel, columns: Sequence[session.Column], sampling: Sampling) -> dict:
    """ask_together() with a CUDA graph; `captured` is false where none could be made."""
    captured = []
    real = decode_loop.capture_graph
    try:
        decode_loop.capture_graph = lambda forward: captured.append(real(forward)) or captured[-1]
        return ask_together(voices, columns, sampling, graphs=True) | {"captured": bool(captured)}
    finally:
        decode_loop.capture_graph = real


def describe_graphs(graphs: list[dict], together: list[dict], plain_rate: float) -> dict:
    """What CUDA graphs change: whether they may become the default."""
    rate = statistics.median(r["rate"] for r in graphs)
    return {
        "graph_captured": all(r["captured"] for r in graphs),
        "graph_tokens_per_s": round(rate, 2),
        "graph_first_token_s": round(statistics.median(r["first"] for r in graphs), 4),
        "graph_ratio": round(rate * len(graphs[0]["texts"]) / plain_rate, 2),
        "graph_same_texts": sum(a == b for a, b in zip(graphs[-1]["texts"], together[-1]["texts"], strict=True)),
    }


def ask_together(
    voices: session.LoadedModel, columns: Sequence[session.Column], sampling: Sampling, graphs: bool = False
) -> dict:
    """All columns in one batch, as the page does it. rate: tokens/s of a column on average."""
    os.environ["PERSONA_CUDA_GRAPHS"] = str(int(graphs))
    start = time.perf_counter()
    *_, replies = session.stream_replies(voices, columns, sampling, stop_id=-1)  # none of its ids
    seconds = time.perf_counter() - start
    return {
        "rate": sum(r.tokens for r in replies) / len(replies) / seconds,
        "first": max(r.first for r in replies),
        "texts": [r.text for r in replies],
    }


class FirstToken(BaseStreamer):
    """When the first token came."""

    def __init__(self) -> None:
        self.puts, self.seconds, self.start = 0, 0.0, time.perf_counter()

    def put(self, value: Any) -> None:
        self.puts += 1
        if self.puts == 2:  # the prompt is the first put
            self.seconds = time.perf_counter() - self.start

    def end(self) -> None:
        pass


@torch.inference_mode()
def generate_plain(voices: session.LoadedModel, name: str, ids: list[int], tokens: int) -> dict:
    """One reply by transformers' generate, eager and with its default cache."""
    model, streamer = voices.model, FirstToken()
    prompt = torch.tensor([ids], device=model.device)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": tokens, "do_sample": False,
               "eos_token_id": voices.tokenizer.eos_token_id, "streamer": streamer}  # fmt: skip
    if name == session.NO_ADAPTER:
        with model.disable_adapter():
            out = model.generate(input_ids=prompt, **options)
    else:
        model.set_adapter(name)
        out = model.generate(input_ids=prompt, **options)
    seconds = time.perf_counter() - streamer.start
    written = out[0, len(ids) :].tolist()
    return {
        "tokens": len(written),
        "seconds": seconds,
        "first": streamer.seconds,
        "text": voices.tokenizer.decode(written, skip_special_tokens=True),
    }
